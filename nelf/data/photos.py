"""Register photographs or the frames of a video with COLMAP.

The result is a folder ``nelf_colmap`` inside that of the photographs (beside a video: ``NAME_nelf_colmap``), with
``images/`` and ``sparse/0/``, which ``nelf.data.colmap`` and other programs read. It is made once: it is renamed into
place when it is complete, an interrupted registration resumes, and it is made again if the photographs change.

Photographs are copied upright, as EXIF says, and downsampled to at most 1600 pixels on the longer side; PNG stays PNG,
all else becomes JPEG. Of the EXIF entries only the focal length is kept, as COLMAP's initial value. Photographs of
another size than most are left out, since all views of a scene have one size, and here share one camera. A video is
divided into ``frames`` equal spans, and the sharpest frame of each is used: that with the largest variance of its
Laplacian.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageOps

from nelf.data.decoding import FORMATS, check_whole, open_image
from nelf.data.images import area_average, for_each, progress_bar
from nelf.data.registration import load_pycolmap, register
from nelf.errors import UserError, alone_in, atomic_path, unwritable
from nelf.files import exists, is_dir, is_file, read_object

__all__ = ["FEWEST", "LARGEST", "register_photos", "registration_folder"]

LARGEST = 1600
"""Maximum number of pixels of the longer side of a copy."""

FEWEST = 5
"""Minimum number of photographs."""

_PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif")
_VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION, _EXIF, _FOCAL_35MM = 0x0112, 0x8769, 0xA405  # EXIF tags
_HEAD = 2**16  # bytes of each file that are hashed, in addition to name and size
_EXHAUSTIVE = 200  # up to so many photographs are matched exhaustively; more, and video frames, sequentially
_GRAY = 320  # approximate width at which sharpness is measured
_VERSION = 1  # of the folder's format; a folder of another version is made again


def registration_folder(source: str | Path) -> Path:
    """The folder of the registration of a folder of photographs, or of a video."""
    source = Path(source)
    return source / "nelf_colmap" if is_dir(source) else source.with_name(f"{source.stem}_nelf_colmap")


def register_photos(source: str | Path, frames: int = 80, seed: int = 0) -> Path:
    """Register photographs, unless that has been done.

    If several processes call this, one registers and the others wait.

    Args:
        source: a folder of JPEG, PNG, WebP or HEIC files, or a video file.
        frames: number of frames taken from a video.
        seed: COLMAP's random seed.

    Returns:
        The folder of the registration, a scene for ``nelf.data.colmap.read_colmap``.

    Raises:
        UserError: there are too few photographs, one cannot be read, too few of them could be registered, pycolmap (or,
            for HEIC, pillow-heif) is not installed, or the folder cannot be written.
        KeyboardInterrupt: Ctrl-C; finished steps are kept.
    """
    source = Path(source)
    root = registration_folder(source)
    files = [source] if is_file(source) else _photographs(source)
    mark = _mark(files, frames if is_file(source) else 0, seed)
    with alone_in(root.parent):
        if _noted(root) == {"mark": mark, "done": True}:
            return root
        if exists(root) and _noted(root) is None:
            raise UserError(f"{root}: holds something else, but is the folder for the registration. Move it away.")
        load_pycolmap()
        try:
            _make(source, files, root, mark, frames, seed)
        except OSError as error:
            raise unwritable(error, root.parent) or error from error
    return root


def _make(source: Path, files: list[Path], root: Path, mark: str, frames: int, seed: int) -> None:
    """Register into a temporary folder, and rename it into place."""
    work = root.with_name(f".{root.name}.partial")
    if exists(work) and (_noted(work) or {}).get("mark") != mark:
        shutil.rmtree(work)
    if exists(root):
        print(f"{source}: its photographs, or the settings, have changed: it is registered again", flush=True)
    if _noted(work) != {"mark": mark, "done": True}:  # else it only lacks its name
        copies = work / "images"
        copies.mkdir(parents=True, exist_ok=True)
        _note(work, mark, done=False)
        if is_file(source):
            _frames(source, copies, frames)
        else:
            _copies(source, files, copies)
        register(source, work, sequential=is_file(source) or len(files) > _EXHAUSTIVE, fewest=FEWEST, seed=seed)
        (work / "database.db").unlink(missing_ok=True)
        _note(work, mark, done=True)
    if exists(root):
        shutil.rmtree(root)
    work.rename(root)


def _mark(files: list[Path], frames: int, seed: int) -> str:
    """Hash of everything that a registration depends on; copying or moving the folder does not change it."""
    state = hashlib.sha256(f"{_VERSION} {frames} {seed}".encode())
    for path in files:
        with path.open("rb") as file:
            state.update(f"{path.name} {path.stat().st_size}\n".encode() + file.read(_HEAD))
    return state.hexdigest()


def _noted(folder: Path) -> Any:
    """The content that ``_note`` has written, or None."""
    try:
        return read_object(folder / "photos.json")
    except UserError:
        return None


def _note(folder: Path, mark: str, done: bool) -> None:
    with atomic_path(folder / "photos.json") as partial:
        partial.write_text(json.dumps({"mark": mark, "done": done}), encoding="utf-8")


# ------------------------------------------------------------------------------------------- photographs


def _photographs(folder: Path) -> list[Path]:
    """The photographs in a folder, sorted by name."""
    if not is_dir(folder):
        raise UserError(f"data.root: {folder} is not there; allowed: a folder of photographs, or a video file.")
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _PHOTOS and path.is_file()]
    found = [path for path in found if not path.name.startswith(".")]
    if len(found) < FEWEST:
        raise UserError(
            f"data.root: {folder} holds {len(found)} photographs; allowed: {FEWEST} or more JPEG, PNG, WebP or HEIC "
            "files, better 20 to 100; or a video file."
        )
    if any(path.suffix.lower() in (".heic", ".heif") for path in found):
        _open_heic(next(path for path in found if path.suffix.lower() in (".heic", ".heif")))
    return found


def _open_heic(path: Path) -> None:
    """Enable Pillow to read HEIC."""
    try:
        import pillow_heif
    except ImportError:
        raise UserError(f"{path}: pillow-heif is not installed, and HEIC needs it: pip install 'nelf[heic]'.") from None
    pillow_heif.register_heif_opener()


def _formats() -> tuple[str, ...]:
    """The allowed formats of photographs, including HEIC if it has been enabled."""
    return (*FORMATS, "HEIF") if "HEIF" in Image.OPEN else FORMATS


def _copies(source: Path, files: list[Path], folder: Path) -> None:
    """Copy the photographs of the most frequent size."""
    sizes = [_upright_size(path) for path in files]
    usual, count = Counter(sizes).most_common(1)[0]
    chosen = [path for path, size in zip(files, sizes, strict=True) if size == usual]
    if count < FEWEST:
        raise UserError(
            f"data.root: {source} holds {len(files)} photographs, of which no more than {count} have one size "
            f"({usual[0]}x{usual[1]}); allowed: {FEWEST} or more of one size."
        )
    if count < len(files):
        other = next(path.name for path, size in zip(files, sizes, strict=True) if size != usual)
        print(
            f"{source}: {len(files) - count} of {len(files)} photographs are not {usual[0]}x{usual[1]}, and left out, "
            f"such as {other}",
            flush=True,
        )
    copies = [folder / f"{index:04d}_{_copy_name(path)}" for index, path in enumerate(files)]
    missing = [(path, copy) for path, copy in zip(files, copies, strict=True) if path in chosen and not copy.is_file()]
    if missing:
        for_each(len(missing), lambda index: _copy(*missing[index]), f"copying {len(missing)} photographs, upright")


def _copy_name(path: Path) -> str:
    """A name without spaces, as required in COLMAP's lists of pairs."""
    suffix = path.suffix.lower() if path.suffix.lower() in (".jpg", ".jpeg", ".png") else ".jpg"
    return re.sub(r"\s", "_", path.stem) + suffix


