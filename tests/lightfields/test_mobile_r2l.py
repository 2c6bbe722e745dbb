"""MobileR2L against the published counts, keys and shapes, and its embedding against plain loops."""

import numpy as np
import pytest
import torch
from torch import Tensor

from nelf.cameras import Camera
from nelf.lightfields import MobileR2L
from nelf.lightfields.mobile_r2l import embed_points, ray_points
from nelf.paths import hemisphere
from nelf.rays import Rays

LIGHT_FIELD_BUFFERS = {"near", "far", "aabb", "prepared"}


def small(**changes: object) -> MobileR2L:
    return MobileR2L(**{"width": 16, "depth": 4, "sr_kernels": (8, 8, 8), **changes})


def rays(height: int, width: int, batch: int = 1) -> Rays:
    rays_d = torch.randn(batch, height, width, 3)
    return Rays(torch.randn(batch, 1, 1, 3).expand_as(rays_d), rays_d)


@pytest.mark.parametrize(("sr_factor", "count"), [(8, 4_305_539), (12, 4_298_371)])
def test_parameter_count_is_the_originals(sr_factor: int, count: int) -> None:
    assert sum(p.numel() for p in MobileR2L(sr_factor=sr_factor).parameters()) == count


def test_state_dict_keys_are_the_originals() -> None:
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    layers = {"0": ["weight", "bias"], "1": norm, "3": ["weight", "bias"], "4": norm}
    block = [f"conv_block.{layer}.{name}" for layer, names in layers.items() for name in names]
    convolutions = ("head.0", "tail.0", "tail.3", "tail.6", "tail.9")
    plain = [f"{layer}.{name}" for layer in convolutions for name in ("weight", "bias")]
    blocks = [f"body.{i}" for i in range(29)] + [f"tail.{i}" for i in (1, 2, 4, 5, 7, 8)]
    original = {*plain, *(f"{where}.{key}" for where in blocks for key in block)}
    assert len(original) == 500

    network = MobileR2L()
    assert set(network.state_dict()) - LIGHT_FIELD_BUFFERS == original
    weights = {key: torch.full_like(value, 3) for key, value in network.state_dict().items() if key in original}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert set(missing) == LIGHT_FIELD_BUFFERS
    assert not unexpected
    assert float(network.tail[9].weight.detach().mean()) == 3


@pytest.mark.parametrize(
    ("grid", "sr_factor", "image"), [((100, 100), 8, (800, 800)), ((63, 84), 12, (756, 1008)), ((5, 3), 4, (20, 12))]
)
def test_image_shapes(grid: tuple[int, int], sr_factor: int, image: tuple[int, int]) -> None:
    with torch.no_grad():
        assert small(sr_factor=sr_factor).eval()(rays(*grid, batch=2)).shape == (2, *image, 3)


