"""HyperNGP: codes and windows in their place, every part learns, background points stay, and a scene that moves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nelf
from nelf import storage
from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.fields import NGP, HyperNGP
from nelf.fields.warp import moved_along
from nelf.rays import Rays
from nelf.scene import Geometry

TINY: dict[str, Any] = {"levels": 4, "log2_table": 12, "finest_resolution": 64, "grid_resolution": 16}
SMALL: dict[str, Any] = {
    **TINY, "max_samples": 64, "warp_width": 16, "warp_depth": 2, "ambient_width": 16, "ambient_depth": 2,
    "motion_cells": 4, "motion_times": 3, "window_steps": 100, "low_precision": False,
}  # fmt: skip


def geometry(times: Tensor | None = None, views: Tensor | None = None, points: Tensor | None = None) -> Geometry:
    """Three cameras around a box that is four units wide and off the origin."""
    c2w = torch.eye(3, 4).repeat(3, 1, 1)
    c2w[:, :, 3] = torch.tensor([[1.0, 0.0, 6.0], [1.5, 0.0, 6.0], [0.5, 0.0, 6.0]])
    camera = Camera.from_fov(c2w, 1.2, 8, 8, times if times is not None else torch.tensor([0.0, 1.0, 0.25]))
    box = torch.tensor([-1.0, -2.0, -2.0, 3.0, 2.0, 2.0])
    return Geometry(box, 2.0, 9.0, replace(camera, view=views), torch.ones(3), ("time",), points)


def rays(count: int, views: bool = False) -> Rays:
    origins = torch.tensor([[0.0, 0.0, 2.0]]).repeat(count, 1) + 0.3 * torch.randn(count, 3)
    view = torch.randint(0, 3, (count,)) if views else None
    return Rays(origins, torch.tensor([[0.0, 0.0, -1.0]]).repeat(count, 1), torch.rand(count, 1), view)


def open_all(field: HyperNGP) -> None:
    field.opened.fill_(1.0)


@pytest.mark.parametrize("warp", ["se3", "translation", "grid", "none"])
def test_gradient_reaches_every_parameter(warp: str) -> None:
    """Networks of motion begin at almost nothing, so their last layers are given something to pass on."""
    field = HyperNGP(**SMALL, warp=warp, appearance=5).train()  # type: ignore[arg-type]
    field.appearance.resize(3)  # type: ignore[union-attr]
    field.codes.prepare(torch.tensor([0.0, 0.25, 1.0]))
    open_all(field)
    for part in (field.warp, field.slices):
        if part is not None and not isinstance(part, nn.ParameterList) and hasattr(part, "head"):
            nn.init.normal_(part.head.weight, std=0.1)
    (out,) = field.render_rays(rays(256, views=True))
    out.rgb.square().sum().backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_point_moves_by_the_twist_of_its_code_and_its_slice_is_asked_before() -> None:
    """With constant heads, the density is NGP's at the place that the twist leads to."""
    field, plain = HyperNGP(**SMALL, ambient=1), NGP(**TINY, max_samples=64, low_precision=False)
    nn.init.normal_(field.encoding.table)
    twist = torch.tensor([0.2, -0.1, 0.4, 0.05, 0.1, -0.05])
    with torch.no_grad():
        field.warp.head.bias.copy_(twist)  # type: ignore[union-attr,operator]
        field.warp.head.weight.zero_()  # type: ignore[union-attr,operator]
        field.density_net[0].weight[:, 8:].zero_()  # type: ignore[index,union-attr,operator]
        plain.encoding.table.copy_(field.encoding.table)
        plain.density_net[0].weight.copy_(field.density_net[0].weight[:, :8])  # type: ignore[index,union-attr,arg-type]
        plain.density_net[2].weight.copy_(field.density_net[2].weight)  # type: ignore[arg-type]
    open_all(field)
    positions = (torch.rand(64, 3) - 0.5) * 0.4
    at_rest = positions + moved_along(*twist.expand(64, 6).split(3, -1), positions)
    torch.testing.assert_close(field.density(positions, torch.rand(64, 1))[0], plain.density(at_rest)[0])

    asked = []
    field.slices.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0]))  # type: ignore[union-attr]
    field.density(positions, torch.rand(64, 1))
    torch.testing.assert_close(asked[0], positions)


