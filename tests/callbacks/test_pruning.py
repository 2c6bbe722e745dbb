"""IterativePruning in a plain Trainer with a toy network: what goes, what stays gone, how fast the rest learns."""

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import timer
from pytorch_lightning.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader

from nelf.callbacks import IterativePruning

LAYERS = ("*",)  # everything that can be pruned: 3 * 9 * 6 + 6 + 24 = 192 weights


class Toy(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
        )
        self.rates: list[list[float]] = []

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        optimizer: Any = self.optimizers()
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        return (self.net(batch) - 1.0).square().mean()

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.net[0].parameters(), "lr": 0.02}, {"params": self.net[1:].parameters(), "lr": 0.06}]
        # Momentum and decoupled decay both move a weight whose gradient is zero.
        optimizer = torch.optim.AdamW(groups, weight_decay=0.1)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5), "interval": "step"}]


class Watch(pl.Callback):
    """Notes the zeros after each step."""

    def __init__(self) -> None:
        self.zeros: list[int] = []
        self.masks: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
        pruning = next(each for each in trainer.callbacks if isinstance(each, IterativePruning))
        for name, mask in pruning.masks.items():
            assert bool((module.get_parameter(name)[~mask] == 0).all())
        self.masks.append({name: mask.clone() for name, mask in pruning.masks.items()})
        self.zeros.append(sum(int((~mask).sum()) for mask in pruning.masks.values()))


class Notes(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.lines.append((step, metrics))


def loader() -> DataLoader:
    pictures = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return DataLoader([pictures] * 64, batch_size=None)


def trainer(*callbacks: pl.Callback, **changes: Any) -> pl.Trainer:
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    return pl.Trainer(**{"accelerator": "cpu", "max_epochs": -1, "callbacks": list(callbacks), **quiet, **changes})


def toy() -> Toy:
    torch.manual_seed(1)
    return Toy()


def weights(module: Toy) -> np.ndarray:
    return np.concatenate([module.net[layer].weight.detach().numpy().ravel() for layer in (0, 1, 5)])


def test_the_smallest_weights_of_all_layers_go_and_stay_zero() -> None:
    module, watch = toy(), Watch()
    before = np.abs(weights(module))
    pruning = IterativePruning(0.6, rounds=3, steps=4, lr=None, layers=LAYERS, schedule="uniform")
    trainer(pruning, watch, max_steps=50).fit(module, loader())
    assert watch.zeros == [38] * 4 + [77] * 4 + [115] * 4  # round(192 * 0.2), 0.4, 0.6; then the training ends
    first = np.concatenate([watch.masks[0][f"net.{layer}.weight"].numpy().ravel() for layer in (0, 1, 5)])
    assert sorted(np.flatnonzero(~first)) == sorted(np.argsort(before)[:38])
    for earlier, later in zip(watch.masks, watch.masks[1:], strict=False):
        assert all(bool((later[name] <= mask).all()) for name, mask in earlier.items())  # nothing comes back
    assert int((weights(module) == 0).sum()) == 115
    assert not [name for name in module.state_dict() if "mask" in name or "orig" in name]
    assert pruning.sparsity["total"] == 115 / 192


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_resumed_training_keeps_masks_and_ends_as_the_whole_one(tmp_path: Path) -> None:
    def pruning() -> IterativePruning:
        return IterativePruning(0.7, rounds=2, steps=5, lr=0.01, layers=LAYERS)

    whole = toy()
    trainer(pruning(), max_steps=20).fit(whole, loader())
    half, first = toy(), trainer(pruning(), max_steps=7)
    first.fit(half, loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    assert torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"].keys() == Toy().state_dict().keys()
    rest, watch = Toy(), Watch()
    again = trainer(pruning(), watch, max_steps=20)
    again.fit(rest, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert watch.zeros == [134] * 3
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(rest.state_dict()[name], value, msg=name)


def test_weights_that_a_checkpoint_caught_between_step_and_mask_are_zero_again(tmp_path: Path) -> None:
    module, run = toy(), trainer(IterativePruning(0.5, 1, 5, None, LAYERS), max_steps=3)
    run.fit(module, loader())
    with torch.no_grad():
        module.net[0].weight.add_(1.0)
    run.save_checkpoint(tmp_path / "torn.ckpt")
    rest = Toy()
    trainer(IterativePruning(0.5, 1, 5, None, LAYERS), max_steps=3).fit(
        rest, loader(), ckpt_path=tmp_path / "torn.ckpt", weights_only=True
    )
    assert int((weights(rest) == 0).sum()) == 96


def test_learning_rates_keep_their_ratio_and_their_schedule() -> None:
    module = toy()
    trainer(IterativePruning(0.5, 1, 10, 1e-3, LAYERS), max_steps=10).fit(module, loader())
    expected = [[1e-3 * 0.5 ** (step // 4), 3e-3 * 0.5 ** (step // 4)] for step in range(10)]
    np.testing.assert_allclose(module.rates, expected)


@pytest.mark.parametrize("budget", [{"max_steps": 9}, {"max_epochs": 1, "limit_train_batches": 9}])
def test_rounds_spread_over_the_budget(budget: dict[str, int]) -> None:
    notes = Notes()
    pruning = IterativePruning(0.488, 3, None, None, LAYERS)
    trainer(pruning, **{**budget, "logger": notes}).fit(toy(), loader())
    lines = [(step, line["sparsity/total"]) for step, line in notes.lines if "sparsity/total" in line]
    assert [step for step, _ in lines] == [0, 3, 6]
    assert [share for _, share in lines] == [38 / 192, 69 / 192, 94 / 192]
    last = notes.lines[-1][1]
    assert {f"sparsity/net.{layer}.weight" for layer in (0, 1, 5)} < set(last)


def test_rounds_spread_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()  # of Lightning's timer: a hundredth of a second whenever it is asked, however slow the machine is
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 100))
    pruning = IterativePruning(0.5, 2, None, None, LAYERS)
    trainer(pruning, max_time={"seconds": 1}, max_steps=-1).fit(toy(), loader())
    assert pruning.round == 2


def test_a_training_that_ends_too_early_says_so() -> None:
    with pytest.warns(UserWarning, match="ended in round 1 of 3"):
        trainer(IterativePruning(0.5, 3, 5, None, LAYERS), max_steps=4).fit(toy(), loader())


def test_a_trainer_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="max_steps, max_epochs or max_time"):
        trainer(IterativePruning(0.5, 2, None, None, LAYERS), max_steps=-1).fit(toy(), loader())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"amount": 1.0}, "amount: is 1.0; allowed: a share between 0 and 1"),
        ({"amount": 0.0}, "amount: is 0.0"),
        ({"rounds": 0}, "rounds: is 0; allowed: 1 or more"),
        ({"steps": 0}, "steps: is 0; allowed: 1 or more"),
        ({"lr": 0.0}, "lr: is 0.0; allowed: a positive number"),
        ({"schedule": "linear"}, "schedule: there is no 'linear'; allowed: geometric, uniform, cubic"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        IterativePruning(**options)


def test_layers_that_match_nothing_are_named_with_what_there_is() -> None:
    with pytest.raises(
        ValueError, match=r"layers: 'heda' matches no weight; allowed: a pattern of these names: net.0.weight"
    ):
        trainer(IterativePruning(0.5, layers=["heda"]), max_steps=1).fit(toy(), loader())
