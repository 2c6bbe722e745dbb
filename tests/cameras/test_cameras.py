import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera


def some_cameras(n=3, width=12, height=8):
    c2w = paths.random_mobile_r2l(n, radius=4.0, seed=3)
    intrinsics = torch.tensor([[10.0, 11.0, 5.5, 4.25]]).repeat(n, 1) + torch.arange(n)[:, None]
    return Camera(c2w, intrinsics, width, height, torch.linspace(0, 1, n)[:, None])


def project(points, c2w, intrinsics):
    """Pinhole projection in float64 through K [R | t], with OpenCV's axes as K wants them."""
    fx, fy, cx, cy = intrinsics.astype(np.float64)
    k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    rotation, position = c2w[:, :3].astype(np.float64), c2w[:, 3].astype(np.float64)
    camera_space = (points.astype(np.float64) - position) @ rotation
    image = camera_space * [1, -1, -1] @ k.T
    return image[..., :2] / image[..., 2:], image[..., 2]


def test_rays_in_closed_form():
    # 90 degrees wide, 4x2 pixels: f = 2. Pixel (0, 0) is centered at (0.5, 0.5): x = (0.5 - 2) / 2 = -0.75 and
    # y = (1 - 0.5) / 2 = 0.25 upwards. The camera is turned by 90 degrees about z: its x is the world's y.
    c2w = torch.tensor([[0.0, -1, 0, 7], [1, 0, 0, 8], [0, 0, 1, 9]])
    rays = Camera.from_fov(c2w, math.pi / 2, 4, 2).rays()
    assert rays.origins.shape == rays.directions.shape == (2, 4, 3)
    torch.testing.assert_close(rays.directions[0, 0], torch.tensor([-0.25, -0.75, -1.0]))
    torch.testing.assert_close(rays.directions[1, 3], torch.tensor([0.25, 0.75, -1.0]))
    assert torch.equal(rays.origins, torch.tensor([7.0, 8, 9]).expand(2, 4, 3))
    assert rays.time is None
    torch.testing.assert_close(rays.viewdirs.norm(dim=-1), torch.ones(2, 4))


