"""A ball that moves: its controls reach field, pseudo set, student, graph, bundle and runtime, as in closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import nelf
from nelf import paths
from nelf.cameras import Camera
from nelf.data import SceneDataModule, Split, read_scene, read_views, with_pseudo_views, write_scene
from nelf.export.bundle import artifact, write_bundle
from nelf.export.graph import onnx
from nelf.fields import RadianceField, StratifiedSampler
from nelf.lightfields import LightField
from nelf.rays import Rays
from nelf.scene import Scene
from nelf.systems import Student, Teacher

RADIUS, SIZE = 0.6, 24


def place(controls: Tensor) -> Tensor:
    """Where the ball is: along x with the time, up with the second control."""
    return torch.stack([controls[..., 0] - 0.5, torch.zeros_like(controls[..., 0]), 0.8 * controls[..., 1] - 0.4], -1)


def picture(rays: Rays) -> Tensor:
    """The ball along rays, (..., 4): white where it is hit, red and green its controls; and opacity."""
    assert rays.controls is not None
    offset = rays.origins - place(rays.controls)
    along = (offset * rays.viewdirs).sum(-1, keepdim=True)
    hit = ((offset - along * rays.viewdirs).norm(dim=-1) < RADIUS).float()
    rgb = torch.cat([rays.controls, torch.ones_like(rays.controls[..., :1])], -1)
    return torch.cat([rgb * hit[..., None], hit[..., None]], -1)


class MovingBall(RadianceField):
    """The ball as a field in closed form, but for a gain that can be learned."""

    controls = 2

    def __init__(self) -> None:
        super().__init__(StratifiedSampler(128))
        self.gain = nn.Parameter(torch.ones(()))

    def density(self, positions: Tensor, controls: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert controls is not None
        inside = (self.to_scene(positions) - place(controls)).norm(dim=-1) < RADIUS
        return inside * 1e3, torch.cat([controls, torch.ones_like(controls[:, :1])], -1)

    def color(self, features: Tensor, viewdirs: Tensor, view: Tensor | None = None) -> Tensor:
        return (features * self.gain).clamp(0.0, 1.0)


class MovingDisk(LightField):
    """The ball as a light field in closed form, but for a gain that can be learned."""

    batch, controls = "rays", 2

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("background", torch.ones(3))

    def forward(self, rays: Rays) -> Tensor:
        return picture(rays) * torch.cat([self.gain.expand(3), torch.ones(1)])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Views of the moving ball, as its files hold them."""
    splits = {}
    for name, count in (("train", 12), ("val", 2), ("test", 3)):
        camera = Camera.from_fov(paths.hemisphere(count, 4.0, (-30.0, 60.0)), 0.9, SIZE, SIZE)
        controls = torch.stack([torch.linspace(0, 1, count), torch.linspace(1, 0.2, count)], -1)
        camera = replace(camera, controls=controls)
        drawn = picture(camera.rays())
        rgba = torch.cat([drawn[..., :3] / drawn[..., 3:].clamp(min=1e-6), drawn[..., 3:]], -1)
        images = (rgba * 255).round().byte().numpy()
        splits[name] = Split(camera, images, [f"{name}_{index}" for index in range(count)])
    box = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
    made = Scene("moving", None, **splits, aabb=box, near=2.0, far=6.0, controls=("time", "height"))
    return read_scene(write_scene(tmp_path_factory.mktemp("moving"), made))


def trainer(root: Path) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(default_root_dir=root, accelerator="cpu", max_steps=3, limit_val_batches=0, **quiet)  # type: ignore[arg-type]


def wrong(found: Tensor, expected: Tensor) -> float:
    """Share of pixels of another color; rounding moves an outline by a pixel here and there."""
    return float(((found - expected).abs().amax(-1) > 0.02).float().mean())


def test_time_goes_all_the_way(scene: Scene, tmp_path: Path) -> None:
    assert scene.geometry.controls == ("time", "height")
    view = scene.test[1]
    truth = view.rgb("white")

    teacher = Teacher(MovingBall(), lr=1e-4)
    trainer(tmp_path).fit(teacher, SceneDataModule(scene, **teacher.batches))
    assert wrong(teacher.render(view.camera).rgb, truth) < 0.03
    elsewhere = teacher.render(view.camera.at(0.0, 0.0)).rgb
    assert wrong(elsewhere, truth) > 0.05  # another moment, another picture

    cameras = paths.random_like(scene.train.camera, 6)
    assert cameras.controls is not None
    assert cameras.controls.shape == (6, 2)
    pseudo = read_views(nelf.write_views(teacher, cameras, tmp_path / "pseudo", scene))
    torch.testing.assert_close(pseudo.camera.controls, cameras.controls)
    for index in range(6):
        drawn = picture(cameras[index].rays())
        assert wrong(pseudo.rgb(index), drawn[..., :3] + 1 - drawn[..., 3:]) < 0.03

    learned = with_pseudo_views(scene, tmp_path / "pseudo")
    student = Student(MovingDisk(), lr=1e-4, warmup_steps=0, batch_size=512)
    data = SceneDataModule(learned, **student.batches)
    assert data.batch == "rays"
    trainer(tmp_path).fit(student, data)
    assert wrong(student.render(view.camera).rgb, truth) == 0.0
    assert wrong(student.render(view.camera.at(0.0, 0.0)).rgb, truth) > 0.05


