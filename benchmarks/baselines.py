"""Check nelf as a method of NerfBaselines on a Blender scene, by NerfBaselines' own test; write its verdicts as JSON.

    python benchmarks/baselines.py SCENE [--width 100] [--teacher-steps 60] [--student-steps 53] [--views 20]
        [--full] [--lpips] [--out PATH]

It needs an environment with ``nerfbaselines``, which `make baselines` makes. SCENE is copied at the width into a
temporary folder in the form that NerfBaselines reads, and `nerfbaselines test-method` then trains on it (on ten views;
``--full``: on all), evaluates, saves, restores with the data and without, saves again, and compares. ``--lpips``
evaluates as NerfBaselines does with Blender scenes, which needs torchvision and downloads its networks; without it
PSNR and SSIM are left.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from _machine import RESULTS, write
from PIL import Image

from nelf.data import read_scene
from nelf.errors import UserError
from nelf.scene import Split

HERE = Path(__file__).parent
NEEDED = {"nerfbaselines": "make baselines", "torchvision": "pip install torchvision"}  # the latter for LPIPS
VERDICTS = {"\u2713": "passed", "\u26a0": "skipped", "\u2717": "failed"}


def copy_scene(source: str | Path, root: Path, width: int, protocol: str) -> None:
    """Write a scene as NerfBaselines reads Blender's: square pinholes, from 2 to 6 units, on white.

    Args:
        source: the scene's folder.
        root: the folder to write.
        width: of the images.
        protocol: how it is to be evaluated.

    Raises:
        SystemExit: it cannot be read, its pictures are not square, or its cameras are no centered pinholes.
    """
    try:
        scene = read_scene(source, width=width)
    except UserError as error:
        raise SystemExit(str(error)) from None
    for name, split in (("train", scene.train), ("test", scene.test)):
        _write_split(root, name, split)
    about = {
        "loader": "nerfbaselines.datasets.blender:load_blender_dataset",
        "id": None,  # at another size it is none of the public data sets
        "scene": None,
        "type": "object-centric",
        "evaluation_protocol": protocol,
    }
    (root / "nb-info.json").write_text(json.dumps(about), encoding="utf-8")


def _write_split(root: Path, name: str, split: Split) -> None:
    camera = split.camera
    focal = camera.intrinsics[0, 0].item()
    expected = camera.intrinsics.new_tensor([focal, focal, camera.width / 2, camera.width / 2])
    if camera.width != camera.height or camera.lens is not None or not bool((camera.intrinsics == expected).all()):
        raise SystemExit(f"{name}: its views are not those of one square, centered pinhole; NerfBaselines wants such.")
    (root / name).mkdir(parents=True)
    frames = []
    for index in range(len(split)):
        Image.fromarray(split.images[index]).save(root / name / f"{index:05d}.png")
        pose = [*camera.c2w[index].tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames.append({"file_path": f"./{name}/{index:05d}", "transform_matrix": pose})
    angle = 2 * math.atan(camera.width / (2 * focal))
    content = {"camera_angle_x": angle, "w": camera.width, "h": camera.height, "frames": frames}
    (root / f"transforms_{name}.json").write_text(json.dumps(content), encoding="utf-8")


def verdicts(printed: str) -> list[dict[str, str]]:
    """The lines of NerfBaselines' summary: what was tested, and what came of it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    found = re.findall(rf"^\s*([{''.join(VERDICTS)}]) (.*)$", plain, flags=re.MULTILINE)
    return [{"test": text.strip(), "verdict": VERDICTS[sign]} for sign, text in found]


def figures(printed: str) -> dict[str, float]:
    """What NerfBaselines finds in the pictures of the second training, means over its test views."""
    found = re.search(r"Eval metrics:\s*(\{[^}]*\})", printed)
    return ast.literal_eval(found[1]) if found else {}


def shown(command: list[str]) -> tuple[int, str]:
    """Run a command and show what it prints; its exit code, and the same text."""
    printed = b""
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        while part := os.read(process.stdout.fileno(), 2**16):
            printed += part
            sys.stdout.buffer.write(part)
            sys.stdout.flush()
    return process.returncode, printed.decode(errors="replace")


def environment() -> dict[str, str]:
    """The environment of a NerfBaselines that knows nelf and asks nobody for news."""
    told = {"NERFBASELINES_REGISTER": str(HERE / "_nerfbaselines_spec.py"), "NERFBASELINES_NO_UPDATE_CHECK": "1"}
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **told, "PYTHONPATH": path}


def main() -> None:
    """Copy, test, and table the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="a folder in the Blender format")
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--teacher-steps", type=int, default=60)
    parser.add_argument("--student-steps", type=int, default=53)
    parser.add_argument("--views", type=int, default=20, help="that the teacher renders")
    parser.add_argument("--full", action="store_true", help="all training and test views, in place of ten each")
    parser.add_argument("--lpips", action="store_true", help="NerfBaselines' protocol for Blender scenes")
    parser.add_argument("--out", type=Path, default=RESULTS / "baselines.json")
    options = parser.parse_args()
    for name, remedy in NEEDED.items():
        if find_spec(name) is None and (options.lpips or name != "torchvision"):
            parser.error(f"{name} is not installed here: {remedy}.")

    with TemporaryDirectory(prefix="nelf_") as folder:
        root = Path(folder, "scene")
        copy_scene(options.scene, root, options.width, "nerf" if options.lpips else "nelf-without-lpips")
        settings = {
            "teacher_iterations": options.teacher_steps,
            "student_iterations": options.student_steps,
            "pseudo_views": options.views,
        }
        command = [sys.executable, "-m", "nerfbaselines", "test-method", "--method", "nelf", "--backend", "python"]
        command += ["--data", str(root), "--steps", str(options.teacher_steps + options.student_steps)]
        command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        command += ["--full"] * options.full
        code, printed = shown(command)
    if rows := verdicts(printed):
        told = {**settings, "width": options.width, "full": options.full, "lpips": options.lpips}
        about = {"nerfbaselines": version("nerfbaselines"), "settings": told}
        write(options.out, **about, metrics=figures(printed), rows=rows)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
