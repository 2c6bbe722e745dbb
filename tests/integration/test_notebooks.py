"""The notebooks run from top to bottom, at small sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nelf import storage
from nelf.data import DemoDataModule
from nelf.fields import NGP
from nelf.lightfields import GridR2L

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
QUICKSTART = """
width = 32
teacher_time, student_time = "00:00:00:04", "00:00:00:04"
views = 6
folder = {folder!r}
"""
DYNAMIC = "folder, width, minutes, views = {folder!r}, 32, 0.1, 6"
PHOTOS = """
count, size, width, views = 10, 400, 32, 4
teacher_time, student_time = "00:00:00:04", "00:00:00:04"
photos, folder = Path({folder!r} + "/photographs"), {folder!r}
"""
LOOK_AROUND = "folder, width = {folder!r}, 32"


def printed_by(name: str, parameters: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the last cell prints. Whatever a cell raises ends the test; the cell tagged ``parameters`` is another."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("NELF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook: Any = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (place,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    place.source = parameters.format(folder=str(tmp_path / "run"))
    assert not any(cell.get("outputs") for cell in notebook.cells), "notebooks are committed without outputs"
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    return "".join(output.get("text", "") for output in notebook.cells[-1].outputs)


@pytest.mark.slow
def test_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = printed_by("quickstart", QUICKSTART, tmp_path, monkeypatch)
    assert "student:" in printed
    assert "dB on" in printed


@pytest.mark.slow
def test_a_light_field_that_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = printed_by("dynamic", DYNAMIC, tmp_path, monkeypatch)
    assert "student:" in printed
    assert "dB on" in printed


@pytest.mark.slow
def test_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycolmap", reason="photographs are registered by pycolmap: pip install 'nelf[colmap]'")
    printed = printed_by("photos", PHOTOS, tmp_path, monkeypatch)
    assert "student:" in printed
    assert "dB on" in printed


@pytest.mark.slow
def test_looking_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NELF_CACHE", str(tmp_path / "cache"))
    scene = DemoDataModule(width=32).scene
    torch.manual_seed(0)
    small = {"levels": 4, "log2_table": 12, "finest_resolution": 64, "hidden": 16, "grid_resolution": 32}
    networks = {"teacher": (NGP(**small), small), "student": (GridR2L(width=8, depth=4, resolution=16), None)}
    torch.nn.init.normal_(networks["teacher"][0].encoding.table, std=30.0)
    for name, (network, arguments) in networks.items():
        network.prepare(scene.geometry)
        known = {**(getattr(network, "arguments", {}) if arguments is None else arguments)}
        target = f"nelf.{'fields' if name == 'teacher' else 'lightfields'}.{type(network).__name__}"
        storage.save(
            network, tmp_path / "run" / name / "model.safetensors", {"_target_": target, **known}, scene.digest
        )
    assert "mesh.ply: " in printed_by("look_around", LOOK_AROUND, tmp_path, monkeypatch)


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {"quickstart", "look_around", "dynamic", "photos"}
