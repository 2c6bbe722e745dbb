"""Stage export: the networks of a run as ONNX files, in a bundle that can be rendered without nelf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from nelf.cameras import Camera
from nelf.compression.quantization import Ranges, activation_ranges
from nelf.data import Scene
from nelf.errors import Count, Positive, UserError, did_you_mean
from nelf.export.bundle import artifact, files_beside, write_bundle
from nelf.export.coreml import check_installed as coreml_installed
from nelf.export.coreml import mlpackage
from nelf.export.executorch import check_installed as executorch_installed
from nelf.export.executorch import pte
from nelf.export.graph import exact, half_weights, onnx
from nelf.export.inputs import KINDS, check_kind, output_of, window_feeds
from nelf.export.int8 import quantize_dynamic, quantize_static
from nelf.export.runtime import ExportedLightField, load
from nelf.export.volume import Dtype, choose_dtype, rounded, write_volume
from nelf.interop.mobile_r2l import check_original, save_tar
from nelf.lightfields import LightField
from nelf.pipeline.documents import read_artifacts, write_json
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stage import BATCHES, stage
from nelf.pipeline.stages.journal import Journal
from nelf.pipeline.stages.student import best_student, drawn_cameras
from nelf.report.evaluation import evaluate
from nelf.storage import save
from nelf.viewer.static import write as write_viewer
from nelf.viewer.web_runtime import runtime_folder

__all__ = ["PRECISIONS", "check", "check_drawn", "export"]

_CHECKED = 3  # test views on which each 32-bit file of the finished bundle is compared with its network
PRECISIONS = ("fp32", "fp16", "int8 dynamic", "int8 static", "int8 QAT")


def check(recipe: Recipe) -> None:
    """Check the stage's options before anything is trained.

    Raises:
        UserError: names the key and what is allowed.
    """
    options = recipe.config["stage"]["export"]
    for key, allowed in (("inputs", tuple(KINDS)), ("precisions", PRECISIONS)):
        for word in options[key] or ():
            if word not in allowed:
                words = ", ".join(allowed)
                hint = did_you_mean(word, allowed)
                raise UserError(f"stage.export.{key}: there is no {word!r}; allowed: {words}.{hint}")
    for kind in options["inputs"] or ():
        check_kind(recipe.network(), kind)
    if options["tar"]:
        check_original(recipe.network())
    if options["executorch"]:
        executorch_installed()
    if options["coreml"]:
        coreml_installed()
    if options["viewer"]:
        runtime_folder()


@stage(
    sections=("data",),
    inputs=("pseudo", "student"),
    optional=("finetune", "prune", "narrow", "quantize"),
    without=BATCHES,
    check=check,
)
def export(
    run: Run,
    *,
    inputs: Sequence[Literal["pose", "rays", "points", "features"]] | None = None,
    fixed_size: bool = False,
    precisions: Sequence[str] = PRECISIONS,
    calibration_views: Count = 16,
    tolerance: Positive = 1e-4,
    executorch: bool = False,
    coreml: bool = False,
    tar: bool = False,
    viewer: bool = False,
) -> dict[str, Any]:
    """Export the student, and its pruned and narrowed versions if there are any, into the bundle ``export/``.

    If a graph begins at the features of a volume, the volume is a separate file, in 8 bits unless that costs 0.1 dB on
    the validation views; graphs are checked with the volume as stored. ``int8 static`` uses the activation ranges of
    stage quantize if that is done, else it calibrates its own; ``int8 QAT`` is written if stage quantize has trained
    it.

    Args:
        run: the run to write into.
        inputs: inputs of the student's graphs, see ``nelf.export.inputs``; all precisions are written for the first,
            fp32 for the others. None for the input that suits a viewer.
        fixed_size: export for images of the scene's size only.
        precisions: some of ``PRECISIONS``; fp32 is always written.
        calibration_views: number of views of the pseudo set for calibrating ``int8 static``.
        tolerance: largest allowed difference of a color or opacity between a 32-bit graph and its network.
        executorch: write ``.pte`` programs for phones, in 32 and 8 bits; needs the extra of that name.
        coreml: write a ``.mlpackage``, which is not evaluated; needs the extra of that name.
        tar: also write a checkpoint for MobileR2L's own code.
        viewer: add the viewer page and its runtime, so that any static host can serve the folder.

    Returns:
        ``max_abs_error`` of the student's graph, and ``artifacts``, their number.

    Raises:
        UserError: an unknown input or precision, a graph whose output differs from its network's, or the directory
            cannot be written.
    """
    recipe = run.recipe
    check(recipe)
    folder, scene = run.folder("export"), recipe.scene
    student: LightField = recipe.load(best_student(run))
    save(student, folder / "model.safetensors", recipe.model_config(), scene.digest)
    if tar:
        save_tar(student, folder / "model.tar")
    kinds = list(inputs or student.entries[:1])
    journal = Journal(folder / "made.json", run.fingerprint("export"))
    bundle = _Bundle(folder, scene, fixed_size, tolerance, journal)

    model = bundle.add("fp32", student, kinds[0], "model")
    views = _pseudo_cameras(run, calibration_views)
    feeds = cache(lambda: window_feeds(exact(bundle.drawn["model.onnx"]), kinds[0], views))
    quantized = _artifacts(run, "quantize")
    ranges = _ranges(recipe.load(quantized["int8 static"])) if "int8 static" in quantized else None
    exact_parts = (*student.exact_parts, *student.exact_in_8_bits)
    makers: dict[str, Callable[[Path], Path]] = {
        "fp16": partial(half_weights, model, exact=student.exact_parts),
        "int8 dynamic": partial(quantize_dynamic, model, exact=exact_parts),
        "int8 static": lambda out: quantize_static(model, out, feeds(), ranges, exact=exact_parts),
    }
    if "int8 QAT" in quantized:
        makers["int8 QAT"] = lambda out: _export_trained(
            recipe.load(quantized["int8 QAT"]), bundle, kinds[0], feeds(), out
        )
    for precision in [each for each in precisions if each in makers]:
        path = folder / f"model_{precision.replace(' ', '_').lower()}.onnx"
        bundle.derive(precision, path, precision, makers[precision])
    for kind in kinds[1:]:
        bundle.add(f"fp32 from {kind}", student, kind, f"model_{kind}")
    if executorch:
        for precision, stem in (("fp32", "model"), ("int8", "model_int8")):
            make = partial(pte, bundle.drawn["model.onnx"], cameras=views, kind=kinds[0], int8=precision == "int8")
            size = (views.width, views.height)
            bundle.derive(f"pte {precision}", folder / f"{stem}.pte", precision, make, size)
    if coreml and journal.recall("coreml") is None:
        mlpackage(student, folder / "model.mlpackage", views[0], kinds[0])
        journal.note("coreml", True, ["model.mlpackage"])
    for name, file in (_artifacts(run, "prune") | _artifacts(run, "narrow")).items():
        bundle.add(name, recipe.load(file), kinds[0], file.stem)

    write_bundle(folder, scene, student, bundle.entries)  # still without figures: the measurement reads the bundle
    bundle.measure()
    write_bundle(folder, scene, student, bundle.entries)
    write_json(folder / "artifacts.json", [_row(entry) for entry in bundle.entries])
    if viewer:
        write_viewer(folder)
    journal.close()
    return {"max_abs_error": bundle.entries[0]["max_abs_error"], "artifacts": len(bundle.entries)}


class _Bundle:
    """A bundle under construction: its folder, what its graphs are checked with, and its entries.

    Files that an earlier, killed attempt has finished are not written again; the journal lists them.
    """

    def __init__(self, folder: Path, scene: Scene, fixed_size: bool, tolerance: float, journal: Journal) -> None:
        self.folder, self.scene, self.cameras = folder, scene, scene.test.camera
        self.fixed_size, self.tolerance = fixed_size, tolerance
        self.journal = journal
        self.entries: list[dict[str, Any]] = []
        self.drawn: dict[str, LightField] = {}  # by file: the reference network of a 32-bit graph and its volume

    def graph(self, network: LightField, path: Path, kind: str) -> float:
        """Write one network in 32 bits; return its largest error."""
        # A graph that makes its rays from a pose has a pinhole camera, as bundle.json states.
        cameras = self.cameras.pinhole() if kind == "pose" else self.cameras
        return onnx(network, path, cameras, kind, self.fixed_size, self.tolerance)

    def add(self, name: str, network: LightField, kind: str, stem: str) -> Path:
        """Write one network in 32 bits, with its volume, and add its entry."""
        path = self.folder / f"{stem}.onnx"

        def make() -> dict[str, Any]:
            print(f"export: {path}", flush=True)
            volume, drawn = None, network
            if kind == "features":
                dtype = self._dtype(network)
                drawn = rounded(network, dtype)
                volume = write_volume(network, self.folder / f"{stem}_volume.bin.gz", dtype)  # type: ignore[arg-type]
            error = self.graph(drawn, path, kind)
            size = (self.cameras.width, self.cameras.height) if self.fixed_size or kind == "pose" else None
            about: dict[str, Any] = {"output": output_of(network), "window": network.window}
            return artifact(name, path, kind, "fp32", volume, size, **about, max_abs_error=error)

        entry = self._once(path, make)
        self.drawn[path.name] = rounded(network, entry["volume"]["dtype"]) if entry["volume"] else network
        return path

    def _dtype(self, network: LightField) -> Dtype:
        """The data type of volumes: chosen for the first network and used for its descendants, too."""
        found: list[Dtype] = [entry["volume"]["dtype"] for entry in self.entries if entry["volume"]]
        if found:
            return found[0]
        dtype, why = choose_dtype(network, self.scene)
        print(f"export: {why}", flush=True)
        return dtype

    def derive(
        self,
        name: str,
        path: Path,
        precision: str,
        write: Callable[[Path], Path],
        size: tuple[int, int] | None = None,
    ) -> None:
        """Write a file that is derived from the first one, and add its entry."""
        first = self.entries[0]

        def make() -> dict[str, Any]:
            about = {key: first[key] for key in ("output", "window")}
            place = first["volume"], size or first["size"]
            return artifact(name, write(path), first["input"], precision, *place, **about)

        self._once(path, make)

    def measure(self) -> None:
        """Check the output of all files of the bundle; add PSNR and latency on the validation views."""
        for entry in self.entries:
            model: ExportedLightField = load(self.folder / entry["file"])
            if entry["file"] in self.drawn:
                check_drawn(model, exact(self.drawn[entry["file"]]), self.cameras, self.tolerance)
            if entry["psnr"] is None:
                words = f"Measuring {entry['name']}"
                result = evaluate(model, self.scene.val, self.scene.background, description=words)
                entry.update(psnr=result["psnr"], latency_ms=1000 * result["seconds_per_view"])
                self._note(entry)

    def _once(self, path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        entry: dict[str, Any] | None = self.journal.recall(path.name)
        if entry is None:
            entry = make()
            self._note(entry)
        self.entries.append(entry)
        return entry

    def _note(self, entry: dict[str, Any]) -> None:
        self.journal.note(entry["file"], entry, [entry["file"], *files_beside(entry["volume"])])


def check_drawn(model: ExportedLightField, network: LightField, cameras: Camera, tolerance: float) -> None:
    """Refuse a file of a bundle whose output, as rendered by the runtime, differs from its network's.

    Args:
        model: the file, loaded with the volume beside it.
        network: from ``exact``, with the volume rounded as in its file.
        cameras: a batch of cameras; the first few are rendered.
        tolerance: the largest allowed difference of a color or opacity.

    Raises:
        UserError: a difference is larger.
    """
    for index in range(min(_CHECKED, len(cameras))):
        drawn, expected = model.render(cameras[index]), network.render(cameras[index])
        for part in ("rgb", "opacity"):
            values = getattr(expected, part)
            error = 0.0 if values is None else float((getattr(drawn, part) - values).abs().max())
            if not error <= tolerance:
                raise UserError(
                    f"{model.path}: read from the bundle, its {part} differs by {error:.2g} from the network's, more "
                    f"than tolerance {tolerance:.2g}."
                )


def _export_trained(network: LightField, bundle: _Bundle, kind: str, feeds: list[dict[str, Any]], out: Path) -> Path:
    """Write the network of quantization-aware training, with the activation ranges that it learned."""
    with TemporaryDirectory() as temporary:
        dense = Path(temporary) / "dense.onnx"
        bundle.graph(network, dense, kind)
        return quantize_static(dense, out, feeds, _ranges(network))


def _ranges(network: LightField) -> Ranges:
    """The activation ranges of a network of stage quantize."""
    ranges = activation_ranges(network)
    assert ranges != "dynamic"
    return ranges


def _artifacts(run: Run, stage: str) -> dict[str, Path]:
    """The files of a finished stage by artifact name; an empty dict if it is not done."""
    folder = run.current(stage)
    if folder is None:
        return {}
    return {each["name"]: folder / each["file"] for each in read_artifacts(folder)}


def _pseudo_cameras(run: Run, views: int) -> Camera:
    """Evenly spaced cameras of the teacher's views."""
    camera = drawn_cameras(run)
    return camera[torch.linspace(0, len(camera) - 1, min(views, len(camera))).round().long()]


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    """A file's entry in ``artifacts.json``, for the report."""
    known = {key: entry[key] for key in ("file", "bytes", "max_abs_error") if entry[key] is not None}
    name = entry["name"] if entry["file"].endswith(".pte") else f"onnx {entry['name']}"
    return {"name": name, "kind": "export", **known}
