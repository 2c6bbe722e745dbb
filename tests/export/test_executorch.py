"""ExecuTorch programs draw what their networks draw; without ExecuTorch one line says what to install."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.export import load, write_bundle
from nelf.export.bundle import artifact
from nelf.export.executorch import _quantized, pte
from nelf.export.graph import exact, graph_module, quiet
from nelf.export.inputs import feed_of
from nelf.lightfields import DyLiN


@pytest.mark.filterwarnings("ignore")  # its own imports warn of what they use
@pytest.mark.parametrize(("int8", "tolerance"), [(False, 1e-4), (True, 0.1)])
def test_a_program_draws_what_its_network_draws(bundles, scene, tmp_path, int8: bool, tolerance: float) -> None:
    pytest.importorskip("executorch", reason="the extra executorch is not installed")
    # A trained network may have its weights channels last.
    network = deepcopy(bundles["points"].network).to(memory_format=torch.channels_last)
    path = pte(network, tmp_path / "model.pte", scene.train.camera, int8=int8)
    write_bundle(tmp_path, scene, network, [artifact("pte", path, "points", "fp32", size=(16, 16))])
    camera = scene.test.camera[0]
    expected = exact(network).render(camera).rgb
    torch.testing.assert_close(load(path).render(camera).rgb, expected, atol=tolerance, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_8_bits_leave_what_moves_a_ray() -> None:
    pytest.importorskip("executorch", reason="the extra executorch is not installed")
    torch.manual_seed(0)
    network = exact(DyLiN(width=16, depth=6, points=4, offset_width=8, hyper_width=8))
    camera = Camera.from_fov(torch.eye(3, 4), 0.7, 8, 8, time=torch.tensor(0.5))
    example = tuple(torch.from_numpy(array) for array in feed_of(network, "rays", camera).values())
    with quiet(), torch.no_grad():
        module = torch.export.export(graph_module(network, "rays", camera), example).module()
        every, trunk = (_quantized(deepcopy(module), [example], parts) for parts in ((), network.exact_parts))

    def matrices(program: torch.nn.Module, dtype: torch.dtype) -> int:
        return sum(values.ndim == 2 and values.dtype == dtype for values in program.state_dict().values())

    layers = {part: len(network.prunable()[part]) for part in network.exact_parts}
    assert matrices(every, torch.int8) - matrices(trunk, torch.int8) == sum(layers.values())
    assert matrices(trunk, torch.int8) == 6  # the layers of the trunk


def test_a_missing_extra_is_said_in_one_line(bundles, scene, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'nelf\[executorch\]'"):
        pte(bundles["points"].network, tmp_path / "model.pte", scene.train.camera)
    path = Path(tmp_path / "model.pte")
    path.write_bytes(b"program")
    write_bundle(tmp_path, scene, bundles["points"].network, [artifact("pte", path, "points", "fp32")])
    with pytest.raises(UserError, match=r"pip install 'nelf\[executorch\]'"):
        load(path)
