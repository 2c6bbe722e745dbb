"""nelf as a method of NerfBaselines, which trains, evaluates and compares methods of novel view synthesis alike.

One method holds the chain: the first iterations train a teacher (``model=ngp_small``), the one after them renders its
pseudo views and starts the student (``model=grid_r2l``), the rest train the student. Rendering is the teacher's until
the student exists. It is for scenes with bounds, such as Blender's: the box is that of the data set's points where it
has any, else a cube around the origin.

NerfBaselines finds the method by ``_nerfbaselines_spec.py``, see ``baselines.py``. Its conventions: poses are
camera-to-world with OpenCV's axes (y down, z forward), pixel centers at +0.5, images uint8 with alpha not
premultiplied, ``camera_models`` are places in ``CAMERA_MODELS``. It is imported only where pictures are evaluated.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import nelf
from nelf.cameras import Camera
from nelf.data import SceneDataModule, with_pseudo_views
from nelf.data.bounds import of_points
from nelf.errors import UserError, did_you_mean
from nelf.files import read_object
from nelf.paths import FOLLOWING, random_cameras, trajectory
from nelf.pipeline.quiet import quiet_lightning
from nelf.scene import BACKGROUNDS, Scene, Split
from nelf.storage import described
from nelf.systems.system import System

CAMERA_MODELS = ("pinhole", "opencv", "opencv_fisheye", "full_opencv")
#: Where the coefficients of each model stand in a lens of ``nelf.cameras``: k1 k2 k3 p1 p2 skew k4 k5 k6.
LENSES = {"pinhole": [], "opencv": [0, 1, 3, 4], "full_opencv": [0, 1, 3, 4, 2, 6, 7, 8]}
OUTPUTS = ("color", "depth", "accumulation")
SEED = 0


@dataclass(frozen=True)
class Settings:
    """What ``config_overrides`` (``--set KEY=VALUE``) may change.

    Attributes:
        teacher_iterations: steps of the teacher.
        student_iterations: steps of the student.
        pseudo_views: how many views the teacher renders.
        bound: half the side of the scene's box, where the data set has no points; NeRF's Blender scenes have 1.5.
    """

    teacher_iterations: int = 2000
    student_iterations: int = 1250
    pseudo_views: int = 300
    bound: float = 1.5

    @property
    def iterations(self) -> int:
        """All steps."""
        return self.teacher_iterations + self.student_iterations

    @classmethod
    def of(cls, words: dict[str, Any]) -> Settings:
        """Take values, numbers or their texts, by their names.

        Raises:
            UserError: there is no such setting, or its value is no positive number of its kind.
        """
        kinds = {each.name: type(each.default) for each in fields(cls)}
        values = {}
        for name, value in words.items():
            if name not in kinds:
                raise UserError(f"{name}: no such setting; allowed: {', '.join(kinds)}.{did_you_mean(name, kinds)}")
            try:
                values[name] = kinds[name](str(value))  # which a fraction is no whole number for
            except (TypeError, ValueError):
                values[name] = 0
            if not 0 < values[name] < float("inf"):
                kind = "whole number" if kinds[name] is int else "number"
                raise UserError(f"{name}: is {value!r}; allowed: a positive {kind}.")
        return cls(**values)


# ------------------------------------------------------------------------------------------- conversions


def camera_of(cameras: Any) -> Camera:
    """Convert one camera, or a batch of cameras of one image size.

    Args:
        cameras: NerfBaselines' ``Cameras``: poses (..., 3, 4), intrinsics (..., 4), image_sizes (..., 2) and so on.

    Raises:
        UserError: the cameras differ in image size, or one is a fisheye. (NerfBaselines undistorts pictures of models
            that a method does not name.)
    """
    sizes = np.unique(np.reshape(cameras.image_sizes, (-1, 2)), axis=0)
    if len(sizes) != 1:
        told = ", ".join(f"{width}x{height}" for width, height in sizes.tolist())
        raise UserError(f"image_sizes: are {told}; allowed: images of one size.")
    poses = np.asarray(cameras.poses)[..., :3, :4] * np.array([1, -1, -1, 1])
    width, height = sizes[0].tolist()
    return Camera(_floats(poses), _floats(cameras.intrinsics), width, height, lens=_lens(cameras))


def _lens(cameras: Any) -> torch.Tensor | None:
    """The lenses (..., 9), or None where all cameras are pinholes."""
    batch = np.shape(cameras.camera_models)
    models = [CAMERA_MODELS[index] for index in np.ravel(cameras.camera_models).astype(int)]
    if set(models) == {"pinhole"}:
        return None
    if not LENSES.keys() >= set(models):
        raise UserError(f"camera_models: one is opencv_fisheye; allowed: {', '.join(LENSES)}.")
    stated = np.reshape(cameras.distortion_parameters, (len(models), -1))
    lens = np.zeros((len(models), 9))
    for row, coefficients, model in zip(lens, stated, models, strict=True):
        row[LENSES[model]] = coefficients[: len(LENSES[model])]
    return _floats(lens.reshape(*batch, 9))


def _floats(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float32))


def scene_of(dataset: dict[str, Any], bound: float) -> Scene:
    """Convert a data set to a scene, whose splits are all the data set's views.

    Args:
        dataset: NerfBaselines' ``Dataset`` with its images.
        bound: half the side of the box, where there are no points.

    Raises:
        UserError: as ``camera_of``; images that are not uint8, a background that nelf has no name for, or a scene of
            which neither points nor depths are known.
    """
    camera, metadata = camera_of(dataset["cameras"]), dataset["metadata"]
    near, far, box = _bounds(dataset, camera, bound)
    images = [_pixels(image, camera) for image in dataset["images"]]
    channels = max(image.shape[2] for image in images)
    stacked = np.full((len(images), camera.height, camera.width, channels), 255, np.uint8)
    for target, image in zip(stacked, images, strict=True):
        target[..., : image.shape[2]] = image
    masks = dataset.get("masks")
    if masks is not None:  # kept at the size of the largest image, if they are an array
        masks = [np.asarray(mask)[: camera.height, : camera.width] > 0 for mask in masks]
    root = dataset.get("image_paths_root") or os.path.commonpath(dataset["image_paths"])
    names = [Path(os.path.relpath(path, root)).with_suffix("").as_posix() for path in dataset["image_paths"]]
    split = Split(camera, stacked, names, masks=masks)
    return Scene(
        name=str(metadata.get("scene") or "scene"),
        root=None,
        train=split,
        val=split,  # nothing is validated or tested here: NerfBaselines does that
        test=split,
        aabb=torch.tensor(box, dtype=torch.float32),
        near=near,
        far=far,
        background=_background(metadata.get("background_color")),
        trajectory=trajectory(camera),
    )


def _pixels(image: Any, camera: Camera) -> np.ndarray:
    """An image (H, W, 3|4) without what pads it to the size of a larger one."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        found = f"{pixels.dtype} of shape {pixels.shape}"
        raise UserError(f"images: one is {found}; allowed: uint8 (H, W, 3) or (H, W, 4), color_space srgb.")
    return pixels[: camera.height, : camera.width]


