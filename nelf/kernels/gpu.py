"""Which kernels a GPU can run: tested once per device, with one warning about what does not run."""

from __future__ import annotations

import logging
import os
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

__all__ = ["asynchronous", "obstacle", "runs"]

log = logging.getLogger(__name__)

_PACKAGES = {"triton": "triton", "tcnn": "tinycudann"}
_INSTALL = "pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"


def asynchronous(device: torch.device) -> bool:
    """Whether the host runs ahead of a device, and would wait for it to read a value or the size of a selection.

    There, evaluating everything usually takes less time than to select what has to be evaluated.
    """
    return device.type == "cuda"


def runs(backend: str, device: torch.device) -> bool:
    """Whether ``triton`` or ``tcnn`` runs on a device.

    A backend that is installed but does not run gets one warning; one that is not installed gets none.
    """
    return device.type == "cuda" and _runs(backend, _index(device))


def obstacle(backend: str, device: torch.device) -> str | None:
    """Why ``triton`` or ``tcnn`` cannot run on a device, or None if it can."""
    if device.type == "cpu" and backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return _not_installed(backend)  # interpreted, which is slow and meant for tests
    if device.type != "cuda":
        return f"the tensors are on {device}; it needs a CUDA device"
    return _obstacle(backend, _index(device))


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _runs(backend: str, index: int) -> bool:
    reason = _obstacle(backend, index)
    if reason and not _not_installed(backend):
        log.warning("%s. The next fastest kernels are used.", reason)
    return reason is None


@cache
def _not_installed(backend: str) -> str | None:
    package = _PACKAGES[backend]
    if find_spec(package):
        return None
    return f"{package} is not installed; " + (
        f"it is compiled on installing: {_INSTALL}" if backend == "tcnn" else "PyTorch's CUDA wheels for Linux bring it"
    )


@cache
def _obstacle(backend: str, index: int) -> str | None:
    if missing := _not_installed(backend):
        return missing
    device = torch.device("cuda", index)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a build for an older GPU, which runs but may be slower
            import_module(f"nelf.kernels.{backend}_field").probe(device)
    except Exception as error:  # compiler, loader and driver raise exceptions of their own
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        reason = f"{_PACKAGES[backend]} does not run on {torch.cuda.get_device_name(device)}: {said}"
        if backend == "triton":
            return reason
        return f"{reason}. It has to be built for this GPU and PyTorch {torch.__version__}: {_INSTALL}"
    return None
