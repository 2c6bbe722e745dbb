"""``python -m nelf.render MODEL``: views of a split, a camera path, depth, and a mesh of any model.

python -m nelf.render runs/lego --split test --depth png,npy        # from the scene's cameras, with metrics
python -m nelf.render runs/lego/teacher --path orbit --width 800    # a video
python -m nelf.render runs/jump --path orbit --motion time          # a moving scene from a fixed camera
python -m nelf.render runs/lego/export/model_int8_static.onnx --path path.json
python -m nelf.render runs/lego/teacher --mesh                      # PLY with vertex colors
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nelf.errors import UserError, did_you_mean
from nelf.files import ArgumentParser, escape_output, exists, is_dir, is_file, quoted, reason_of, short
from nelf.paths import MOTIONS, in_motion
from nelf.pipeline.documents import read_record, read_settings
from nelf.pipeline.memory import memory_line
from nelf.render import DEPTH_FORMATS

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.data.nerfstudio import CameraPath
    from nelf.paths import Motion
    from nelf.rendering import Renderable, Rendering
    from nelf.scene import Scene

__all__ = ["main"]

_STUDENTS = ("finetune", "student", "teacher", ".")  # folders of a run directory, in order of preference
_PATHS = ("orbit", "spiral", "dnerf")
_FRAMES = {"orbit": 120, "spiral": 120, "dnerf": 40}
#: Limits of options. Images of a split are evaluated, and the window of SSIM has 11 pixels.
_NUMBERS = {"frames": (1, 100_000), "resolution": (8, 2048), "width": (11, 2**14)}
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")
_SAME = 1e-4  # of two positions, as a share of the largest coordinate
_SEEN = 0.5  # opacity from which a pixel has a depth


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit code 2 and one line for errors that the user can fix."""
    escape_output()
    options = _options(arguments)
    try:
        _render(options)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if (line := memory_line(error)) is None:
            raise
        print(line, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\nInterrupted; complete files stay in {options.out}.", file=sys.stderr)
        sys.exit(130)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m nelf.render", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, help="a run directory, the folder of a stage or bundle, or a file")
    add("--scene", type=Path, help="a Blender folder or a capture; the scene of the model's run by default")
    add("--split", choices=("train", "val", "test"), help="render the scene's own views, and measure them")
    files = "a transforms file, a camera path of nerfstudio, or a folder of camera-paths"
    add("--path", help=f"render a video along {', '.join(_PATHS)}, {files}")
    add("--mesh", action="store_true", help="extract the surface of a teacher")
    add("--frames", type=int, help=f"of a path: {', '.join(f'{name} {count}' for name, count in _FRAMES.items())}")
    add("--motion", choices=MOTIONS, help="what moves along a path in a scene with a time; both by default")
    add("--width", type=int, help="pixels; that of the model's scene by default")
    add("--time", type=float, help="fixed time of a scene with a time, 0 to 1")
    add("--depth", default="", help=f"write the depth of each image: some of {','.join(DEPTH_FORMATS)}")
    add("--resolution", type=int, default=256, help="of the mesh, samples along the longest side")
    add("--threshold", type=float, help="of the mesh, density per scene unit")
    add("--device", default="cpu", help="cpu or cuda")
    add("--out", type=Path, help="where to write; a folder named render beside the model by default")
    options = parser.parse_args(arguments)
    if not (options.split or options.path or options.mesh):
        parser.error("nothing to do: pass --split, --path or --mesh")
    options.out = options.out or (options.model if is_dir(options.model) else options.model.parent) / "render"
    return options


def _checked(options: argparse.Namespace) -> list[str]:
    """Refuse numbers and words that are none of an option's; the formats of --depth."""
    for name, (least, most) in _NUMBERS.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name}: is {quoted(value)}; allowed: {least} to {most}.")
    if options.time is not None and not 0 <= options.time <= 1:
        raise UserError(f"--time: is {options.time}; allowed: 0 to 1.")
    if options.time is not None and options.motion not in (None, "camera"):
        raise UserError(f"--time: holds one moment, so nothing is left of --motion {options.motion}; leave one out.")
    if not _DEVICE.fullmatch(options.device):
        raise UserError(f"--device: is {quoted(options.device)}; allowed: cpu, cuda, cuda:N.")
    return _words(options.depth)


