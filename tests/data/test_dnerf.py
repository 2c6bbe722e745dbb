"""D-NeRF's format: times and names as they are stated, and views that come in the order of time."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nelf.cameras import Camera
from nelf.data import BlenderDataModule, DNeRFDataModule, Split
from nelf.data.batches import Batches, opening
from nelf.data.transforms import read_transforms
from nelf.errors import UserError
from nelf.paths import hemisphere

COUNTS = {"train": 11, "val": 3, "test": 4}


def pose(angle):
    c, s = np.cos(angle), np.sin(angle)
    return [[c, -s, 0, 0.1], [s, c, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]


def write(root, times=None, **changes):
    """D-NeRF's lego: train and val are not padded, test is; ``times`` by split, None for none at all."""
    for split, count in {**COUNTS, **changes}.items():
        (root / split).mkdir(parents=True)
        frames = []
        for index in range(count):
            name = f"./{split}/r_{index:03d}" if split == "test" else f"./{split}/r_{index}"
            Image.new("RGBA", (6, 6), (10 * index, len(split), 0, 255)).save(root / f"{name}.png")
            frames.append({"file_path": name, "rotation": 0.3, "transform_matrix": pose(index)})
            if times is not None:
                frames[-1]["time"] = times[split][index]
        content = {"camera_angle_x": 0.69, "frames": frames}
        (root / f"transforms_{split}.json").write_text(json.dumps(content))
        # D-NeRF's folders hold a second file, with paths on somebody's disk.
        stray = {"frames": [{"file_path": f"/home/x/r_{index}.png", "time": 7} for index in range(count)]}
        (root / split / "transforms.json").write_text(json.dumps(stray))
    return root


LEGO = {
    "train": [k / 99 for k in (0, 2, 4, 6, 8, 10, 12, 14, 16, 96, 99)],
    "val": [0.0, 0.35, 1.0],
    "test": [0.0, 0.1, 0.9, 1.0],
}


def test_names_and_times_are_those_that_the_file_states(tmp_path):
    scene = DNeRFDataModule(write(tmp_path / "lego", LEGO)).scene
    assert scene.train.names == [f"train/r_{index}" for index in range(11)]  # 10 after 9, not after 1
    assert scene.test.names == [f"test/r_{index:03d}" for index in range(4)]
    np.testing.assert_array_equal(scene.train.images[:, 0, 0, 0], 10 * np.arange(11))
    for name, times in LEGO.items():
        assert getattr(scene, name).camera.time.tolist() == np.array(times, np.float32).tolist()
    assert (scene.near, scene.far, scene.controls) == (2.0, 6.0, ("time",))


