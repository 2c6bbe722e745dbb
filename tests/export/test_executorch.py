"""ExecuTorch programs draw what their networks draw; without ExecuTorch one line says what to install."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from nelf.errors import UserError
from nelf.export import load, write_bundle
from nelf.export.bundle import artifact
from nelf.export.executorch import pte
from nelf.export.graph import exact


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


def test_a_missing_extra_is_said_in_one_line(bundles, scene, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'nelf\[executorch\]'"):
        pte(bundles["points"].network, tmp_path / "model.pte", scene.train.camera)
    path = Path(tmp_path / "model.pte")
    path.write_bytes(b"program")
    write_bundle(tmp_path, scene, bundles["points"].network, [artifact("pte", path, "points", "fp32")])
    with pytest.raises(UserError, match=r"pip install 'nelf\[executorch\]'"):
        load(path)
