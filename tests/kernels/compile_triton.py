"""Compile every Triton kernel for real GPUs, down to machine code, on a machine that has none; needs Triton alone.

Not a test by itself: ``test_triton.py`` runs it in a process of its own, where nothing is interpreted. Each operation
is called as usual, on the CPU; what would start a kernel compiles it for the types of its arguments instead.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nelf.kernels import HashGrid, triton_field, triton_lookup, triton_mlp, triton_motion, triton_rays, triton_trilinear

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
TARGETS = {"sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32)}
compiled: dict[str, str] = {}


def compile_instead(kernel: Any, grid: tuple[int, ...], like: Tensor, *arguments: Any, **constants: Any) -> None:
    """Stands in for ``triton_tools.launch``."""
    names = kernel.arg_names
    given = dict(zip(names, arguments, strict=False))
    fixed = {name: constants.pop(name) for name in names if name in constants}
    signature = {name: type_of(value) for name, value in given.items()} | dict.fromkeys(fixed, "constexpr")
    assert [*signature] == names, f"{kernel.__name__}: {[*signature]} for {names}"
    if isinstance(counts := given.get("counts"), Tensor):
        counts.fill_(1)  # what the kernel would have written
    key = f"{kernel.__name__} {[value for value in signature.values() if value != 'constexpr']} {fixed} {TARGET}"
    if key not in compiled:
        aligned = {
            (n,): [["tt.divisibility", 16]] for n, value in enumerate(given.values()) if isinstance(value, Tensor)
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
        compiled[key] = triton.compile(
            source, target=TARGETS[TARGET], options={"enable_fp_fusion": True, **constants}
        ).asm["ptx"]


def type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def call_everything(dtype: torch.dtype) -> None:
    """Each operation, forward and backward, with learned numbers of a type."""
    for grid in (HashGrid(16, 2, 19, 16, 1.38), HashGrid(2, 3, 8, 4, 2.0)):
        table = torch.zeros(grid.entries, grid.features, dtype=dtype, requires_grad=True)
        points = torch.rand(40, 3, requires_grad=True)
        triton_field.hash_encode(points, table, grid).sum().backward()
    for sides in ((32, 64, 16), (48, 64, 64, 3), (128, 128, 128, 128)):
        weights = [torch.zeros(b, a, requires_grad=True) for a, b in pairwise(sides)]
        triton_mlp.mlp(torch.zeros(100, sides[0], dtype=dtype, requires_grad=True), weights).sum().backward()
    for cascades in (1, 3):
        occupied = torch.ones(cascades, 128, 128, 128, dtype=torch.bool)
        steps = {"step": 0.1, "cone": 0.0, "max_step": math.inf, "extent": 0.5, "max_samples": 1024}
        rays = (torch.zeros(40, 3), torch.ones(40, 3), torch.zeros(40), torch.ones(40))
        triton_rays.march_within(*rays, occupied, 40, **steps)
    sigma, rgb = torch.ones(8, requires_grad=True), torch.ones(8, 3, requires_grad=True)
    out = triton_rays.composite(sigma, rgb, torch.zeros(8), torch.ones(8), torch.arange(8), 8, 0.0)
    torch.cat([out[0], out[1][:, None]], 1).sum().backward()
    index = torch.arange(27, dtype=torch.int32).view(3, 3, 3)
    box = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    for channels in (4, 13):
        density = torch.zeros(27, dtype=dtype, requires_grad=True)
        features = torch.zeros(27, channels, dtype=dtype, requires_grad=True)
        found = triton_lookup.ray_features(density, features, index, *rays[:2], box, torch.zeros(40), 0.1)
        found.features.sum().backward()
        places = torch.rand(40, 3, requires_grad=True)
        triton_trilinear.trilinear(features, index, places, box, torch.zeros(channels)).sum().backward()
    values = torch.zeros(3, 4, 5, 6, 2, dtype=dtype, requires_grad=True)
    triton_motion.space_time_lookup(torch.rand(40, 3), torch.rand(40), values).sum().backward()


if __name__ == "__main__":
    for module in (triton_field, triton_lookup, triton_mlp, triton_motion, triton_rays, triton_trilinear):
        module.launch = compile_instead  # type: ignore[attr-defined]
    for TARGET in sys.argv[1:]:
        call_everything(torch.float32)
        if TARGET == "sm_90":
            call_everything(torch.bfloat16)
            call_everything(torch.float16)
    print(f"{len(compiled)} kernels compiled")
