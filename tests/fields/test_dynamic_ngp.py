"""The moving field: displacement, controls, occupancy at all times, and what a student starts from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.fields import NGP, DisplacementGrid, DisplacementNetwork, DynamicNGP
from nelf.paths import hemisphere
from nelf.rays import Rays
from nelf.scene import Geometry
from nelf.systems import Teacher

SMALL = {"levels": 4, "log2_table": 12, "finest_resolution": 64, "grid_resolution": 16, "max_samples": 64}
EXACT = {**SMALL, "low_precision": False}


def moving(controls: int = 1) -> DynamicNGP:
    """A field whose hash grid is not empty and which moves."""
    field = DynamicNGP(**EXACT, controls=controls, motion_cells=3, motion_times=4)
    torch.nn.init.normal_(field.encoding.table)
    torch.nn.init.uniform_(field.displacement.values, -0.1, 0.1)
    return field


def test_parameters() -> None:
    """NGP's, three numbers a node, and 8 waves of the time beside the 32 features, padded to 48."""
    field, still = DynamicNGP(), NGP()
    assert field.displacement.values.numel() == 16**4 * 3
    assert sum(p.numel() for p in field.density_net.parameters()) == 48 * 64 + 64 * 16
    assert sum(p.numel() for p in field.color_net.parameters()) == sum(p.numel() for p in still.color_net.parameters())
    assert field.encoding.table.shape == still.encoding.table.shape
    assert DynamicNGP(**SMALL, controls=3).displacement.values.shape[0] == 3


def test_gradient_reaches_every_parameter() -> None:
    for motion in ("grid", "network"):
        field = DynamicNGP(**SMALL, motion=motion, motion_cells=2, motion_times=2).train()
        torch.nn.init.normal_(field.encoding.table)
        rays_o, rays_d = torch.tensor([[0.0, 0.0, 2.0]]).repeat(64, 1), torch.tensor([[0.0, 0.0, -1.0]]).repeat(64, 1)
        rays = Rays(rays_o + 0.3 * torch.randn(64, 3), rays_d + 0.1 * torch.randn(64, 3), torch.rand(64, 1))
        field.render_rays(rays)[0].rgb.square().sum().backward()
        for name, parameter in field.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_a_constant_displacement_moves_the_scene() -> None:
    field = moving()
    with torch.no_grad():
        field.displacement.values.zero_()
        positions, times = 0.6 * torch.rand(50, 3) - 0.3, torch.rand(50, 1)
        there = field.density(positions + torch.tensor([0.1, 0.0, -0.05]), times)[0]
        field.displacement.values.add_(torch.tensor([0.1, 0.0, -0.05]))
        torch.testing.assert_close(field.density(positions, times)[0], there, rtol=1e-3, atol=1e-4)


def test_displacements_of_controls_add_up() -> None:
    grid = DisplacementGrid(3, 4, controls=2)
    torch.nn.init.normal_(grid.values)
    one, other = (DisplacementGrid(3, 4) for _ in range(2))
    with torch.no_grad():
        one.values.copy_(grid.values[:1])
        other.values.copy_(grid.values[1:])
    positions, controls = torch.rand(20, 3), torch.rand(20, 2)
    expected = one(positions, controls[:, :1]) + other(positions, controls[:, 1:])
    torch.testing.assert_close(grid(positions, controls), expected)


def test_roughness_is_that_of_neighbors() -> None:
    grid = DisplacementGrid(3, 2).double()
    torch.nn.init.normal_(grid.values)
    expected = sum(0.5 * grid.values.diff(dim=side).square().sum() for side in range(1, 5))
    torch.testing.assert_close(grid.roughness(), expected)
    (gradient,) = torch.autograd.grad(grid.roughness(), grid.values)
    (autograd,) = torch.autograd.grad(expected, grid.values)
    torch.testing.assert_close(gradient, autograd)


@pytest.mark.parametrize("motion", ["grid", "network"])
def test_motion_and_rest_together_are_the_field(motion: str) -> None:
    """What a student is told, put together again: sigma(x, t) is the field at rest, at x moved by the nodes."""
    field = DynamicNGP(**EXACT, motion=motion, motion_cells=3, motion_times=5, control_frequencies=0)
    torch.nn.init.normal_(field.encoding.table)
    for parameter in field.displacement.parameters():
        torch.nn.init.uniform_(parameter, -0.05, 0.05)
    field.center.copy_(torch.tensor([1.0, 2.0, 3.0]))
    field.unit.fill_(4.0)
    values, box = field.motion(cells=3, times=5)
    torch.testing.assert_close(box, torch.tensor([-1.0, 0.0, 1.0, 3.0, 4.0, 5.0]))
    for node in ((0, 0, 0, 0), (4, 1, 1, 1), (2, 1, 2, 1), (1, 2, 0, 1)):
        t, z, y, x = node
        position = box[:3] + torch.tensor([x, y, z]) / 2 * (box[3:] - box[:3])
        found = field.canonical().sigma((position + values[0, t, z, y, x])[None])
        inside = ((position + values[0, t, z, y, x] >= box[:3]) & (position + values[0, t, z, y, x] <= box[3:])).all()
        if inside:
            expected = field.density((position[None] - field.center) / field.unit, torch.tensor([[t / 4]]))[0]
            torch.testing.assert_close(found, expected / field.unit, rtol=1e-3, atol=1e-5)


