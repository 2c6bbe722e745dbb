"""GridDyLiN: frames in closed form, what it takes from a teacher, and that it learns a motion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nelf import paths
from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.lightfields import GridDyLiN, GridR2L
from nelf.lightfields.frames import EMPTY, FrameGrid, grid_at, motion_at, window_at
from nelf.lightfields.volume import MOST_CORNERS
from nelf.rays import Rays
from nelf.scene import Geometry

RADIUS, SWING = 0.45, 0.5
FEATURES = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, -1.0, 0.0, 0.5], [0.0, 0.0, 0.5, 0.0]])


def small(**changes: Any) -> GridDyLiN:
    options = {"width": 8, "depth": 4, "resolution": 20, "features": 4, "motion_cells": 5, "motion_times": 4}
    return GridDyLiN(**{**options, **changes})


def place(controls: Tensor) -> Tensor:
    """Where the ball is (..., 3): along x with the time, up with a second control."""
    up = controls[..., 1] - 0.5 if controls.shape[-1] > 1 else torch.zeros_like(controls[..., 0])
    return torch.stack([SWING * (2 * controls[..., 0] - 1), torch.zeros_like(up), 0.6 * up], -1)


def ball_color(positions: Tensor) -> Tensor:
    """The color of a place of the ball, from its middle."""
    return (0.5 + positions / (2 * RADIUS)).clamp(0, 1)


class AtRest:
    """The ball in the middle."""

    def sigma(self, positions: Tensor) -> Tensor:
        return (positions.norm(dim=-1) < RADIUS) * 200.0

    def rgb(self, positions: Tensor, viewdirs: Tensor) -> Tensor:
        return ball_color(positions)


class Ball:
    """A teacher in closed form, that knows its motion."""

    def __init__(self, controls: int = 1) -> None:
        self.controls = controls

    def sigma(self, positions: Tensor, controls: Tensor) -> Tensor:
        assert controls.shape == (len(positions), self.controls)
        return AtRest().sigma(positions - place(controls))

    def rgb(self, positions: Tensor, viewdirs: Tensor, controls: Tensor) -> Tensor:
        return ball_color(positions - place(controls))

    def motion(self) -> tuple[Tensor, Tensor]:
        ends = [[(-place(torch.eye(self.controls)[k] * t + 0.5 * (1 - torch.eye(self.controls)[k]))) for t in (0, 1)]
                for k in range(self.controls)]  # fmt: skip
        values = torch.stack([torch.stack(each) for each in ends])[:, :, None, None, None].expand(-1, -1, 2, 3, 2, -1)
        return values, torch.tensor([-2.0, -2.0, -2.0, 2.0, 2.0, 2.0])

    def canonical(self) -> AtRest:
        return AtRest()


class OnlyDensity:
    """A teacher of which nothing but its density at any moment is known."""

    controls = 1

    def sigma(self, positions: Tensor, controls: Tensor) -> Tensor:
        return Ball().sigma(positions, controls)


def picture(rays: Rays) -> Tensor:
    """The ball along rays: (..., 4) color, not premultiplied, and opacity."""
    assert rays.controls is not None
    offset = rays.origins - place(rays.controls)
    middle = -(offset * rays.viewdirs).sum(-1)
    inside = RADIUS**2 - (offset.square().sum(-1) - middle**2)
    distance = middle - inside.clamp(min=0).sqrt()
    rgb = ball_color(offset + distance[..., None] * rays.viewdirs)
    return torch.cat([rgb, (inside > 0)[..., None].float()], -1)


def views(count: int = 12, size: int = 32, controls: int = 1) -> Camera:
    camera = Camera.from_fov(paths.hemisphere(count, 4.0, (-60.0, 60.0)), 0.7, size, size)
    moments = torch.rand(count, controls, generator=torch.Generator().manual_seed(2))
    moments[:, 0] = torch.linspace(0, 1, count)[torch.randperm(count, generator=torch.Generator().manual_seed(1))]
    return replace(camera, controls=moments)


def geometry(camera: Camera, controls: int = 1) -> Geometry:
    box = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
    return Geometry(box, 2.5, 5.5, camera, torch.ones(3), ("time", "height")[:controls])


@pytest.fixture(autouse=True, scope="module")
def _few_cells() -> Iterator[None]:
    """Small scenes need not be searched as finely as large ones."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("nelf.lightfields.grid_dylin.BOX_CELLS", 20)
        patched.setattr("nelf.lightfields.grid_dylin.TRIM_VIEWS", 6)
        yield


