import numpy as np
import pytest
import torch

from nelf.cameras import Camera
from nelf.data import demo, read_scene
from nelf.data.solids import BOX, CONE, CYLINDER, SPHERE, TORUS, Material, Solid, pack
from nelf.data.tracer import Lights, trace
from nelf.errors import UserError
from nelf.paths import look_at

ALONE = {
    SPHERE: (0.5, 0, 0),
    BOX: (0.5, 0.3, 0.2),
    CYLINDER: (0.4, 0.5, 0),
    CONE: (0.5, 0.4, 0),
    TORUS: (0.5, 0.15, 0),
}


def inside(kind, p, size=None):
    """Whether points lie in a solid: the implicit definition, which the intersections never use."""
    a, b, c = size or ALONE[kind]
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
    points = rays.origins.numpy() + t * rays.directions.numpy() - [0.1, -0.05, 0.0]
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


@pytest.mark.parametrize("scene", demo.SCENES)
def test_render_is_exact_and_has_no_memory(scene):
    camera = demo.cameras(24)["test"]
    assert demo.render(camera[:2], scene).shape == (2, 24, 24, 4)
    assert torch.equal(demo.render(camera[:2], scene)[1], demo.render(camera[1], scene))
    image = demo.render(camera[3], scene)
    assert image.min() >= 0.0
    assert image.max() <= 1.0
    assert image[0, 0].tolist() == [0, 0, 0, 0]
    assert 0.03 < image[..., 3].mean() < 0.6


@pytest.mark.parametrize("scene", demo.SCENES)
def test_a_scene_is_all_of_its_solids_and_no_more(scene):
    # The tree of bounds leaves none out: silhouettes against the union of the implicit solids.
    solids = demo.SCENES[scene].solids()
    camera = demo.cameras(16)["test"][12]
    lights = Lights(np.array([[0.0, 0, 1]]), np.array([[[0.0, 0, 1]]]))
    alpha = trace(pack(solids), lights, camera.c2w.numpy(), camera.intrinsics.numpy(), 16, 16)[..., 3]
    rays = camera.rays()
    t = np.linspace(2.6, 5.5, 800)[:, None, None, None]
    points = rays.origins.numpy() + t * rays.directions.numpy()
    marched = np.zeros((16, 16), bool)
    for solid in solids:
        marched |= inside(solid.kind, (points - solid.center) @ solid.axes.T, solid.size).any(0)
    assert (alpha == 1)[marched].all()
    assert ((alpha == 1) & ~marched).sum() <= 4
    assert marched.any()


def test_the_rows_that_bound_others_change_no_picture():
    solids = demo.SCENES["village"].solids()
    camera = demo.cameras(24)["test"][3]
    lights = Lights(np.array([[0.6, 0, 0.8]]), np.array([[[0.0, 0, 1]]]))
    table = pack(solids)
    flat = table[table[:, 0] >= 0]
    flat[:, -1] = np.arange(len(flat)) + 1
    assert len(flat) == len(solids) < len(table)
    args = (lights, camera.c2w.numpy(), camera.intrinsics.numpy(), 24, 24)
    np.testing.assert_allclose(trace(table, *args), trace(flat, *args), atol=1e-6)


def outline(solid):
    """Points on the solid, among them those that reach farthest."""
    a, b, c = solid.size
    turn = np.linspace(0, 2 * np.pi, 721)
    circle = np.stack([np.cos(turn), np.sin(turn), np.zeros(721)], -1)
    if solid.kind == BOX:
        local = np.stack(np.meshgrid(*[(-1, 1)] * 3), -1).reshape(-1, 3) * [a, b, c]
    elif solid.kind == CYLINDER:
        local = np.concatenate([a * circle + [0, 0, b], a * circle - [0, 0, b]])
    elif solid.kind == CONE:
        local = np.concatenate([a * circle - [0, 0, b], [[0, 0, b]]])
    else:  # a ball is a ring of no radius; the farthest points of a tube lie along the world's axes
        directions = np.concatenate([np.eye(3), -np.eye(3)]) @ solid.axes.T
        radius, tube = (0.0, a) if solid.kind == SPHERE else (a, b)
        local = (radius * circle[:, None] + tube * directions).reshape(-1, 3)
    return solid.center + local @ solid.axes