def test_motion_of_a_network_has_a_grid_for_each_control() -> None:
    """They add up to the network's displacement where at most one control is not in the middle."""
    field = DynamicNGP(**EXACT, controls=2, motion="network")
    for parameter in field.displacement.parameters():
        torch.nn.init.uniform_(parameter, -0.1, 0.1)
    values, box = field.motion(cells=3, times=5)
    assert values.shape == (2, 5, 3, 3, 3, 3)
    for first, second in ((2, 2), (0, 2), (2, 4), (3, 2)):
        found = values[0, first, 2, 1, 0] + values[1, second, 2, 1, 0]
        place, controls = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[first / 4, second / 4]])
        expected = field.displaced(place, controls)[0] * (box[3] - box[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_optimizer_gives_the_motion_its_own_rate() -> None:
    teacher = Teacher(moving(), lr=1e-2)
    rest, motion = teacher.optimizer().param_groups
    assert [len(rest["params"]), len(motion["params"])] == [len(list(teacher.network.parameters())) - 1, 1]
    assert motion["lr"] == pytest.approx(1e-3)


def ball(field: DynamicNGP, radius: float = 0.1) -> None:
    """Replace the density by a ball that goes along x with the time."""

    def density(positions: Tensor, controls: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert controls is not None
        place = torch.stack([0.8 * controls[:, 0] - 0.4, torch.zeros(len(controls)), torch.zeros(len(controls))], -1)
        return ((positions - place).norm(dim=-1) < radius) * 200.0, torch.zeros(len(positions), 16)

    field.density = density  # type: ignore[method-assign]


def test_occupancy_holds_all_moments() -> None:
    """A cell that the ball passes stays occupied; one that it never enters does not."""
    field = DynamicNGP(**SMALL, grid_slices=8)
    cameras = Camera.from_fov(hemisphere(20, 4.0, (-60.0, 60.0)), 0.7, 32, 32, torch.linspace(0, 1, 20))
    box = torch.tensor([-0.5, -0.5, -0.5, 0.5, 0.5, 0.5])
    field.prepare(Geometry(box, 2.0, 6.0, cameras, torch.ones(3), ("time",)))
    ball(field)
    for step in range(0, 1600, 16):
        field.before_step(step)
    along = torch.linspace(-0.4, 0.4, 30)
    path = torch.stack([along, torch.zeros(30), torch.zeros(30)], -1)
    assert field.sampler.occupied_at(path).float().mean() > 0.95
    beside = path + torch.tensor([0.0, 0.3, 0.0])
    assert not field.sampler.occupied_at(beside).any()


def test_a_camera_without_time_sees_the_first_moment() -> None:
    field = moving()
    camera = Camera.from_fov(hemisphere(1, 4.0, (20.0, 21.0)), 0.7, 16, 16)[0]
    torch.testing.assert_close(field.render(camera).rgb, field.render(camera.at(0.0)).rgb)
    assert (field.render(camera.at(0.0)).rgb - field.render(camera.at(1.0)).rgb).abs().max() > 0.01


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="'grid' or 'network'"):
        DynamicNGP(**SMALL, motion="hash")
    with pytest.raises(ValueError, match="`controls` to be 1 or more"):
        DynamicNGP(**SMALL, controls=0)
    with pytest.raises(ValueError, match="2 or more"):
        DisplacementGrid(1, 4)


def test_a_network_starts_almost_still() -> None:
    network = DisplacementNetwork()
    assert network(torch.rand(50, 3), torch.rand(50, 1)).abs().max() < 1e-3


def test_controls_follow_the_rays() -> None:
    field = moving()
    rays = Rays(torch.tensor([[0.0, 0.0, 2.0]]).repeat(2, 1), torch.tensor([[0.02, 0.0, -1.0]]).repeat(2, 1))
    both = field.eval().render_rays(replace(rays, controls=torch.tensor([[0.0], [1.0]])))[-1].rgb
    first = field.render_rays(replace(rays, controls=torch.zeros(2, 1)))[-1].rgb
    torch.testing.assert_close(both[0], first[0])
    assert (both[1] - first[1]).abs().max() > 1e-3


def test_an_optimizer_meets_the_parameters_in_the_order_of_their_names() -> None:
    """Trap: a set has another order in each process, and a resumed optimizer gives its state to other parameters."""
    field = DynamicNGP(motion="network", levels=4, log2_table=12, grid_resolution=16)
    names = {id(parameter): name for name, parameter in field.named_parameters()}
    for group in field.parameter_groups(1e-2, 0.0):
        found = [names[id(parameter)] for parameter in group["params"]]
        assert found == [name for name in names.values() if name in found]
