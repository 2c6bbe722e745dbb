"""Networks made ready for inference draw the same, with fewer operations in fewer bits."""

from __future__ import annotations

import pytest
import torch

from nelf.cameras import Camera
from nelf.compression.inference import optimize_for_inference
from nelf.kernels import multiplies_bfloat16
from nelf.lightfields import GridR2L, MobileR2L
from nelf.paths import orbit

CAMERA = Camera.from_fov(orbit(1, 4.0, 20.0)[0], 0.7, 16, 16)
NETWORKS = {
    "mobile": lambda: MobileR2L(width=16, depth=6, sr_factor=4, sr_kernels=(8, 8)),
    "grid": lambda: GridR2L(width=8, depth=4, resolution=10, features=4),
}


def trained(name: str) -> torch.nn.Module:
    network = NETWORKS[name]()
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    if name == "grid":
        torch.nn.init.normal_(network.volume.density, std=3.0)
        torch.nn.init.normal_(network.tail.weight, std=0.05)  # a new one is zero
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_picture_is_the_same_but_for_rounding(name: str) -> None:
    network = trained(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fast, changes = optimize_for_inference(network)
    expected = network.render(CAMERA).rgb
    assert expected.std() > 0.01
    assert (fast.render(CAMERA).rgb - expected).abs().max() < 2e-2
    assert changes[-1].startswith("bfloat16" if multiplies_bfloat16(torch.device("cpu")) else "float32")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_without_bfloat16_it_is_the_same_to_the_last_digits() -> None:
    network = trained("mobile")
    network.low_precision = False
    fast, changes = optimize_for_inference(network)
    assert changes == ("folded 12 batch norms", "channels last", "float32")
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    assert fast.head[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast.render(CAMERA).rgb, network.render(CAMERA).rgb, atol=1e-5, rtol=0)