def test_frames_without_times_are_evenly_spread_in_each_file(tmp_path):
    root = write(tmp_path / "plain")
    with pytest.warns(UserWarning, match="no frame states a time, so times are evenly spaced in file order"):
        scene = DNeRFDataModule(root).scene
    np.testing.assert_allclose(scene.train.camera.time, np.arange(11) / 10)
    np.testing.assert_allclose(scene.val.camera.time, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(scene.test.camera.time, np.arange(4) / 3)
    assert BlenderDataModule(root).scene.train.camera.time is None  # a Blender scene may stand still


def test_the_figures_may_be_those_of_val(tmp_path):
    root = write(tmp_path / "lego", LEGO)
    usual, swapped = DNeRFDataModule(root).scene, DNeRFDataModule(root, evaluate="val").scene
    assert (swapped.test.names, swapped.val.names) == (usual.val.names, usual.test.names)
    assert swapped.test.camera.time.tolist() == usual.val.camera.time.tolist()
    assert swapped.train.names == usual.train.names
    with pytest.raises(UserError, match=r"data\.evaluate: is 'vall'; allowed: test, val\. Did you mean 'val'\?"):
        DNeRFDataModule(root, evaluate="vall")


def test_jumpingjacks(data):
    root = data / "dnerf" / "jumpingjacks"
    if not root.is_dir():
        pytest.skip(f"{root} is not here")
    files = read_transforms(root, moving=True)
    assert {name: len(file.images) for name, file in files.items()} == {"train": 200, "val": 20, "test": 20}
    np.testing.assert_allclose(files["train"].values[:, 0], np.arange(200) / 199, atol=1e-7)
    # Not those of an even spread.
    np.testing.assert_allclose(files["test"].values[:6, 0] * 199, [0, 10, 20, 31, 41, 52], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(files["train"].c2w[:, :, 3], axis=1), 4.0311, atol=1e-3)
    np.testing.assert_allclose(files["train"].intrinsics(800, 800)[:, 0], 1111.111, atol=1e-3)


BAD = {
    "outside": ({**LEGO, "val": [0.0, 1.25, 1.0]}, r"transforms_val\.json: frame 1: time is 1\.25; allowed: 0 to 1"),
    "negative": ({**LEGO, "test": [-0.1, 0, 0, 1]}, r"transforms_test\.json: frame 0: time is -0\.1; allowed: 0 to 1"),
    "a word": ({**LEGO, "val": ["soon", 0, 1]}, r"transforms_val\.json: time is 'soon'; allowed: a finite number"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_times_are_one_line(tmp_path, case):
    times, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        _ = DNeRFDataModule(write(tmp_path / "bad", times)).scene
    assert "\n" not in str(caught.value)


def test_times_are_in_all_frames_or_none(tmp_path):
    root = write(tmp_path / "some", LEGO)
    path = root / "transforms_train.json"
    content = json.loads(path.read_text())
    del content["frames"][4]["time"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"frame 4 has no key 'time', but others have; allowed: all or none"):
        _ = DNeRFDataModule(root).scene


def test_files_of_one_scene_agree_about_the_time(tmp_path):
    root = write(tmp_path / "some", LEGO)
    path = root / "transforms_test.json"
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        del frame["time"]
    path.write_text(json.dumps(content))
    message = r"transforms_test\.json: its frames have no time, those of transforms_train\.json have time; allowed"
    with pytest.raises(UserError, match=message):
        _ = BlenderDataModule(root).scene


# ------------------------------------------------------------------------------------------------ curriculum

STEPS = 40


def shuffled_split(count=10):
    """Views whose times are not in order; red tells the rank of a view by its time."""
    rank = np.random.default_rng(4).permutation(count)
    camera = Camera.from_fov(hemisphere(count, 4.0), 0.7, 4, 4, time=torch.from_numpy(rank / (count - 1)).float())
    images = np.full((count, 4, 4, 4), 255, np.uint8)
    images[..., 0] = rank[:, None, None]
    return Split(camera, images, [str(index) for index in range(count)])


def ranks(batch):
    red = batch.rgba[..., 0].reshape(len(batch.rgba), -1)[:, 0]
    return (red * (1 if red.dtype == torch.uint8 else 255)).round().long().tolist()


@pytest.mark.parametrize(
    ("kind", "sampling"), [("rays", "all_images"), ("rays", "same_image"), ("views", "all_images")]
)
def test_the_moments_come_one_after_the_other(kind, sampling):
    split = shuffled_split()
    stream = Batches(split, kind, 64, sampling, time_curriculum=STEPS)
    for step in (0, 11, 12, 15, 16, 20, 39):
        # D-NeRF: images[:max(int(i / T * n), 3)], of images in the order of time.
        allowed = max(step * 10 // STEPS, 3)
        seen = [ranks(stream.batch(step))] if sampling == "all_images" else []
        seen += [
            ranks(Batches(split, kind, 64, sampling, seed, time_curriculum=STEPS).batch(step)) for seed in range(40)
        ]
        drawn = {rank for batch in seen for rank in batch}
        assert drawn == set(range(allowed)), step
        if sampling == "same_image":
            assert all(len(set(batch)) == 1 for batch in seen)
    late, free = stream.batch(STEPS), Batches(split, kind, 64, sampling).batch(STEPS)
    assert torch.equal(late.rgba, free.rgba)  # from there on the stream is the usual one


def test_the_first_moments_of_few_views():
    split = shuffled_split(10)
    times = split.camera.time
    assert times[opening(split, 0.55)].tolist() == sorted(times.tolist())[:5]
    two = shuffled_split(2)
    assert len(opening(two, 0.0)) == 2
    static = Split(two.camera.at(), two.images, two.names)
    with pytest.raises(UserError, match=r"data\.time_curriculum: is set, but the scene's views have no times"):
        opening(static, 0.5)


@pytest.mark.parametrize("kind", ["rays", "views"])
def test_a_batch_of_the_curriculum_is_a_function_of_seed_and_number(kind):
    split = shuffled_split()

    def drawn(seed, **options):
        stream = iter(Batches(split, kind, 8, seed=seed, time_curriculum=STEPS, **options))
        return [next(stream).rgba.float() for _ in range(4)]

    first = drawn(3, first=10)
    assert all(torch.equal(*pair) for pair in zip(first, drawn(3, first=10), strict=True))
    assert all(torch.equal(*pair) for pair in zip(first[2:], drawn(3, first=12)[:2], strict=True))  # resumed
    assert not torch.equal(torch.stack(first), torch.stack(drawn(4, first=10)))
    ranks_of_two = [drawn(3, first=10, rank=rank, world=2)[0] for rank in (0, 1)]
    assert not torch.equal(*ranks_of_two)


def test_a_datamodule_counts_its_curriculum_in_steps_and_a_student_has_none(tmp_path):
    data = DNeRFDataModule(write(tmp_path / "lego", LEGO), time_curriculum=30, batch_size=4)
    place = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(
        global_step=7, accumulate_grad_batches=3, global_rank=0, world_size=1, strategy=place
    )
    batches = data.train_dataloader().dataset
    assert (batches.first, batches.time_curriculum) == (21, 90)
    again = data.drawing("views", 2)
    assert again.time_curriculum == 30
    assert data.drawing("views", 2, scene=data.scene).time_curriculum is None
    with pytest.raises(UserError, match=r"data\.time_curriculum: is 0; allowed: 1 or more, or null"):
        DNeRFDataModule(tmp_path, time_curriculum=0)
