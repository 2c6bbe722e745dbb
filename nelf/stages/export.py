"""Stage export: the networks of a run as ONNX files, in a bundle that is drawn without nelf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nelf.cameras import Camera
from nelf.compression.quantization import Ranges, activation_ranges
from nelf.data import Scene, read_scene
from nelf.errors import UserError, did_you_mean
from nelf.evaluation import evaluate
from nelf.export.bundle import artefact, write_bundle, write_volume
from nelf.export.coreml import check_installed as coreml_installed
from nelf.export.coreml import mlpackage
from nelf.export.executorch import check_installed as executorch_installed
from nelf.export.executorch import pte
from nelf.export.graph import exact, half_weights, onnx
from nelf.export.inputs import KINDS, Kind, check_kind, feed_of, kinds_of
from nelf.export.int8 import quantize_dynamic, quantize_static
from nelf.export.runtime import ExportedLightField, load
from nelf.export.viewer import write as write_viewer
from nelf.export.viewer.runtime import runtime_folder
from nelf.interop.mobile_r2l import check_original, save_tar
from nelf.lightfields import GridR2L, LightField
from nelf.run import Run, read_artefacts, write_json
from nelf.stages.journal import Journal
from nelf.weights import load as load_weights
from nelf.weights import save

__all__ = ["PRECISIONS", "check", "export"]

PRECISIONS = ("fp32", "fp16", "int8 dynamic", "int8 static", "int8 QAT")


def export(
    run: Run,
    *,
    inputs: Sequence[Kind] | None = None,
    fixed_size: bool = False,
    precisions: Sequence[str] = PRECISIONS,
    calibration_views: int = 16,
    tolerance: float = 1e-4,
    executorch: bool = False,
    coreml: bool = False,
    tar: bool = False,
    viewer: bool = False,
) -> dict[str, Any]:
    """Export the student, and its pruned versions where they are, into the bundle ``export/``.

    Where a graph begins at the features of a volume, the volume lies beside it. ``int8 static`` takes the ranges of
    stage quantize where that is done, and finds its own elsewhere; ``int8 QAT`` is written if it has trained it.

    Args:
        run: the run to write into.
        inputs: where the student's graphs begin, see ``nelf.export.inputs``; all precisions are written for the first
            of them, fp32 for the others. None for what suits a viewer and, where that needs a volume, the whole
            graph from the rays on.
        fixed_size: for images of the scene's size only.
        precisions: some of ``PRECISIONS``; fp32 is always written.
        calibration_views: of the pseudo set, for ``int8 static``.
        tolerance: largest difference of a colour between a 32-bit graph and its network, on all test views.
        executorch: write ``.pte`` programs for phones, in 32 and 8 bits; needs the extra of that name.
        coreml: write a ``.mlpackage``, which is not measured; needs the extra of that name.
        tar: write a checkpoint of MobileR2L's own code, too.
        viewer: put the page that draws the bundle into it, and its runtime: a folder for any static host.

    Returns:
        ``max_abs_error`` of the student's graph, and ``artefacts``: how many.

    Raises:
        UserError: an unknown input or precision, a graph that draws something else, or the directory cannot be written.
    """
    check(run)
    folder, scene = run.folder("export"), run.data().scene
    student: LightField = load_weights(run.input("student"))
    save(student, folder / "model.safetensors", run.model_config(), scene.digest)
    if tar:
        save_tar(student, folder / "model.tar")
    kinds = list(inputs or _suitable(student))
    journal = Journal(folder / "made.json", run.fingerprint("export"))
    bundle = _Bundle(folder, scene.test.camera, fixed_size, tolerance, journal)

    model = bundle.add("fp32", student, kinds[0], "model")
    views = _pseudo_cameras(run, calibration_views)
    feeds = cache(lambda: [feed_of(exact(student), kinds[0], views[index]) for index in range(len(views))])
    quantized = _artefacts(run, "quantize")
    ranges = _ranges(quantized.get("int8 static"))
    makers: dict[str, Callable[[Path], Path]] = {
        "fp16": partial(half_weights, model),
        "int8 dynamic": partial(quantize_dynamic, model),
        "int8 static": lambda out: quantize_static(model, out, feeds(), ranges),
    }
    if "int8 QAT" in quantized:
        makers["int8 QAT"] = lambda out: _export_trained(quantized["int8 QAT"], bundle, kinds[0], feeds(), out)
    for precision in [each for each in precisions if each in makers]:
        path = folder / f"model_{precision.replace(' ', '_').lower()}.onnx"
        bundle.derive(precision, path, precision, makers[precision])
    for kind in kinds[1:]:
        bundle.add(f"fp32 from {kind}", student, kind, f"model_{kind}")
    if executorch:
        for precision, stem in (("fp32", "model"), ("int8", "model_int8")):
            make = partial(pte, student, cameras=views, kind=kinds[0], int8=precision == "int8")
            size = (views.width, views.height)
            bundle.derive(f"pte {precision}", folder / f"{stem}.pte", precision, make, size)
    if coreml and journal.recall("coreml") is None:
        mlpackage(student, folder / "model.mlpackage", views[0], kinds[0])
        journal.note("coreml", True, ["model.mlpackage"])
    for name, file in _artefacts(run, "prune").items():
        bundle.add(name, load_weights(file), kinds[0], file.stem)

    write_bundle(folder, scene, student, bundle.entries)  # without figures: what is measured is read from it
    bundle.measure(scene)
    write_bundle(folder, scene, student, bundle.entries)
    write_json(folder / "artefacts.json", [_row(entry) for entry in bundle.entries])
    if viewer:
        write_viewer(folder)
    journal.close()
    return {"max_abs_error": bundle.entries[0]["max_abs_error"], "artefacts": len(bundle.entries)}


class _Bundle:
    """A bundle in the making: its folder, what its graphs are checked with, and the entries so far.

    A file that the journal knows, since an earlier attempt was killed after it, is not made again.
    """

    def __init__(self, folder: Path, cameras: Camera, fixed_size: bool, tolerance: float, journal: Journal) -> None:
        self.folder, self.cameras = folder, cameras
        self.fixed_size, self.tolerance = fixed_size, tolerance
        self.journal = journal
        self.entries: list[dict[str, Any]] = []

    def graph(self, network: LightField, path: Path, kind: Kind) -> float:
        """Write one network in 32 bits; give its largest error."""
        return onnx(network, path, self.cameras, kind, self.fixed_size, self.tolerance)

    def add(self, name: str, network: LightField, kind: Kind, stem: str) -> Path:
        """Write one network in 32 bits, with its volume, and note it."""
        path = self.folder / f"{stem}.onnx"

        def make() -> dict[str, Any]:
            print(f"export: {path}", flush=True)
            error = self.graph(network, path, kind)
            volume = None
            if kind == "features":
                assert isinstance(network, GridR2L)
                volume = write_volume(network, self.folder / f"{stem}_volume.bin.gz")
            size = (self.cameras.width, self.cameras.height) if self.fixed_size or kind == "pose" else None
            return artefact(name, path, kind, "fp32", volume, size, max_abs_error=error)

        self._once(path, make)
        return path

    def derive(
        self,
        name: str,
        path: Path,
        precision: str,
        write: Callable[[Path], Path],
        size: tuple[int, int] | None = None,
    ) -> None:
        """Write a file that is made from the first one, and note it."""
        first = self.entries[0]

        def make() -> dict[str, Any]:
            return artefact(name, write(path), first["input"], precision, first["volume"], size or first["size"])

        self._once(path, make)

    def measure(self, scene: Scene) -> None:
        """Add quality and time on the validation views, which a viewer shows."""
        for entry in self.entries:
            if entry["psnr"] is None:
                model: ExportedLightField = load(self.folder / entry["file"])
                result = evaluate(model, scene.val, scene.background, description=f"Measuring {entry['name']}")
                entry.update(psnr=result["psnr"], latency_ms=1000 * result["seconds_per_view"])
                self._note(entry)

    def _once(self, path: Path, make: Callable[[], dict[str, Any]]) -> None:
        entry = self.journal.recall(path.name)
        if entry is None:
            entry = make()
            self._note(entry)
        self.entries.append(entry)

    def _note(self, entry: dict[str, Any]) -> None:
        volume = [entry["volume"]["file"]] if entry["volume"] else []
        self.journal.note(entry["file"], entry, [entry["file"], *volume])


def _export_trained(file: Path, bundle: _Bundle, kind: Kind, feeds: list[dict[str, Any]], out: Path) -> Path:
    """Write what quantisation-aware training left, with the ranges that it learned."""
    with TemporaryDirectory() as temporary:
        dense = Path(temporary) / "dense.onnx"
        bundle.graph(load_weights(file), dense, kind)
        return quantize_static(dense, out, feeds, _ranges(file))


def check(run: Run) -> None:
    """Refuse options that the stage would stumble over, before anything is trained.

    Raises:
        UserError: names the key and what is allowed.
    """
    options = run.config["stage"]["export"]
    for key, allowed in (("inputs", tuple(KINDS)), ("precisions", PRECISIONS)):
        for word in options[key] or ():
            if word not in allowed:
                words = ", ".join(allowed)
                hint = did_you_mean(word, allowed)
                raise UserError(f"stage.export.{key}: there is no {word!r}; allowed: {words}.{hint}")
    for kind in options["inputs"] or ():
        check_kind(run.system().network, kind)
    if options["tar"]:
        check_original(run.system().network)
    if options["executorch"]:
        executorch_installed()
    if options["coreml"]:
        coreml_installed()
    if options["viewer"]:
        runtime_folder()
    if options["calibration_views"] < 1:
        raise UserError(f"stage.export.calibration_views: is {options['calibration_views']}; allowed: 1 or more.")


def _suitable(student: LightField) -> tuple[Kind, ...]:
    """Where its graphs begin if nobody says it: what suits a viewer; the whole graph, too, if that needs a volume."""
    return ("features", "rays") if isinstance(student, GridR2L) else kinds_of(student)[:1]


def _ranges(file: Path | None) -> Ranges | None:
    """The ranges of activations in a file of stage quantize; None where there is none."""
    if file is None:
        return None
    ranges = activation_ranges(load_weights(file))
    assert ranges != "dynamic"
    return ranges


def _artefacts(run: Run, stage: str) -> dict[str, Path]:
    """The files of a finished stage by the names of the artefacts; none where it is not done."""
    folder = run.current(stage)
    if folder is None:
        return {}
    return {each["name"]: folder / each["file"] for each in read_artefacts(folder)}


def _pseudo_cameras(run: Run, views: int) -> Camera:
    """Cameras of the pseudo set, evenly chosen."""
    camera: Camera = read_scene(run.input("pseudo")).train.camera.resized(run.data().scene.train.camera.width)
    return camera[torch.linspace(0, len(camera) - 1, min(views, len(camera))).round().long()]


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    """What the report needs to know of a file."""
    known = {key: entry[key] for key in ("file", "bytes", "max_abs_error") if entry[key] is not None}
    name = entry["name"] if entry["file"].endswith(".pte") else f"onnx {entry['name']}"
    return {"name": name, "kind": "export", **known}
