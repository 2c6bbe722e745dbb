"""nelf as a method of NerfBaselines, without it: conversions, training by single steps, checkpoints."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from nelf.cameras import Camera
from nelf.data import BlenderDataModule, read_scene, write_scene
from nelf.errors import UserError
from nelf.fields import NGP
from nelf.lightfields import GridR2L
from nelf.scene import Scene, Split
from nelf.systems import Student, Teacher

ROOT = Path(__file__).parents[1]
PINHOLE, OPENCV, FISHEYE, FULL_OPENCV = range(4)
SMALL = {"levels": 2, "log2_table": 10, "finest_resolution": 32, "grid_resolution": 16, "max_samples": 32, "hidden": 16}


@pytest.fixture
def script(monkeypatch):
    """Import a script of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def method(script) -> ModuleType:
    return script("nerfbaselines_nelf")


@dataclass
class Cameras:
    """The parts of NerfBaselines' cameras."""

    poses: np.ndarray
    intrinsics: np.ndarray
    camera_models: np.ndarray
    distortion_parameters: np.ndarray
    image_sizes: np.ndarray
    nears_fars: np.ndarray | None = None

    def __getitem__(self, index: int) -> Cameras:
        parts = [getattr(self, each.name) for each in fields(self)]
        return Cameras(*(None if part is None else part[index] for part in parts))

    def item(self) -> Cameras:
        assert self.poses.ndim == 2
        return self


def some_cameras(models: list[int]) -> Cameras:
    """Cameras that stand around the origin and look about at it; z is forward."""
    rng = np.random.default_rng(0)
    poses = []
    for _ in models:
        forward = rng.normal(size=3)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, rng.normal(size=3))
        right /= np.linalg.norm(right)
        poses.append(np.column_stack([right, np.cross(forward, right), forward, -4 * forward + rng.normal(0, 0.1, 3)]))
    count = len(models)
    return Cameras(
        np.array(poses, np.float32),
        np.array([[70.0, 64.0, 33.0, 21.0]] * count, np.float32) + np.arange(count, dtype=np.float32)[:, None],
        np.array(models, np.int32),
        rng.uniform(-0.06, 0.06, (count, 8)).astype(np.float32),
        np.array([[64, 48]] * count, np.int32),
        np.array([[2.0, 6.0]] * count, np.float32),
    )


