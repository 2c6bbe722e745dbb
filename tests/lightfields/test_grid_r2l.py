"""GridR2L: pictures and their opacity, gradients, the volume it begins with, and which states it takes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nelf import paths
from nelf.cameras import Camera
from nelf.data import Scene, Split, read_scene
from nelf.lightfields import GridR2L
from nelf.lightfields.decoder import decoder_inputs, decoder_window
from nelf.lightfields.grid_r2l import CORNERS, ROWS_PER_PIXEL, UNKNOWN, VOXELS
from nelf.rays import Rays, intersect_aabb
from nelf.rendering import Rendering


def small(**changes: object) -> GridR2L:
    return GridR2L(**{"width": 8, "depth": 4, "resolution": 12, "features": 4, **changes})


def ball(center: tuple[float, float, float] = (0.0, 0.0, 0.0), radius: float = 0.6, **changes: object) -> GridR2L:
    """A network whose volume holds a ball of random color, and whose decoder does something."""
    network = small(**changes)
    line = torch.linspace(-1.5, 1.5, 25)
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    distance = (torch.stack([x, y, z], -1) - torch.tensor(center)).norm(dim=-1)
    near = distance < radius + 0.3
    network.volume.resize(near)
    with torch.no_grad():
        network.volume.density.copy_(20 * (radius - distance[near]))
        network.volume.features.uniform_(0.0, 1.0)
    nn.init.normal_(network.tail.weight, std=0.1)
    nn.init.normal_(network.tail.bias, std=0.1)
    network.low_precision = False
    return network.eval()


def camera(width: int = 24, height: int = 24, distance: float = 4.0) -> Camera:
    c2w = torch.eye(3, 4)
    c2w[2, 3] = distance
    return Camera.from_fov(c2w, 0.7, width, height)


def prepare(network: GridR2L, scene: Scene, teacher: object = None) -> None:
    network.prepare(scene.geometry, scene.train.silhouettes(), teacher)  # type: ignore[arg-type]


def draw(network: GridR2L, view: Camera) -> Tensor:
    rays = view.rays()
    with torch.no_grad():
        return network(rays[None])


@pytest.mark.parametrize("sr_factor", [1, 2, 4, 12])
def test_shapes_and_ranges_of_a_wide_image(sr_factor: int) -> None:
    network = ball(sr_factor=sr_factor)
    nn.init.normal_(network.tail.weight, std=3.0)  # far beyond what can be drawn
    picture = network.render(camera(48, 24))
    assert picture.rgb.shape == (24, 48, 3)
    assert picture.depth is not None
    assert picture.opacity is not None
    assert picture.depth.shape == picture.opacity.shape == (24, 48)
    drawn = draw(network, camera(48, 24))
    assert drawn.shape == (1, 24, 48, 4)
    assert float(drawn.min()) == 0.0
    assert float(drawn.max()) == 1.0
    assert (drawn[..., :3] <= drawn[..., 3:]).all()
    assert float(picture.rgb.max()) <= 1.0


def test_forward_is_what_render_shows() -> None:
    network = ball()
    network.background.copy_(torch.tensor([0.2, 0.5, 0.7]))
    expected = Rendering.over(draw(network, camera())[0], network.background)
    picture = network.train().render(camera())  # in evaluation mode all the same
    assert network.training
    torch.testing.assert_close(picture.rgb, expected.rgb)
    torch.testing.assert_close(picture.opacity, expected.opacity)
    assert float(picture.rgb.std()) > 0.05


def test_a_view_does_not_depend_on_its_batch() -> None:
    network = ball()
    rays = camera().rays()
    both = Rays(torch.stack([rays.origins, rays.origins + 0.1]), torch.stack([rays.directions, rays.directions]))
    with torch.no_grad():
        torch.testing.assert_close(network(both)[1:], network(both[1:]))


def test_an_image_of_any_size_is_a_part_of_a_larger_one() -> None:
    network, view = ball(sr_factor=4), camera(48, 40)
    part = network.render(view.window(torch.tensor([0, 0]), 45, 38))
    assert part.rgb.shape == (38, 45, 3)
    for whole, cut in zip(network.render(view), part, strict=True):
        torch.testing.assert_close(cut, whole[:38, :45], atol=1e-5, rtol=0)


@pytest.mark.parametrize("center", [(0.0, 0.0, 0.0), (0.7, -0.5, 0.3), (-0.9, 0.9, 0.0)])
def test_the_decoder_runs_where_something_is_and_draws_what_it_would_everywhere(
    center: tuple[float, float, float],
) -> None:
    network, view = ball(center, radius=0.3, depth=6), camera(192, 160)
    rays = view.rays()
    along = network.composite(rays)
    inputs = decoder_inputs(rays[None], along, 2)
    top, bottom, left, right = decoder_window(inputs[:, network._opacity], **network.window)
    assert 0 < (bottom - top) * (right - left) < 0.5 * 96 * 80
    with torch.no_grad():
        everywhere = network.decode(inputs).movedim(1, -1)
    drawn = draw(network, view)
    torch.testing.assert_close(drawn, everywhere, atol=1e-5, rtol=0)
    assert float(drawn.std()) > 0.02
    # Nothing is drawn further than a block from what a ray meets.
    drawn = drawn.movedim(-1, 1)
    hit = nn.functional.max_pool2d((along.opacity.view(1, 1, 160, 192) > 0).float(), 2)
    near = nn.functional.interpolate(nn.functional.max_pool2d(hit, 3, 1, 1), scale_factor=2)
    assert (drawn[:, 3:][near > 0] > 0).any()
    assert not drawn[(near == 0).expand_as(drawn)].any()


def test_where_nothing_is_hit_there_is_the_background() -> None:
    network = ball()
    away = camera()
    away.c2w[:, 0] *= -1
    away.c2w[:, 2] *= -1
    network.background.copy_(torch.tensor([0.2, 0.5, 0.7]))
    picture = network.render(away)
    assert picture.opacity is not None
    assert not picture.opacity.any()
    assert torch.equal(picture.rgb, network.background.expand(24, 24, 3))


def test_another_background_is_exact() -> None:
    network = ball()
    network.background.fill_(1.0)
    white = network.render(camera())
    network.background.zero_()
    black = network.render(camera())
    assert white.opacity is not None
    torch.testing.assert_close(black.rgb + (1 - white.opacity)[..., None], white.rgb)
    assert float((white.rgb - black.rgb).mean()) > 0.1


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradient_reaches_every_parameter(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NELF_KERNELS", backend)
    network = ball().train()
    rays = camera().rays()
    network(rays[None]).square().mean().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_a_new_network_draws_its_volume_and_can_learn() -> None:
    """The tail begins at zero; a gradient still reaches it, and the volume."""
    network = small()
    rays = camera().rays()
    drawn = network(rays[None])
    along = network.eval().composite(rays)
    torch.testing.assert_close(draw(network, camera())[0, ..., 3].flatten(), along.opacity)
    drawn.square().mean().backward()
    for value in (network.tail.weight, network.volume.density, network.volume.features):
        assert value.grad is not None
        assert float(value.grad.abs().sum()) > 0


def test_both_backends_render_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ball()
    pictures = []
    for backend in ("reference", "cpu"):
        monkeypatch.setenv("NELF_KERNELS", backend)
        pictures.append(network.render(camera()))
    for expected, got in zip(*pictures, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


# -------------------------------------------------------------------------------------------- the beginning


def sphere(view: Camera, radius: float = 1.0) -> tuple[Tensor, Tensor]:
    """The picture (..., H, W, 4) of a sphere colored by its normal, and the z-depth of its hits."""
    rays = view.rays()
    middle = -(rays.origins * rays.viewdirs).sum(-1)
    inside = radius**2 - (rays.origins.square().sum(-1) - middle**2)
    distance = middle - inside.clamp(min=0).sqrt()
    rgb = 0.5 + 0.5 * (rays.origins + distance[..., None] * rays.viewdirs) / radius
    return torch.cat([rgb.clamp(0, 1), (inside > 0)[..., None].float()], -1), distance / rays.directions.norm(dim=-1)


class Ball:
    """A teacher in closed form: a dense sphere colored by its normal."""

    def __init__(self, radius: float = 1.0) -> None:
        self.radius = radius

    def sigma(self, positions: Tensor) -> Tensor:
        return (positions.norm(dim=-1) < self.radius) * 200.0


class ColoredBall(Ball):
    def rgb(self, positions: Tensor, viewdirs: Tensor) -> Tensor:
        torch.testing.assert_close(viewdirs.norm(dim=-1), torch.ones(len(viewdirs)))
        return 0.5 + 0.5 * nn.functional.normalize(positions, dim=-1)


@pytest.fixture(scope="module")
def ball_scene() -> Scene:
    view = Camera.from_fov(paths.hemisphere(24, 4.0, (-80.0, 80.0)), 0.7, 64, 64)
    images = (sphere(view)[0] * 255).round().byte().numpy()
    split = Split(view, images, [str(index) for index in range(24)])
    aabb = torch.tensor([-1.4, -1.4, -1.4, 1.4, 1.4, 1.4])
    return Scene("ball", None, split, split, split, aabb=aabb, near=2.5, far=5.5)


def test_an_untrained_network_draws_its_teacher(ball_scene: Scene) -> None:
    network = small(resolution=None)
    prepare(network, ball_scene, ColoredBall())
    unseen = Camera.from_fov(paths.orbit(3, 4.0, 25.0), 0.7, 64, 64)
    truth, depth = sphere(Camera.from_fov(unseen.c2w, 0.7, 256, 256))
    truth = nn.functional.avg_pool2d(
        torch.cat([truth[..., :3] * truth[..., 3:], truth[..., 3:]], -1).permute(0, 3, 1, 2), 4
    )
    depth = depth[:, 2::4, 2::4]
    for index in range(3):
        picture = network.render(unseen[index])
        assert picture.opacity is not None
        assert picture.depth is not None
        expected = Rendering.over(truth[index].movedim(0, -1), torch.ones(3))
        error = (picture.rgb - expected.rgb).square().mean(), (picture.opacity - expected.opacity).square().mean()
        assert (
            min(float(-10 * each.log10()) for each in error) > 17
        )  # white alone: 10; its outline swells by half a voxel
        inside = nn.functional.avg_pool2d(truth[index, 3:], 5, 1, 2)[0] > 0.999
        assert float((picture.rgb - expected.rgb)[inside].abs().mean()) < 0.01
        assert float((picture.depth - depth[index])[inside].abs().max()) < 2 * network.voxel
    # Only the shell that light reaches has rows.
    radius = network.volume.positions(network.aabb).norm(dim=-1)
    assert float(radius.max()) < 1.0 + 4 * network.voxel
    assert float(radius.min()) > 1.0 - 8 * network.voxel


def test_a_teacher_without_color_gives_its_shape(ball_scene: Scene) -> None:
    network = small(resolution=24)
    prepare(network, ball_scene, Ball())
    view = ball_scene.train.camera[5]
    picture, truth = network.render(view), sphere(view)[0][..., 3]
    assert picture.opacity is not None
    assert float((picture.opacity - truth).abs().mean()) < 0.05
    assert 0.05 < float(network.volume.features.detach().std()) < 0.2  # random, as they were


class Fog(ColoredBall):
    """A teacher that draws the ball opaque, but whose density is fog that is too thin to be found anywhere."""

    def sigma(self, positions: Tensor) -> Tensor:
        return (positions.norm(dim=-1) < 1.0) * 1e-3

    def render(self, camera: Camera) -> Rendering:
        drawn, depth = sphere(camera)
        return Rendering.over(torch.cat([drawn[..., :3] * drawn[..., 3:], drawn[..., 3:]], -1), torch.ones(3), depth)


def test_what_a_teacher_shows_without_density_is_filled_in(ball_scene: Scene) -> None:
    network = small(resolution=32)
    prepare(network, ball_scene, Fog())
    view = ball_scene.train.camera[5]
    truth, _ = sphere(view)
    picture = network.render(view)
    assert picture.opacity is not None
    middle = nn.functional.avg_pool2d(truth[None, ..., 3], 5, 1, 2)[0] > 0.999
    assert float(picture.opacity[middle].min()) > 0.5
    assert float((picture.rgb - truth[..., :3])[middle].abs().mean()) < 0.1
    assert len(network.volume.density) < 32**3 / 2  # a shell, not the whole box


def test_without_a_teacher_all_corners_in_the_silhouettes_exist(ball_scene: Scene) -> None:
    network = small(resolution=20)
    prepare(network, ball_scene)
    cells = network.volume.cells
    line = [torch.arange(side) + 0.5 for side in cells.shape]
    places = torch.stack(torch.meshgrid(*line, indexing="ij")[::-1], -1) * network.voxel + network.aabb[:3]
    distance = places.norm(dim=-1)
    assert cells[distance < 0.9].all()
    carved = ~cells[distance > 1.0 + 4 * network.voxel]
    assert float(carved.float().mean()) > 0.99  # the rest is near a corner of the box, outside most images


@pytest.mark.parametrize("width", [32, 200, 400, 1600])
def test_the_resolution_follows_the_images(width: int) -> None:
    network = small(resolution=None, sr_factor=4)
    network.aabb.copy_(torch.tensor([-1.0, -0.5, -0.3, 1.0, 0.4, 0.3]))
    box = network.aabb.clone()
    view = Camera.from_fov(paths.orbit(4, 4.0, 20.0), 0.7, width, width)
    block = 4.0 * 4 / float(view.intrinsics[0, 0])
    for voxel, most in ((VOXELS[1], CORNERS[1]), (VOXELS[1], UNKNOWN), (VOXELS[0], CORNERS[1])):
        network.aabb.copy_(box)
        cells = network._divide(network._sharp(view, voxel, most))
        network.volume.resize(torch.zeros([side + 1 for side in cells], dtype=torch.bool))
        depth, height, across = network.volume.shape.tolist()
        assert CORNERS[0] <= across <= most
        if CORNERS[0] < across < most:
            assert network.voxel == pytest.approx(voxel * block, rel=0.05)
        else:
            assert (network.voxel > voxel * block) == (across == most)
        sides = network.aabb[3:] - network.aabb[:3]
        torch.testing.assert_close(sides, network.voxel * torch.tensor([across - 1.0, height - 1.0, depth - 1.0]))
        assert (network.aabb[3:] >= box[3:] - 0.01 * network.voxel).all()
        assert (sides < box[3:] - box[:3] + 1.01 * network.voxel).all()


def test_a_volume_of_too_many_rows_gets_larger_voxels(ball_scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nelf.lightfields.grid_r2l.VOXELS", (0.3, 0.3))  # small images, which choose few corners
    free, bounded, chosen = (small(resolution=resolution) for resolution in (None, None, 40))
    for network in (free, chosen):
        prepare(network, ball_scene, ColoredBall())
    limit = len(free.volume.density) // 2
    monkeypatch.setattr("nelf.lightfields.grid_r2l.ROWS", limit)
    prepare(bounded, ball_scene, ColoredBall())
    assert 0.5 * limit < len(bounded.volume.density) <= limit
    assert bounded.voxel > free.voxel
    asked = small(resolution=40)
    prepare(asked, ball_scene, ColoredBall())
    assert asked.volume.shape.tolist() == chosen.volume.shape.tolist()  # what is asked for is not bounded


@pytest.mark.parametrize("radius", [0.15, 0.4, 1.0])
def test_a_scene_that_fills_little_space_gets_smaller_voxels(
    ball_scene: Scene, radius: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to the smallest, as long as the volume has no more rows than the images deserve."""
    monkeypatch.setattr("nelf.lightfields.grid_r2l.CORNERS", (4, 256))  # of small images
    network, coarse = small(resolution=None), small(resolution=None)
    prepare(network, ball_scene, ColoredBall(radius))
    monkeypatch.setattr("nelf.lightfields.grid_r2l.VOXELS", (VOXELS[1], VOXELS[1]))
    prepare(coarse, ball_scene, ColoredBall(radius))
    camera = ball_scene.train.camera
    most = ROWS_PER_PIXEL * camera.width * camera.height
    finest = network.voxel < 1.1 * coarse.voxel * VOXELS[0] / VOXELS[1]
    assert network.voxel < 0.9 * coarse.voxel
    assert finest or len(network.volume.density) > 0.5 * most
    assert len(network.volume.density) < 1.2 * most


