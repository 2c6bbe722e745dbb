"""Export a light field as an ExecuTorch program for phones: XNNPACK kernels, in 32 or 8 bits. Needs an extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from nelf.cameras import Camera
from nelf.errors import UserError, atomic_path
from nelf.export.graph import exact, graph_module, quiet
from nelf.export.inputs import KINDS, check_kind, feed_of
from nelf.export.linear import in_parts
from nelf.lightfields import LightField

__all__ = ["Program", "check_installed", "pte"]


def check_installed() -> None:
    """Check that ExecuTorch is installed.

    Raises:
        UserError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec("executorch") is None:
        raise UserError("executorch: is not installed, and .pte files need it: pip install 'nelf[executorch]'.")


def pte(network: LightField, path: Path | str, cameras: Camera, kind: str | None = None, int8: bool = False) -> Path:
    """Write a light field as a ``.pte`` program for images of one size.

    XNNPACK computes GELU with the error function, like PyTorch's default.

    Args:
        network: a trained light field.
        path: the file, ``.pte``.
        cameras: a batch of cameras, which gives the size and, for ``int8``, the views for calibration.
        kind: kind of its inputs, see ``nelf.export.inputs``; None for the one that suits a viewer.
        int8: weights (per channel) and activations in 8 bits, except for ``LightField.exact_parts`` and
            ``exact_in_8_bits``.

    Returns:
        The file.

    Raises:
        UserError: ExecuTorch is not installed, the network has no such kind of input, or the file cannot be written.
    """
    check_installed()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    kind = kind or network.entries[0]
    check_kind(network, kind)
    network = exact(network)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # XNNPACK orders them itself
    examples = [
        tuple(torch.from_numpy(array) for array in feed_of(network, kind, cameras[index]).values())
        for index in range(len(cameras))
    ]
    with quiet(), torch.no_grad():
        module: Any = torch.export.export(graph_module(network, kind, cameras[0]), examples[0]).module()
        if int8:
            module = _quantized(module, examples, (*network.exact_parts, *network.exact_in_8_bits))
        program = to_edge_transform_and_lower(
            torch.export.export(module, examples[0]), partitioner=[XnnpackPartitioner()]
        ).to_executorch()
    with atomic_path(path) as partial:
        partial.write_bytes(program.buffer)
    return Path(path)


def _quantized(module: Any, examples: Sequence[tuple[torch.Tensor, ...]], exact_parts: Sequence[str]) -> Any:
    """Post-training quantization for XNNPACK, calibrated on the examples; some parts stay in 32 bits."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    quantizer.set_filter_function(lambda node: not _in_parts(node, exact_parts))
    prepared = prepare_pt2e(module, quantizer)
    for example in examples:
        prepared(*example)
    return convert_pt2e(prepared)


def _in_parts(node: torch.fx.Node, parts: Sequence[str]) -> bool:
    """Whether a node of an exported program comes from some parts of a network."""
    modules = node.meta.get("nn_module_stack", {}).values()  # path and class of each, the outermost first
    return any(in_parts(f"{path}.", parts) for path, _ in modules)


class Program:
    """A loaded ``.pte`` program, with the two methods of an ONNX session that ``ExportedLightField`` calls.

    Args:
        path: the file.
        kind: kind of its inputs.

    Raises:
        UserError: ExecuTorch is not installed, or the file is not a program.
    """

    def __init__(self, path: Path, kind: str) -> None:
        check_installed()
        from executorch.runtime import Runtime

        try:
            self._method = Runtime.get().load_program(path).load_method("forward")
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path}: ExecuTorch cannot open it ({str(error).splitlines()[0][:200]}).") from None
        self._names = KINDS[kind]

    def get_inputs(self) -> list[SimpleNamespace]:
        """Name and shape of each input."""
        meta = self._method.metadata
        shapes = [meta.input_tensor_meta(index).sizes() for index in range(len(self._names))]
        return [SimpleNamespace(name=name, shape=shape) for name, shape in zip(self._names, shapes, strict=True)]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the image, (1, 3, H, W), or (1, 4, H, W) with opacity."""
        found = self._method.execute([torch.from_numpy(feeds[name]) for name in self._names])
        return [found[0].numpy().copy()]