@pytest.mark.parametrize("sr_factor", [1, 2, 4, 6, 8, 12])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_gradient_reaches_every_parameter(sr_factor: int, activation: str) -> None:
    network = small(sr_factor=sr_factor, activation=activation)
    image = network(rays(4, 6, batch=2))
    assert image.shape == (2, 4 * sr_factor, 6 * sr_factor, 3)
    # Something that is not constant, or batch norm leaves the layers before it without gradient.
    (image * torch.randn_like(image)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    dead = [n for n, p in network.named_parameters() if "weight" in n and not p.grad.abs().sum() > 0]
    assert dead == []


def test_embedding_equals_plain_loops_in_float64() -> None:
    points, multires = 8, 6
    along = rays(3, 2)
    rays_o, rays_d = along.origins, along.directions
    near, far = torch.tensor(2.0), torch.tensor(6.0)
    embedded = embed_points(ray_points(along, near, far, points, jitter=False).double(), multires)
    assert embedded.shape == (1, 312, 3, 2)
    for row in range(3):
        for column in range(2):
            o, d = rays_o[0, row, column].numpy().astype(float), rays_d[0, row, column].numpy().astype(float)
            expected = []
            for point in range(points):
                t = 2.0 + 4.0 * point / 7
                for coordinate in range(3):
                    x = o[coordinate] + t * d[coordinate]
                    expected += [np.sin(2.0**k * x) for k in range(multires)]
                    expected += [np.cos(2.0**k * x) for k in range(multires)]
                    expected += [x]
            np.testing.assert_allclose(embedded[0, :, row, column].numpy(), expected, atol=2e-4)


def test_first_layer_sees_the_right_channel() -> None:
    """A head that picks cos(2^3 y) of point 5, and nothing after it, gives just that."""
    network = small(width=1, depth=2, sr_factor=1).eval()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    channel = (5 * 3 + 1) * 13 + 6 + 3
    network.head[0].weight.data[0, channel] = 1.0
    network.head[0].bias.data[0] = 5.0  # far into the linear part of the activation
    network.tail[0].weight.data[:] = 0.1
    along = rays(2, 2)
    y = (along.origins + (2.0 + 4.0 * 5 / 7) * along.directions)[..., 1]
    # Head plus the skip around an empty body: twice the head.
    expected = torch.sigmoid(0.2 * torch.nn.functional.gelu(torch.cos(8 * y) + 5.0))
    torch.testing.assert_close(network(along)[..., 0], expected, atol=1e-4, rtol=0)


def test_jitter_is_shared_by_the_batch_and_stays_between_the_midpoints() -> None:
    rays_o = torch.zeros(2, 5, 7, 3)
    rays_d = torch.zeros(2, 5, 7, 3)
    rays_d[..., 2] = -1.0
    points = ray_points(Rays(rays_o, rays_d), torch.tensor(2.0), torch.tensor(6.0), 5, jitter=True)
    t = -points[:, 2::3].permute(0, 2, 3, 1)
    assert torch.equal(t[0], t[1])
    assert t[0].flatten(0, 1).std(dim=0).min() > 0
    edges = torch.tensor([2.0, 2.5, 3.5, 4.5, 5.5, 6.0])
    assert ((t >= edges[:-1]) & (t <= edges[1:])).all()


def test_no_jitter_outside_training() -> None:
    network = small(sr_factor=2).eval()
    grid = rays(4, 4)
    assert torch.equal(network(grid), network(grid))
    network.train()
    assert not torch.equal(network(grid), network(grid))


def test_embedding_stays_in_float32_under_autocast() -> None:
    network = small(sr_factor=2).eval()
    grid = rays(4, 4)
    with torch.no_grad():
        exact = network(grid)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(grid)
    assert float((exact - rounded.float()).abs().max()) < 0.02


def test_render_puts_the_mode_back_and_gives_an_image() -> None:
    network = small(sr_factor=4).train()
    camera = Camera.from_fov(torch.eye(3, 4), 0.7, width=16, height=8)
    picture = network.render(camera)
    assert network.training
    assert picture.rgb.shape == (8, 16, 3)
    assert float(picture.rgb.min()) >= 0
    assert float(picture.rgb.max()) <= 1
    assert network.render(Camera.from_fov(torch.eye(3, 4), 0.7, width=18, height=7)).rgb.shape == (7, 18, 3)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"sr_factor": 3}, "1, 2, 4, 6, 8 or 12, but got 3"),
        ({"activation": "tanh"}, "'gelu' or 'relu', but got 'tanh'"),
        ({"depth": 7}, "even number"),
        ({"points": 1}, "at least 2"),
        ({"sr_kernels": (8,)}, "at least 3 numbers"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        small(**wrong)


def test_shuffled_tail_puts_each_channel_on_its_pixel() -> None:
    """With biases only, channel (color, row, column) of the last layer is that pixel of every block."""
    network = small(sr_factor=3, upsampling="shuffle").eval()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    colors = torch.randn(3, 3, 3)
    network.tail[0].bias.data.copy_(colors.flatten())
    rgb = network(rays(4, 5))
    assert rgb.shape == (1, 12, 15, 3)
    torch.testing.assert_close(rgb[0].movedim(-1, 0), torch.sigmoid(colors).repeat(1, 4, 5))


def test_unknown_upsampling_is_refused() -> None:
    with pytest.raises(ValueError, match="'transposed' or 'shuffle'"):
        small(upsampling="nearest")


def test_controls_are_embedded_beside_the_points() -> None:
    """Two controls widen the head by 2 (2 L + 1) channels; one that sees them alone draws the same from anywhere."""
    still, moving = MobileR2L(width=16, depth=4), MobileR2L(width=16, depth=4, controls=2).eval()
    assert moving.head[0].in_channels - still.head[0].in_channels == 2 * 13
    assert (still.entries, moving.entries) == (("points", "rays", "pose"), ("rays", "pose"))
    camera = Camera.from_fov(hemisphere(2, 4.0), 0.7, 16, 16)

    def drawn(view: Camera) -> Tensor:
        return moving(view.rays(8))

    with torch.no_grad():
        assert (drawn(camera.at(0.1, 0.5)) - drawn(camera.at(0.9, 0.5))).abs().max() > 1e-4
        moving.head[0].weight[:, : 24 * 13] = 0.0
        one, other = drawn(camera.at(0.3, 0.5))
        torch.testing.assert_close(one, other)
        assert (drawn(camera.at(0.3, 0.5)) - drawn(camera.at(0.3, 0.9))).abs().max() > 1e-4