@pytest.fixture(scope="module")
def taught() -> GridDyLiN:
    """A network that has begun with the ball, untrained."""
    torch.manual_seed(0)
    network = small()
    network.prepare(geometry(views()), None, Ball())  # type: ignore[arg-type]
    network.low_precision = False
    return network.eval()


def psnr(network: GridR2L, camera: Camera) -> float:
    errors = []
    for index in range(len(camera)):
        truth = picture(camera[index].rays())
        expected = truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:]
        errors.append((network.render(camera[index]).rgb - expected).square().mean())
    return float(-10 * torch.stack(errors).mean().log10())


# -------------------------------------------------------------------------------------------- frames


def test_the_motion_grid_is_linear_in_space_and_in_each_control() -> None:
    """Values of functions that are linear in all of them are read exactly between the nodes."""
    times, shape = 4, (3, 2, 5)
    line = [torch.linspace(0, 1, n) for n in (times, *shape)]
    t, z, y, x = torch.meshgrid(*line, indexing="ij")
    first = torch.stack([t, x * t, t * z - y, 1 + 2 * x], -1)
    second = torch.stack([t * t, y, t, z], -1)  # not linear in t: its nodes are at thirds
    box = torch.tensor([-1.0, 0.0, 2.0, 3.0, 0.5, 3.0])
    inside = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    positions = box[:3] + inside * (box[3:] - box[:3])
    grid = grid_at(torch.stack([first, second]), torch.tensor([0.4, 0.5]))
    px, py, pz = inside.unbind(-1)
    squared = (1 / 9 + 4 / 9) / 2  # half-way between the nodes at 1/3 and 2/3
    expected = [0.4 + squared + 0 * px, 0.4 * px + py, 0.4 * pz - py + 0.5, 1 + 2 * px + pz]
    torch.testing.assert_close(motion_at(grid, box, positions), torch.stack(expected, -1), atol=1e-5, rtol=1e-5)
    values = torch.stack([first, second])
    for end, node in ((-3.0, 0), (0.0, 0), (1.0, -1), (7.0, -1)):  # clamped
        torch.testing.assert_close(grid_at(values, torch.tensor([end, end])), first[node] + second[node])


@pytest.mark.parametrize(
    ("time", "expected"), [(0.0, 0), (0.249, 0), (0.25, 1), (0.99, 3), (1.0, 3), (-2.0, 0), (9.0, 3)]
)
def test_windows_of_the_time(time: float, expected: int) -> None:
    assert window_at(time, 4) == expected


def linear_network() -> GridDyLiN:
    """A volume at rest whose numbers are linear in space, all of whose corners exist."""
    network = small(controls=2)
    network.volume.resize(torch.ones(9, 8, 7, dtype=torch.bool))
    network.canonical_aabb.copy_(torch.tensor([-2.0, -1.8, -1.9, 1.7, 2.1, 2.0]))
    network.frames.resize(torch.rand(3, 6, 7, 8, generator=torch.Generator().manual_seed(4)) > 0.4)
    network.aabb.copy_(torch.tensor([-1.0, -0.8, -1.1, 1.2, 0.9, 1.0]))
    network.motion_aabb.copy_(torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]))
    network.unit.fill_(3.0)
    where = network.volume.positions(network.canonical_aabb)
    with torch.no_grad():
        network.volume.density.copy_(where @ torch.tensor([1.0, 2.0, 3.0]))
        network.volume.features.copy_(where @ FEATURES)
    return network


