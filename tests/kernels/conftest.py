"""The backends that a machine without a GPU can run."""

from __future__ import annotations

import pytest


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
