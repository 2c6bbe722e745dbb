"""A training step does not wait for its device: what would read a value back, or send one there, is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nelf.data import RayBatch, Scene, read_scene
from nelf.data.batches import Batches
from nelf.fields import NGP, DNeRF, DynamicNGP, HyperNGP, NeRF
from nelf.lightfields import R2L, GridR2L, MobileR2L
from nelf.rays import Rays
from nelf.systems import Student, Teacher
from nelf.systems.system import System

#: Operations whose result, or its shape, is known only when the device has come so far.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}
#: Of a teacher's step where reading is free: which samples light reaches. (A backend's ``march`` may need more.)
TEACHER_READS = {"nonzero": 1}
#: Of a step of GridR2L there: the part of the window in which the volume has something, x0 to y1.
GRID_READS = {"nonzero": 2}


class Watch(TorchDispatchMode):
    """Counts reads, boolean indices, and copies from main memory to the device of ``Meta``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, out = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        if name in READS:
            self.found[name] += 1
        if name in ("index", "index_put", "index_put_"):
            self.found["index by bool"] += any(each is not None and each.dtype is torch.bool for each in args[1])
        sources = [each for each in args if isinstance(each, Tensor) and each.device.type == "cpu"]
        if name in ("_to_copy", "copy_") and sources and isinstance(out, Tensor) and out.device.type == "meta":
            self.found["copy to the device"] += 1
        return out


@pytest.fixture
def scene(tiny_scene: Path) -> Scene:
    return read_scene(tiny_scene)


def logged(system: System) -> dict[str, Any]:
    """What a system logs from now on."""
    values: dict[str, Any] = {}
    system.log = lambda name, value, **_: values.update({name: value})  # type: ignore[assignment, method-assign]
    return values


@pytest.mark.parametrize("step", [0, 450])
@pytest.mark.parametrize("kind", ["views", "whole views", "rays"])
def test_a_student_never_waits(scene: Scene, kind: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without memory, every value that is asked for is an error."""
    network = R2L(width=8, depth=4) if kind == "rays" else MobileR2L(width=8, depth=4, sr_factor=4, sr_kernels=(8, 8))
    student = Student(network, warmup_steps=0, whole_views=kind == "whole views")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    monkeypatch.setattr(Student, "global_step", step)  # early, and where the progress is checked
    student.prepare(scene)
    student.to("meta")
    values = logged(student)
    batch: Any = Batches(scene.train, student.batch, 2).batch(0)
    if kind == "rays":
        batch = RayBatch(batch.rays.to("meta"), batch.rgba.to("meta"))
    else:
        batch = student.batches["part"](batch).to("meta")
    with Watch() as watch:
        student.training_step(batch, 0).backward()
    assert not +watch.found
    assert {value.device.type for value in values.values()} == {"meta"}


def test_windows_are_chosen_where_cameras_are(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The box that they are chosen by is read from the device once, and again when it has changed."""
    network = GridR2L(width=8, depth=4, resolution=8, features=4, sr_factor=4)
    network.prepare(scene.geometry)
    reads = []
    own = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: reads.append(self.shape) or own(self))
    camera = scene.train.camera[0]
    first = [network.extent(camera) for _ in range(3)]
    assert len(reads) == 1
    network.aabb.mul_(0.5)
    x0, _, x1, _ = network.extent(camera)
    assert len(reads) == 2
    assert first[0] == first[2]
    assert x1 - x0 < first[0][2] - first[0][0]


OPTIONS: dict[str, Any] = {"levels": 2, "log2_table": 10, "finest_resolution": 32, "hidden": 16, "grid_resolution": 16}


def a_step(scene: Scene, system: System) -> Counter[str]:
    """What a training step reads, between two updates of the occupancy grid after its warm-up."""
    system.prepare(scene)
    values = logged(system)
    batch: Any = Batches(scene.train, system.batch, system.batch_size).batch(0)
    batch = system._windows(batch) if isinstance(system, Student) else batch
    with Watch() as watch:
        if isinstance(system, Teacher):
            system.network.before_step(1600)
        system.training_step(batch, 0).backward()
    assert all(isinstance(value, Tensor) for value in values.values())
    return +watch.found


def teacher(**options: Any) -> Teacher:
    return Teacher(NGP(**OPTIONS, max_samples=32), batch_size=128, samples_per_step=512, **options)


def grid() -> Student:
    return Student(GridR2L(width=8, depth=4, resolution=8, features=4, sr_factor=4), warmup_steps=10_000)


def test_what_has_to_be_known_is_counted(scene: Scene) -> None:
    assert a_step(scene, teacher()) == Counter(TEACHER_READS)
    assert a_step(scene, grid()) == Counter(GRID_READS)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("system", [teacher, grid])
def test_on_a_gpu_nothing_has_to_be_known(scene: Scene, system: Callable[[], System]) -> None:
    assert not a_step(scene, system())


MLP: dict[str, Any] = {"width": 16, "depth": 6, "samples": 8, "fine_samples": 8}
FIELDS = {
    "nerf": lambda: NeRF(**MLP),
    "dnerf": lambda: DNeRF(**MLP),
    "dynamic grid": lambda: DynamicNGP(**OPTIONS, max_samples=32),
    "dynamic network": lambda: DynamicNGP(**OPTIONS, max_samples=32, motion="network"),
    "hyper": lambda: HyperNGP(**OPTIONS, max_samples=32, appearance=2),
    "hyper grid": lambda: HyperNGP(**OPTIONS, max_samples=32, warp="grid"),
}


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("name", FIELDS)
def test_on_a_gpu_no_field_waits(name: str) -> None:
    field, origins = FIELDS[name](), torch.randn(64, 3)
    system = Teacher(field, samples_per_step=512)
    logged(system)
    rays = Rays(origins, -origins, controls=torch.rand(64, 1), view=torch.zeros(64, dtype=torch.long))
    with Watch() as watch:
        field.before_step(1600)
        system.training_step(RayBatch(rays, torch.rand(64, 4)), 0).backward()
    assert not +watch.found