def test_the_scene_is_fitted_once_and_travels_with_the_weights(tiny_scene: Path) -> None:
    scene = read_scene(tiny_scene)
    scene.background = "black"
    network = small()
    prepare(network, scene)
    assert float(network.near) == pytest.approx(2.5)
    assert network.background.tolist() == [0.0, 0.0, 0.0]
    assert (network.aabb.abs() <= 1.2 + network.voxel).all()
    box, exists = network.aabb.clone(), network.volume.exists
    prepare(network, replace(scene, aabb=2 * scene.aabb), ColoredBall())
    assert torch.equal(network.aabb, box)
    assert torch.equal(network.volume.exists, exists)
    other = small(resolution=30)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other.render(camera()).rgb, network.render(camera()).rgb)
    prepare(other, replace(scene, aabb=2 * scene.aabb))
    assert torch.equal(other.aabb, box)


def test_a_state_whose_rows_do_not_fit_is_refused() -> None:
    state = ball().state_dict()
    state["volume.density"] = state["volume.density"][1:]
    with pytest.raises(ValueError, match=r"volume\.corners: \d+ corners exist, but there are"):
        small().load_state_dict(state)


def test_a_window_that_sees_nothing_has_a_loss_without_effect() -> None:
    network = ball().train()
    rays = camera(32, 32).rays()
    drawn = network(Rays(rays.origins, -rays.directions)[None])
    assert not drawn.detach().any()
    drawn.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


