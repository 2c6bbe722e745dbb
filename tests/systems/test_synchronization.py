"""A training step does not wait for its device: what would read a value back, or send one there, is counted."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nelf.data import RayBatch, Scene, read_scene
from nelf.data.batches import Batches
from nelf.fields import NGP
from nelf.lightfields import R2L, GridR2L, MobileR2L
from nelf.systems import Student, Teacher
from nelf.systems.system import System

#: Operations whose result, or its shape, is known only when the device has come so far.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}
#: Of a teacher's step: which samples light reaches. (What a backend of ``march`` needs by itself comes on top.)
TEACHER_READS = {"nonzero": 1}
#: Of a step of GridR2L: the part of the window in which the volume has something, x0 to y1.
GRID_READS = {"nonzero": 2, "_local_scalar_dense": 1}


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


@pytest.mark.parametrize("kind", ["teacher", "grid"])
def test_what_has_to_be_known_is_counted(scene: Scene, kind: str) -> None:
    system: System
    if kind == "teacher":
        options = {"levels": 2, "log2_table": 10, "finest_resolution": 32, "hidden": 16, "grid_resolution": 16}
        system = Teacher(NGP(**options, max_samples=32), batch_size=128)  # type: ignore[arg-type]
        system.prepare(scene)
    else:
        system = Student(GridR2L(width=8, depth=4, resolution=8, features=4, sr_factor=4), warmup_steps=10_000)
        system.prepare(scene)
    values = logged(system)
    batch: Any = Batches(scene.train, system.batch, system.batch_size).batch(0)
    batch = system._windows(batch) if isinstance(system, Student) else batch
    with Watch() as watch:
        system.training_step(batch, 0).backward()
    assert +watch.found == Counter(TEACHER_READS if kind == "teacher" else GRID_READS)
    assert all(isinstance(value, Tensor) for value in values.values())
