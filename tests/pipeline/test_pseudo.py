"""Random views of a teacher, as a data set like any other."""

from __future__ import annotations

import json
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nelf.cameras import Camera
from nelf.data import SceneWriter, demo_handheld, read_capture, read_scene, read_views, with_pseudo_views
from nelf.data.blender import read_cameras
from nelf.errors import UserError
from nelf.paths import POSES, random_cameras
from nelf.pipeline.stages import pseudo
from nelf.pipeline.stages.pseudo import write_views
from nelf.rendering import Rendering


class Painter:
    """Draws every view in a color of its own, and counts."""

    def __init__(self) -> None:
        self.drawn = 0

    def render(self, camera: Camera) -> Rendering:
        self.drawn += 1
        rgb = torch.sigmoid(camera.c2w[:, 3]).expand(camera.height, camera.width, 3)
        return Rendering(rgb, None, None)


@pytest.fixture
def scene(tiny_scene):
    return read_scene(tiny_scene)


def test_the_views_are_read_back_with_their_cameras(scene, tmp_path) -> None:
    cameras = random_cameras(scene.train.camera, 5)
    write_views(Painter(), cameras, tmp_path, scene)
    again = read_views(tmp_path)
    assert torch.equal(again.camera.c2w, cameras.c2w)
    assert torch.allclose(again.camera.intrinsics, cameras.intrinsics)
    for index in range(5):
        expected = torch.sigmoid(cameras.c2w[index, :, 3])
        assert (again.rgb(index) - expected).abs().max() <= 0.5 / 255 + 1e-6
    assert json.loads((tmp_path / "transforms_train.json").read_text())["aabb"] == scene.aabb.tolist()


def test_cameras_are_read_without_their_images(scene, tmp_path) -> None:
    few, many, width = 4, 24, 256
    peaks = []
    for place, count in enumerate((few, few, many)):  # the first one warms up
        root = write_views(Painter(), random_cameras(scene.train.camera, count).resized(width), tmp_path / f"{place}")
        tracemalloc.start()
        cameras = read_cameras(root)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert torch.equal(cameras.c2w, read_views(root).camera.c2w)
    assert peaks[2] - peaks[1] < (many - few) * width * width * 3 / 4


def test_every_view_is_of_a_moment_of_its_own(scene, tmp_path) -> None:
    """Pose and controls are random, the teacher is asked for that moment, and the file states it."""
    train = scene.train
    values = torch.stack([torch.linspace(0.25, 1.0, len(train)), torch.linspace(0.0, 0.5, len(train))], -1)
    camera = replace(train.camera, controls=values)
    moving = replace(scene, train=replace(train, camera=camera), controls=("time", "jaw"))
    asked = []

    class Watched(Painter):
        def render(self, camera: Camera) -> Rendering:
            asked.append(camera.controls.tolist())
            return super().render(camera)

    for poses in POSES:
        asked.clear()
        cameras = random_cameras(camera, 6, poses)
        write_views(Watched(), cameras, tmp_path / poses, moving)
        assert asked == cameras.controls.tolist()
        content = json.loads((tmp_path / poses / "transforms_train.json").read_text())
        assert content["controls"] == ["jaw"]
        stated = [[frame["time"], *frame["controls"]] for frame in content["frames"]]
        assert stated == asked
        assert len({time for time, _ in stated}) == 6
        assert torch.equal(read_views(tmp_path / poses).camera.controls, cameras.controls)


def test_whole_views_are_not_rendered_again_and_torn_ones_are(scene, tmp_path) -> None:
    cameras = random_cameras(scene.train.camera, 4)
    write_views(Painter(), cameras, tmp_path, scene)
    torn = tmp_path / "train" / "00002.png"
    torn.write_bytes(torn.read_bytes()[:40])
    painter = Painter()
    write_views(painter, cameras, tmp_path, scene)
    assert painter.drawn == 1


def test_processes_share_the_views(scene, tmp_path, monkeypatch) -> None:
    """Two ranks, one after the other here; what the first does once all are there comes last."""
    cameras, drawn, at_the_end = random_cameras(scene.train.camera, 5), [], []
    monkeypatch.setattr(pseudo, "world", lambda: 2)
    monkeypatch.setattr(pseudo, "wait_for_all", lambda: None)
    monkeypatch.setattr(pseudo, "agree", at_the_end.append)
    for rank in range(2):
        monkeypatch.setattr(pseudo, "rank", lambda rank=rank: rank)
        painter = Painter()
        write_views(painter, cameras, tmp_path, scene)
        drawn.append(painter.drawn)
        assert not (tmp_path / "transforms_train.json").exists()
    assert drawn == [3, 2]
    at_the_end[0]()
    assert len(read_views(tmp_path)) == 5


def test_few_views_are_in_memory(scene, tmp_path, monkeypatch) -> None:
    """One that is written, and those that wait for it."""
    monkeypatch.setattr(pseudo, "_ENCODERS", 1)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    class Watched(Painter):
        def render(self, camera: Camera) -> Rendering:
            assert len(alive) <= 3, "the views before the last ones are still there"
            rendering = super().render(camera)
            alive.add(rendering.rgb)
            return rendering

    write_views(Watched(), random_cameras(scene.train.camera, 12), tmp_path, scene)