def _background(color: Any) -> str:
    """The name of a background; NerfBaselines takes black where none is stated."""
    rgb = (0.0, 0.0, 0.0) if color is None else tuple((np.asarray(color) / 255).tolist())
    for name, known in BACKGROUNDS.items():
        if rgb == known:
            return name
    raise UserError(f"background_color: is {np.asarray(color).tolist()}; allowed: [255, 255, 255], [0, 0, 0] or none.")


def _bounds(dataset: dict[str, Any], camera: Camera, bound: float) -> tuple[float, float, list[float]]:
    """Near, far and box: of the points if there are any; what the cameras state of near and far comes first."""
    points, planes = dataset.get("points3D_xyz"), dataset["cameras"].nears_fars
    near, far, box = 0.0, 0.0, [-bound] * 3 + [bound] * 3
    if points is not None and len(points):
        near, far, box = of_points(_floats(points), camera, Path("points3D_xyz"))
    if planes is not None:
        near, far = float(np.min(planes[..., 0])), float(np.max(planes[..., 1]))
    if not 0 < near < far < np.inf:
        raise UserError(f"nears_fars: are {near:g} to {far:g}; allowed: 0 < near < far, or a data set with points.")
    return near, far, box


# ------------------------------------------------------------------------------------------- training


class StepByStep(pl.Callback):
    """A Trainer's fit whose steps are taken when they are asked for.

    NerfBaselines calls for each iteration, a Trainer does not return before the last one. So it runs in a thread of its
    own that rests after each step: either that thread is at work or its caller, never both.

    Args:
        system: what learns.
        data: its datamodule.
        steps: after how many the fit ends.
    """

    def __init__(self, system: System, data: SceneDataModule, steps: int) -> None:
        self.system = system
        self._turn, self._taken = threading.Semaphore(0), threading.Semaphore(0)
        self._closed, self._error = False, None
        self._metrics: dict[str, float] = {}
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        with quiet_lightning():
            where = {"accelerator": _device(), "devices": 1}
            trainer = pl.Trainer(
                max_steps=steps, max_epochs=-1, limit_val_batches=0, callbacks=[self], **where, **quiet
            )
        self._thread = threading.Thread(target=self._fit, args=(trainer, data), daemon=True)

    def step(self) -> dict[str, float]:
        """Take one step; what the system has logged in it, by its name without ``train/``."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._turn.release()
        self._taken.acquire()
        if self._error is not None:
            raise self._error
        return self._metrics

    def close(self) -> None:
        """End the fit where it is."""
        if self._thread.is_alive():
            self._closed = True
            self._turn.release()
            self._thread.join()

    def _fit(self, trainer: pl.Trainer, data: SceneDataModule) -> None:
        try:
            trainer.fit(self.system, datamodule=data)
            self.system.to(trainer.strategy.root_device)  # a Trainer leaves its module in main memory
        except BaseException as error:  # raised where the step was asked for
            self._error = error
        finally:
            self._taken.release()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._metrics = {
            name.removeprefix("train/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/")
        }
        if trainer.global_step < trainer.max_steps:
            self._taken.release()
            self._turn.acquire()
            if self._closed:
                trainer.should_stop = True


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _system(model: str) -> tuple[System, dict[str, Any]]:
    """A new network in its system, by its recipe; and what its file is to say of it."""
    config = nelf.config("train", [f"model={model}"])
    network = instantiate(config.model)
    return instantiate(config.system, network=network), OmegaConf.to_container(config.model, resolve=True)


# ------------------------------------------------------------------------------------------- the method


class NeLF:
    """The method. A checkpoint is a folder with ``model.safetensors``, which says what it is, and ``nelf.json``.

    A checkpoint renders and can be saved again, with the training data or without. Its training does not go on: what
    the optimizers know is not in it.

    Args:
        checkpoint: a folder that ``save`` has written.
        train_dataset: to learn from; without a checkpoint it is needed.
        config_overrides: see ``Settings``.

    Raises:
        UserError: an override, the data set or the checkpoint is not what it may be.
    """

    def __init__(
        self,
        *,
        checkpoint: str | None = None,
        train_dataset: dict[str, Any] | None = None,
        config_overrides: dict[str, Any] | None = None,
    ) -> None:
        self.checkpoint, self.scene = checkpoint, None
        self._training: StepByStep | None = None
        overrides = config_overrides or {}
        if checkpoint is not None:
            self.settings, self.step = _progress(Path(checkpoint, "nelf.json"), overrides)
            self.network = nelf.storage.load(checkpoint, device=_device())
            self._description = described(checkpoint)
            return
        if train_dataset is None:
            raise UserError("train_dataset: is none, and so is the checkpoint; allowed: one of them.")
        self.settings, self.step = Settings.of(overrides), 0
        self.scene = scene_of(train_dataset, self.settings.bound)
        pl.seed_everything(SEED, verbose=False)
        teacher, self._description = _system("ngp_small")
        teacher.prepare(self.scene)  # so that it can be rendered before the first step
        self._train(teacher, self.scene, self.settings.teacher_iterations)

    @classmethod
    def get_method_info(cls) -> dict[str, Any]:
        """What NerfBaselines has to know before it loads a data set."""
        return {
            "method_id": "nelf",
            "required_features": frozenset(("color", "points3D_xyz")),
            "supported_camera_models": frozenset(LENSES),
            "supported_outputs": ("color", {"name": "depth", "type": "depth"}, "accumulation"),
            "can_resume_training": False,
        }

    def get_info(self) -> dict[str, Any]:
        """The same, and how far it is."""
        return {
            **self.get_method_info(),
            "num_iterations": self.settings.iterations,
            "loaded_step": None if self.checkpoint is None else self.step,
            "loaded_checkpoint": self.checkpoint,
            "hparams": asdict(self.settings),
        }

    def train_iteration(self, step: int) -> dict[str, float]:
        """Take one step.

        Args:
            step: how many there have been, which is counted here, too.

        Returns:
            Among others ``psnr`` of the batch, dB.

        Raises:
            UserError: this is a checkpoint, or training is over; as of the systems.
        """
        if self._training is None or self.step == self.settings.iterations:
            why = f"is over after {self.step} steps" if self._training else "does not go on from a checkpoint"
            raise UserError(f"step {step}: training {why}; allowed: to train anew.")
        if self.step == self.settings.teacher_iterations:
            self._start_student()
        metrics = self._training.step()
        self.step += 1
        if self.step == self.settings.iterations:
            self.network.trim(self.scene.train.camera)
        return metrics

    def _train(self, system: System, scene: Scene, steps: int) -> None:
        """Let the next steps be those of a system."""
        self.network = system.network.to(_device())
        data = SceneDataModule(scene, seed=SEED, **system.batches)
        self._training = StepByStep(system, data, steps)
        weakref.finalize(self, self._training.close)

    def _start_student(self) -> None:
        """Render the teacher's views, and start from its density and color."""
        scene, teacher, views = self.scene, self.network, self.settings.pseudo_views
        cameras = random_cameras(scene.train.camera, views, FOLLOWING[scene.trajectory], SEED)
        folder = TemporaryDirectory(prefix="nelf_")
        weakref.finalize(self, folder.cleanup)
        self.scene = with_pseudo_views(scene, nelf.write_views(teacher, cameras, folder.name, scene))
        student, self._description = _system("grid_r2l")
        student.network.to(_device()).prepare(scene.geometry, scene.train.silhouettes(), teacher)
        self._train(student, self.scene, self.settings.student_iterations)

    def render(self, camera: Any, *, options: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Draw what one camera sees.

        Args:
            camera: a single one.
            options: NerfBaselines' own wrapper sees to the types that it may ask for; there are no embeddings.

        Returns:
            ``color`` (H, W, 3) in [0, 1] on the scene's background, ``depth`` (H, W), z-depth, and ``accumulation``
            (H, W) in [0, 1]; float32.
        """
        rgb, depth, opacity = self.network.render(camera_of(camera.item()))
        parts = zip(OUTPUTS, (rgb.clamp(0, 1), depth, opacity), strict=True)
        return {name: part.cpu().numpy() for name, part in parts}

    def get_train_embedding(self, index: int) -> None:
        """Nothing is learned of single images."""

    def optimize_embedding(self, dataset: dict[str, Any], *, embedding: np.ndarray | None = None) -> dict[str, Any]:
        """Nothing is learned of single images.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("nelf: has no embeddings.")

    def save(self, path: str) -> None:
        """Write a checkpoint into a folder, the same bytes for the same network."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        description = {**self._description, **getattr(self.network, "arguments", {})}
        nelf.save(self.network, folder / "model.safetensors", description, "")
        content = {"step": self.step, "settings": asdict(self.settings)}
        (folder / "nelf.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def close(self) -> None:
        """End the training."""
        if self._training is not None:
            self._training.close()


def _progress(path: Path, overrides: dict[str, Any]) -> tuple[Settings, int]:
    """What a checkpoint says beside its weights: the settings, and how many steps there have been."""
    allowed = "what NeLF.save writes into a checkpoint"
    known = read_object(path, allowed)
    settings, step = known.get("settings"), known.get("step")
    if not isinstance(settings, dict) or type(step) is not int or step < 0:
        raise UserError(f"{path}: has no settings or no step; allowed: {allowed}.")
    return Settings.of({**settings, **overrides}), step


class WithoutLPIPS:
    """NerfBaselines' evaluation of unmasked pinhole pictures but for LPIPS, whose networks' weights are downloads."""

    def get_name(self) -> str:
        return "nelf-without-lpips"

    def render(self, method: Any, dataset: dict[str, Any], *, options: dict[str, Any] | None = None) -> dict[str, Any]:
        return method.render(dataset["cameras"].item(), options=options)

    def evaluate(self, predictions: dict[str, Any], dataset: dict[str, Any]) -> dict[str, float]:
        from nerfbaselines import metrics
        from nerfbaselines.utils import convert_image_dtype, image_to_srgb

        known = {key: dataset["metadata"].get(key) for key in ("color_space", "background_color")}
        drawn, true = (
            convert_image_dtype(image_to_srgb(image, np.uint8, **known), np.float32)[None]
            for image in (predictions["color"], dataset["images"][0])
        )
        error = metrics.mse(drawn, true)
        return {
            "psnr": float(metrics.psnr(error).mean()),
            "ssim": float(metrics.ssim(true, drawn).mean()),
            "mae": float(metrics.mae(true, drawn).mean()),
            "mse": float(error.mean()),
        }

    def accumulate_metrics(self, metrics: Any) -> dict[str, float]:
        rows = list(metrics)
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