def test_a_frame_is_the_volume_at_rest_moved_in_closed_form() -> None:
    """Displacement: x by a tenth of z and by 0.3 t; up by the second control. Density: 2 t more."""
    network = linear_network()
    line = torch.linspace(-1.5, 1.5, 5)
    z = line[:, None, None].expand(5, 5, 5)
    with torch.no_grad():
        for node, t in enumerate(torch.linspace(0, 1, 4)):
            network.motion[0, node, ..., 0] = (0.1 * z + 0.3 * t) / 3.0
            network.motion[0, node, ..., 3] = 2 * t / 100
            network.motion[1, node, ..., 2] = 0.2 * t / 3.0
    for t, height, window in ((0.0, 0.5, 0), (0.45, 0.9, 1), (1.0, 0.0, 2)):
        frame = network.frame(torch.tensor([t, height]))
        exists = network.frames.exists[window]
        assert torch.equal(frame.index >= 0, exists)
        corners = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (6, 7, 8)), indexing="ij"), -1)[exists]
        p = network.aabb[:3] + corners.flip(-1) / torch.tensor([7, 6, 5]) * (network.aabb[3:] - network.aabb[:3])
        q = p + torch.stack([0.1 * p[:, 2] + 0.3 * t, 0 * p[:, 0], 0 * p[:, 0] + 0.2 * height], -1)
        torch.testing.assert_close(frame.density, q @ torch.tensor([1.0, 2.0, 3.0]) + 2 * t, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(frame.features, q @ FEATURES, atol=1e-4, rtol=1e-4)


def test_a_corner_at_rest_that_does_not_exist_is_empty() -> None:
    network = linear_network()
    exists = torch.zeros(9, 8, 7, dtype=torch.bool)
    exists[0, 0, 0] = True
    network.volume.resize(exists)
    frame = network.frame(torch.zeros(2))
    torch.testing.assert_close(frame.density, torch.full_like(frame.density, EMPTY))
    assert not frame.features.any()


def test_the_last_frame_is_kept_until_something_changes() -> None:
    network, moment = linear_network(), torch.tensor([0.2, 0.3])
    with torch.no_grad():
        first = network.frame(moment)
        assert network.frame(moment.clone()) is first
        other = network.frame(torch.tensor([0.2, 0.4]))
        assert other is not first
        for change in (network.motion, network.volume.density, network.volume.features):
            before = network.frame(moment)
            change += 0.1
            after = network.frame(moment)
            assert after is not before
            assert not all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        before = network.frame(moment)
    optimizer = torch.optim.Adam([network.volume.density], lr=0.1, fused=True)  # which counts no versions
    network.frame(moment).density.sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(network.frame(moment).density, before.density)
    with torch.inference_mode():
        network.frame(moment)
    network.frame(moment).density.sum().backward()


# -------------------------------------------------------------------------------------------- pictures


def test_rays_of_several_moments_are_looked_up_each_in_its_own(taught: GridDyLiN) -> None:
    camera = views(4, 16)
    rays = camera.rays()
    with torch.no_grad():
        both = taught(rays)
        for index in range(4):
            torch.testing.assert_close(both[index : index + 1], taught(camera[index].rays()[None]))
        flat = rays.reshape(-1)
        mixed = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))
        straight, shuffled = taught.composite(flat), taught.composite(flat[mixed])
    for expected, got in zip(straight, shuffled, strict=True):
        torch.testing.assert_close(got, expected[mixed])
    assert float(straight.opacity.max()) > 0.9


