"""Previews in a plain Trainer with a toy system."""

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import imageio.v3 as iio
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from nelf.callbacks import Previews
from nelf.cameras import Camera
from nelf.scene import Split


def _loader(items: list) -> DataLoader:
    return DataLoader(items, batch_size=None, collate_fn=lambda item: item)


class Picture(NamedTuple):
    rgb: torch.Tensor


class Toy(pl.LightningModule):
    """Learns one number; its picture is gray, and remembers in which mode it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Dropout()
        self.level = nn.Parameter(torch.tensor(0.4))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        assert self.training
        assert not self.frozen.training
        return (self.level - 0.4).square()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_train_start(self) -> None:
        self.frozen.eval()

    def render(self, camera: Camera) -> Picture:
        assert not self.training
        assert not torch.is_grad_enabled()
        return Picture(self.level.expand(camera.height, camera.width, 3))


class Validated(Toy):
    def validation_step(self, batch: object, index: int) -> None:
        pass


class Module(pl.LightningDataModule):
    def __init__(self, views: int = 2) -> None:
        super().__init__()
        pose = torch.eye(4)[:3].expand(views, 3, 4)
        camera = Camera.from_fov(pose, 0.7, 12, 8)
        images = np.zeros((views, 8, 12, 3), np.uint8)
        images[1:] = 51
        self.val = Split(camera, images, [f"val/{i}" for i in range(views)])
        # There is no test split to take a view from.
        self.scene = SimpleNamespace(val=self.val, background="white")

    def train_dataloader(self) -> DataLoader:
        return _loader([torch.zeros(1)] * 12)


class LoaderOnly(pl.LightningDataModule):
    """Somebody else's data: no scene, a validation loader of views."""

    def __init__(self) -> None:
        super().__init__()
        self.split = Module().val

    def train_dataloader(self) -> DataLoader:
        return _loader([torch.zeros(1)] * 12)

    def val_dataloader(self) -> DataLoader:
        return _loader([self.split[1]])


def _fit(data: pl.LightningDataModule, folder: Path, callback: Previews, **options: object) -> None:
    settings = {"max_steps": 6, "logger": False, "limit_val_batches": 0, "accelerator": "cpu"} | options
    pl.Trainer(
        callbacks=[callback],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **settings,
    ).fit(Validated() if isinstance(data, LoaderOnly) else Toy(), data)


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "samples").iterdir())


def test_writes_prediction_truth_and_error(tmp_path: Path) -> None:
    _fit(Module(), tmp_path, Previews(every_n_steps=2, view=3))
    assert _names(tmp_path) == ["step_000002.png", "step_000004.png", "step_000006.png"]
    picture = iio.imread(tmp_path / "samples" / "step_000002.png")
    assert picture.shape == (8, 36, 3)
    assert (picture[:, :12] == 102).all()  # 0.4
    assert (picture[:, 12:24] == 51).all()  # view 3 of 2 is view 1: 0.2
    assert (picture[:, 24:] == picture[0, 24]).all()


def test_accumulated_batches_give_one_picture_per_step(tmp_path: Path) -> None:
    _fit(Module(), tmp_path, Previews(every_n_steps=1), max_steps=3, accumulate_grad_batches=4)
    assert _names(tmp_path) == ["step_000001.png", "step_000002.png", "step_000003.png"]


def test_takes_the_view_of_a_validation_loader(tmp_path: Path) -> None:
    _fit(LoaderOnly(), tmp_path, Previews(every_n_steps=6), limit_val_batches=1, num_sanity_val_steps=1)
    picture = iio.imread(tmp_path / "samples" / "step_000006.png")
    assert (picture[:, 12:24] == 51).all()


def test_goes_on_without_validation_views(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no validation view"):
        _fit(Module(views=0), tmp_path, Previews(every_n_steps=2))
    assert not (tmp_path / "samples").exists()


def test_gives_the_picture_to_loggers_that_take_images(tmp_path: Path) -> None:
    class Images(TensorBoardLogger):
        seen: ClassVar[list[tuple[str, int, tuple[int, ...]]]] = []

        def log_image(self, key: str, images: list[np.ndarray], step: int) -> None:
            self.seen.append((key, step, images[0].shape))

    tensorboard = TensorBoardLogger(tmp_path, name="tb")
    _fit(Module(), tmp_path, Previews(every_n_steps=3), logger=[tensorboard, Images(tmp_path, name="other")])
    assert Images.seen == [("val/preview", 3, (8, 36, 3)), ("val/preview", 6, (8, 36, 3))]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tensorboard.experiment.flush()
    events = EventAccumulator(tensorboard.log_dir).Reload()
    assert [event.step for event in events.Images("val/preview")] == [3, 6]


def test_refuses_to_never_look() -> None:
    with pytest.raises(ValueError, match="every_n_steps"):
        Previews(every_n_steps=0)
