"""A camera with a lens, against OpenCV's model written out in float64."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera
from nelf.data import SceneWriter, Split

LENSES = torch.tensor(
    [[0.10, -0.23, 0.0, 0.0025, 0.03, 0.0], [-0.2, 0.05, 0.01, -0.01, 0.004, 1.5], [0.0, 0.0, 0.0, 0.0, 0.0, -2.0]]
)


def some_cameras(width=24, height=36):
    intrinsics = torch.tensor([[40.0, 42.0, 15.5, 17.0]]).repeat(3, 1) + torch.arange(3)[:, None]
    c2w = paths.random_mobile_r2l(3, radius=4.0, seed=3)
    return Camera(c2w, intrinsics, width, height, torch.linspace(0, 1, 3)[:, None], torch.arange(3), LENSES)


def seen(points, camera):
    """Pixels (N, 2) of points (N, 3): world to OpenCV's camera space, its polynomial, then K with skew."""
    c2w = camera.c2w.double().numpy()
    fx, fy, cx, cy = camera.intrinsics.double().tolist()
    k1, k2, k3, p1, p2, skew = camera.lens.double().tolist()
    local = (points - c2w[:, 3]) @ (c2w[:, :3] * [1, -1, -1])
    a, b = local[:, 0] / local[:, 2], local[:, 1] / local[:, 2]
    r2 = a**2 + b**2
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    distorted = np.stack(
        [a * radial + 2 * p1 * a * b + p2 * (r2 + 2 * a**2), b * radial + p1 * (r2 + 2 * b**2) + 2 * p2 * a * b]
    )
    return distorted.T @ np.array([[fx, 0], [skew, fy]]) + np.array([cx, cy])


def centers(width, height):
    return np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1).reshape(-1, 2)


def test_rays_go_where_the_lens_looks_and_t_stays_z_depth() -> None:
    camera = some_cameras()
    rays = camera.rays()
    for index in range(3):
        one = camera[index]
        rays_d = rays.directions[index].reshape(-1, 3)
        points = (one.c2w[:, 3] + 2.5 * rays_d).double().numpy()
        np.testing.assert_allclose(seen(points, one), centers(24, 36), atol=2e-4)
        back = one.c2w[:, 2]
        torch.testing.assert_close(rays_d @ back, -torch.ones(len(rays_d)), atol=1e-5, rtol=0)
    # It is more than rounding that the lens moves: pixels.
    straight = camera[0].pinhole().rays().directions.reshape(-1, 3)
    moved = np.linalg.norm(seen((camera[0].c2w[:, 3] + straight).double().numpy(), camera[0]) - centers(24, 36), axis=1)
    assert moved.max() > 0.5


def test_points_are_projected_to_where_the_lens_draws_them() -> None:
    camera = some_cameras()
    points = torch.rand(50, 3) * 0.8 - 0.4
    for index in range(3):
        x, y, t = camera[index].project(points)
        expected = seen(points.double().numpy(), camera[index])
        np.testing.assert_allclose(torch.stack([x, y], -1).numpy(), expected, atol=1e-4)
        torch.testing.assert_close(t, camera[index].pinhole().project(points)[2])


def test_a_point_that_the_model_folds_back_is_not_in_the_picture() -> None:
    """With k1 = -0.2 alone x (1 + k1 x^2) turns at x^2 = 1 / 0.6 and is back at zero at x^2 = 5."""
    lens = torch.tensor([-0.2, 0.0, 0.0, 0.0, 0.0, 0.0])
    camera = Camera(torch.eye(3, 4), torch.tensor([10.0, 10.0, 20.0, 20.0]), 40, 40, lens=lens)
    across = torch.tensor([1.28, 1.30, 2.2, 2.3, 5.0])
    x, y, t = camera.project(torch.stack([across, torch.zeros(5), -torch.ones(5)], -1))
    torch.testing.assert_close(x[0], 20 + 10 * torch.tensor(1.28 * (1 - 0.2 * 1.28**2)))
    assert torch.isinf(x[1:]).all()
    assert torch.isinf(y[1:]).all()
    assert (t == 1).all()


def test_a_lens_of_zeros_is_a_pinhole() -> None:
    camera = replace(some_cameras(), lens=torch.zeros(3, 6))
    torch.testing.assert_close(camera.rays().directions, camera.pinhole().rays().directions, atol=1e-6, rtol=0)
    assert camera.pinhole().lens is None
    for name in ("c2w", "intrinsics", "controls", "view"):
        assert torch.equal(getattr(camera.pinhole(), name), getattr(camera, name))
    assert camera.pinhole().pinhole() is not camera


