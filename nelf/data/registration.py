"""COLMAP's incremental reconstruction of a folder of images, by pycolmap, with progress bars.

Steps: SIFT features, exhaustive matching (or sequential matching of neighbors), RANSAC, and incremental mapping with
bundle adjustment. All images share one camera, SIMPLE_RADIAL: a focal length and one radial coefficient, which even few
images determine. Features and matches are stored in ``database.db`` as they are found, so that an interrupted
registration resumes. Each step runs in its own thread, so that Python receives Ctrl-C and can cancel it.

Only RANSAC's samples are random, from a seed; mapping runs on one thread, since sums over several threads are not
reproducible.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from nelf.data.images import image_header, progress_bar
from nelf.errors import UserError

__all__ = ["CAMERA_MODEL", "load_pycolmap", "pairs_of", "register"]

T = TypeVar("T")

CAMERA_MODEL = "SIMPLE_RADIAL"

_FEATURES = 4096  # maximum per image: matching is quadratic in it
_OVERLAP = 10  # sequential matching: with the next 10 images, and those at distances 16, 32, 64, ...
_PICTURES_AT_A_TIME, _PAIRS_AT_A_TIME = 4, 20
_SMALLEST_MODEL = 3  # images
_WHOLE = 0.8  # if a smaller share of the images is registered, advice is printed
# Seconds on a core of about 3 GHz: features per megapixel; matching per pair of images with 1000 features each; mapping
# per image.
_PER_MEGAPIXEL, _PER_PAIR, _PER_PICTURE = 3.7, 0.022, 0.25
_FEATURES_PER_MEGAPIXEL = 7500

_ADVICE = (
    "What helps: 20 to 100 sharp pictures, each showing two thirds of what the one before it shows; walk, do not turn "
    "on the spot; have texture in view (print, fabric, plants; not bare walls, glass or mirrors); nothing that moves; "
    "one camera, no zoom"
)


def load_pycolmap() -> Any:
    """Import pycolmap.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pycolmap
    except ImportError:
        raise UserError(
            "data: pycolmap is not installed, and registering photographs needs it: pip install 'nelf[colmap]'."
        ) from None
    return pycolmap


def register(source: Path, work: Path, *, sequential: bool, fewest: int, seed: int = 0) -> None:
    """Reconstruct the cameras and points of images; the largest connected reconstruction is kept.

    Args:
        source: the photographs, for messages.
        work: a folder with ``images/``; receives ``database.db`` and, at the end, ``sparse/0/``.
        sequential: match an image only with neighbors in the sequence.
        fewest: minimum number of registered images.
        seed: random seed.

    Raises:
        UserError: fewer than ``fewest`` images could be registered, or pycolmap fails.
        KeyboardInterrupt: Ctrl-C; features and matches found so far are kept.
    """
    pycolmap = load_pycolmap()
    images = work / "images"
    names = sorted(path.name for path in images.iterdir() if not path.name.startswith("."))
    size = image_header(images / names[0])[0]
    pairs = pairs_of(len(names), sequential)
    print(
        f"{source}: registering {len(names)} pictures of {size[0]}x{size[1]} pixels, {len(pairs)} pairs of them: "
        f"{_about(_seconds(len(names), size, len(pairs)))}",
        flush=True,
    )
    begin = monotonic()
    with _quiet(pycolmap):
        pycolmap.set_random_seed(seed)
        _extract(pycolmap, work, names)
        _match(pycolmap, work, [(names[one], names[other]) for one, other in pairs], seed)
        model = _map(pycolmap, work, len(names), seed)
    count = 0 if model is None else model.num_reg_images()
    registered = f"{source}: {count} of {len(names)} pictures"
    if model is None or count < fewest:
        raise UserError(f"{registered} could be registered; allowed: {fewest} or more. {_ADVICE}.")
    (work / "sparse" / "0").mkdir(parents=True, exist_ok=True)
    model.write_binary(work / "sparse" / "0")
    shutil.rmtree(work / "models")
    points, error = model.num_points3D(), model.compute_mean_reprojection_error()
    print(
        f"{registered} are registered, {points} points, mean reprojection error {error:.2f} pixels "
        f"({monotonic() - begin:.0f} s)" + (f". {_ADVICE}" if count < _WHOLE * len(names) else ""),
        flush=True,
    )


def pairs_of(count: int, sequential: bool) -> list[tuple[int, int]]:
    """The pairs of images to match: all pairs, or those at distances 1 to 10 and 16, 32, 64, ... in the sequence.

    Example:
        >>> pairs_of(3, sequential=False)
        [(0, 1), (0, 2), (1, 2)]
    """
    near = {*range(1, _OVERLAP + 1), *(2**power for power in range(count.bit_length()))}
    every = ((one, other) for one in range(count) for other in range(one + 1, count))
    return [(one, other) for one, other in every if not sequential or other - one in near]


