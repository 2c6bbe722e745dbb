"""Installed from a wheel, the commands and the configuration work from anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from nelf.viewer.web_runtime import FILES

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_wheel_works_from_anywhere(tmp_path, tiny_scene) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}

    def run(*command: str | Path, where: Path = tmp_path) -> str:
        ended = subprocess.run(
            [str(word) for word in command], cwd=where, env=clean, capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist", where=ROOT)
    (wheel,) = (tmp_path / "dist").glob("nelf-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"nelf/conf/train.yaml", "nelf/conf/hydra/nelf.yaml", "nelf/scripts/distill.py"} <= set(names)
    assert {"nelf/viewer/page/index.html", "nelf/viewer/page/kernels.wasm", "nelf/py.typed"} <= set(names)
    assert shutil.which("npm") is None or {f"nelf/viewer/runtime/{name}" for name in FILES} <= set(names)
    assert not [name for name in names if name.split("/")[0] not in ("nelf",) and "dist-info" not in name]

    # A fresh environment that sees this one's libraries, after its own: the wheel is what is imported.
    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=False)
    site = Path(run(fresh / "bin" / "python", "-c", "import site; print(site.getsitepackages()[0])").strip())
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        fresh / "bin" / "python",
        "install",
        "--quiet",
        "--no-deps",
        wheel,
    )

    code = "import nelf; print(nelf.__file__); print(nelf.config('distill', ['experiment=lego']).run)"
    place, named = run(fresh / "bin" / "python", "-c", code).split()
    assert Path(place).is_relative_to(site)
    assert named == "runs/lego"
    line = f"data=blender data.root={tiny_scene} model=ngp_small trainer=cpu trainer.max_steps=1 run=out"
    student = "model=mobile_r2l model.width=8 model.depth=2 model.sr_factor=2"
    printed = run(fresh / "bin" / "nelf-train", *line.split(), *student.split())
    assert "PSNR" in printed
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "grid_r2l" in run(fresh / "bin" / "nelf-distill", "--help")
