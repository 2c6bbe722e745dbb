"""Checkpoints of MobileR2L, in and out; its network is restated here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nelf.errors import UserError
from nelf.interop import mobile_r2l
from nelf.interop.mobile_r2l import save_tar
from nelf.interop.torch_file import read
from nelf.lightfields import MobileR2L
from nelf.rays import Rays


class Block(nn.Module):
    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__()
        parts = [nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), act, nn.Conv2d(width, width, 1)]
        self.conv_block = nn.Sequential(*parts, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Original(nn.Module):
    """MobileR2L's network for ``sr_kernel`` = kernels, widths as it picks them; ``last`` enlarges by the last step."""

    def __init__(
        self, blocks: int, width: int, points: int, kernels: tuple[int, int, int], ups: int, last: int
    ) -> None:
        super().__init__()
        act = nn.GELU()
        self.head = nn.Sequential(nn.Conv2d(points * 39, width, 1), act)
        self.body = nn.Sequential(*(Block(width, act) for _ in range(blocks)))
        tail: list[nn.Module] = []
        for step in range(ups - 1):
            tail += [nn.ConvTranspose2d(kernels[step] if step else width, kernels[step], 4, 2, 1)]
            tail += [Block(kernels[step], act), Block(kernels[step], act)]
        size = (4, 2, 1) if last == 2 else (3, 3, 0)
        tail += [nn.ConvTranspose2d(kernels[1], kernels[2], *size), Block(kernels[2], act), Block(kernels[2], act)]
        self.tail = nn.Sequential(*tail, nn.Conv2d(kernels[2], 3, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.tail(self.body(x) + x)


def embedded(rays: Rays, points: int) -> Tensor:
    """(B, 39 P, h, w): per point and coordinate, six sines, six cosines, the coordinate."""
    depths = torch.linspace(2.0, 6.0, points)
    at = rays.origins[..., None, :] + rays.directions[..., None, :] * depths[:, None]  # (B, h, w, P, 3)
    phases = at[..., None] * 2.0 ** torch.arange(6)
    return torch.cat([phases.sin(), phases.cos(), at[..., None]], -1).flatten(3).permute(0, 3, 1, 2)


def trained(network: nn.Module) -> nn.Module:
    """A network whose norms have seen something."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return network.eval()


def converted(path: Path, content: Any, **options: Any) -> Any:
    torch.save(content, path)
    checkpoint = read(path)
    assert mobile_r2l.recognizes(checkpoint.content)
    return mobile_r2l.convert(checkpoint, **options).network(path)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("kernels", "ups", "last"), [((6, 6, 4), 3, 2), ((6, 6, 4), 3, 3), ((6, 6, 4), 2, 2)])
def test_an_import_draws_what_the_original_draws(tmp_path, kernels, ups, last, prefix) -> None:
    original = trained(Original(2, 8, 3, kernels, ups, last))
    state = {f"{prefix}{name}": values for name, values in original.state_dict().items()}
    network = converted(tmp_path / "ckpt.tar", {"network_fn_state_dict": state, "network_fn": None})
    assert (network.arguments["depth"], network.arguments["points"]) == (6, 3)
    rays = Rays(torch.randn(1, 4, 5, 3), torch.randn(1, 4, 5, 3))
    with torch.no_grad():
        expected = original(embedded(rays, 3)).permute(0, 2, 3, 1)
        drawn = network(rays)
    assert drawn.shape == expected.shape == (1, 4 * 2 ** (ups - 1) * last, 5 * 2 ** (ups - 1) * last, 3)
    assert torch.allclose(drawn, expected, atol=1e-5)
    assert network.prepared  # a scene does not change its depth range


def test_what_the_file_does_not_tell_is_taken_from_the_command_line(tmp_path) -> None:
    state = Original(1, 8, 13, (4, 4, 4), 3, 2).state_dict()
    network = converted(tmp_path / "x.tar", state, near=0.0, far=1.0, activation="relu", multires=0)
    assert (float(network.near), float(network.far)) == (0.0, 1.0)
    assert network.arguments["activation"] == "relu"
    assert network.arguments["points"] == 13 * 39 // 3


def test_layers_that_do_not_fit_are_named(tmp_path) -> None:
    state = Original(1, 8, 3, (4, 4, 4), 3, 2).state_dict()
    del state["body.0.conv_block.4.running_var"]
    with pytest.raises(UserError, match=r"do not fit together: body\.0\.\S+4\.running_var is None, not \(8,\)"):
        converted(tmp_path / "x.tar", state)
    with pytest.raises(UserError, match=r"head.0.weight has 117 columns; expected 27 for each point"):
        converted(tmp_path / "x.tar", state, multires=4)
    head = {"head.0.weight": state["head.0.weight"]}
    with pytest.raises(UserError, match=r"is no checkpoint of MobileR2L: found head.0.weight; expected a tail"):
        converted(tmp_path / "x.tar", head)
    with pytest.raises(UserError, match="expected a tail that enlarges"):
        converted(tmp_path / "x.tar", {**state, "tail.0.weight": torch.tensor(1.0)})
    state = Original(1, 8, 3, (4, 4, 4), 3, 2).state_dict()
    state["tail.9.bias"][1] = torch.inf
    with pytest.raises(UserError, match=r"tail\.9\.bias holds numbers that are not finite"):
        converted(tmp_path / "x.tar", state)


# ---------------------------------------------------------------------------------------------------- writing back


def test_a_checkpoint_has_the_originals_keys_and_nothing_pickled(tmp_path) -> None:
    network = MobileR2L()
    checkpoint = torch.load(save_tar(network, tmp_path / "lego.tar"), weights_only=True)
    assert {"global_step", "best_psnr", "best_psnr_step", "optimizer_state_dict", "scaler"} < set(checkpoint)
    state = checkpoint["network_fn_state_dict"]
    assert len(state) == 500
    assert state["body.28.conv_block.4.running_var"].shape == (256,)
    assert {"head.0.weight", "tail.0.weight", "tail.9.bias"} < set(state)
    assert torch.equal(state["tail.9.bias"], network.tail[9].bias)


def test_the_original_loads_either_file_as_it_would(tmp_path) -> None:
    """Bare to draw; wrapped, with an optimizer whose state it loads, to train on."""
    network = trained(MobileR2L(width=8, depth=4, points=3, sr_kernels=(6, 6, 4)))
    bare, wrapped = Original(1, 8, 3, (6, 6, 4), 3, 2), nn.DataParallel(Original(1, 8, 3, (6, 6, 4), 3, 2))
    drawing = torch.load(save_tar(network, tmp_path / "draw.tar"), weights_only=True)
    bare.load_state_dict(drawing["network_fn_state_dict"])
    training = torch.load(save_tar(network, tmp_path / "train.tar", resume=True), weights_only=True)
    wrapped.load_state_dict(training["network_fn_state_dict"])
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.1)
    optimizer.load_state_dict(training["optimizer_state_dict"])
    assert optimizer.param_groups[0]["lr"] == 5e-4
    wrapped(torch.randn(2, 117, 2, 2)).sum().backward()
    optimizer.step()
    rays = Rays(torch.randn(1, 4, 5, 3), torch.randn(1, 4, 5, 3))
    with torch.no_grad():
        assert torch.allclose(network(rays), bare.eval()(embedded(rays, 3)).permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize(("factor", "kernels"), [(2, (4,)), (4, (6, 4)), (8, (6, 6, 4)), (12, (6, 6, 4))])
def test_every_tail_that_is_written_can_be_built_by_the_original(tmp_path, factor, kernels) -> None:
    network = MobileR2L(width=8, depth=4, points=3, sr_factor=factor, sr_kernels=kernels)
    state = torch.load(save_tar(network, tmp_path / "x.tar"), weights_only=True)["network_fn_state_dict"]
    ups = len(kernels)
    asked = {1: (0, 8, 4), 2: (6, 6, 4), 3: (6, 6, 4)}[ups]  # its --sr_kernel, always three numbers
    Original(1, 8, 3, asked, ups, 3 if factor == 12 else 2).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"upsampling": "shuffle"}, "MobileR2L's code has no tail 'shuffle', only 'transposed'"),
        ({"sr_kernels": (8, 4, 4)}, r"cannot build sr_kernels \[8, 4, 4\]; the first two have to be equal"),
        ({"sr_kernels": (8, 4, 4), "sr_factor": 12}, "the first two have to be equal"),
        ({"sr_factor": 1}, "has no sr_factor 1"),
    ],
)
def test_what_the_original_cannot_build_is_refused(tmp_path, arguments, line) -> None:
    with pytest.raises(UserError, match=line):
        save_tar(MobileR2L(**{"width": 8, "depth": 2, **arguments}), tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()