def _render(options: argparse.Namespace) -> None:
    depths = _checked(options)
    file = _file(options.model)
    scene = _scene(options.model, options.scene, options.width)
    import torch

    import nelf

    devices = torch.cuda.device_count()
    if options.device != "cpu" and int(options.device.partition(":")[2] or 0) >= devices:
        raise UserError(f"--device: is {options.device}, but {devices} GPUs are here; allowed: cpu.")
    if not scene.controls and (options.motion or options.time is not None):
        word = "--motion" if options.motion else "--time"
        raise UserError(f"{word}: the views of {scene.name} have no time; allowed: scenes that move.")
    model = nelf.load(file, device=options.device)
    print(f"{file}: {type(model).__name__} of {scene.name}", flush=True)
    if options.split:
        _views(options, model, scene, depths)
    if options.path:
        _video(options, model, scene, depths)
    if options.mesh:
        _mesh(options, model, scene)


def _views(options: argparse.Namespace, model: Renderable, scene: Scene, depths: Sequence[str]) -> None:
    """Render and evaluate a split."""
    from nelf.report.evaluation import evaluate

    split, folder = getattr(scene, options.split), options.out / options.split
    if options.time is not None:
        split = replace(split, camera=_in_motion(options, split.camera))
    kept = _WithDepth(model, [folder / "depth" / Path(name).name for name in split.names], depths, scene)
    result = evaluate(kept, split, scene.background, folder, save_images=True, description=f"Rendering {options.split}")
    print(f"{len(split)} views: PSNR {result['psnr']:.2f} dB, SSIM {result['ssim']:.4f}")
    print(f"pictures: {folder / 'images'}  figures: {folder / 'metrics.json'}")


def _video(options: argparse.Namespace, model: Renderable, scene: Scene, depths: Sequence[str]) -> None:
    """Render a camera path as MP4 and GIF."""
    from nelf.report.evaluation import orbit_video

    stated = _stated(options)
    cameras = _path(options, scene, stated)
    name = options.path if options.path in _PATHS else Path(options.path).stem
    name += f"_{options.motion}" if options.motion in ("time", "camera") else ""
    stems = [options.out / name / "depth" / f"{index:05d}" for index in range(len(cameras))]
    fps = 30 if stated is None else stated.fps
    for path in orbit_video(_WithDepth(model, stems, depths, scene), cameras, options.out / name / name, fps):
        print(f"video: {path}")


def _mesh(options: argparse.Namespace, model: Any, scene: Scene) -> None:
    """Extract the surface of a field."""
    from nelf.render.mesh import extract_mesh, write_ply

    if not hasattr(model, "sigma"):
        raise UserError(f"{options.model}: a {type(model).__name__} has no density; allowed for --mesh: a teacher.")
    if scene.train.camera.ndc is not None:
        raise UserError(f"--mesh: the field of {scene.name} lives in NDC; allowed: one of a run with data.ndc=false.")
    from nelf.pipeline.stages.report import film_cameras

    controls = _in_motion(options, film_cameras(scene, 1)).controls
    controls = None if controls is None else controls[0, : model.controls]
    mesh = extract_mesh(model, scene.aabb, options.resolution, options.threshold, controls)
    path = write_ply(options.out / "mesh.ply", mesh)
    print(f"mesh: {path} ({len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces)")