# -------------------------------------------------------------------------------------------- the extent


def test_the_extent_holds_every_pixel_that_looks_at_the_box() -> None:
    """Random cameras, some of them beside the box or in it, wherever they look."""
    network = small()
    network.aabb.copy_(torch.tensor([-0.5, -0.3, -0.2, 0.4, 0.5, 0.6]))
    generator, kinds = torch.Generator().manual_seed(5), {"inside": 0, "missed": 0, "tight": 0}
    for _ in range(120):
        origin, goal = torch.randn(2, 3, generator=generator).unbind()
        view = Camera.from_fov(paths.look_at((1.5 * origin)[None], (0.6 * goal)[None])[0], 0.8, 40, 30)
        rays = view.rays()
        t_min, t_max = intersect_aabb(rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3), network.aabb)
        rows, columns = (t_max > t_min).view(30, 40).nonzero().unbind(-1)
        x0, y0, x1, y1 = network.extent(view)
        assert 0 <= x0 < x1 <= 40
        assert 0 <= y0 < y1 <= 30
        if not len(rows):
            kinds["missed"] += 1
            continue
        found = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
        assert x0 <= found[0]
        assert y0 <= found[1]
        assert x1 >= found[2]
        assert y1 >= found[3]
        if ((1.5 * origin > network.aabb[:3]) & (1.5 * origin < network.aabb[3:])).all():
            kinds["inside"] += 1
            assert (x0, y0, x1, y1) == (0, 0, 40, 30)
        elif min(found[:2]) > 0 and found[2] < 40 and found[3] < 30:  # all of the box is in the image
            kinds["tight"] += 1
            assert max(abs(a - b) for a, b in zip((x0, y0, x1, y1), found, strict=True)) <= 3
    assert min(kinds.values()) >= 1, kinds