def _extract(pycolmap: Any, work: Path, names: list[str]) -> None:
    """Extract features, a few images at a time; images that have features are skipped."""
    database = work / "database.db"
    opened = pycolmap.Database.open(database)
    begun = opened.num_images()
    opened.close()
    if begun not in (0, len(names)):  # killed during import_images below
        database.unlink()
        pycolmap.Database.open(database).close()
    _forget_halves(database)
    reading = pycolmap.ImageReaderOptions(camera_model=CAMERA_MODEL)
    options = pycolmap.FeatureExtractionOptions(use_gpu=False)
    options.sift.max_num_features = _FEATURES
    single = {"camera_mode": pycolmap.CameraMode.SINGLE, "reader_options": reading}
    if begun != len(names):  # all at once, so that they share one camera
        pycolmap.import_images(database, work / "images", pycolmap.CameraMode.SINGLE, names, reading)
    with progress_bar("features", len(names)) as progress:
        for some in _parts(names, _PICTURES_AT_A_TIME):
            _run(pycolmap.extract_features, database, work / "images", some, extraction_options=options, **single)
            progress.advance(progress.task_ids[0], len(some))


def _forget_halves(database: Path) -> None:
    """Delete incomplete rows of an interrupted step, which COLMAP would try to insert again, and fail."""
    halves = [("keypoints", "descriptors", "image_id"), ("matches", "two_view_geometries", "pair_id")]
    with closing(sqlite3.connect(database)) as connection, connection:
        for one, other, key in halves:
            for first, second in ((one, other), (other, one)):
                connection.execute(f"DELETE FROM {first} WHERE {key} NOT IN (SELECT {key} FROM {second})")


def _match(pycolmap: Any, work: Path, pairs: list[tuple[str, str]], seed: int) -> None:
    """Match features, some pairs at a time; pairs that have been matched are skipped."""
    options = pycolmap.FeatureMatchingOptions(use_gpu=False)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = seed
    listed = work / "pairs.txt"
    pairing = pycolmap.ImportedPairingOptions(match_list_path=listed)
    with progress_bar("pairs", len(pairs)) as progress:
        for some in _parts(pairs, _PAIRS_AT_A_TIME):
            listed.write_text("".join(f"{one} {other}\n" for one, other in some), encoding="utf-8")
            _run(
                pycolmap.match_image_pairs,
                work / "database.db",
                matching_options=options,
                pairing_options=pairing,
                verification_options=verification,
            )
            progress.advance(progress.task_ids[0], len(some))
    listed.unlink()


def _map(pycolmap: Any, work: Path, count: int, seed: int) -> Any:
    """The largest reconstruction, or None."""
    options = pycolmap.IncrementalPipelineOptions(min_model_size=_SMALLEST_MODEL, num_threads=1, random_seed=seed)
    options.extract_colors = False
    options.mapper.num_threads, options.mapper.random_seed, options.triangulation.random_seed = 1, seed, seed
    folder = work / "models"
    folder.mkdir(exist_ok=True)
    with progress_bar("cameras", count) as progress:
        task = progress.task_ids[0]
        models = _run(
            pycolmap.incremental_mapping,
            work / "database.db",
            work / "images",
            folder,
            options=options,
            initial_image_pair_callback=lambda: progress.update(task, completed=2),
            next_image_callback=lambda: progress.advance(task),
        )
    return max(models.values(), key=lambda model: model.num_reg_images(), default=None)


def _run(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call one of pycolmap's steps in a thread, and return its result.

    Raises:
        UserError: it fails.
        KeyboardInterrupt: Ctrl-C, after the step has been cancelled.
    """
    token = load_pycolmap().CancellationToken()
    result: dict[str, Any] = {}

    def work() -> None:
        try:
            result["value"] = call(*arguments, cancellation_token=token, **options)
        except Exception as error:
            result["error"] = error

    thread = threading.Thread(target=work)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)  # signals are handled between two waits
    except KeyboardInterrupt:
        token.cancel()
        if thread.ident is not None:
            thread.join()
        raise
    if "error" in result:
        reason = str(result["error"]).splitlines()[0]
        raise UserError(f"data.root: COLMAP fails in {call.__name__} ({reason}).") from result["error"]
    return result["value"]


def _parts(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))


@contextmanager
def _quiet(pycolmap: Any) -> Iterator[None]:
    """Keep COLMAP's log off the terminal; errors are raised as exceptions."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before


def _seconds(count: int, size: tuple[int, int], pairs: int) -> float:
    """Estimated duration of a registration."""
    megapixels = size[0] * size[1] / 1e6
    thousands = min(_FEATURES, _FEATURES_PER_MEGAPIXEL * megapixels) / 1000
    shared = count * megapixels * _PER_MEGAPIXEL + pairs * thousands**2 * _PER_PAIR
    return shared / (os.cpu_count() or 1) + count * _PER_PICTURE


def _about(seconds: float) -> str:
    """A duration in words."""
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {max(1, round(seconds / 10)) * 10} s"
