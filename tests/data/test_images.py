import numpy as np
import pytest
from PIL import Image

from nelf.data import images
from nelf.errors import UserError


def area_average_in_float64(image, width, height):
    """The definition, pixel by pixel: overlap of two axis-parallel rectangles as the weight."""
    rows, columns, channels = image.shape
    out = np.zeros((height, width, channels))
    for y in range(height):
        for x in range(width):
            top, bottom = y * rows / height, (y + 1) * rows / height
            left, right = x * columns / width, (x + 1) * columns / width
            total, area = np.zeros(channels), 0.0
            for i in range(rows):
                for j in range(columns):
                    weight = max(0, min(bottom, i + 1) - max(top, i)) * max(0, min(right, j + 1) - max(left, j))
                    pixel = image[i, j].astype(np.float64)
                    if channels == 4:
                        pixel[:3] *= pixel[3] / 255
                    total += weight * pixel
                    area += weight
            out[y, x] = total / area
            if channels == 4 and out[y, x, 3] > 0:
                out[y, x, :3] /= out[y, x, 3] / 255
    return out


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(4, 4), (5, 3), (7, 5), (12, 10), (1, 1)])
def test_area_average_against_the_definition(channels, size):
    image = np.random.default_rng(1).integers(0, 256, (10, 12, channels), dtype=np.uint8)
    exact = area_average_in_float64(image, *size)
    assert np.abs(images.area_average(image, *size) - exact).max() <= 0.5 + 1e-9


def test_transparent_pixels_do_not_bleed():
    # Three transparent green pixels and an opaque red one: a quarter of red, and no green.
    image = np.zeros((2, 2, 4), dtype=np.uint8)
    image[..., 1] = 255
    image[0, 0] = 255, 0, 0, 255
    assert images.area_average(image, 1, 1).tolist() == [[[255, 0, 0, 64]]]
    image[0, 0, 3] = 0
    assert images.area_average(image, 1, 1).tolist() == [[[0, 0, 0, 0]]]


def test_area_average_does_not_enlarge():
    with pytest.raises(ValueError, match="within 2x2, but got 3x1"):
        images.area_average(np.zeros((2, 2, 3), dtype=np.uint8), 3, 1)


@pytest.mark.parametrize(("mode", "alpha"), [("RGB", False), ("L", False), ("P", False), ("RGBA", True), ("LA", True)])
def test_kinds_of_pixels(tmp_path, mode, alpha):
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    assert images.image_header(tmp_path / "a.png") == ((3, 2), alpha)
    assert images.read_image(tmp_path / "a.png", 4).shape == (2, 3, 4)


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: pixels are of kind I;16; allowed: 8 bits"):
        images.image_header(tmp_path / "a.png")


def files(tmp_path, n=5):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 6, 8, 3), dtype=np.uint8)
    for index in range(n):
        Image.fromarray(pixels[index]).save(tmp_path / f"{index}.png")
    return [tmp_path / f"{index}.png" for index in range(n)], pixels


def test_a_large_split_is_mapped_from_a_cache_that_is_made_once(tmp_path):
    paths, pixels = files(tmp_path)
    loaded = images.load_images(paths, 8, 6, 3, tmp_path, memory_limit=5 * 6 * 8 * 3 - 1)
    assert isinstance(loaded, np.memmap)
    assert not loaded.flags.writeable
    np.testing.assert_array_equal(loaded, pixels)
    (cache,) = (tmp_path / ".nelf_cache").iterdir()
    made = cache.stat().st_mtime_ns
    images.load_images(paths, 8, 6, 3, tmp_path, memory_limit=0)
    assert cache.stat().st_mtime_ns == made
    Image.fromarray(255 - pixels[0]).save(paths[0])
    changed = images.load_images(paths, 8, 6, 3, tmp_path, memory_limit=0)
    np.testing.assert_array_equal(changed[0], 255 - pixels[0])


def test_a_failed_cache_leaves_nothing(tmp_path):
    paths, _ = files(tmp_path)
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    with pytest.raises(UserError, match=r"3\.png: cannot be decoded"):
        images.load_images(paths, 8, 6, 3, tmp_path, memory_limit=0)
    assert list((tmp_path / ".nelf_cache").iterdir()) == []


def test_the_cache_goes_elsewhere_where_the_scene_cannot_be_written(tmp_path, monkeypatch):
    paths, pixels = files(tmp_path)
    (tmp_path / ".nelf_cache").write_text("a file in the way, as good as a read-only disk")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    loaded = images.load_images(paths, 8, 6, 3, tmp_path, memory_limit=0)
    np.testing.assert_array_equal(loaded, pixels)
    assert len(list(tmp_path.glob("nelf_cache_*/*.npy"))) == 1
