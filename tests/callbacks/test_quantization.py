"""Quantization-aware training in an ordinary Trainer, with a module that is not nelf's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nelf.callbacks import QuantizationAwareTraining
from nelf.compression.integers import fake_quantize
from nelf.compression.quantization import activation_ranges, quantizers, restore_network


class Module(pl.LightningModule):
    """Somebody's own: two convolutions that learn a fixed map, so hard to round that it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(4, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 2, 1))

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        target = torch.stack([batch[:, 0] * batch[:, 1], batch[:, 2].abs()], dim=1)
        return (self.network(batch) - target).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02)


BATCHES = [torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(index)) for index in range(40)]


def fit(
    module: pl.LightningModule, callback: pl.Callback, steps: int, folder: Path, checkpoint: Path | None = None
) -> pl.Trainer:
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback],
    )
    start = 0 if checkpoint is None else torch.load(checkpoint, weights_only=True)["global_step"]
    loader = DataLoader(BATCHES[start:], batch_size=None)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    return trainer


def test_it_ends_with_plain_weights_and_ranges(tmp_path: Path) -> None:
    module = Module()
    names = [name for name in module.state_dict() if ".1." not in name]
    start = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, QuantizationAwareTraining(), 20, tmp_path)
    assert list(module.state_dict()) == names  # the norm is folded, nothing is added
    assert isinstance(module.network[1], nn.Identity)
    assert not torch.equal(module.network[3].weight, start["network.3.weight"])
    ranges = activation_ranges(module.network)
    assert list(ranges) == ["0.input", "3.input", "3.output"]
    assert ranges["3.input"][0] == 0.0 < ranges["3.input"][1]
    # The weights are not on the grid of 8 bits: they are the ones that learn.
    assert not torch.equal(module.network[3].weight, fake_quantize(module.network[3].weight, 0))
    restore_network(module.network)
    assert type(module.network[0]) is nn.Conv2d


def test_ranges_are_moving_averages_of_the_extremes_until_they_freeze(tmp_path: Path) -> None:
    class Still(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Still()
    fit(module, QuantizationAwareTraining(momentum=0.25, freeze=0.5), 10, tmp_path)
    low, high = float(BATCHES[0].min()), float(BATCHES[0].max())
    for batch in BATCHES[1:5]:  # half of the ten steps
        low, high = low + 0.25 * (float(batch.min()) - low), high + 0.25 * (float(batch.max()) - high)
    assert activation_ranges(module.network)["0.input"] == pytest.approx((low, high), rel=1e-5)


def test_training_with_the_rounding_beats_rounding_afterwards(tmp_path: Path) -> None:
    """With ranges so wide that few levels are left, the plain optimum is not the rounded one."""
    ranges = {"0.input": (-60.0, 60.0), "3.input": (0.0, 60.0), "3.output": (-60.0, 60.0)}

    def rounded_loss(module: Module) -> float:
        with torch.no_grad():
            return float(torch.stack([module.training_step(batch, 0) for batch in BATCHES]).mean())

    losses = {}
    for lr in (0.0, 0.05):
        torch.manual_seed(0)
        module = Module()
        module.configure_optimizers = lambda module=module, lr=lr: torch.optim.SGD(module.parameters(), lr=lr)
        fit(module, QuantizationAwareTraining(ranges, freeze=0.0), 40, tmp_path)
        losses[lr] = rounded_loss(module)
        assert activation_ranges(module.network) == ranges
    assert losses[0.05] < 0.8 * losses[0.0]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    def new() -> tuple[Module, QuantizationAwareTraining]:
        torch.manual_seed(0)
        return Module(), QuantizationAwareTraining(momentum=0.2, freeze=1.0)

    module, callback = new()
    fit(module, callback, 12, tmp_path).save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(1)
    resumed, callback = Module(), new()[1]
    fit(resumed, callback, 20, tmp_path, tmp_path / "half.ckpt")
    whole, callback = new()
    fit(whole, callback, 20, tmp_path)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert activation_ranges(resumed.network) == activation_ranges(whole.network)


def test_linear_layers_learn_with_the_rounding(tmp_path: Path) -> None:
    class Linear(Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return (self.network(batch.movedim(1, -1)) - 1.0).square().mean()

    module = Linear()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, QuantizationAwareTraining(), 5, tmp_path)
    assert module.state_dict().keys() == start.keys()
    assert list(activation_ranges(module.network)) == ["0.input", "2.input", "2.output"]
    assert not any(torch.equal(value, start[name]) for name, value in module.state_dict().items())


def test_layers_without_a_given_range_stay_in_full(tmp_path: Path) -> None:
    module = Module()
    fit(module, QuantizationAwareTraining({"0.input": (-4.0, 4.0)}), 3, tmp_path)
    assert {name for name, layer in quantizers(module.network).items() if layer.ranges} == {"0"}


@pytest.mark.parametrize("wrong", [{"momentum": 1.5}, {"freeze": -0.1}])
def test_shares_are_between_zero_and_one(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        QuantizationAwareTraining(**wrong)