@pytest.mark.parametrize("scene", demo.SCENES)
def test_everything_lies_in_the_box_and_the_depth_range(scene):
    points = np.concatenate([outline(solid) for solid in demo.SCENES[scene].solids()])
    low, high = demo.aabb(scene).numpy().reshape(2, 3)
    np.testing.assert_allclose(points.min(0) - 0.03, low, atol=1e-4)
    np.testing.assert_allclose(points.max(0) + 0.03, high, atol=1e-4)
    for camera in demo.cameras().values():
        c2w = camera.c2w.double().numpy()
        offset = c2w[None, :, :, 3] - points[:, None]
        depth = np.einsum("nk,pnk->pn", c2w[:, :, 2], offset)
        assert depth.min() > demo._NEAR
        assert depth.max() < demo._FAR


def test_splits_see_the_scene_from_different_places():
    position = {name: camera.c2w[:, :, 3] for name, camera in demo.cameras().items()}
    assert torch.cdist(position["train"], position["test"]).min() > 0.01
    assert torch.cdist(position["val"], position["test"]).min() > 0.01


@pytest.mark.parametrize("name", demo.SCENES)
def test_what_is_written_is_what_is_rendered(tmp_path, name):
    about = demo.SCENES[name]
    root = demo.write(tmp_path / "demo", name, width=12)
    scene = read_scene(root)
    exact = demo.render(demo.cameras(12)["val"][4], name).numpy()
    if not about.alpha:
        exact = exact[..., :3] * exact[..., 3:] + (1 - exact[..., 3:])
    np.testing.assert_array_equal(scene.val.images[4], (exact * 255 + 0.5).astype(np.uint8))
    torch.testing.assert_close(scene.aabb, demo.aabb(name))
    assert (scene.near, scene.far, scene.license) == (2.6, 5.5, "CC0-1.0")
    assert scene.background == about.background


def test_the_scenes_are_what_they_are_for():
    camera = demo.cameras(48)["test"][::5]
    pictures = {name: demo.render(camera, name) for name in demo.SCENES}
    alpha = {name: picture[..., 3] for name, picture in pictures.items()}
    color = {name: picture[..., :3][alpha[name] > 0.5] for name, picture in pictures.items()}
    assert 0.05 < alpha["rocket"].mean() < 0.10
    # Of what the bicycle covers, most are pixels that it covers in part.
    partly = {name: float(((each > 0) & (each < 1)).sum() / (each > 0).sum()) for name, each in alpha.items()}
    assert partly["bicycle"] > 0.6 > 3 * partly["metals"]
    assert demo.SCENES["chess"].background == "black"
    assert (color["chess"].mean(-1) < 0.25).float().mean() > 0.1
    assert (color["chess"].mean(-1) > 0.75).float().mean() > 0.15
    assert color["porcelain"].mean() > 0.8
    assert [name for name, about in demo.SCENES.items() if not about.alpha] == ["village"]
    mirrors = [solid for solid in demo.SCENES["metals"].solids() if solid.material.mirror > 0.2]
    assert len(mirrors) > len(demo.SCENES["metals"].solids()) / 2


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


def test_of_two_processes_that_write_a_scene_the_first_one_s_counts(tmp_path):
    """Jobs of a sweep that begin together."""
    root = tmp_path / "blocks"
    with demo.written(root) as folder:
        folder.mkdir()
        (folder / "transforms_train.json").write_text("second")
        root.mkdir()
        (root / "transforms_train.json").write_text("first")
    assert (root / "transforms_train.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["blocks"]
