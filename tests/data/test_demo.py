import numpy as np
import pytest
import torch

from nelf.cameras import Camera
from nelf.data import demo, read_scene
from nelf.data.raytrace import BOX, CONE, CYLINDER, SPHERE, TORUS, Lights, Material, Solid, pack, trace
from nelf.errors import UserError
from nelf.paths import look_at

ALONE = {
    SPHERE: (0.5, 0, 0),
    BOX: (0.5, 0.3, 0.2),
    CYLINDER: (0.4, 0.5, 0),
    CONE: (0.5, 0.4, 0),
    TORUS: (0.5, 0.15, 0),
}


def inside(kind, p):
    """Whether points lie in a solid: the implicit definition, which the intersections never use."""
    a, b, c = ALONE[kind]
    x, y, z = np.moveaxis(p, -1, 0)
    level = np.hypot(x, y)
    if kind == SPHERE:
        return level**2 + z**2 < a**2
    if kind == BOX:
        return (abs(x) < a) & (abs(y) < b) & (abs(z) < c)
    if kind == CYLINDER:
        return (level < a) & (abs(z) < b)
    if kind == CONE:
        return (abs(z) < b) & (level < a * (b - z) / (2 * b))
    return (level - a) ** 2 + z**2 < b**2


@pytest.mark.parametrize("kind", ALONE)
@pytest.mark.parametrize("eye", [(2.5, 1.0, 0.7), (0.3, -1.5, -2.4), (0.01, 0.0, 3.0)])
def test_silhouettes_against_marching_the_implicit_solid(kind, eye):
    axes = np.linalg.qr(np.random.default_rng(kind).normal(size=(3, 3)))[0]
    table = pack([Solid(kind, np.array([0.1, -0.05, 0.0]), ALONE[kind], Material((0.5, 0.5, 0.5)), axes)])
    camera = Camera.from_fov(look_at(torch.tensor(eye), torch.zeros(3)), 0.7, 24, 24)
    lights = Lights(np.array([[0.0, 0, 1]]), np.array([[[0.0, 0, 1]]]))
    alpha = trace(table, lights, camera.c2w.numpy(), camera.intrinsics.numpy(), 24, 24)[..., 3]

    rays = camera.rays()
    t = np.linspace(1.0, 5.0, 4001)[:, None, None, None]
    points = rays.rays_o.numpy() + t * rays.rays_d.numpy() - [0.1, -0.05, 0.0]
    marched = inside(kind, points @ axes.T).any(0)
    # Marching steps over slivers thinner than its step, so it may miss a grazing ray, and only that.
    assert (alpha == 1)[marched].all()
    assert ((alpha == 1) & ~marched).sum() <= 2
    assert 20 < marched.sum() < 500


def test_light_falls_from_above_and_throws_a_shadow():
    floor = Solid(
        BOX,
        np.array([0.0, 0, -0.1]),
        (2.0, 2.0, 0.1),
        Material((0.5, 0.5, 0.5), shine=0.0, mirror=0.0),
        np.eye(3),
    )
    ball = Solid(
        SPHERE,
        np.array([0.0, 0, 0.7]),
        (0.3, 0, 0),
        Material((0.5, 0.5, 0.5), shine=0.0, mirror=0.0),
        np.eye(3),
    )
    sun = np.array([[1.0, 0, 1]]) / 2**0.5
    lights = Lights(sun, np.array([[[0.0, 0, 1]]]))
    camera = Camera.from_fov(look_at(torch.tensor([0.0, 0, 8]), torch.zeros(3)), 0.5, 41, 41)
    image = trace(pack([floor, ball]), lights, camera.c2w.numpy(), camera.intrinsics.numpy(), 41, 41)
    shade = trace(pack([floor]), lights, camera.c2w.numpy(), camera.intrinsics.numpy(), 41, 41)[20, 20, 0]
    # The sun stands at 45 degrees over +x, so the ball's shadow falls on (-0.7, 0, 0). Where in the picture:
    right, up = camera.c2w[:, 0], camera.c2w[:, 1]
    spot = torch.tensor([-0.7, 0, 0])
    column, row = (
        20.5 + camera.intrinsics[0] * (spot @ right) / 8,
        20.5 - camera.intrinsics[0] * (spot @ up) / 8,
    )
    lit = (20.5 - camera.intrinsics[0] * (spot @ right) / 8, 20.5 + camera.intrinsics[0] * (spot @ up) / 8)
    assert image[int(row), int(column), 0] < 0.75 * shade
    assert image[int(lit[1]), int(lit[0]), 0] == pytest.approx(shade, abs=1e-5)


def test_render_is_exact_and_has_no_memory():
    camera = demo.cameras(24)["test"]
    assert demo.render(camera[:2]).shape == (2, 24, 24, 4)
    assert torch.equal(demo.render(camera[:2])[1], demo.render(camera[1]))
    image = demo.render(camera[3])
    assert image.min() >= 0.0
    assert image.max() <= 1.0
    assert image[0, 0].tolist() == [0, 0, 0, 0]
    assert 0.2 < image[..., 3].mean() < 0.6


def outline(solid):
    """Points whose convex hull holds the solid (a ball's and a ring's box, the others' corners and rims)."""
    a, b, c = solid.size
    turn = np.linspace(0, 2 * np.pi, 64)
    if solid.kind in (CYLINDER, CONE):
        rim = np.stack([a * np.cos(turn), a * np.sin(turn), np.full(64, b)], -1)
        local = np.concatenate([rim, rim * [1, 1, -1]])
    else:
        half = {SPHERE: (a, a, a), BOX: (a, b, c), TORUS: (a + b, a + b, b)}[solid.kind]
        local = np.stack(np.meshgrid(*[(-1, 1)] * 3), -1).reshape(-1, 3) * half
    return solid.center + local @ solid.axes


def test_everything_lies_in_the_box_and_the_depth_range():
    points = np.concatenate([outline(solid) for solid in demo.SCENES["blocks"]()])
    low, high = demo.aabb().numpy().reshape(2, 3)
    np.testing.assert_allclose(points.min(0) - 0.03, low, atol=2e-3)
    np.testing.assert_allclose(points.max(0) + 0.03, high, atol=2e-3)
    for camera in demo.cameras().values():
        c2w = camera.c2w.double().numpy()
        offset = c2w[None, :, :, 3] - points[:, None]
        depth = np.einsum("nk,pnk->pn", c2w[:, :, 2], offset)
        assert camera.near < depth.min()
        assert camera.far > depth.max()


def test_splits_see_the_scene_from_different_places():
    position = {name: camera.c2w[:, :, 3] for name, camera in demo.cameras().items()}
    assert torch.cdist(position["train"], position["test"]).min() > 0.01
    assert torch.cdist(position["val"], position["test"]).min() > 0.01


def test_what_is_written_is_what_is_rendered(tmp_path):
    root = demo.write(tmp_path / "demo", width=12)
    scene = read_scene(root)
    exact = demo.render(demo.cameras(12)["val"][4])
    np.testing.assert_array_equal(scene.val.images[4], (exact.numpy() * 255 + 0.5).astype(np.uint8))
    torch.testing.assert_close(scene.aabb, demo.aabb())
    assert (scene.near, scene.far, scene.license) == (2.6, 5.5, "CC0-1.0")


def test_a_broken_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "render", fail)
    with pytest.raises(KeyboardInterrupt):
        demo.write(tmp_path / "demo", width=12)
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other files"):
        demo.write(tmp_path, width=12)
