"""Encodings against quadrature and closed forms."""

import math

import numpy as np
import pytest
import torch

from nelf.encodings import HashEncoding, coarse_to_fine, frequency_encoding, spherical_harmonics
from nelf.kernels import HashGrid


def test_spherical_harmonics_are_orthonormal() -> None:
    """Integrated exactly: Gauss-Legendre in z, equally spaced in the azimuth."""
    z, weight = np.polynomial.legendre.leggauss(8)
    azimuth = np.arange(16) * 2 * np.pi / 16
    zz, aa = np.meshgrid(z, azimuth, indexing="ij")
    radius = np.sqrt(1 - zz**2)
    directions = np.stack([radius * np.cos(aa), radius * np.sin(aa), zz], -1).reshape(-1, 3)
    weights = np.repeat(weight, 16) * 2 * np.pi / 16
    values = spherical_harmonics(torch.from_numpy(directions)).numpy()
    np.testing.assert_allclose((values * weights[:, None]).T @ values, np.eye(16), atol=1e-12)


def test_spherical_harmonics_keep_tiny_cuda_nns_order_and_signs() -> None:
    along_y = spherical_harmonics(torch.tensor([[0.0, 1.0, 0.0]]))[0]
    torch.testing.assert_close(along_y[1], torch.tensor(-0.48860251190292))
    torch.testing.assert_close(along_y[9], torch.tensor(0.5900435899266435))
    along_z = spherical_harmonics(torch.tensor([[0.0, 0.0, 1.0]]))[0]
    torch.testing.assert_close(along_z[12], torch.tensor(math.sqrt(7 / (4 * math.pi))))


def test_hash_encoding_starts_near_zero_and_learns() -> None:
    encoding = HashEncoding(HashGrid(levels=2, features=2, log2_table=10, base_resolution=4))
    assert encoding.table.abs().max() <= 1e-4
    encoding(torch.rand(8, 3)).sum().backward()
    assert encoding.table.grad is not None
    torch.testing.assert_close(encoding.table.grad.sum(), torch.tensor(8.0 * 2 * 2))  # weights of a cell sum to 1


@pytest.mark.parametrize("pi", [False, True])
def test_frequencies_are_nerf_s_in_its_order(pi: bool) -> None:
    """Written out for three octaves; each term is a block of all coordinates."""
    x = np.array([[0.3, -0.7, 0.1], [1.0, 0.0, -0.25]])
    p = np.pi * x if pi else x
    terms = [x, np.sin(p), np.cos(p), np.sin(2 * p), np.cos(2 * p), np.sin(4 * p), np.cos(4 * p)]
    found = frequency_encoding(torch.from_numpy(x).reshape(1, 2, 3), 3, pi)
    np.testing.assert_allclose(found[0], np.concatenate(terms, -1), atol=1e-12)
    assert torch.equal(frequency_encoding(torch.ones(1, 3), 0), torch.ones(1, 3))


def test_frequencies_open_one_after_the_other() -> None:
    """0 where shut, 1 where open, half way in the middle; cos(pi / 3) = 1/2 makes a quarter at a third."""
    third = torch.tensor(2 + 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(coarse_to_fine(third, 4), torch.tensor([1.0, 1.0, 0.25, 0.0], dtype=torch.float64))
    for opened, expected in ((0.0, [0.0, 0.0]), (0.5, [0.5, 0.0]), (1.0, [1.0, 0.0]), (2.0, [1.0, 1.0]), (9.0, [1, 1])):
        torch.testing.assert_close(coarse_to_fine(torch.tensor(opened), 2), torch.tensor(expected).float())


def test_a_window_scales_the_waves_of_a_frequency_and_never_the_coordinates() -> None:
    values = torch.tensor([[0.3, -0.7]])
    plain = frequency_encoding(values, 2)
    found = frequency_encoding(values, 2, window=torch.tensor([0.5, 0.0]))
    factors = torch.tensor([1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(found, plain * factors)
