"""The moving scenes: limbs keep their lengths, motion loops, controls do not meddle, files say what was drawn."""

import json

import numpy as np
import pytest
import torch

from nelf.cameras import Camera
from nelf.data import DemoDynamicDataModule, demo_dynamic, read_scene
from nelf.data.demo import _FAR, _NEAR
from nelf.data.shapes import bounds
from nelf.data.solids import CYLINDER
from nelf.data.toys import mill, robot
from nelf.errors import UserError
from nelf.paths import orbit
from tests.data.test_demo import outline

SCENES = sorted(demo_dynamic.SCENES)


def table(solids):
    """Kind, center, axes and size of each solid."""
    return np.array([[each.kind, *each.center, *each.axes.ravel(), *each.size] for each in solids])


def moment(scene, first):
    return [first] * len(demo_dynamic.SCENES[scene].controls)


@pytest.mark.parametrize("scene", SCENES)
def test_solids_move_smoothly_and_keep_their_sizes(scene):
    solids = demo_dynamic.SCENES[scene].solids
    every = np.stack([table(solids(*moment(scene, time))) for time in np.linspace(0, 1, 33)])
    assert (np.ptp(every[..., 0], axis=0) == 0).all()
    sizes = np.ptp(every[..., 13:], axis=0).max(-1)
    # Only the two chains of the bridge are as long as they have to be; bones and all else are rigid.
    assert (sizes > 1e-9).sum() == (2 if scene == "controls" else 0)
    steps = np.linalg.norm(np.diff(every[..., 1:4], axis=0), axis=-1)
    assert steps.max() < 0.15  # nothing jumps
    assert (steps.max(0) > 1e-3).mean() > 0.3  # and much moves


def test_the_robot_s_limbs_hang_together():
    for time in np.linspace(0, 1, 17):
        solids = robot(time)
        # A leg: joint, bone, joint, bone, shoe; the ends of a bone are its joint and the next one.
        for first in (2, 7):
            hip, thigh, knee, shin = solids[first : first + 4]
            for bone, start, end in ((thigh, hip.center, knee.center), (shin, knee.center, None)):
                assert bone.kind == CYLINDER
                ends = bone.center + np.outer([-1, 1], bone.size[1] * bone.axes[2])
                gaps = np.linalg.norm(ends[:, None] - np.stack([start] if end is None else [start, end]), axis=-1)
                assert gaps.min(0).max() < 1e-9
            assert thigh.size[1] == pytest.approx(0.165)
            assert shin.size[1] == pytest.approx(0.165)


def test_the_robot_s_feet_stand_on_the_stage():
    for time in np.linspace(0, 1, 17):
        solids = robot(time)
        floor = bounds(solids[0])[1, 2]
        lowest = sorted(bounds(solids[shoe])[0, 2] - floor for shoe in (6, 11))
        assert lowest[0] == pytest.approx(0.0, abs=1e-9)  # one foot is down, at any time
        assert lowest[1] > -1e-9


@pytest.mark.parametrize("scene", SCENES)
def test_the_end_is_the_beginning(scene):
    render = demo_dynamic.render
    camera = Camera.from_fov(orbit(3, 4.0, 30.0)[1], 0.7, 24, 24)
    rest = moment(scene, 0.5)[1:]
    first, last, middle = (render(camera.at(time, *rest), scene) for time in (0.0, 1.0, 0.37))
    # Rounding may turn a sample at an edge; and sails change their places.
    assert (first - last).abs().mean() < 1e-3
    assert (first - middle).abs().mean() > 5e-3


def test_each_control_moves_what_is_its_own():
    still, turned, raised = table(mill(0.2, 0.3)), table(mill(0.6, 0.3)), table(mill(0.2, 0.9))
    by_time, by_bridge = (abs(each - still).max(1) > 1e-9 for each in (turned, raised))
    assert by_time.any()
    assert by_bridge.any()
    assert not (by_time & by_bridge).any()


