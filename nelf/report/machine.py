"""A description of the machine on which figures are measured."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

import nelf
from nelf.kernels import multiplies_bfloat16

__all__ = ["machine"]


def machine() -> dict[str, str]:
    """What timings depend on: ``processor``, its ``instructions``, ``device`` and ``versions``."""
    return {
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "instructions": _instructions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": f"nelf {nelf.__version__}, torch {torch.__version__}, python {platform.python_version()}",
    }


def _instructions() -> str:
    """Which of the instruction sets that speed up int8 and bfloat16 the processor has."""
    words = {"bfloat16": multiplies_bfloat16(torch.device("cpu"))}
    if platform.machine().lower() in ("x86_64", "amd64"):
        # VNNI exists with AVX-512 and, later, as AVX-VNNI; only newer versions of PyTorch report the latter.
        listed: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        vnni = torch.cpu._is_vnni_supported() or bool(listed.get("avx_vnni"))
        words = {
            "AVX2": torch.cpu._is_avx2_supported(),
            "AVX-512": torch.cpu._is_avx512_supported(),
            "VNNI": vnni,
        } | words
    return ", ".join(name if has else f"no {name}" for name, has in words.items())