def _upright_size(path: Path) -> tuple[int, int]:
    """Width and height after the rotation in EXIF."""
    with open_image(path, _formats()) as image:
        return image.size[::-1] if image.getexif().get(_ORIENTATION) in _TRANSPOSED else image.size


def _copy(path: Path, copy: Path) -> None:
    """Write one photograph upright, downsampled if it is too large."""
    with open_image(path, _formats()) as image:
        check_whole(path, image)
        exif = _focal_length(image.getexif())
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    _save(pixels, copy, exif)


def _focal_length(exif: Image.Exif) -> Image.Exif:
    """The only EXIF entry that is kept and that COLMAP reads: the 35 mm equivalent focal length."""
    kept = Image.Exif()
    length = exif.get_ifd(_EXIF).get(_FOCAL_35MM)
    if isinstance(length, int) and length > 0:
        kept.get_ifd(_EXIF)[_FOCAL_35MM] = length
    return kept


def _save(pixels: np.ndarray, path: Path, exif: Image.Exif | None = None) -> None:
    """Write an image (H, W, 3) uint8, downsampled if it is too large."""
    height, width = pixels.shape[:2]
    ratio = min(1.0, LARGEST / max(width, height))
    if ratio < 1:
        pixels = area_average(pixels, max(1, round(width * ratio)), max(1, round(height * ratio)))
    options: dict[str, Any] = {} if path.suffix.lower() == ".png" else {"quality": 95, "subsampling": 0}
    with atomic_path(path) as partial:
        Image.fromarray(pixels).save(partial, exif=Image.Exif() if exif is None else exif, **options)