class _WithDepth:
    """A model that writes the depth of each image that it renders, to successive files."""

    def __init__(self, model: Renderable, stems: Sequence[Path], formats: Sequence[str], scene: Scene) -> None:
        self._model, self._stems, self._formats, self._scene = model, iter(stems), formats, scene

    def render(self, camera: Camera) -> Rendering:
        """Render, and write."""
        rendering = self._model.render(camera)
        if self._formats:
            self._write(rendering, next(self._stems))
        return rendering

    def _write(self, rendering: Rendering, stem: Path) -> None:
        from nelf.render.depth import write_depth

        if rendering.depth is None:
            raise UserError(f"--depth: a {type(self._model).__name__} gives no depth; allowed: models that know it.")
        depth = rendering.depth.float()
        if rendering.opacity is not None:
            depth = depth.masked_fill(rendering.opacity < _SEEN, float("nan"))
        write_depth(stem, depth.cpu().numpy(), self._formats, self._scene.near, self._scene.far)


def _stated(options: argparse.Namespace) -> CameraPath | None:
    """The camera path, if ``--path`` is a file of nerfstudio."""
    from nelf.data import nerfstudio

    path = Path(options.path)
    return nerfstudio.read_camera_path(path) if is_file(path) and nerfstudio.is_camera_path(path) else None


def _path(options: argparse.Namespace, scene: Scene, stated: CameraPath | None = None) -> Camera:
    """The cameras of a path; size and missing intrinsics are those of the scene."""
    from nelf import paths
    from nelf.data import capture
    from nelf.pipeline.stages.report import along, film_cameras

    frames = options.frames or _FRAMES.get(options.path, 0)
    if options.path == "orbit":
        cameras = along(scene, paths.around(scene.viewpoints, frames))
    elif options.path == "spiral":
        forward = scene.trajectory == "forward"
        cameras = film_cameras(scene, frames) if forward else along(scene, paths.winding(scene.viewpoints, frames))
    elif options.path == "dnerf":
        cameras = along(scene, paths.dnerf(frames))
    elif stated is not None:
        cameras = _from_nerfstudio(Path(options.path), stated, scene)
    elif is_dir(Path(options.path)):
        own = capture.read_path(Path(options.path)).resized(scene.test.camera.width)
        cameras = replace(own, controls=along(scene, own.c2w).controls)
    else:
        cameras = _from_transforms(Path(options.path), scene)
    return _in_motion(options, cameras)


def _from_transforms(path: Path, scene: Scene) -> Camera:
    """The cameras of a transforms file."""
    import torch

    from nelf.data.transforms import read_path
    from nelf.pipeline.stages.report import along

    stated, like = read_path(path), scene.test.camera.pinhole()
    has_lenses = all("fl_x" in lens or "camera_angle_x" in lens for lens in stated.lenses)
    lenses = torch.from_numpy(stated.intrinsics(like.width, like.height)) if has_lenses else None
    cameras = along(scene, torch.from_numpy(stated.c2w), lenses)
    return cameras if stated.values is None else replace(cameras, controls=torch.from_numpy(stated.values))


def _from_nerfstudio(path: Path, stated: CameraPath, scene: Scene) -> Camera:
    """The cameras of nerfstudio's camera path, in scene coordinates, with the scene's width and the path's aspect."""
    import torch

    from nelf.data import nerfstudio
    from nelf.paths.rotations import moved
    from nelf.pipeline.stages.report import along

    changes = path.parent / nerfstudio.TRANSFORMS
    if is_file(changes) and scene.from_colmap is not None:
        c2w = moved(nerfstudio.into_file_space(stated.c2w, changes), scene.from_colmap)
    elif is_file(changes):
        c2w = nerfstudio.into_file_space(stated.c2w, changes, _transforms(scene, changes))
    else:
        print(f"{path}: has no {changes.name} beside it, so its poses are taken to be in the scene's space", flush=True)
        c2w = stated.c2w
    lenses, height = stated.intrinsics(scene.test.camera.width)
    cameras = along(scene, torch.from_numpy(c2w).float(), torch.from_numpy(lenses))
    cameras = replace(cameras, width=scene.test.camera.width, height=height)
    if stated.times is None or cameras.controls is None:
        return cameras
    return replace(
        cameras, controls=torch.cat([torch.tensor(stated.times)[:, None].float(), cameras.controls[:, 1:]], -1)
    )