@pytest.mark.parametrize("scene", SCENES)
def test_everything_ever_lies_in_the_box_and_the_depth_range(scene):
    low, high = demo_dynamic.aabb(scene).double().numpy().reshape(2, 3)
    solids = demo_dynamic.SCENES[scene].solids
    values = np.random.default_rng(0).random((60, len(demo_dynamic.SCENES[scene].controls)))
    boxes = np.stack([bounds(each) for row in values for each in solids(*row)])
    assert (boxes[:, 0] > low).all()
    assert (boxes[:, 1] < high).all()
    points = np.concatenate([outline(each) for row in values[:5] for each in solids(*row)])[::29]
    for camera in demo_dynamic.cameras(8, scene).values():
        c2w = camera.c2w.double().numpy()
        depth = np.einsum("nk,nk->n", c2w[:, :, 2], c2w[:, :, 3]) - points @ c2w[:, :, 2].T
        assert depth.min() > _NEAR
        assert depth.max() < _FAR


def test_one_view_a_moment_from_all_around():
    cameras = demo_dynamic.cameras(8)
    assert {name: len(each) for name, each in cameras.items()} == {"train": 90, "val": 10, "test": 20}
    train, test = cameras["train"], cameras["test"]
    np.testing.assert_allclose(train.time, np.arange(90) / 89, atol=1e-7)
    place = train.c2w[:, :, 3]
    # The next moment is seen from elsewhere, and neither height nor side follows the time.
    assert (place[1:] - place[:-1]).norm(dim=-1).median() > 3.0
    for axis in range(3):
        assert abs(np.corrcoef(train.time, place[:, axis])[0, 1]) < 0.25
    for name in ("val", "test"):
        other = cameras[name]
        assert (other.time.min(), other.time.max()) == (0.0, 1.0)
        assert torch.isin(other.time, train.time).all()
        assert torch.cdist(other.c2w[:, :, 3], place).min() > 0.01
    assert (test.time.diff() > 0.03).all()


def test_with_two_controls_every_view_has_values_of_its_own():
    cameras = demo_dynamic.cameras(8, "controls")
    every = torch.cat([each.controls for each in cameras.values()])
    assert every.shape == (120, 2)
    assert len(every.unique(dim=0)) == 120
    assert every.min() >= 0.0
    assert every.max() <= 1.0
    train = cameras["train"].controls
    assert (train[:, 0].diff() >= 0).all()
    assert abs(np.corrcoef(train.T)[0, 1]) < 0.25
    assert train.amin(0).max() < 0.06
    assert train.amax(0).min() > 0.94


def test_a_camera_without_the_scene_s_controls_is_refused():
    camera = demo_dynamic.cameras(8)["val"][0]
    with pytest.raises(ValueError, match="with 2 controls, but got one with 1"):
        demo_dynamic.render(camera, "controls")
    with pytest.raises(ValueError, match="with 1 controls, but got one with 0"):
        demo_dynamic.render(camera.at())


@pytest.mark.parametrize("scene", SCENES)
def test_what_is_written_is_what_is_drawn(tmp_path, monkeypatch, scene):
    monkeypatch.setenv("NELF_CACHE", str(tmp_path))
    read = DemoDynamicDataModule(scene=scene, width=12).scene
    root = tmp_path / "demo" / f"{scene}_12"
    assert read_scene(root).digest == read.digest
    cameras = demo_dynamic.cameras(12, scene)
    assert read.controls == demo_dynamic.SCENES[scene].controls
    for name, camera in cameras.items():
        assert torch.equal(getattr(read, name).camera.controls, camera.controls)
    exact = demo_dynamic.render(cameras["val"][4], scene).numpy()
    np.testing.assert_array_equal(read.val.images[4], (exact * 255 + 0.5).astype(np.uint8))
    torch.testing.assert_close(read.aabb, demo_dynamic.aabb(scene))
    frame = json.loads((root / "transforms_train.json").read_text())["frames"][7]
    assert [frame["time"], *frame.get("controls", [])] == cameras["train"].controls[7].tolist()
    stamp = (root / "transforms_train.json").stat().st_mtime_ns
    assert DemoDynamicDataModule(scene=scene, width=12, evaluate="val").scene.test.names == read.val.names
    assert (root / "transforms_train.json").stat().st_mtime_ns == stamp


def test_bad_arguments(tmp_path):
    with pytest.raises(UserError, match=r"data\.scene: is 'robots'; allowed: robot, controls\. Did you mean 'robot'\?"):
        DemoDynamicDataModule(scene="robots")
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other files"):
        _ = DemoDynamicDataModule(tmp_path, width=8).scene
