"""Small networks in Triton: all layers in one kernel, so that activations never leave the chip.

A program takes blocks of rows in turns. In the backward pass it computes their activations again, and sums the
gradients of the weights over its blocks before it adds them to memory. Products of bfloat16 numbers, added up in
float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nelf.kernels import reference
from nelf.kernels.triton_tools import blocks, columns, launch

ROWS = 64  # of a block
SMALLEST = 16  # side of a block that tensor cores multiply
LARGEST = 128  # width of a layer: the weights and the sums of their gradients have to fit into registers
LOW = tl.bfloat16  # type of the numbers that are multiplied


@triton.jit
def _matrix(weights, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """A matrix in 16 bits, filled up with zeros to the sides of a block."""
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    return tl.load(weights + i * columns + j, mask=(i < rows) & (j < columns), other=0.0).to(LOW)


@triton.jit
def _layer(values, weights):  # type: ignore[no-untyped-def]
    """A hidden layer of (rows, C) by (width, C) weights, with its ReLU."""
    return tl.maximum(tl.dot(values, tl.trans(weights)), 0.0).to(values.dtype)


@triton.jit
def _behind(gradient, weights, values):  # type: ignore[no-untyped-def]
    """The gradient before a ReLU, from that of the layer after it; ``values`` are those after the ReLU."""
    return tl.where(values > 0.0, tl.dot(gradient, weights), 0.0).to(values.dtype)


@triton.jit
def _add(gradient, total, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    tl.atomic_add(gradient + i * columns + j, total, mask=(i < rows) & (j < columns), sem="relaxed")


@triton.jit(do_not_specialize=["n"])
def _forward(  # type: ignore[no-untyped-def]
    inputs, first, middle, last, out, n, width_in, width, width_out,
    TWO: tl.constexpr, IN: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr,
    LOW: tl.constexpr
):  # fmt: skip
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, IN)[None, :]
    x = tl.load(inputs + row * width_in + column, mask=(row < n) & (column < width_in), other=0.0).to(LOW)
    hidden = _layer(x, _matrix(first, width, width_in, WIDTH, IN, LOW))
    if TWO:
        hidden = _layer(hidden, _matrix(middle, width, width, WIDTH, WIDTH, LOW))
    y = tl.dot(hidden, tl.trans(_matrix(last, width_out, width, OUT, WIDTH, LOW)))
    column = tl.arange(0, OUT)[None, :]
    tl.store(out + row * width_out + column, y.to(tl.bfloat16), mask=(row < n) & (column < width_out))


@triton.jit(do_not_specialize=["n"])
def _backward(  # type: ignore[no-untyped-def]
    inputs, first, middle, last, given, grad_inputs, grad_first, grad_middle, grad_last, n, width_in, width, width_out,
    TWO: tl.constexpr, IN: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr,
    LOW: tl.constexpr
):  # fmt: skip
    w_first = _matrix(first, width, width_in, WIDTH, IN, LOW)
    w_last = _matrix(last, width_out, width, OUT, WIDTH, LOW)
    sum_first = tl.zeros([WIDTH, IN], tl.float32)
    sum_last = tl.zeros([OUT, WIDTH], tl.float32)
    if TWO:
        w_middle = _matrix(middle, width, width, WIDTH, WIDTH, LOW)
        sum_middle = tl.zeros([WIDTH, WIDTH], tl.float32)
    column_in, column_out = tl.arange(0, IN)[None, :], tl.arange(0, OUT)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(n, ROWS), tl.num_programs(0)):
        row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        place, known = row * width_in + column_in, (row < n) & (column_in < width_in)
        x = tl.load(inputs + place, mask=known, other=0.0).to(LOW)
        asked = (row < n) & (column_out < width_out)
        g = tl.load(given + row * width_out + column_out, mask=asked, other=0.0).to(LOW)
        lower = _layer(x, w_first)
        if TWO:
            upper = _layer(lower, w_middle)
            sum_last += tl.dot(tl.trans(g), upper)
            g = _behind(g, w_last, upper)
            sum_middle += tl.dot(tl.trans(g), lower)
            g = _behind(g, w_middle, lower)
        else:
            sum_last += tl.dot(tl.trans(g), lower)
            g = _behind(g, w_last, lower)
        sum_first += tl.dot(tl.trans(g), x)
        tl.store(grad_inputs + place, tl.dot(g, w_first), mask=known)
    _add(grad_first, sum_first, width, width_in, WIDTH, IN)
    _add(grad_last, sum_last, width_out, width, OUT, WIDTH)
    if TWO:
        _add(grad_middle, sum_middle, width, width, WIDTH, WIDTH)


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, first: Tensor, middle: Tensor | None, last: Tensor) -> Tensor:
        x, weights = inputs.contiguous(), [first, first if middle is None else middle, last]
        weights = [each.contiguous() for each in weights]
        width, width_in = first.shape
        ctx.sides = (len(x), width_in, width, len(last))
        names = ("IN", "WIDTH", "OUT")
        sides = {name: max(columns(side), SMALLEST) for name, side in zip(names, ctx.sides[1:], strict=True)}
        ctx.constants = {
            "TWO": middle is not None,
            **sides,
            "ROWS": ROWS,
            "LOW": LOW,
            "num_warps": 8 if width > 64 else 4,
        }
        out = torch.empty(len(x), len(last), dtype=torch.bfloat16, device=x.device)
        launch(_forward, (blocks(len(x), ROWS),), x, x, *weights, out, *ctx.sides, **ctx.constants)
        ctx.save_for_backward(x, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        grad_inputs = torch.empty_like(x)
        sums = [torch.zeros_like(each, dtype=torch.float32) for each in weights]
        grid = (min(blocks(len(x), ROWS), _programs(x.device)),)
        arguments = (x, *weights, grad_out.contiguous(), grad_inputs, *sums, *ctx.sides)
        launch(_backward, grid, x, *arguments, **ctx.constants)
        first, middle, last = (total.to(each.dtype) for total, each in zip(sums, weights, strict=True))
        return grad_inputs, first, middle if ctx.constants["TWO"] else None, last


def _programs(device: torch.device) -> int:
    """Programs that run at the same time: two on each multiprocessor."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def mlp(inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """See ``nelf.kernels.mlp.mlp``; bfloat16, of one or two hidden layers that are at most 128 wide."""
    first, *middle, last = weights
    squares = all(each.shape == (len(first), len(first)) for each in middle)
    if len(middle) > 1 or not squares or max(*first.shape, len(last)) > LARGEST:
        return reference.mlp(inputs, weights)
    return _MLP.apply(inputs, first, middle[0] if middle else None, last)  # type: ignore[no-any-return,no-untyped-call]