def test_a_view_that_cannot_be_written_ends_it(scene, tmp_path, monkeypatch) -> None:
    write, painter = SceneWriter.write, Painter()

    def full(writer: SceneWriter, index: int, image: torch.Tensor) -> Path:
        if index == 2:
            raise UserError("the disk is full.")
        return write(writer, index, image)

    monkeypatch.setattr(SceneWriter, "write", full)
    monkeypatch.setattr(pseudo, "_ENCODERS", 1)
    with pytest.raises(UserError, match="the disk is full"):
        write_views(painter, random_cameras(scene.train.camera, 12), tmp_path, scene)
    assert painter.drawn <= 5
    assert not (tmp_path / "transforms_train.json").exists()
    monkeypatch.setattr(SceneWriter, "write", write)
    write_views(painter, random_cameras(scene.train.camera, 12), tmp_path, scene)
    assert painter.drawn <= 5 + 12 - 2  # what was written is kept


def test_hemisphere_stays_where_the_training_cameras_stand(scene) -> None:
    def shell(camera: Camera) -> tuple[torch.Tensor, torch.Tensor]:
        origins = camera.c2w[:, :, 3]
        return origins.norm(dim=-1), origins[:, 2] / origins.norm(dim=-1)

    radius, height = shell(random_cameras(scene.train.camera, 200))
    of_training = shell(scene.train.camera)
    assert radius.min() >= of_training[0].min() - 1e-3
    assert radius.max() <= of_training[0].max() + 1e-3
    assert height.min() >= of_training[1].min() - 1e-3
    assert height.max() <= of_training[1].max() + 1e-3


def test_the_originals_distributions(scene) -> None:
    focal = scene.train.camera.intrinsics[0, 0]
    mobile = random_cameras(scene.train.camera, 50, "mobile_r2l")
    assert torch.allclose(mobile.c2w[:, :, 3].norm(dim=-1), torch.tensor(4.0), atol=1e-4)
    assert torch.equal(mobile.intrinsics[:, 0], focal.expand(50))
    zoomed = random_cameras(scene.train.camera, 50, "r2l")
    factors = zoomed.intrinsics[:, 0] / focal
    assert factors.min() >= 1
    assert factors.max() <= 2
    assert factors.std() > 0.2


def test_a_longer_set_begins_with_the_shorter_one(scene) -> None:
    for poses in POSES:
        short, long = random_cameras(scene.train.camera, 3, poses), random_cameras(scene.train.camera, 9, poses)
        assert torch.equal(short.c2w, long.c2w[:3])


def test_the_folder_may_not_be_writable(scene) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        write_views(Painter(), random_cameras(scene.train.camera, 2), Path("/proc/nelf"), scene)


def test_cameras_that_are_held_on_their_side_are_not_put_upright(scene, tmp_path) -> None:
    """``hemisphere`` cameras stand upright; where the training cameras do not, nobody would see that they differ."""
    camera = scene.train.camera
    c2w = camera.c2w.clone()
    c2w[:, :, 0], c2w[:, :, 1] = camera.c2w[:, :, 1], -camera.c2w[:, :, 0]
    turned = replace(scene, train=replace(scene.train, camera=replace(camera, c2w=c2w)))
    run = SimpleNamespace(recipe=SimpleNamespace(scene=turned, seed=0))
    with pytest.raises(
        UserError, match=r"stage\.pseudo\.poses: is hemisphere, .* roll by 102 degrees .*allowed: interpolate"
    ):
        pseudo.pseudo(run, views=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("trajectory", "poses"), [("orbit", "hemisphere"), ("between", "interpolate")])
def test_poses_follow_the_scene_s_trajectory(scene, monkeypatch, trajectory, poses) -> None:
    """Nothing is drawn: what would be rendered is seen, and the stage left."""
    asked = []

    def seen(camera: Camera, views: int, poses: str, seed: int) -> None:
        asked.append((len(camera), views, poses))
        raise UserError("enough")

    monkeypatch.setattr(pseudo, "random_cameras", seen)
    run = SimpleNamespace(recipe=SimpleNamespace(scene=replace(scene, trajectory=trajectory), seed=0))
    for chosen, expected in ((None, poses), ("r2l", "r2l")):
        with pytest.raises(UserError, match="enough"):
            pseudo.pseudo(run, views=2, poses=chosen)  # type: ignore[arg-type]
        assert asked.pop() == (len(scene.train), 2, expected)


def test_views_of_a_capture_are_drawn_without_its_lens(tmp_path) -> None:
    root = demo_handheld.write(tmp_path / "capture", moments=4, width=24)
    capture = read_capture(root, image_scale=2)
    cameras = random_cameras(capture.train.camera, 3, "interpolate")
    drawn = write_views(Painter(), cameras, tmp_path / "pseudo", capture)
    both = with_pseudo_views(capture, drawn).train
    assert len(both) == 3 + 4
    assert torch.equal(both.camera.c2w[:3], cameras.c2w)
    assert torch.equal(both.camera.time[:3], cameras.time)
    assert (both.camera.lens[:3] == 0).all()
    assert torch.equal(both.camera.lens[3:], capture.train.camera.lens)
