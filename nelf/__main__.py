"""``python -m nelf``: print what nelf finds on this machine, also for bug reports."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from nelf.kernels import IMPLEMENTATIONS, implementation
from nelf.report.machine import machine

#: Optional packages: module, use, and how to install them.
_EXTRAS = {
    "pycolmap": ("cameras of photographs", "pip install 'nelf[colmap]'"),
    "pillow_heif": ("HEIC photographs", "pip install 'nelf[heic]'"),
    "executorch": ("programs for phones", "pip install 'nelf[executorch]'"),
    "coremltools": ("programs for Apple's devices", "pip install 'nelf[coreml]'"),
    "torchvision": ("LPIPS", "pip install torchvision"),
    "skimage": ("meshes", "pip install 'nelf[mesh]'"),
    "optuna": ("searches", "pip install 'nelf[search]'"),
}


def main() -> None:
    """Print a line for each property of the machine, kernel and optional package."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = machine()
    for operation in IMPLEMENTATIONS:
        module = implementation(operation, device).__module__.rpartition(".")[2]
        lines[f"kernel {operation}"] = module.replace("cpu_", "Numba, cpu_").replace("reference", "plain PyTorch")
    for name, (use, command) in _EXTRAS.items():
        lines[f"extra {name}"] = "found" if find_spec(name) else f"not installed; for {use}: {command}"
    for name, value in lines.items():
        print(f"{name:26}{value}")


if __name__ == "__main__":
    main()