# ------------------------------------------------------------------------------------------- video


def _frames(video: Path, folder: Path, frames: int) -> None:
    """Write the sharpest frame of each of ``frames`` equal spans of a video."""
    if (folder / ".complete").exists():
        return
    if video.suffix.lower() not in _VIDEOS:
        raise UserError(
            f"data.root: {video} is neither a folder nor a video; allowed: a folder of photographs, or a "
            f"file that ends in {', '.join(_VIDEOS)}."
        )
    try:
        total, _ = imageio_ffmpeg.count_frames_and_secs(str(video))
        if total < FEWEST:
            raise UserError(f"{video}: has {total} frames; allowed: {FEWEST} or more, filmed walking around.")
        frames = min(frames, total)
        with progress_bar(f"looking for {frames} sharp frames", total) as progress:
            images = progress.track(_decoded(video), task_id=progress.task_ids[0])
            for span, frame in _sharpest(images, total, frames):
                _save(frame, folder / f"frame_{span:04d}.jpg")
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{video}: is no video that FFmpeg reads ({reason}).") from None
    print(f"{video}: {frames} of {total} frames are taken, the sharpest of each {total / frames:.1f}", flush=True)
    (folder / ".complete").touch()


def _decoded(video: Path) -> Iterator[np.ndarray]:
    """The frames of a video, (H, W, 3) uint8 each, upright."""
    options = ["-v", "error", "-i", str(video), "-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-"]
    with subprocess.Popen([imageio_ffmpeg.get_ffmpeg_exe(), *options], stdout=subprocess.PIPE) as process:
        stream = process.stdout
        assert stream is not None
        while stream.readline() == b"P6\n":
            width, height = map(int, stream.readline().split())
            stream.readline()  # the largest value, 255
            yield np.frombuffer(stream.read(width * height * 3), np.uint8).reshape(height, width, 3)


def _sharpest(images: Iterable[np.ndarray], total: int, spans: int) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each span and the sharpest of its images (H, W, 3); ``total`` images form ``spans`` equal spans."""
    last, best, picture = 0, -1.0, None
    for index, image in enumerate(images):
        span = min(index * spans // total, spans - 1)  # a video may have more frames than its container states
        if span != last and picture is not None:
            yield last, picture
            best = -1.0
        sharpness = _sharpness(image)
        if sharpness > best:
            last, best, picture = span, sharpness, image
    if picture is not None:
        yield last, picture


def _sharpness(image: np.ndarray) -> float:
    """Variance of the Laplacian of an image's gray values, downsampled first so that noise does not count."""
    step = max(1, image.shape[1] // _GRAY)
    rows, columns = image.shape[0] // step * step, image.shape[1] // step * step
    gray = image[:rows, :columns].mean(2).reshape(rows // step, step, columns // step, step).mean((1, 3))
    laplacian = 4 * gray[1:-1, 1:-1] - gray[:-2, 1:-1] - gray[2:, 1:-1] - gray[1:-1, :-2] - gray[1:-1, 2:]
    return float(laplacian.var())
