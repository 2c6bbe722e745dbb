"""Core ML packages: what can be known of them away from a Mac."""

from __future__ import annotations

import importlib.util

import pytest

from nelf.errors import UserError
from nelf.export.coreml import mlpackage


def test_a_package_has_the_names_and_shapes_of_its_kind(bundles, scene, tmp_path) -> None:
    coremltools = pytest.importorskip("coremltools", reason="the extra coreml is not installed")
    network = bundles["points"].network
    path = mlpackage(network, tmp_path / "model.mlpackage", scene.test.camera[0])
    description = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec().description
    assert [each.name for each in description.input] == ["points"]
    assert list(description.input[0].type.multiArrayType.shape) == [1, 3 * network.points, 4, 4]
    assert [each.name for each in description.output] == ["rgb"]


def test_a_missing_extra_is_said_in_one_line(bundles, scene, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'nelf\[coreml\]'"):
        mlpackage(bundles["points"].network, tmp_path / "model.mlpackage", scene.test.camera[0])