def test_points_on_rays_project_back_to_pixel_centers_at_their_depth():
    camera = some_cameras()
    rays = camera.rays()
    for i in range(len(camera)):
        points = (rays.origins + 3.5 * rays.directions)[i].numpy()
        pixels, depth = project(points, camera.c2w[i].numpy(), camera.intrinsics[i].numpy())
        expected = np.stack(np.meshgrid(np.arange(12) + 0.5, np.arange(8) + 0.5), -1)
        np.testing.assert_allclose(pixels, expected, atol=1e-4)
        np.testing.assert_allclose(depth, 3.5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_grid_ray_is_the_mean_of_its_block(stride):
    camera = some_cameras()
    fine, coarse = camera.rays().directions, camera.rays(stride).directions
    blocks = fine.reshape(3, 8 // stride, stride, 12 // stride, stride, 3).mean((2, 4))
    torch.testing.assert_close(coarse, blocks)


def test_a_window_moves_a_grid_by_whole_pixels():
    camera = some_cameras()
    fine = camera.rays().directions
    # An odd stride has a pixel in the middle of each block: pixel 1 of 0..2, and one further in a window from 1 on.
    wide = Camera(camera.c2w, camera.intrinsics, 12, 6, camera.controls)
    shifted = wide.window(torch.tensor([1, -1]), 12, 6).rays(3).directions
    torch.testing.assert_close(shifted, fine[:, 0:6:3, 2::3])
    each = wide.window(torch.tensor([[0, 0], [1, 0], [0, 1]]), 12, 6).rays(3).directions
    torch.testing.assert_close(each[0], wide.rays(3).directions[0])
    torch.testing.assert_close(each[1], fine[1, 1:7:3, 2::3])
    torch.testing.assert_close(each[2], fine[2, 2:8:3, 1::3])


def test_pixel_rays_are_those_of_the_image():
    camera = some_cameras()
    x, y = torch.tensor([0, 11, 5]), torch.tensor([7, 0, 3])
    whole = camera.rays()
    batch = camera.pixel_rays(x, y)
    single = camera[1].pixel_rays(x, y)
    for p in range(3):
        torch.testing.assert_close(batch.directions[p], whole.directions[p, y[p], x[p]])
        torch.testing.assert_close(single.directions[p], whole.directions[1, y[p], x[p]])
    assert batch.origins.shape == single.origins.shape == (3, 3)
    assert batch.time.tolist() == [0.0, 0.5, 1.0]
    assert single.time.tolist() == [0.5, 0.5, 0.5]


def test_resized_sees_the_same_corners():
    camera = some_cameras().resized(6)
    assert (camera.width, camera.height) == (6, 4)
    torch.testing.assert_close(camera.rays().directions, some_cameras().rays(2).directions)
    assert Camera.from_fov(torch.eye(3, 4), 0.7, 100, 75).resized(30).height == 22


def test_a_window_is_a_part_of_the_image():
    camera = some_cameras()
    whole, corners = camera.rays(), [(0, 0), (5, 2), (7, 3)]
    window = camera.window(torch.tensor(corners), 5, 4)
    assert (window.width, window.height) == (5, 4)
    rays = window.rays()
    for index, (x, y) in enumerate(corners):
        torch.testing.assert_close(rays.directions[index], whole.directions[index, y : y + 4, x : x + 5])
        torch.testing.assert_close(rays.origins[index], whole.origins[index, y : y + 4, x : x + 5])
    assert torch.equal(window.time, camera.time)
    one = camera[1].window(torch.tensor([5, 2]), 5, 4).rays()
    torch.testing.assert_close(one.directions, rays.directions[1])


def test_batches():
    camera = some_cameras()
    again = Camera.stack([camera[0], camera[1], camera[-1]])
    assert torch.equal(again.c2w, camera.c2w)
    assert torch.equal(again.time, camera.time)
    assert len(Camera.cat([camera, camera[:2]])) == 5
    assert torch.equal(camera[torch.tensor([2, 0])].c2w, camera.c2w[[2, 0]])
    assert camera.to("cpu").width == 12


def test_points_are_seen_where_their_rays_come_from():
    camera = some_cameras()[1]
    t = torch.rand(8, 12) * 3 + 1
    rays = camera.rays()
    x, y, depth = camera.project((rays.origins + t[..., None] * rays.directions).reshape(-1, 3))
    torch.testing.assert_close(x.view(8, 12), (torch.arange(12) + 0.5).expand(8, 12), atol=1e-3, rtol=0)
    torch.testing.assert_close(y.view(8, 12), (torch.arange(8) + 0.5)[:, None].expand(8, 12), atol=1e-3, rtol=0)
    torch.testing.assert_close(depth.view(8, 12), t)


def test_controls_and_views_travel_with_the_rays():
    camera = some_cameras().at(0.25, 0.75)
    camera = replace(camera, view=torch.arange(3))
    rays = camera.rays(2)
    assert rays.shape == (3, 4, 6)
    assert rays.controls.shape == (3, 4, 6, 2)
    assert (rays.time == 0.25).all()
    assert (rays.controls[..., 1] == 0.75).all()
    assert (rays.view == torch.arange(3)[:, None, None]).all()
    parts = list(rays.chunks(50))
    assert [len(part) for part in parts] == [50, 22]
    assert torch.equal(torch.cat([part.view for part in parts]), rays.view.reshape(-1))
    assert torch.equal(parts[1].directions, rays.reshape(-1).directions[50:])
    assert rays[None].shape == (1, 3, 4, 6)
    assert camera.at().controls is None


def test_a_padded_image_holds_the_image():
    camera = some_cameras()
    padded = camera.padded(5)
    assert (padded.width, padded.height) == (15, 10)
    torch.testing.assert_close(padded.rays().directions[:, :8, :12], camera.rays().directions)
    assert camera.padded(4).width == 12


def test_wrong_arguments():
    camera = some_cameras()
    with pytest.raises(ValueError, match="`stride` to divide the image size 12x8, but got 5"):
        camera.rays(5)
    with pytest.raises(ValueError, match="at least one camera"):
        Camera.stack([])
    with pytest.raises(ValueError, match="one size"):
        Camera.cat([camera, camera.resized(6)])
    with pytest.raises(ValueError, match=r"`c2w` to have shape \(..., 3, 4\), but got \(4, 4\)"):
        Camera(torch.eye(4), torch.ones(4), 2, 2)
    with pytest.raises(ValueError, match="`intrinsics`"):
        Camera(torch.eye(3, 4), torch.ones(2, 4), 2, 2)
    with pytest.raises(ValueError, match="`controls`"):
        Camera(torch.eye(3, 4), torch.ones(4), 2, 2, torch.zeros(1, 1))
    with pytest.raises(ValueError, match="`view`"):
        Camera(torch.eye(3, 4), torch.ones(4), 2, 2, view=torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="the same controls"):
        Camera.cat([camera, camera.at()])
    with pytest.raises(TypeError, match="no length"):
        len(camera[0])
    with pytest.raises(IndexError):
        camera[3]


def test_a_shifted_camera_sees_through_the_corners_of_pixels() -> None:
    """Half a pixel of an image of 4: pixel (i, j) is where others count it, (i - W / 2) / f and -(j - H / 2) / f."""
    camera = Camera.from_fov(torch.eye(3, 4), math.pi / 2, width=4, height=2)
    rays_d = camera.shifted(0.5 / 4).rays().directions
    across, up = torch.meshgrid((torch.arange(4) - 2.0) / 2.0, -(torch.arange(2) - 1.0) / 2.0, indexing="xy")
    assert torch.allclose(rays_d, torch.stack([across, up, -torch.ones(2, 4)], -1))
    # At twice the size, the shift is a whole pixel.
    twice = camera.resized(8).shifted(0.5 / 4)
    assert torch.allclose(twice.intrinsics[2:], torch.tensor([5.0, 3.0]))
    assert camera.shifted(0.0) is camera
