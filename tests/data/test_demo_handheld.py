"""The built-in capture: what its lens draws lies where OpenCV's model has it, and it is what it is said to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nelf.data import DemoHandheldDataModule, Scene, demo, demo_handheld, read_capture
from nelf.data.solids import BOX, SPHERE, Material, Solid, pack
from nelf.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_handheld.write(tmp_path_factory.mktemp("demo") / "handheld", moments=10, width=24)


@pytest.fixture(scope="module")
def scene(root: Path) -> Scene:
    return read_capture(root, image_scale=1)


def centroid(alpha: np.ndarray) -> np.ndarray:
    """Mean position, column and row, of what is opaque, in pixels."""
    rows, columns = np.mgrid[: alpha.shape[0], : alpha.shape[1]] + 0.5
    return np.array([(columns * alpha).sum(), (rows * alpha).sum()]) / alpha.sum()


@pytest.mark.parametrize("place", [(-0.9, -0.2, 0.9), (0.8, 0.1, -0.8), (0.0, 0.0, 0.0)])
def test_a_small_ball_is_drawn_where_the_lens_has_its_center(place: tuple[float, ...]) -> None:
    camera = demo_handheld.rig(2)[0][0]
    ball = Solid(SPHERE, np.array(place), (0.04, 0, 0), Material((0.5, 0.5, 0.5)), np.eye(3))
    drawn = centroid(demo.draw(camera, lambda _: pack([ball]))[..., 3].numpy())
    c2w = camera.c2w.double().numpy()
    local = (np.array(place) - c2w[:, 3]) @ (c2w[:, :3] * [1, -1, -1])
    x, y = local[:2] / local[2]
    k1, k2, k3, p1, p2, _ = camera.lens.double().tolist()
    fx, fy, cx, cy = camera.intrinsics.double().tolist()
    r = x * x + y * y
    d = 1 + r * (k1 + r * (k2 + r * k3))
    u = fx * (x * d + 2 * p1 * x * y + p2 * (r + 2 * x * x)) + cx
    v = fy * (y * d + 2 * p2 * x * y + p1 * (r + 2 * y * y)) + cy
    np.testing.assert_allclose(drawn, [u, v], atol=0.1)
    if any(place):  # the lens moves it by more than that
        assert np.hypot(u - cx - fx * x, v - cy - fy * y) > 0.5


def test_a_lens_of_zeros_draws_what_a_pinhole_draws() -> None:
    camera = demo_handheld.rig(2)[1][1].pinhole()
    table = pack(demo_handheld.solids(1.0))
    none = demo.draw(camera, lambda _: table)
    zeros = demo.draw(replace(camera, lens=torch.zeros(6)), lambda _: table)
    assert (none - zeros).abs().mean() < 1e-3


def test_the_casket_is_one_body_at_first_and_two_and_a_ball_at_last() -> None:
    """Along the line through the middle of the casket: which is inside of any solid that moves."""
    still = len(demo_handheld.solids(0.0)) - 5

    def filled(time: float) -> np.ndarray:
        x = np.linspace(-1.2, 1.2, 4801)
        inside = np.zeros(len(x), bool)
        for solid in demo_handheld.solids(time)[still:]:
            offset = np.stack([x, np.zeros_like(x), np.full_like(x, -0.28)], -1) - solid.center
            reach = np.array(solid.size)
            inside |= (np.abs(offset) < reach).all(-1) if solid.kind == BOX else (offset**2).sum(-1) < reach[0] ** 2
        return inside

    def pieces(time: float) -> int:
        return int((np.diff(filled(time).astype(int)) == 1).sum())

    assert pieces(0.0) <= 2  # two halves that touch, at a point of the line at most
    assert filled(0.0).sum() * 0.0005 == pytest.approx(1.08, abs=0.01)
    assert pieces(0.4) == 3  # the ball between them
    assert pieces(1.0) == 2  # it has risen
    for before, after in zip(demo_handheld.solids(0.0)[:still], demo_handheld.solids(1.0)[:still], strict=True):
        np.testing.assert_array_equal(before.center, after.center)


def test_the_splits(scene: Scene) -> None:
    assert (len(scene.train), len(scene.val), len(scene.test)) == (10, 8, 10)
    assert [name.split("/")[-1].split("_")[0] for name in scene.train.names] == ["left", "right"] * 5
    assert [name.split("/")[-1].split("_")[0] for name in scene.test.names] == ["right", "left"] * 5
    torch.testing.assert_close(scene.train.camera.time, torch.linspace(0, 1, 10))
    assert torch.equal(scene.test.camera.time, scene.train.camera.time)
    # Two cameras on one rig, a fifth of a unit of the files apart.
    apart = (scene.test.camera.c2w - scene.train.camera.c2w)[:, :, 3].norm(dim=-1)
    torch.testing.assert_close(apart, apart[:1].expand(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(scene.test.camera.c2w[..., :3], scene.train.camera.c2w[..., :3])
    assert scene.train.camera.lens is not None


def test_pictures_are_those_of_the_moment_and_the_camera(root: Path, scene: Scene) -> None:
    left, right = demo_handheld.rig(10, 24)
    for index, camera in ((4, left), (7, right)):
        exact = demo.draw(camera[index], lambda _, time=index / 9: pack(demo_handheld.solids(time)))
        assert (exact[..., 3] == 1).all()
        np.testing.assert_array_equal(scene.train.images[index], (exact[..., :3].numpy() * 255 + 0.5).astype(np.uint8))
    assert read_capture(root, image_scale=2).train.images.shape == (10, 16, 12, 3)


def test_depth_range_and_box_hold_all_that_is_seen(scene: Scene) -> None:
    """What moves, and the background in sight: points are those of table and wall."""
    assert len(scene.points) > 1000
    rays = scene.train.camera.rays()
    plane = scene.points.amin(0)[2], scene.points.amax(0)[1]  # the table's height, and where the wall is
    toward = torch.stack([(plane[0] - rays.origins[..., 2]) / rays.directions[..., 2],
                          (plane[1] - rays.origins[..., 1]) / rays.directions[..., 1]])  # fmt: skip
    t = torch.where(toward > 0, toward, torch.inf).amin(0)
    assert t.min() > scene.near
    assert t.max() < scene.far
    seen = (rays.origins + t[..., None] * rays.directions).reshape(-1, 3)
    low, high = scene.aabb[:3], scene.aabb[3:]
    within = ((seen >= low) & (seen <= high)).all(-1)
    assert within.float().mean() > 0.95
    assert float((high - low).max()) < 1.0  # of the diagonal of points and cameras, which is the unit
    assert ((scene.points >= low) & (scene.points <= high)).all()


def test_it_is_written_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = (root / "dataset.json").stat().st_mtime_ns
    module = DemoHandheldDataModule(root)
    assert len(module.scene.train) == 10
    assert (root / "dataset.json").stat().st_mtime_ns == stamp
    monkeypatch.setenv("NELF_CACHE", str(tmp_path))
    assert DemoHandheldDataModule().root == tmp_path / "demo" / "handheld"
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other files"):
        demo_handheld.write(tmp_path)
