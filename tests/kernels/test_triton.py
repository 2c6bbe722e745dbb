"""What Triton's kernels take beside what all backends take, and that they compile for real GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nelf.kernels import HashGrid, composite, hash_encode, march, reference

GRID = HashGrid(levels=2, features=2, log2_table=6, base_resolution=3, per_level_scale=2.0)


@pytest.fixture(autouse=True)
def _triton(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NELF_KERNELS", "triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_in_16_bits_are_summed_in_32(dtype: torch.dtype) -> None:
    points, grad_out = torch.rand(40, 3), torch.randn(40, 4)
    table = torch.randn(GRID.entries, 2).to(dtype)
    halves, floats = table.clone().requires_grad_(), table.float().requires_grad_()
    encoded, expected = hash_encode(points, halves, GRID), reference.hash_encode(points, floats, GRID)
    assert encoded.dtype == torch.float32
    torch.testing.assert_close(encoded, expected, atol=1e-6, rtol=1e-5)
    encoded.backward(grad_out)
    expected.backward(grad_out)
    torch.testing.assert_close(halves.grad, floats.grad.to(dtype), atol=0, rtol=1e-2)


def test_tensors_need_not_be_contiguous() -> None:
    points, table = torch.rand(3, 40).t(), torch.randn(GRID.entries, 4)[:, ::2]
    grad_out = torch.randn(4, 40).t()
    results = []
    for run in (reference.hash_encode, hash_encode):
        p, t = points.detach().requires_grad_(), table.detach().requires_grad_()
        out = run(p, t, GRID)
        out.backward(grad_out)
        results.append((out.detach(), p.grad, t.grad))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


def test_nothing_is_nothing() -> None:
    """No points, no rays, no samples: a kernel without a program cannot even be started."""
    table = torch.randn(GRID.entries, 2, requires_grad=True)
    points = torch.zeros(0, 3, requires_grad=True)
    hash_encode(points, table, GRID).sum().backward()
    assert not table.grad.any()
    assert points.grad.shape == (0, 3)
    none, rays = torch.zeros(0), torch.zeros(0, 3)
    samples = march(rays, rays, none, none, torch.ones(1, 4, 4, 4, dtype=torch.bool), step=0.1)
    assert [len(each) for each in samples] == [0, 0, 0]
    assert samples.ray_indices.dtype == torch.int64
    sigma, rgb = torch.zeros(0, requires_grad=True), torch.zeros(0, 3, requires_grad=True)
    for n_rays in (0, 2):
        out = composite(sigma, rgb, none, none, none.long(), n_rays)
        assert [tuple(each.shape) for each in out] == [(n_rays, 3), (n_rays,), (n_rays,), (0,)]
        assert not out.opacity.any()
        (out.rgb.sum() + out.weights.sum()).backward()
    assert sigma.grad.shape == (0,)


def test_a_ray_of_more_samples_than_a_warp_has_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from nelf.kernels import triton_rays

    monkeypatch.setattr(triton_rays, "WARP", 8)
    rays = torch.tensor([0] * 21 + [2] * 8)
    sigma, rgb, lengths = torch.rand(29) * 4, torch.rand(29, 3), torch.rand(29) * 0.2
    grads = [torch.randn(3, 3), torch.randn(3), torch.randn(3), torch.randn(29)]
    results = []
    for run, dtype in ((reference.composite, torch.float64), (composite, torch.float32)):
        s, c = sigma.to(dtype).requires_grad_(), rgb.to(dtype).requires_grad_()
        starts = torch.arange(29, dtype=dtype)
        out = run(s, c, starts, starts + lengths.to(dtype), rays, 3, 0.3)
        torch.autograd.backward(list(out), [grad.to(dtype) for grad in grads])
        results.append([tensor.float() for tensor in (*out, s.grad, c.grad)])
    assert 0 < int((results[0][3] == 0).sum()) < 29  # some lie where too little light arrives
    torch.testing.assert_close(results[1], results[0], atol=2e-5, rtol=1e-5)


@pytest.mark.slow
def test_every_kernel_compiles_for_real_gpus(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "NELF_KERNELS")
    }
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, str(Path(__file__).with_name("compile_triton.py")), "sm_80", "sm_90"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kernels compiled" in done.stdout