def test_the_ambient_space_counts_after_the_first_steps_and_then_as_sine_and_cosine() -> None:
    """1000 steps of 80,000 nothing, fully after 11,000 of them, half in the middle, as in HyperNeRF's recipe.

    Trap: a cosine is 1 where nothing is known yet, which is a bias, and takes all density away.
    """
    field = HyperNGP(**{**SMALL, "window_steps": 80_000})
    nn.init.normal_(field.slices.head.bias)  # type: ignore[union-attr,arg-type]
    seen: list[Tensor] = []
    field.density_net.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    positions, w = torch.rand(4, 3) - 0.5, field.slices.head.bias.detach()  # type: ignore[union-attr]
    for step, share in ((0, 0.0), (1000, 0.0), (6000, 0.5), (11_000, 1.0), (80_000, 1.0), (200_000, 1.0)):
        field.sampler.grid.updates.fill_(1)
        field.before_step(step)
        seen.clear()
        field.density(positions, torch.zeros(4, 1))
        waves = share * torch.cat([w.sin(), w.cos() - 1])  # type: ignore[operator]
        torch.testing.assert_close(seen[0][:4, 8:12], waves.expand(4, 4), atol=1e-3, rtol=0)
        assert float(field.opened) == pytest.approx(min(step / 80_000, 1.0))


def test_windows_travel_with_the_weights() -> None:
    field, other = HyperNGP(**SMALL), HyperNGP(**SMALL)
    field.before_step(40)
    other.load_state_dict(field.state_dict())
    assert float(other.opened) == pytest.approx(0.4)
    now = HyperNGP(**{**SMALL, "window_steps": 0})
    now.before_step(0)
    assert float(now.opened) == 1.0


def test_the_scene_says_how_many_codes_there_are() -> None:
    field = HyperNGP(**SMALL, appearance=4)
    field.prepare(geometry(torch.tensor([0.5, 0.1, 0.5]), torch.tensor([0, 1, 2])))
    assert field.codes.times.tolist() == pytest.approx([0.1, 0.5])
    assert field.codes.rows.shape == (2, 8)
    assert field.appearance is not None
    assert field.appearance.rows.shape == (3, 4)
    with pytest.raises(UserError, match=r"^model.appearance: the views of this scene have no numbers; allowed: 0\.$"):
        field.prepare(geometry())


def test_appearance_is_that_of_the_view_and_the_mean_without_one() -> None:
    field = HyperNGP(**SMALL, appearance=4)
    field.prepare(geometry(views=torch.tensor([0, 1, 2])))
    nn.init.normal_(field.appearance.rows)  # type: ignore[union-attr]
    features, along = torch.randn(6, 16), rays(3)
    index = torch.tensor([0, 0, 1, 1, 2, 2])
    by_view = field.color(features, along.viewdirs[index], torch.tensor([0, 0, 1, 1, 2, 2]))
    torch.testing.assert_close(field.color_along(features, replace(along, view=torch.arange(3)), index), by_view)
    without = field.color_along(features, along, index)
    assert (by_view - without).abs().max() > 1e-3
    with torch.no_grad():
        field.appearance.rows.copy_(field.appearance.rows.mean(0).expand(3, -1))  # type: ignore[union-attr]
    torch.testing.assert_close(field.color(features, along.viewdirs[index], index), without)


def test_points_that_do_not_move_are_held_by_the_robust_loss() -> None:
    """Each moves by t = 0.003 of a box's side: 2 c t^2 / (t^2 + 4 c^2) with c = 0.001 is 2 c 9 / 13."""
    field = HyperNGP(**SMALL, warp="translation", background_points=50)
    term = field.regularizers["background"]
    field.prepare(geometry())
    assert float(term(None)) == 0.0  # type: ignore[arg-type]
    field.prepare(geometry(points=torch.rand(80, 3)))
    with torch.no_grad():
        field.warp.head.weight.zero_()  # type: ignore[union-attr,operator]
        field.warp.head.bias.copy_(torch.tensor([0.002, 0.001, -0.002]))  # type: ignore[union-attr,operator]
    found = term(None)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(2e-3 * 9 / 13))
    assert "points" not in field.state_dict()


def test_background_points_are_those_of_the_scene_in_the_field_s_space() -> None:
    field = HyperNGP(**SMALL)
    field.prepare(geometry(points=torch.tensor([[1.0, 0.0, 0.0], [3.0, 2.0, -2.0]])))
    torch.testing.assert_close(field.points, torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.5, -0.5]]))


