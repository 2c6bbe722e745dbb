"""The hash grid against a float64 loop written from tiny-cuda-nn's layout, and the backends against each other."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from nelf.kernels import HashGrid, hash_encode

DENSE = HashGrid(levels=2, features=2, log2_table=12, base_resolution=4, per_level_scale=2.0)
HASHED = HashGrid(levels=5, features=4, log2_table=7, base_resolution=3, per_level_scale=1.7)


def encode_in_float64(positions: np.ndarray, table: np.ndarray, grid: HashGrid) -> np.ndarray:
    out = np.zeros((len(positions), grid.levels * grid.features))
    start = 0
    for level in range(grid.levels):
        scale = grid.scales[level]
        resolution = math.ceil(scale) + 1
        size = min(-(-(resolution**3) // 8) * 8, 2**grid.log2_table)
        for n, position in enumerate(positions):
            lower = np.floor(position * scale + 0.5).astype(int)
            fraction = position * scale + 0.5 - lower
            for corner in np.ndindex(2, 2, 2):
                x, y, z = (int(value) for value in lower + corner)
                if resolution**3 > size:
                    entry = (x ^ (y * 2654435761 % 2**32) ^ (z * 805459861 % 2**32)) % size
                else:
                    entry = (x + y * resolution + z * resolution**2) % size
                weight = np.prod(np.where(corner, fraction, 1 - fraction))
                columns = slice(level * grid.features, (level + 1) * grid.features)
                out[n, columns] += weight * table[start + entry]
        start += size
    return out


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("grid", [DENSE, HASHED], ids=["dense", "hashed"])
def test_equals_a_loop_in_float64(grid: HashGrid) -> None:
    positions = torch.cat([torch.rand(50, 3), torch.zeros(1, 3), torch.ones(1, 3), torch.eye(3)])
    table = torch.randn(grid.entries, grid.features)
    expected = encode_in_float64(positions.double().numpy(), table.double().numpy(), grid)
    np.testing.assert_allclose(hash_encode(positions, table, grid).numpy(), expected, atol=2e-5)


def test_reference_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NELF_KERNELS", "reference")
    positions = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    table = torch.randn(HASHED.entries, HASHED.features, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, t: hash_encode(p, t, HASHED), (positions, table))


@pytest.mark.parametrize("grid", [DENSE, HASHED], ids=["dense", "hashed"])
def test_gradients_equal_the_reference(grid: HashGrid, fast_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    positions, table = torch.rand(200, 3), torch.randn(grid.entries, grid.features)
    grad_out = torch.randn(200, grid.levels * grid.features)
    gradients = []
    for backend in ("reference", fast_backend):
        monkeypatch.setenv("NELF_KERNELS", backend)
        p, t = positions.clone().requires_grad_(), table.clone().requires_grad_()
        hash_encode(p, t, grid).backward(grad_out)
        gradients.append((p.grad, t.grad))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)


def ngp_pls_grid(scale: float) -> HashGrid:
    return HashGrid(16, 2, 19, 16, math.exp(math.log(2048 * scale / 16) / 15))


def test_layout_is_ngp_pls() -> None:
    """Resolutions, level sizes and parameter count of tiny-cuda-nn with ngp_pl's defaults, scale 0.5."""
    grid = ngp_pls_grid(0.5)
    expected = (16, 22, 28, 37, 49, 65, 85, 112, 148, 195, 257, 338, 446, 589, 777, 1025)  # 64, 256, 1024 in float64
    assert grid.resolutions == expected
    assert grid.sizes[:6] == (4096, 10648, 21952, 50656, 117656, 274632)
    assert grid.entries * grid.features == 11_445_040
    assert grid.resolutions == HashGrid(16, 2, 19, 16, 64 ** (1 / 15)).resolutions


@pytest.mark.parametrize(
    ("scale", "parameters"), [(1, 12_196_240), (2, 12_599_920), (4, 13_074_912), (8, 13_288_400), (16, 13_623_184)]
)
def test_larger_scales_have_tiny_cuda_nns_sizes(scale: float, parameters: int) -> None:
    grid = ngp_pls_grid(scale)
    assert grid.entries * grid.features == parameters


@pytest.mark.parametrize("scale", [0.5, 1, 2, 4, 8, 16])
def test_resolutions_hinge_on_no_library(scale: float) -> None:
    """Any exp2f that is off by less than one unit in the last place, as C libraries' are, gives the same integers."""
    grid = ngp_pls_grid(scale)
    growth = np.float32(math.log2(np.float32(grid.per_level_scale)))
    with localcontext() as context:
        context.prec = 40
        for level, resolution in enumerate(grid.resolutions):
            exponent = float(np.float32(level) * growth)
            power = Decimal(2) ** Decimal(exponent)
            nearest = np.float32(float(power))
            other = np.nextafter(nearest, np.float32(math.inf if power > Decimal(float(nearest)) else 0))
            # Whole exponents are exact in every library; elsewhere it may give either neighbor of the true power.
            for candidate in {nearest} if exponent.is_integer() else {nearest, other}:
                assert math.ceil(candidate * np.float32(16) - np.float32(1)) + 1 == resolution


def test_scales_are_float32_numbers() -> None:
    for grid in (DENSE, HASHED, ngp_pls_grid(0.5)):
        assert np.array(grid.scales, np.float32).tolist() == list(grid.scales)
        exact = grid.base_resolution * grid.per_level_scale ** np.arange(grid.levels) - 1
        np.testing.assert_allclose(grid.scales, exact, rtol=1e-6)


@pytest.mark.parametrize(("positions", "table"), [((4, 2), (DENSE.entries, 2)), ((4, 3), (7, 2))])
def test_refuses_wrong_shapes(positions: tuple[int, ...], table: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="to have shape"):
        hash_encode(torch.zeros(positions), torch.zeros(table), DENSE)