@pytest.mark.parametrize("kind", ["rays", "pose"])
def test_a_graph_takes_the_time_and_a_bundle_says_so(kind: str, scene: Scene, tmp_path: Path) -> None:
    network = MovingDisk()
    network.prepare(scene.geometry)
    error = onnx(network, tmp_path / "model.onnx", scene.test.camera, kind)
    assert error < 1e-5
    entry = artifact("disk", tmp_path / "model.onnx", kind, "fp32", output="rgba", size=(SIZE, SIZE))
    write_bundle(tmp_path, scene, network, [entry])
    model = nelf.export.load(tmp_path)
    assert model.bundle["time"] == {"min": 0.0, "max": 1.0, "value": 0.0}
    assert [control["name"] for control in model.bundle["controls"]] == ["height"]
    assert model.bundle["controls"][0]["min"] == pytest.approx(0.2)
    for camera in (scene.test.camera[2], scene.test.camera[0].at(0.9, 0.1)):
        np.testing.assert_allclose(model.render(camera).rgb, network.render(camera).rgb, atol=1e-5)


def test_a_static_network_says_that_it_ignores_the_time(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Still(MovingDisk):
        controls = 0

        def forward(self, rays: Rays) -> Tensor:
            return self.gain * torch.ones(*rays.shape, 4)

    student = Student(Still(), batch_size=16)
    trainer(tmp_path).fit(student, SceneDataModule(scene, **student.batches))
    assert "its cameras have time, height, which Still does not take and ignores" in caplog.text
    assert "model=dnerf_ngp as a teacher, model=grid_dylin as a student" in caplog.text


def at(scene: Scene, controls: Tensor | None) -> Scene:
    """The scene with other controls of its training views."""
    train = replace(scene.train, camera=replace(scene.train.camera, controls=controls))
    names = () if controls is None else ("time", "height", "jaw")[: controls.shape[-1]]
    return replace(scene, train=train, controls=names)


def test_a_network_says_what_it_will_not_learn(scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where all views are of one moment, and where they have more controls than it takes."""

    def warned(of: Scene, network: LightField) -> list[str]:
        caplog.clear()
        student = Student(network, batch_size=16)
        trainer(tmp_path).fit(student, SceneDataModule(of, **student.batches))
        return [record.getMessage() for record in caplog.records if record.name == "nelf.systems.system"]

    values = scene.train.camera.controls
    assert values is not None
    assert warned(scene, MovingDisk()) == []
    stopped = values * torch.tensor([0.0, 1.0]) + torch.tensor([0.25, 0.0])
    (message,) = warned(at(scene, stopped), MovingDisk())
    assert message == f"{scene.name}: all training views have time 0.25; MovingDisk learns no other."

    class FirstTwo(MovingDisk):
        def forward(self, rays: Rays) -> Tensor:
            assert rays.controls is not None
            return super().forward(replace(rays, controls=rays.controls[..., :2]))

    (message,) = warned(at(scene, torch.cat([values, values[:, :1]], -1)), FirstTwo())
    assert message.endswith("have jaw, which FirstTwo does not take and ignores.")  # it moves, so no other is advised


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (0, ": its training views have no time, but MovingDisk takes 2 controls, the time first; allowed: "),
        (1, ": its training views have only time, but MovingDisk takes 2 controls, the time first; allowed: "),
    ],
)
def test_views_without_the_controls_that_a_network_takes(scene: Scene, tmp_path: Path, kept: int, message: str) -> None:
    values = scene.train.camera.controls
    assert values is not None
    student = Student(MovingDisk(), batch_size=16)
    data = SceneDataModule(at(scene, values[:, :kept] if kept else None), **student.batches)
    with pytest.raises(nelf.UserError) as caught:
        trainer(tmp_path).fit(student, data)
    assert str(caught.value).startswith(scene.name + message)