@pytest.mark.parametrize("k1", [-0.25, 0.4])
def test_the_extent_holds_the_bent_edges_of_the_box(k1: float) -> None:
    """Through a lens of a barrel the middle of an edge lies farther out than its ends."""
    network, tight = small(), 0
    network.aabb.copy_(torch.tensor([-0.8, -0.6, -0.5, 0.8, 0.6, 0.5]))
    lens = torch.tensor([k1, 0.03, 0.0, 0.01, -0.01, 0.0])
    for c2w in paths.hemisphere(12, 2.2, (-20.0, 70.0)):
        view = replace(Camera.from_fov(c2w, 1.1, 120, 100), lens=lens)
        rays = view.rays()
        t_min, t_max = intersect_aabb(rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3), network.aabb)
        rows, columns = (t_max > t_min).view(100, 120).nonzero().unbind(-1)
        found = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
        x0, y0, x1, y1 = network.extent(view)
        assert x0 <= found[0]
        assert y0 <= found[1]
        assert x1 >= found[2]
        assert y1 >= found[3]
        tight += max(abs(a - b) for a, b in zip((x0, y0, x1, y1), found, strict=True)) <= 3
    assert tight >= 6


def test_the_extent_of_a_box_that_a_lens_folds_back_is_the_image() -> None:
    network = small()
    network.aabb.copy_(torch.tensor([-3.0, -3.0, -0.5, 3.0, 3.0, 0.5]))
    view = replace(camera(24, 24, distance=2.0), lens=torch.tensor([-0.4, 0.0, 0.0, 0.0, 0.0, 0.0]))
    assert network.extent(view) == (0, 0, 24, 24)


# -------------------------------------------------------------------------------------------- arguments


def test_parameter_groups_hold_each_parameter_once() -> None:
    network = small(feature_lr=4.0, density_lr=20.0)
    groups = network.parameter_groups(lr=1e-3, weight_decay=0.1)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in network.parameters())
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.0]
    assert [g["lr"] for g in groups] == pytest.approx([1e-3, 4e-3, 20e-3])


@pytest.mark.parametrize(
    "wrong", [{"depth": 3}, {"features": 2}, {"resolution": 1}, {"resolution": 513}, {"sr_factor": 0}]
)
def test_wrong_arguments_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        small(**wrong)