def _transforms(scene: Scene, changes: Path) -> Path:
    """The transforms file whose coordinates a scene has."""
    import torch

    from nelf.data.transforms import read_path

    for name in ("transforms.json", "transforms_train.json"):
        file = (scene.root or Path()) / name
        if scene.root is not None and is_file(file):
            known = torch.from_numpy(read_path(file).c2w[:, :, 3])
            cameras = scene.train.camera.c2w[:, :, 3]
            if bool((torch.cdist(cameras, known).amin(1) <= _SAME * known.abs().amax()).all()):
                return file
    raise UserError(
        f"{changes}: says how nerfstudio changed the poses of a transforms file, but those of {scene.name} are from "
        f"none; allowed: scenes of transforms files or COLMAP, or a path in the scene's space without {changes.name} "
        "beside it."
    )


def _in_motion(options: argparse.Namespace, cameras: Camera) -> Camera:
    """The cameras of a path, with times and poses according to ``--time`` and ``--motion``."""
    motion: Motion | None = "camera" if options.time is not None else options.motion
    if cameras.time is None or motion in (None, "both"):
        return cameras
    return in_motion(cameras, motion, (float(cameras.time[0]), float(cameras.time[-1])), options.time)


def _words(text: str) -> list[str]:
    """The formats of --depth."""
    words = [word for word in text.split(",") if word]
    for word in words:
        if word not in DEPTH_FORMATS:
            raise UserError(
                f"--depth: {word!r}; allowed: some of {','.join(DEPTH_FORMATS)}.{did_you_mean(word, DEPTH_FORMATS)}"
            )
    return words


def _file(path: Path) -> Path:
    """The file to load: in a run directory the student, or the teacher if there is no student."""
    if not exists(path):
        raise UserError(f"{path}: no such file or folder; allowed: a run directory, a stage's folder, a model file.")
    if is_file(path) or is_file(path / "bundle.json"):
        return path
    for name in _STUDENTS:
        if is_file(path / name / "model.safetensors"):
            return path / name / "model.safetensors"
    raise UserError(f"{path}: holds no model.safetensors, nor do {', '.join(_STUDENTS[:-1])} in it.")


def _scene(model: Path, root: Path | None, width: int | None) -> Scene:
    """The given scene, or that of the model's run; runs are untrusted, so they can name only nelf's own readers."""
    from nelf import data

    if root is not None:
        if is_file(root / "poses_bounds.npy"):
            return data.read_llff(root, width=width)
        reading = data.read_capture if is_file(root / "dataset.json") else data.read_scene
        return reading(root, width=width)
    runs = [each for each in (model, *model.absolute().parents) if is_file(each / "scene.json")]
    config = (read_settings(runs[0] / "config.yaml") or {}) if runs else {}
    node = dict(config["data"]) if isinstance(config.get("data"), dict) else None
    if node is None:
        raise UserError(f"{model}: lies in no run directory, so pass --scene ROOT, the folder of its scene.")
    noted, target = read_record(runs[0] / "scene.json") or {}, node.pop("_target_", "")
    target = target if isinstance(target, str) else ""
    name = target.removeprefix("nelf.data.")
    kind = getattr(data, name) if name in data.__all__ else None
    plain = all(isinstance(value, str | int | float | list | None) for value in node.values())
    if not (isinstance(kind, type) and issubclass(kind, data.SceneDataModule)) or not plain:
        raise UserError(f"{runs[0]}: its scene is read by {short(target) or 'nothing'}; pass --scene ROOT instead.")
    print(f"scene: {quoted(noted.get('root', ''))}", flush=True)
    if width is not None:
        node["width"] = width
    try:
        return kind(**node).scene
    except (TypeError, ValueError) as error:
        raise UserError(f"{runs[0] / 'config.yaml'}: data: {reason_of(error)}; pass --scene ROOT instead.") from None