def test_warp_and_slicing_surface_have_their_own_rate() -> None:
    field = HyperNGP(**SMALL, appearance=4, motion_lr=0.25)
    rest, moving = field.parameter_groups(2e-2, 0.0)
    assert (rest["lr"], moving["lr"]) == (2e-2, 5e-3)
    names = {id(parameter): name for name, parameter in field.named_parameters()}
    assert {names[id(each)].split(".")[0] for each in moving["params"]} == {"warp", "slices"}
    assert {names[id(each)].split(".")[0] for each in rest["params"]} == {
        "encoding", "density_net", "color_net", "codes", "appearance"
    }  # fmt: skip


def test_an_optimizer_meets_the_parameters_in_the_order_of_their_names() -> None:
    """Trap: a set has another order in each process, and a resumed optimizer gives its state to other parameters."""
    field = HyperNGP(**SMALL)
    names = {id(parameter): name for name, parameter in field.named_parameters()}
    for group in field.parameter_groups(1e-2, 0.0):
        found = [names[id(parameter)] for parameter in group["params"]]
        assert found == [name for name in names.values() if name in found]


def test_weights_come_back_with_their_codes_and_torn_ones_are_refused_in_a_line(tmp_path: Path) -> None:
    field = HyperNGP(**SMALL, appearance=4)
    field.prepare(geometry(views=torch.arange(3)))
    nn.init.normal_(field.codes.rows)
    config = {"_target_": "nelf.fields.HyperNGP", **SMALL, "appearance": 4}
    loaded = nelf.load(storage.save(field, tmp_path / "model.safetensors", config, "0" * 16))
    positions, controls = torch.rand(30, 3), torch.rand(30, 1)
    torch.testing.assert_close(loaded.sigma(positions, controls), field.eval().sigma(positions, controls))
    field.codes.times = torch.tensor([0.0, 0.5])
    file = storage.save(field, tmp_path / "torn.safetensors", config, "0" * 16)
    with pytest.raises(UserError, match=r"torn.safetensors: codes.times: are not 3 moments, one for each code"):
        nelf.load(file)


def test_an_unknown_warp_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected argument `warp` to be one of"):
        HyperNGP(warp="affine")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- a scene that moves


def disk(along: Rays) -> Tensor:
    """A red disk in the plane z = 0 that goes from left to right, over white: (N, 3)."""
    assert along.controls is not None
    hit = along.origins - along.directions * (along.origins[:, 2:] / along.directions[:, 2:])
    center = torch.cat([0.6 * along.controls - 0.3, torch.zeros(len(along), 2)], -1)
    inside = ((hit - center).norm(dim=-1) < 0.15).float()[:, None]
    return inside * torch.tensor([0.9, 0.1, 0.1]) + (1 - inside)


def random_rays(count: int) -> Rays:
    """From a plane above, at five moments."""
    origins = torch.cat([torch.rand(count, 2) - 0.5, torch.full((count, 1), 2.0)], -1)
    aims = torch.cat([torch.rand(count, 2) - 0.5, torch.zeros(count, 1)], -1)
    return Rays(origins, nn.functional.normalize(aims - origins, dim=-1), torch.randint(0, 5, (count, 1)) / 4)


def learned(field: NGP, steps: int = 250) -> float:
    """The PSNR, dB, at moments that it saw, after some steps."""
    optimizer = torch.optim.Adam(field.parameter_groups(1e-2, 0.0), betas=(0.9, 0.99), eps=1e-15)
    for step in range(steps):
        field.before_step(step)
        along = random_rays(128)
        (out,) = field.train().render_rays(along)
        error = (out.rgb + 1 - out.opacity[:, None] - disk(along)).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    along = random_rays(3000)
    with torch.no_grad():
        (out,) = field.eval().render_rays(along)
    return -10 * math.log10(float((out.rgb + 1 - out.opacity[:, None] - disk(along)).square().mean()))


@pytest.fixture(scope="module")
def static() -> float:
    """What a field that knows no time learns."""
    torch.manual_seed(0)
    return learned(NGP(**{**TINY, "max_samples": 32}, low_precision=False))


@pytest.mark.parametrize("warp", ["se3", "none"])
def test_it_learns_what_a_static_field_cannot(warp: str, static: float) -> None:
    """By its warp, or by the ambient space alone."""
    field = HyperNGP(**{**SMALL, "max_samples": 32, "window_steps": 50, "motion_lr": 0.3, "warp": warp})
    field.codes.prepare(torch.linspace(0, 1, 5))
    assert learned(field) > static + 2.0
