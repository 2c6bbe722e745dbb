"""The backends that a machine without a GPU can run; Triton's kernels are interpreted there."""

from __future__ import annotations

import platform
from importlib.util import find_spec

import pytest
import torch


@pytest.fixture(params=["reference", "cpu", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each backend in turn, in force for the whole test."""
    return _use(request, monkeypatch)


@pytest.fixture(params=["cpu", "triton"])
def fast_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each backend but the reference."""
    return _use(request, monkeypatch)


def _use(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NELF_KERNELS", request.param)
    if request.param == "triton":
        request.getfixturevalue("interpreted")
    return str(request.param)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels on the CPU. Interpreting costs time by the block, whatever its size: rays are in larger ones."""
    if platform.system() != "Linux" or find_spec("triton") is None:
        pytest.skip('needs Triton: pip install "nelf[dev]" on Linux')
    if torch.cuda.is_available():
        pytest.skip("Triton's kernels are compiled here: see test_gpu.py")
    from nelf.kernels import triton_lookup, triton_rays

    for module in (triton_lookup, triton_rays):
        monkeypatch.setattr(module, "WARP", 64)
