"""Volume rendering against an analytic ball, quadratic loops and one-pass compositing."""

import torch

from nelf.fields.volume import Pass, distortion, opacity_entropy, render_wavefront
from nelf.kernels import Samples, composite, march
from nelf.rays import intersect_aabb

CUBE = torch.tensor([-0.5, -0.5, -0.5, 0.5, 0.5, 0.5])


def rays_toward_center(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    origins = torch.nn.functional.normalize(torch.randn(n, 3), dim=-1) * 2
    return origins, torch.nn.functional.normalize(0.25 * torch.randn(n, 3) - origins, dim=-1)


def test_box_is_entered_and_left_on_its_faces() -> None:
    origins = torch.tensor([[-2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-2.0, 3.0, 0.0]])
    directions = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    t_min, t_max = intersect_aabb(origins, directions, 2 * CUBE)
    torch.testing.assert_close(t_min[:2], torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(t_max[:2], torch.tensor([6.0, 1.0]))
    assert t_max[2] <= t_min[2]


def test_wavefront_sees_the_surface_of_a_ball() -> None:
    origins, directions = rays_toward_center(500)
    occupied = torch.ones(1, 8, 8, 8, dtype=torch.bool)
    step = 1 / 256

    def radiance(x: torch.Tensor, marched: torch.Tensor, samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
        assert len(marched) > int(samples.ray_indices.max())
        off = torch.linalg.cross(x - origins[marched][samples.ray_indices], directions[marched][samples.ray_indices])
        assert float(off.abs().max()) < 1e-4  # the rays that it is told of
        return (x + 0.5).clamp(0, 1), (x.norm(dim=-1) < 0.4) * 1e4

    def step_through(o: torch.Tensor, d: torch.Tensor, near: torch.Tensor, far: torch.Tensor, n: int) -> Samples:
        return march(o, d, near, far, occupied, step=step, max_samples=n)

    bounds = intersect_aabb(origins, directions, CUBE)
    rgb, depth, opacity = render_wavefront(step_through, radiance, origins, directions, *bounds, pass_samples=4000)
    closest = -(origins * directions).sum(-1)
    miss_squared = 0.4**2 - ((origins**2).sum(-1) - closest**2)
    surface = closest - miss_squared.clamp(min=0).sqrt()
    clear_hit, clear_miss = miss_squared > 0.01, miss_squared < -0.01
    assert clear_hit.sum() > 100
    assert clear_miss.sum() > 50
    torch.testing.assert_close(opacity[clear_hit], torch.ones(int(clear_hit.sum())))
    assert (opacity[clear_miss] == 0).all()
    assert (depth - surface)[clear_hit].abs().max() < 1.5 * step
    expected = (origins + surface[:, None] * directions + 0.5)[clear_hit]
    assert (rgb[clear_hit] - expected).abs().max() < 2 * step


def test_passes_add_up_to_one_composite() -> None:
    origins, directions = rays_toward_center(100)
    occupied = torch.rand(1, 16, 16, 16) < 0.5
    near, far = intersect_aabb(origins, directions, CUBE)

    def sample(o: torch.Tensor, d: torch.Tensor, t0: torch.Tensor, t1: torch.Tensor, n: int) -> Samples:
        return march(o, d, t0, t1, occupied, step=0.01, max_samples=n)

    def radiance(x: torch.Tensor, marched: torch.Tensor, samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
        return x.sin().abs(), 3.0 + x[:, 0]

    samples = sample(origins, directions, near, far, 1000)
    middle = 0.5 * (samples.t_starts + samples.t_ends)[:, None]
    positions = origins[samples.ray_indices] + middle * directions[samples.ray_indices]
    rgb, sigma = radiance(positions, torch.arange(100), samples)
    whole = composite(sigma, rgb, *samples, 100)
    pieces = render_wavefront(sample, radiance, origins, directions, near, far, early_stop=0.0, pass_samples=700)
    torch.testing.assert_close(pieces[0], whole.rgb, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(pieces[1], whole.depth, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(pieces[2], whole.opacity, atol=1e-4, rtol=1e-3)


def test_distortion_equals_the_double_sum() -> None:
    rays = torch.tensor([0, 0, 0, 2, 2])
    starts, ends = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.5]), torch.tensor([1.0, 1.5, 3.0, 1.0, 2.0])
    weights = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.1])
    expected = torch.zeros(3)
    middle = 0.5 * (starts + ends)
    for i in range(5):
        expected[rays[i]] += weights[i] ** 2 * (ends[i] - starts[i]) / 3
        for j in range(5):
            if rays[i] == rays[j]:
                expected[rays[i]] += weights[i] * weights[j] * (middle[i] - middle[j]).abs()
    passed = Pass(torch.zeros(3, 3), torch.zeros(3), torch.zeros(3), weights, Samples(starts, ends, rays))
    torch.testing.assert_close(distortion(passed), expected)


def test_opacity_entropy_is_least_where_a_ray_is_clear_or_opaque() -> None:
    opacity = torch.tensor([0.0, 0.5, 1.0])
    none = Samples(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    entropy = opacity_entropy(Pass(torch.zeros(3, 3), opacity, opacity, torch.zeros(0), none))
    torch.testing.assert_close(entropy, torch.tensor([0.0, 0.5 * 0.6931472, 0.0]), atol=1e-6, rtol=0)
