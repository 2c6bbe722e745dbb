"""Quantization-aware training: training with the rounding of int8 kernels."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from nelf.compression.fold import fold_batch_norm
from nelf.compression.quantization import Ranges, activation_ranges, quantize_network, quantizers
from nelf.systems.schedule import training_progress

__all__ = ["QuantizationAwareTraining"]


class QuantizationAwareTraining(pl.Callback):
    """Train with layers that round weights, inputs and outputs to 8 bits as ONNX Runtime's int8 kernels do.

    Weights are rounded per channel, symmetric; activations per tensor, asymmetric, within moving averages of their
    extremes. These ranges are frozen toward the end, so that the weights adapt to the final ones. The gradient of the
    rounding is that of the identity (straight-through estimator). Batch norms are folded first.

    Afterwards the module still computes with fake quantization, so that validation and test measure the int8 network.
    Its parameters keep their names; ``nelf.storage.save`` saves the ranges with them, and
    ``nelf.compression.quantization.restore_network`` removes the fake quantization.

    Args:
        ranges: initial ranges, of ``nelf.compression.quantization.calibrate`` for the same layer names (those inside
            ``module.network`` if it has one); layers without a range then stay in float32. None takes those of the
            first batch.
        momentum: weight of each batch's extremes in the moving average.
        freeze: fraction of the training, of ``max_steps`` or ``max_time``, after which ranges are frozen.

    Raises:
        ValueError: ``momentum`` or ``freeze`` is not in [0, 1].

    Source:
        Jacob et al. 2018, arXiv 1712.05877, section 3.
    """

    def __init__(self, ranges: Ranges | None = None, momentum: float = 0.01, freeze: float = 0.7) -> None:
        for name, share in (("momentum", momentum), ("freeze", freeze)):
            if not 0 <= share <= 1:
                raise ValueError(f"Expected argument `{name}` to be in [0, 1], but got {share}.")
        self.momentum, self.freeze = momentum, freeze
        self.frozen = False
        self._given = ranges

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Fold norms and prepare layers, before the optimizer collects the parameters."""
        network = _network(pl_module)
        if stage == "fit" and not quantizers(network):
            quantize_network(fold_batch_norm(network, inplace=True), self._given or {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start observing the inputs and outputs of layers."""
        for layer in quantizers(_network(pl_module)).values():
            if self._given is None or layer.ranges:
                layer.watch = self._follow(layer.ranges, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Freeze the ranges when it is due; all processes take those of the first."""
        if not self.frozen and training_progress(trainer) >= self.freeze:
            self.frozen = True
            for layer in quantizers(_network(pl_module)).values():
                layer.ranges.update(trainer.strategy.broadcast(dict(layer.ranges)))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop observing."""
        for layer in quantizers(_network(pl_module)).values():
            layer.watch = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the ranges, and whether they are frozen."""
        ranges = activation_ranges(_network(pl_module))
        checkpoint["quantization"] = {"ranges": ranges, "frozen": self.frozen}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the ranges of a checkpoint."""
        kept = checkpoint.get("quantization", {"ranges": {}, "frozen": False})
        self.frozen = kept["frozen"]
        quantize_network(_network(pl_module), kept["ranges"])

    def _follow(self, ranges: dict[str, Tensor], module: pl.LightningModule) -> Any:
        """The observer of a layer: updates its ranges while the module is in training mode."""

        def watch(side: str, values: Tensor) -> None:
            if not module.training or self.frozen:
                return
            seen = torch.stack(values.aminmax())
            ranges[side] = torch.lerp(ranges[side].to(seen), seen, self.momentum) if side in ranges else seen

        return watch


def _network(module: pl.LightningModule) -> torch.nn.Module:
    """The part of a module that is saved and exported: its ``network``, or the module itself without one."""
    network = getattr(module, "network", module)
    return network if isinstance(network, torch.nn.Module) else module