def seen_at(camera: Cameras, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where OpenCV has points in a picture, (N, 2) pixels, and their depths (N,): in 64 bits, by its documentation."""
    pose = camera.poses.astype(np.float64)
    x, y, z = ((points - pose[:, 3]) @ pose[:, :3]).T
    x, y = x / z, y / z
    count = {PINHOLE: 0, OPENCV: 4, FULL_OPENCV: 8}[int(camera.camera_models)]
    stated = camera.distortion_parameters.astype(np.float64)[:count]
    k1, k2, p1, p2, k3, k4, k5, k6 = np.concatenate([stated, np.zeros(8 - count)])
    r2 = x**2 + y**2
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    drawn_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    drawn_y = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    fx, fy, cx, cy = camera.intrinsics.astype(np.float64)
    return np.stack([fx * drawn_x + cx, fy * drawn_y + cy], -1), z


@pytest.mark.parametrize("models", [[PINHOLE] * 2, [OPENCV, PINHOLE, FULL_OPENCV], [FULL_OPENCV]])
def test_cameras_see_points_where_opencv_does(method, models) -> None:
    stated = some_cameras(models)
    points = np.random.default_rng(1).uniform(-0.9, 0.9, (50, 3))
    batch = method.camera_of(stated)
    assert (batch.width, batch.height, len(batch)) == (64, 48, len(models))
    for index in range(len(models)):
        expected, depth = seen_at(stated[index], points)
        for camera in (batch[index], method.camera_of(stated[index])):
            x, y, t = camera.project(torch.from_numpy(points).float())
            np.testing.assert_allclose(torch.stack([x, y], -1), expected, atol=2e-3)
            np.testing.assert_allclose(t, depth, rtol=1e-5)
            rays = camera.rays()
            center, depth_there = seen_at(stated[index], (rays.origins + 3 * rays.directions)[10, 50][None].numpy())
            np.testing.assert_allclose(center, [[50.5, 10.5]], atol=2e-3)
            np.testing.assert_allclose(depth_there, [3.0], rtol=1e-5)


def test_a_pinhole_has_no_lens_whatever_is_stated(method) -> None:
    assert method.camera_of(some_cameras([PINHOLE])).lens is None


def test_cameras_of_no_use_are_refused(method) -> None:
    sizes = some_cameras([PINHOLE] * 2)
    sizes.image_sizes = np.array([[64, 48], [48, 64]])
    with pytest.raises(UserError, match="image_sizes: are 48x64, 64x48; allowed: images of one size"):
        method.camera_of(sizes)
    with pytest.raises(UserError, match="camera_models: one is opencv_fisheye; allowed: pinhole, opencv, full_opencv"):
        method.camera_of(some_cameras([PINHOLE, FISHEYE]))
    assert method.CAMERA_MODELS[FISHEYE] not in method.NeLF.get_method_info()["supported_camera_models"]


def some_dataset(**changes: Any) -> dict[str, Any]:
    """A data set of two views, the first one without alpha and padded to a larger size."""
    rng = np.random.default_rng(2)
    images = [rng.integers(256, size=shape, dtype=np.uint8) for shape in ((60, 70, 3), (48, 64, 4))]
    dataset: dict[str, Any] = {
        "cameras": some_cameras([PINHOLE] * 2),
        "images": images,
        "image_paths": ["/a/scene/train/one.png", "/a/scene/train/two.png"],
        "image_paths_root": "/a/scene",
        "masks": None,
        "points3D_xyz": None,
        "metadata": {"scene": None, "background_color": np.array([255, 255, 255], np.uint8)},
    }
    return {**dataset, **changes}


def test_a_data_set_is_a_scene(method) -> None:
    masks = np.zeros((2, 60, 70), bool)
    masks[:, 5:30, 7:40] = True
    dataset = some_dataset(masks=masks)
    scene = method.scene_of(dataset, 1.5)
    first, second = scene.train[0], scene.train[1]
    np.testing.assert_array_equal(first.image[..., :3], dataset["images"][0][:48, :64])
    assert (first.image[..., 3] == 255).all()
    np.testing.assert_array_equal(second.image, dataset["images"][1])
    np.testing.assert_array_equal(second.mask, masks[1, :48, :64])
    assert [first.name, second.name] == ["train/one", "train/two"]
    assert (scene.near, scene.far, scene.aabb.tolist()) == (2.0, 6.0, [-1.5] * 3 + [1.5] * 3)
    assert scene.background == "white"
    assert method.scene_of(some_dataset(metadata={}), 1.5).background == "black"


def test_points_tell_where_a_scene_is(method) -> None:
    points = np.random.default_rng(3).uniform([-0.5, -0.2, -0.3], [0.5, 0.2, 0.3], (2000, 3))
    cameras = some_cameras([PINHOLE] * 2)
    cameras.nears_fars = None
    scene = method.scene_of(some_dataset(cameras=cameras, points3D_xyz=points), 1.5)
    inside = np.abs(points).max(0)
    assert (scene.aabb.numpy()[3:] > 0.97 * inside).all()
    assert (scene.aabb.numpy()[3:] < inside + 0.11).all()
    assert 2.0 < scene.near < 3.5 < 4.5 < scene.far < 7.0
    with pytest.raises(UserError, match=r"nears_fars: are 0 to 0; allowed: .* or a data set with points"):
        method.scene_of(some_dataset(cameras=cameras), 1.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [np.zeros((48, 64, 3), np.float16)] * 2}, "images: one is float16 of shape"),
        ({"images": [np.zeros((48, 64), np.uint8)] * 2}, r"allowed: uint8 \(H, W, 3\)"),
        ({"metadata": {"background_color": np.array([1, 2, 3], np.uint8)}}, r"background_color: is \[1, 2, 3\]"),
    ],
)
def test_what_a_scene_cannot_be_made_of(method, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        method.scene_of(some_dataset(**changes), 1.5)


def test_settings_are_numbers_or_their_texts(method) -> None:
    settings = method.Settings.of({"teacher_iterations": "60", "student_iterations": 53, "bound": "2"})
    assert (settings.iterations, settings.bound) == (113, 2.0)
    with pytest.raises(UserError, match=r"teacher_iteration: no such setting; .* Did you mean 'teacher_iterations'"):
        method.Settings.of({"teacher_iteration": 1})
    for value in ("many", "1.5", 0, None, True):
        with pytest.raises(UserError, match=r"pseudo_views: is .*; allowed: a positive whole number"):
            method.Settings.of({"pseudo_views": value})


def small_teacher() -> Teacher:
    torch.manual_seed(1)
    return Teacher(NGP(**SMALL), samples_per_step=2048)


def weights(system: Teacher) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in system.network.state_dict().items()}


def test_single_steps_are_those_of_a_trainer(method, tiny_scene) -> None:
    """The schedule and the random numbers of a step depend on all before it."""
    plain, stepped = small_teacher(), small_teacher()
    torch.manual_seed(2)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_steps=5, accelerator="cpu", enable_checkpointing=False, limit_val_batches=0, **options)
    trainer.fit(plain, BlenderDataModule(tiny_scene, batch_size=512))
    torch.manual_seed(2)
    steps = method.StepByStep(stepped, BlenderDataModule(tiny_scene, batch_size=512), 5)
    before = weights(stepped)
    for _ in range(5):
        metrics, after = steps.step(), weights(stepped)
        assert any(not torch.equal(after[name], before[name]) for name in after)
        before = after
    assert metrics["psnr"] == float(trainer.callback_metrics["train/psnr"])
    assert all(torch.equal(value, before[name]) for name, value in weights(plain).items())


def test_an_error_in_a_step_is_raised_where_it_was_asked_for(method, tiny_scene) -> None:
    system = small_teacher()
    steps = method.StepByStep(system, BlenderDataModule(tiny_scene, batch_size=512), 5)
    steps.step()
    system.training_step = None  # type: ignore[method-assign,assignment]
    with pytest.raises(TypeError):
        steps.step()


def loaded(folder: Path) -> dict[str, Any]:
    """What NerfBaselines loads of a folder in its form of Blender's, restated from its loader."""
    content = json.loads((folder / "transforms_train.json").read_text())
    focal = 0.5 * content["w"] / np.tan(0.5 * content["camera_angle_x"])
    poses = np.array([frame["transform_matrix"] for frame in content["frames"]], np.float32)[:, :3]
    poses[..., 1:3] *= -1
    paths = [str(folder / frame["file_path"]) + ".png" for frame in content["frames"]]
    count, middle = len(paths), 0.5 * content["w"]
    return some_dataset(
        cameras=Cameras(
            poses,
            np.array([[focal, focal, middle, middle]] * count, np.float32),
            np.zeros(count, np.int32),
            np.zeros((count, 0), np.float32),
            np.array([[content["w"], content["h"]]] * count, np.int32),
            np.array([[2.0, 6.0]] * count, np.float32),
        ),
        images=[np.array(Image.open(path)) for path in paths],
        image_paths=paths,
        image_paths_root=str(folder),
    )


@pytest.fixture
def dataset(script, tiny_scene, tmp_path) -> dict[str, Any]:
    script("baselines").copy_scene(tiny_scene, tmp_path / "copy", 16, "nerf")
    return loaded(tmp_path / "copy")


def test_the_copy_of_a_scene_is_the_scene(method, dataset, tiny_scene, tmp_path) -> None:
    scene, converted = read_scene(tiny_scene), method.scene_of(dataset, 1.5)
    np.testing.assert_array_equal(converted.train.images, scene.train.images)
    torch.testing.assert_close(converted.train.camera.c2w, scene.train.camera.c2w, rtol=0, atol=0)
    torch.testing.assert_close(converted.train.camera.intrinsics, scene.train.camera.intrinsics, rtol=1e-6, atol=0)
    assert (converted.near, converted.far, converted.background) == (2.0, 6.0, "white")
    about = json.loads((tmp_path / "copy" / "nb-info.json").read_text())
    assert (about["id"], about["evaluation_protocol"]) == (None, "nerf")
    assert len(json.loads((tmp_path / "copy" / "transforms_test.json").read_text())["frames"]) == len(scene.test)


def test_scenes_that_nerfbaselines_would_misread_are_refused(script, tmp_path) -> None:
    camera = Camera.from_fov(torch.eye(3, 4)[None].repeat(4, 1, 1), 0.7, 16, 8)
    split = Split(camera, np.zeros((4, 8, 16, 3), np.uint8), [f"{index}" for index in range(4)])
    scene = Scene("flat", None, split, split, split, torch.tensor([-1.0] * 3 + [1.0] * 3), 1.0, 3.0)
    write_scene(tmp_path / "flat", scene)
    with pytest.raises(SystemExit, match="not those of one square, centered pinhole"):
        script("baselines").copy_scene(tmp_path / "flat", tmp_path / "copy", 16, "nerf")


def test_what_is_missing_is_told_before_anything_is_read(script, tmp_path, monkeypatch, capsys) -> None:
    baselines = script("baselines")
    with pytest.raises(SystemExit, match="none"):
        baselines.copy_scene(tmp_path / "none", tmp_path / "copy", 16, "nerf")
    monkeypatch.setattr(baselines, "find_spec", lambda name: name if name == "nerfbaselines" else None)
    monkeypatch.setattr("sys.argv", ["baselines.py", str(tmp_path), "--lpips"])
    with pytest.raises(SystemExit):
        baselines.main()
    assert "torchvision is not installed here: pip install torchvision" in capsys.readouterr().err


@pytest.fixture
def small(method, monkeypatch) -> None:
    """The method with networks that take no time."""

    def system(model: str) -> Any:
        if model == "ngp_small":
            return Teacher(NGP(**SMALL), samples_per_step=2048), {"_target_": "nelf.fields.NGP", **SMALL}
        light = GridR2L(width=8, depth=2, resolution=8)
        return Student(light, batch_size=1, crop=8, warmup_steps=1), {"_target_": "nelf.lightfields.GridR2L"}

    monkeypatch.setattr(method, "_system", system)


WORDS = {"teacher_iterations": "3", "student_iterations": "2", "pseudo_views": "3"}


@pytest.mark.usefixtures("small")
def test_a_checkpoint_draws_the_same_bits_with_the_data_and_without(method, dataset, tmp_path) -> None:
    trained = method.NeLF(train_dataset=dataset, config_overrides=WORDS)
    camera = dataset["cameras"][0]
    kinds = []
    for step in range(6):
        folder = tmp_path / str(step)
        trained.save(str(folder))
        kinds.append(type(trained.network).__name__)
        drawn = trained.render(camera)
        assert {name: (value.shape, value.dtype.name) for name, value in drawn.items()} == {
            "color": ((16, 16, 3), "float32"),
            "depth": ((16, 16), "float32"),
            "accumulation": ((16, 16), "float32"),
        }
        for known in (None, dataset):
            restored = method.NeLF(checkpoint=str(folder), train_dataset=known, config_overrides=known and WORDS)
            info = restored.get_info()
            assert (info["loaded_step"], info["num_iterations"], info["can_resume_training"]) == (step, 5, False)
            again = restored.render(camera)
            assert all(np.array_equal(drawn[name], again[name]) for name in drawn)
            restored.save(str(tmp_path / "again"))
            for path in folder.iterdir():
                assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
            with pytest.raises(UserError, match="training does not go on from a checkpoint"):
                restored.train_iteration(step)
        if step < 5:
            assert math.isfinite(trained.train_iteration(step)["psnr"])
    assert kinds == ["NGP"] * 4 + ["GridR2L"] * 2
    with pytest.raises(UserError, match="training is over after 5 steps"):
        trained.train_iteration(5)


@pytest.mark.usefixtures("small")
def test_the_same_data_give_the_same_method(method, dataset) -> None:
    drawn = []
    for _ in range(2):
        trained = method.NeLF(train_dataset=dataset, config_overrides=WORDS)
        for step in range(5):
            trained.train_iteration(step)
            trained.render(dataset["cameras"][1])  # does not matter
        drawn.append(trained.render(dataset["cameras"][0])["color"])
    np.testing.assert_array_equal(*drawn)


@pytest.mark.usefixtures("small")
def test_training_ends_with_its_method(method, dataset) -> None:
    trained = method.NeLF(train_dataset=dataset, config_overrides=WORDS)
    trained.train_iteration(0)
    thread = trained._training._thread
    assert thread.is_alive()
    del trained
    assert not thread.is_alive()


def test_what_is_no_checkpoint_is_refused(method, tmp_path) -> None:
    with pytest.raises(UserError, match=r"nelf\.json: no such file"):
        method.NeLF(checkpoint=str(tmp_path))
    (tmp_path / "nelf.json").write_text('{"step": "2"}')
    with pytest.raises(UserError, match=r"nelf\.json: has no settings or no step"):
        method.NeLF(checkpoint=str(tmp_path))
    with pytest.raises(UserError, match="train_dataset: is none, and so is the checkpoint"):
        method.NeLF()


def test_verdicts_and_figures_are_those_that_are_printed(script) -> None:
    printed = "info: Eval metrics: \n{'psnr': 16.5,\n 'ssim': 0.5}\ninfo: \u2713\n"
    printed += "All tests passed:\n  \x1b[92m\u2713 Saving works\x1b[0m\n  \x1b[93m\u26a0 No paper\x1b[0m\n"
    printed += "There\n  \x1b[91m\u2717 Model differs: a \u2713\x1b[0m\n"
    assert script("baselines").verdicts(printed) == [
        {"test": "Saving works", "verdict": "passed"},
        {"test": "No paper", "verdict": "skipped"},
        {"test": "Model differs: a \u2713", "verdict": "failed"},
    ]
    assert script("baselines").figures(printed) == {"psnr": 16.5, "ssim": 0.5}
    assert script("baselines").figures("error") == {}