def test_the_lens_goes_along() -> None:
    camera = some_cameras()
    fine = camera.rays().directions
    # Half the width: a pixel is the middle of four.
    torch.testing.assert_close(camera.resized(12).rays().directions, camera.rays(2).directions, atol=1e-6, rtol=0)
    assert camera.resized(12).lens[:, 5].tolist() == [0.0, 0.75, -1.0]
    window = camera.window(torch.tensor([[3, 4], [0, 0], [9, 2]]), 10, 8).rays().directions
    for index, (x, y) in enumerate(((3, 4), (0, 0), (9, 2))):
        torch.testing.assert_close(window[index], fine[index, y : y + 8, x : x + 10], atol=2e-6, rtol=0)
    torch.testing.assert_close(camera.padded(5).rays().directions[:, :36, :24], fine)
    shifted = camera.shifted(1 / 24).rays().directions
    torch.testing.assert_close(shifted[:, 1:, 1:], fine[:, :-1, :-1], atol=2e-6, rtol=0)
    x, y = torch.tensor([0, 23, 5]), torch.tensor([35, 0, 3])
    torch.testing.assert_close(camera.pixel_rays(x, y).directions, fine[torch.arange(3), y, x])
    torch.testing.assert_close(camera[1].pixel_rays(x, y).directions, fine[1, y, x])
    torch.testing.assert_close(camera[torch.tensor([2, 0])].rays().directions, fine[[2, 0]])
    assert torch.equal(camera.at(0.5).lens, LENSES)
    assert torch.equal(camera.to("cpu").lens, LENSES)


def test_pinholes_and_lenses_join() -> None:
    camera = some_cameras()
    both = Camera.cat([camera.pinhole(), camera])
    assert torch.equal(both.lens, torch.cat([torch.zeros(3, 6), LENSES]))
    torch.testing.assert_close(both.rays().directions[:3], camera.pinhole().rays().directions, atol=1e-6, rtol=0)
    assert torch.equal(Camera.stack([camera[2], camera[0].pinhole()]).lens, torch.stack([LENSES[2], torch.zeros(6)]))
    assert Camera.cat([camera.pinhole(), camera.pinhole()]).lens is None
    with pytest.raises(ValueError, match=r"`lens` to have shape \(3, 6\) or \(3, 9\), but got \(6,\)"):
        replace(camera, lens=LENSES[0])


def test_a_teacher_s_views_join_those_that_were_taken() -> None:
    """They have no lens, and are no image that an appearance is learned of."""
    camera, images = some_cameras(), np.zeros((3, 36, 24, 3), np.uint8)
    taken = Split(camera, images, ["a", "b", "c"])
    drawn = Split(replace(camera.pinhole(), view=None), images, ["d", "e", "f"])
    joined = Split.cat([drawn, taken]).camera
    assert joined.view is None
    assert torch.equal(joined.lens[3:], LENSES)
    assert torch.equal(Split.cat([taken, taken]).camera.view, torch.arange(3).repeat(2))


def test_skew_is_not_written_to_a_format_that_states_none(tmp_path) -> None:
    with pytest.raises(ValueError, match="cameras without skew"):
        SceneWriter(tmp_path, some_cameras())


def test_cake_looks_where_the_reference_looks(data) -> None:
    """Values of HyperNeRF's own camera class for the first view at a quarter of its size."""
    root = data / "hypernerf" / "cake"
    stated, scene = (json.loads((root / name).read_text()) for name in ("camera/000004.json", "scene.json"))
    turn = np.array(stated["orientation"]).T * [1, -1, -1]
    position = (np.array(stated["position"]) - scene["center"]) * scene["scale"]
    c2w = torch.from_numpy(np.concatenate([turn, position[:, None]], 1)).float()
    focal, (cx, cy) = stated["focal_length"] / 4, stated["principal_point"]
    lens = torch.tensor([*stated["radial_distortion"], *stated["tangential_distortion"], 0.0])
    camera = Camera(c2w, torch.tensor([focal, focal, cx / 4, cy / 4]), 120, 214, lens=lens)
    rays = camera.rays()
    close = {"atol": 1e-6, "rtol": 0}
    torch.testing.assert_close(rays.origins[0, 0], torch.tensor([0.198989, 0.087300, -0.182360]), **close)
    for (column, row), direction in {
        (0, 0): (-0.384629, -0.548191, 0.742662),
        (119, 213): (0.164452, 0.454416, 0.875478),
        (60, 107): (-0.115494, -0.055997, 0.991729),
    }.items():
        torch.testing.assert_close(rays.viewdirs[row, column], torch.tensor(direction), **close)
    points = (rays.origins + rays.directions).reshape(-1, 3)
    pixels = torch.from_numpy(centers(120, 214)).float()

    def off(other: Camera) -> torch.Tensor:
        return (torch.stack(other.project(points)[:2], -1) - pixels).norm(dim=-1)

    assert off(camera).max() < 1e-4
    ignored, swapped = off(camera.pinhole()), off(replace(camera, lens=lens[[0, 1, 2, 4, 3, 5]]))
    assert (round(float(ignored.max()), 1), round(float(ignored.mean()), 2)) == (15.7, 1.55)
    assert (round(float(swapped.max()), 1), round(float(swapped.mean()), 1)) == (11.7, 2.5)
