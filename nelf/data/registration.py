"""COLMAP's incremental reconstruction of a folder of pictures, by pycolmap, beside a progress bar.

SIFT features, matching of each picture with each (or of a sequence, with those near in order), RANSAC, incremental
mapping with bundle adjustment. All pictures share one camera, SIMPLE_RADIAL: a focal length and one radial coefficient,
which is what few pictures determine. Features and matches are kept in ``database.db`` as they are found, so that an
interrupted registration goes on. Each step works in a thread of its own, so that Ctrl-C reaches Python, which cancels
it.

Drawn at random are RANSAC's samples only, from a seed; mapping runs on one thread, since sums of several threads are
not the same twice.
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

_FEATURES = 4096  # of a picture, at most: matching takes the square of it
_OVERLAP = 10  # of a sequence: with so many next ones, and those 16, 32, 64, ... further on, a picture is compared
_PICTURES_AT_A_TIME, _PAIRS_AT_A_TIME = 4, 20
_SMALLEST_MODEL = 3  # pictures
_WHOLE = 0.8  # share of the pictures; if fewer are registered, there is advice
# What a core of about 3 GHz takes, seconds: for a million pixels; for a pair of pictures with 1000 features each; for
# a picture to be placed.
_PER_MEGAPIXEL, _PER_PAIR, _PER_PICTURE = 3.7, 0.022, 0.25
_FEATURES_PER_MEGAPIXEL = 7500

_ADVICE = (
    "What helps: 20 to 100 sharp pictures, each showing two thirds of what the one before it shows; walk, do not turn "
    "on the spot; have texture in view (print, fabric, plants; not bare walls, glass or mirrors); nothing that moves; "
    "one camera, no zoom"
)


def load_pycolmap() -> Any:
    """The module pycolmap.

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
    """Find the cameras of pictures and points that they show; the largest connected part of them is kept.

    Args:
        source: where the photographs are, for messages.
        work: a folder with ``images/``; gets ``database.db`` and, at the end, ``sparse/0/``.
        sequential: compare a picture with those near in order only.
        fewest: pictures that have to be registered.
        seed: of what is drawn at random.

    Raises:
        UserError: fewer pictures than ``fewest`` could be registered, or pycolmap fails.
        KeyboardInterrupt: Ctrl-C; the features and matches that were found are kept.
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
        f"{registered} are registered, {points} points are on average {error:.2f} pixels from where they are seen "
        f"({monotonic() - begin:.0f} s)" + (f". {_ADVICE}" if count < _WHOLE * len(names) else ""),
        flush=True,
    )


def pairs_of(count: int, sequential: bool) -> list[tuple[int, int]]:
    """Which pictures are compared: each with each, or with those 1 to 10 and 16, 32, 64, ... after it.

    Example:
        >>> pairs_of(3, sequential=False)
        [(0, 1), (0, 2), (1, 2)]
    """
    near = {*range(1, _OVERLAP + 1), *(2**power for power in range(count.bit_length()))}
    every = ((one, other) for one in range(count) for other in range(one + 1, count))
    return [(one, other) for one, other in every if not sequential or other - one in near]


def _extract(pycolmap: Any, work: Path, names: list[str]) -> None:
    """Find features, of a few pictures at a time; those that have some are skipped."""
    database = work / "database.db"
    opened = pycolmap.Database.open(database)
    begun = opened.num_images()
    opened.close()
    if begun not in (0, len(names)):  # killed within a second of its beginning
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
    """Delete what an interrupted step has written half: COLMAP would write it again, and fail."""
    halves = [("keypoints", "descriptors", "image_id"), ("matches", "two_view_geometries", "pair_id")]
    with closing(sqlite3.connect(database)) as connection, connection:
        for one, other, key in halves:
            for first, second in ((one, other), (other, one)):
                connection.execute(f"DELETE FROM {first} WHERE {key} NOT IN (SELECT {key} FROM {second})")


def _match(pycolmap: Any, work: Path, pairs: list[tuple[str, str]], seed: int) -> None:
    """Match features, of some pairs at a time; those that are matched are skipped."""
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
    """Call one of pycolmap's steps in a thread; what it returns.

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
            thread.join(0.2)  # a signal is heard between two waits
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
    """Keep COLMAP's log off the terminal: what matters in it is said by exceptions."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before


def _seconds(count: int, size: tuple[int, int], pairs: int) -> float:
    """About how long a registration takes."""
    megapixels = size[0] * size[1] / 1e6
    thousands = min(_FEATURES, _FEATURES_PER_MEGAPIXEL * megapixels) / 1000
    shared = count * megapixels * _PER_MEGAPIXEL + pairs * thousands**2 * _PER_PAIR
    return shared / (os.cpu_count() or 1) + count * _PER_PICTURE


def _about(seconds: float) -> str:
    """A length of time in words."""
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {max(1, round(seconds / 10)) * 10} s"
