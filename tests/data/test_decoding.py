"""Pictures are known by their content, whole, and not too large."""

from __future__ import annotations

import io
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nelf.data.decoding import image_header, read_image
from nelf.data.images import cache_directory, load_images
from nelf.errors import UserError
from tests.fuzz.pictures import encoded, png


def picture(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_content_counts_not_the_name(kind: str, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.dat", encoded(Image.new("RGB", (5, 4), (200, 100, 50)), kind))
    assert image_header(path) == ((5, 4), False)
    assert np.abs(read_image(path, 3).astype(int) - [200, 100, 50]).max() < 8


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "PPM", "EPS"])
def test_other_formats_are_refused_and_start_no_program(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*words: object, **options: object) -> None:
        raise AssertionError(words)

    monkeypatch.setattr(subprocess, "Popen", started)
    path = picture(tmp_path / "r_0.png", encoded(Image.new("RGB", (5, 4)), kind))
    for read in (image_header, lambda path: read_image(path, 3)):
        with pytest.raises(UserError, match=r"r_0\.png: not a readable image; allowed: PNG, JPEG, WEBP"):
            read(path)


def rows(width: int, height: int, channels: int = 3, value: int = 90) -> list[bytes]:
    return [b"\0" + bytes([value] * width * channels)] * height


def test_a_png_that_ends_early_is_refused(tmp_path: Path) -> None:
    whole = picture(tmp_path / "whole.png", png(6, 8, b"".join(rows(6, 8))))
    assert (read_image(whole, 3) == 90).all()
    early = picture(tmp_path / "early.png", png(6, 8, b"".join(rows(6, 7))))
    # Pillow itself fills the rest with black.
    assert (np.asarray(Image.open(early))[7] == 0).all()
    for path in (
        early,
        picture(tmp_path / "none.png", png(6, 8, b"")),
        picture(tmp_path / "palette.png", png(6, 8, b"".join(rows(6, 4, 1, 0)), color=3)),
        picture(tmp_path / "passes.png", png(6, 8, b"".join(rows(6, 7)), interlace=1)),
    ):
        with pytest.raises(UserError, match=f"{path.name}: cannot be decoded"):
            read_image(path, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 9)])
def test_black_pictures_are_whole(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = picture(tmp_path / "black.png", encoded(Image.new(mode, size)))
    assert read_image(path, 3).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5), (8, 8), (13, 6)])
def test_interlaced_pictures_are_whole(size: tuple[int, int], tmp_path: Path) -> None:
    """The scan lines of the seven passes, after the standard's own picture of them."""
    width, height = size
    pattern = ["16462646", "77777777", "56565656", "77777777", "36463646", "77777777", "56565656", "77777777"]
    lines = b""
    for each in "1234567":
        for y in range(height):
            count = sum(pattern[y % 8][x % 8] == each for x in range(width))
            lines += b"\0" + bytes([70] * 3 * count) if count else b""
    path = picture(tmp_path / "a.png", png(width, height, lines, interlace=1))
    assert (read_image(path, 3) == 70).all()
    path = picture(tmp_path / "b.png", png(width, height, lines[:-1], interlace=1))
    with pytest.raises(UserError, match="cannot be decoded"):
        read_image(path, 3)


def test_a_picture_that_is_too_large_is_not_decoded(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for width, height in ((20_000, 20_000), (16_000, 16_000), (20_000, 1)):
            path = picture(tmp_path / "large.png", png(width, height, b"\0"))
            with pytest.raises(UserError, match=r"large\.png: (is|cannot be decoded)"):
                image_header(path)


def test_a_link_or_a_torn_cache_is_written_anew(tmp_path: Path) -> None:
    files = [picture(tmp_path / f"{index}.png", encoded(Image.new("RGB", (6, 4), (index,) * 3))) for index in (7, 8)]

    def load() -> np.ndarray:
        return load_images(files, 6, 4, 3, tmp_path, memory_limit=0)

    assert load()[:, 0, 0, 0].tolist() == [7, 8]
    cache = next(cache_directory(tmp_path).glob("*.npy"))
    good = cache.read_bytes()
    other = io.BytesIO()
    np.save(other, np.zeros((2, 4, 6, 3), np.uint16))
    for content in (good[:-1], b"", b"x" * 1000, other.getvalue()):
        cache.write_bytes(content)
        assert load()[:, 0, 0, 0].tolist() == [7, 8]
        assert cache.read_bytes() == good
    (tmp_path / "elsewhere.npy").write_bytes(good[:-1] + b"\1")
    cache.unlink()
    cache.symlink_to(tmp_path / "elsewhere.npy")
    assert load()[:, 0, 0, 0].tolist() == [7, 8]
    assert not cache.is_symlink()
    assert (tmp_path / "elsewhere.npy").read_bytes()[-1] == 1