def test_both_backends_render_the_same(taught: GridDyLiN, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = []
    for backend in ("reference", "cpu"):
        monkeypatch.setenv("NELF_KERNELS", backend)
        taught._last = None
        pictures.append(taught.render(views()[3]))
    for expected, got in zip(*pictures, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def test_gradient_reaches_every_parameter(taught: GridDyLiN) -> None:
    network = small()
    network.load_state_dict(taught.state_dict())
    nn.init.normal_(network.tail.weight, std=0.1)
    camera = views(3)
    network.train()(camera.rays()).square().mean().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []
    reached = network.motion.grad.abs().flatten(0, 4).sum(0)
    assert (reached > 0).all()  # displacements along all axes, and the density


def test_what_lacks_a_time_is_told_in_one_line(taught: GridDyLiN) -> None:
    camera = views()[0]
    with pytest.raises(UserError, match=r"GridDyLiN: takes 1 controls, .* its rays have 0; camera.at"):
        taught.render(camera.at())
    with pytest.raises(UserError, match=r"the scene's cameras have 0\. For static scenes there is model=grid_r2l"):
        small().prepare(geometry(camera, 0))
    with pytest.raises(UserError, match=r"its teacher moves with 2; allowed: model.controls=2"):
        small().prepare(geometry(camera), None, Ball(2))  # type: ignore[arg-type]
    more = taught.render(camera.at(0.3, 0.9)).rgb  # what it does not take is left out
    assert torch.equal(more, taught.render(camera.at(0.3)).rgb)


# -------------------------------------------------------------------------------------------- the beginning


@pytest.mark.parametrize("controls", [1, 2])
def test_an_untrained_network_draws_its_teacher_at_any_moment(controls: int) -> None:
    torch.manual_seed(0)
    network = small(controls=controls, resolution=32)
    network.prepare(geometry(views(controls=controls), controls), None, Ball(controls))  # type: ignore[arg-type]
    camera = replace(views(5, controls=controls), c2w=paths.orbit(5, 4.0, 20.0))
    assert psnr(network, camera) > 20  # its outline swells by half a voxel
    still = camera.at(*[0.5] * controls)
    for index in (0, 4):  # another moment, another picture
        assert float((network.render(camera[index]).rgb - network.render(still[index]).rgb).abs().mean()) > 0.01


def test_frames_have_corners_where_the_ball_is_in_their_window(taught: GridDyLiN) -> None:
    exists, voxel = taught.frames.exists, taught.voxel
    for window in (0, 7, 15):
        _, places = taught.frames.window(window)
        positions = taught._place(places)
        ends = [place(torch.tensor([(window + share) / 16])) for share in (0.0, 1.0)]
        nearest = torch.stack([(positions - end).norm(dim=-1) for end in ends]).amin(0)
        assert float(nearest.max()) < RADIUS + 6 * voxel
        # Every corner near the surface exists at both ends.
        every = torch.stack(torch.meshgrid(*(torch.arange(n) for n in exists.shape[1:]), indexing="ij")[::-1], -1)
        for end in ends:
            off = ((taught.aabb[:3] + voxel * every) - end).norm(dim=-1) - RADIUS
            assert exists[window][off.abs() < voxel].float().mean() > 0.97
    assert exists[0].sum() < 0.65 * exists.any(0).sum()


def test_a_motion_of_another_shape_is_sampled_at_its_own_nodes() -> None:
    """2 x 3 x 2 nodes at 2 times of a motion that is linear in all of them: exact at 5^3 nodes and 4 times."""
    t, z, y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (2, 2, 3, 2)), indexing="ij")
    values = torch.stack([t + x, y * t, z - x], -1)[None]
    network, box = small(), torch.tensor([-1.0, -2.0, 0.0, 1.0, 2.0, 3.0])
    network.unit.fill_(2.5)
    network._take_motion(values, box)
    t, z, y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (4, 5, 5, 5)), indexing="ij")
    expected = torch.stack([t + x, y * t, z - x, 0 * x], -1)[None]
    torch.testing.assert_close(network.displacements.detach(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(network.motion_aabb, box)


def test_a_teacher_with_nothing_but_a_density_gives_its_middle_and_no_motion() -> None:
    network = small()
    network.prepare(geometry(views()), None, OnlyDensity())  # type: ignore[arg-type]
    assert not network.motion.any()
    camera = views()[3]
    assert network.render(camera.at(0.5)).opacity.mean() > 0.02
    off = network.volume.positions(network.canonical_aabb)[network.volume.density > 0].norm(dim=-1)
    assert float(off.max()) < RADIUS + 2 * network.voxel


def test_without_a_teacher_all_corners_exist() -> None:
    network = small(resolution=8)
    camera = views()
    network.prepare(geometry(camera))
    assert network.frames.exists.all()
    assert network.aabb.tolist() == pytest.approx([-1.5] * 3 + [1.5] * 3)
    assert len(network.volume.density) >= 8**3


def test_a_frame_of_too_many_corners_gets_larger_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nelf.lightfields.grid_r2l.VOXELS", (0.35, 0.35))
    monkeypatch.setattr("nelf.lightfields.grid_r2l.CORNERS", (12, 256))
    sizes = {}
    for most in (10**6, 3000):
        monkeypatch.setattr("nelf.lightfields.grid_dylin.FRAME", most)
        network = small(resolution=None)
        network.prepare(geometry(views()), None, Ball())  # type: ignore[arg-type]
        sizes[most] = max(len(network.frames.window(window)[1]) for window in range(16)), network.voxel
    assert sizes[3000][0] <= 3000 < sizes[10**6][0]
    assert sizes[3000][1] > sizes[10**6][1]


def test_what_no_moment_reads_is_trimmed_and_the_pictures_stay(taught: GridDyLiN) -> None:
    network, camera = small(), views()
    network.load_state_dict(taught.state_dict())
    network.eval()
    before = [network.render(view).rgb for view in (camera[0], camera[5], camera[11])]
    rows, corners = len(network.volume.density), int(network.frames.exists.sum())
    network.trim(camera)
    assert len(network.volume.density) < 0.9 * rows
    assert int(network.frames.exists.sum()) < corners
    for view, expected in zip((camera[0], camera[5], camera[11]), before, strict=True):
        assert float((network.render(view).rgb - expected).square().mean()) < 1e-4


# -------------------------------------------------------------------------------------------- learning


def learn(network: GridR2L, steps: int = 60) -> GridR2L:
    """Fit views of the ball, one at a time."""
    camera = views(24)
    groups = network.parameter_groups(3e-3, 0.0)
    optimizer = torch.optim.Adam(groups, fused=True)
    network.train()
    for step in range(steps):
        rays = camera[step * 7 % 24].rays()
        truth = picture(rays)
        drawn = network(rays[None])[0]
        target = torch.cat([truth[..., :3] * truth[..., 3:], truth[..., 3:]], -1)
        optimizer.zero_grad()
        (drawn - target).square().mean().backward()
        optimizer.step()
    return network.eval()


def test_it_learns_a_motion_that_its_teacher_knows_and_beats_one_at_rest() -> None:
    torch.manual_seed(0)
    unseen = replace(views(6), c2w=paths.orbit(6, 4.0, 20.0))
    moving = small()
    moving.prepare(geometry(views(24)), None, Ball())  # type: ignore[arg-type]
    begun = psnr(moving, unseen)
    still = GridR2L(width=8, depth=4, resolution=20)
    still.prepare(geometry(views(24)))
    found = psnr(learn(moving), unseen), psnr(learn(still), unseen)
    assert found[0] > begun + 2
    assert found[0] > found[1] + 6


def test_it_learns_a_displacement_from_pictures() -> None:
    """The volume at rest is given and held; the motion begins at zero, and moves the ball to where it is seen."""
    torch.manual_seed(0)
    network = small(motion_lr=3.0)
    network.prepare(geometry(views(24)), None, Ball())  # type: ignore[arg-type]
    with torch.no_grad():
        network.motion.mul_(0.5)  # half of the way
    before = network.displacements.detach().clone()
    network.volume.requires_grad_(False)
    learn(network)
    ball = torch.zeros(1, 3)
    for time in (0.0, 1.0):
        controls = torch.tensor([time])
        at = ball + place(controls)
        wanted = -place(controls)[0]
        with torch.no_grad():
            found = network._motion(controls, at)[0, 0]
        start = motion_at(grid_at(before, controls), network.motion_aabb, at)[0, 0]
        assert float((found - wanted).abs()) < 0.7 * float((start - wanted).abs())


# -------------------------------------------------------------------------------------------- state and arguments


def test_it_travels_with_its_weights(taught: GridDyLiN) -> None:
    other = small()
    other.load_state_dict(taught.state_dict())
    other.low_precision = False
    other.eval()
    assert torch.equal(other.render(views()[2]).rgb, taught.render(views()[2]).rgb)
    other.prepare(geometry(views(), 0))  # only the first scene counts


@pytest.mark.parametrize(
    "change",
    [
        {"masks": lambda v: v[:, 1:]},
        {"masks": lambda v: v.float()},
        {"masks": lambda v: v[0]},
        {"masks": lambda v: v[:0]},
        {"masks": lambda v: v * 0},
        {"masks": lambda v: v.repeat(40, 1)},
        {"shape": lambda v: v * 1000},
        {"shape": lambda v: torch.tensor([MOST_CORNERS, 2, 2], dtype=torch.int32)},
        {"shape": lambda v: torch.tensor([1, 1, 64], dtype=torch.int32)},
        {"shape": lambda v: v.float()},
    ],
)
def test_frames_whose_parts_do_not_belong_together_are_refused(change: dict[str, Any]) -> None:
    frames = FrameGrid()
    frames.resize(torch.rand(2, 4, 4, 4) > 0.3)
    state = frames.state_dict()
    state.update({name: alter(state[name]) for name, alter in change.items()})
    other = FrameGrid()
    with pytest.raises(ValueError, match=r"^masks: "):
        other.load_state_dict(state)
    assert len(other.window(0)[1]) == 8**3


def test_a_window_without_a_corner_gets_one() -> None:
    frames = FrameGrid()
    frames.resize(torch.zeros(2, 3, 3, 3, dtype=torch.bool))
    assert frames.exists.flatten(1).sum(1).tolist() == [1, 1]


def test_parameter_groups_hold_each_parameter_once() -> None:
    network = small(motion_lr=0.2)
    groups = network.parameter_groups(lr=1e-3, weight_decay=0.1)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in network.parameters())
    assert groups[-1]["params"][0] is network.motion
    assert [g["lr"] for g in groups] == pytest.approx([1e-3, 4e-3, 20e-3, 2e-4])
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("wrong", [{"controls": 0}, {"motion_cells": 1}, {"motion_times": 1}, {"depth": 3}])
def test_wrong_arguments_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        small(**wrong)
