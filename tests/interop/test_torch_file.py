"""Foreign files are read without running anything in them, and never take more memory than they fill."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nelf.errors import UserError
from nelf.interop import inert
from nelf.interop.inert import Stub
from nelf.interop.torch_file import read

TENSORS = {
    "float": torch.arange(12.0).view(3, 4),
    "transposed": torch.arange(12.0).view(3, 4).t(),
    "part": torch.arange(10.0)[4:7],
    "half": torch.tensor([1.5, -2.0]).half(),
    "bfloat": torch.tensor([3.0]).bfloat16(),
    "long": torch.tensor(7),
    "byte": torch.tensor([255], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
}


def written(path: Path, content: Any, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def packed(path: Path, pickled: bytes, **records: bytes) -> Path:
    """A zip file of PyTorch's layout around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, content in records.items():
            archive.writestr(f"archive/data/{key.removeprefix('_')}", content)
    return path


def tensor_pickle(numel: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """The pickle of {"x": tensor} over storage 0, in which every number is free."""

    class Pickler(pickle._Pickler):  # the one in Python, which lets anything be a persistent id
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if value == "STORAGE" else None

    class Tensor:
        def __reduce__(self) -> Any:
            arguments = ("STORAGE", offset, shape, stride, False, collections.OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    out = io.BytesIO()
    Pickler(out, 2).dump({"x": Tensor()})
    return out.getvalue()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_tensors_of_both_formats_are_what_torch_reads(tmp_path, zipped) -> None:
    shared = torch.arange(6.0)
    content = {**TENSORS, "a": shared[:3], "b": shared[3:], "parameter": torch.nn.Parameter(torch.ones(2))}
    path = written(tmp_path / "x.tar", {"state": content, "step": 3, "loss": 0.5, "none": None}, zipped)
    checkpoint = read(path)
    assert {key: checkpoint.content[key] for key in ("step", "loss", "none")} == {"step": 3, "loss": 0.5, "none": None}
    found = checkpoint.tensors(checkpoint.content["state"])
    expected = torch.load(path, weights_only=True)["state"]
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert torch.equal(found[name], values), name
        assert found[name].is_contiguous()


def test_a_pickled_network_becomes_inert(tmp_path, monkeypatch) -> None:
    """The classes of R2L's code exist while the file is written, and no longer when it is read."""
    for name in ("model", "model.nerf_raybased", "smilelogging", "smilelogging.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def foreign(name: str, module: str, *bases: type) -> type:
        kind = type(name, bases, {"__module__": module})
        setattr(sys.modules[module], name, kind)
        return kind

    network = foreign("NeRF_v3_2", "model.nerf_raybased", torch.nn.Module)()
    network.head = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Sigmoid())
    trial = foreign("EmptyClass", "smilelogging.utils")()
    trial.res_scale = 0.5
    network.args = argparse.Namespace(use_residual=True, trial=trial)
    network.lasting = {"a"}
    optimizer = torch.optim.Adam(network.parameters())
    network.head(torch.ones(2)).sum().backward()  # type: ignore[operator]
    optimizer.step()
    content = {
        "network_fn": network,
        "network_fn_state_dict": network.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }
    path = written(tmp_path / "r2l.tar", content)
    monkeypatch.undo()

    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    checkpoint = read(path)
    stub = checkpoint.content["network_fn"]
    assert isinstance(stub, Stub)
    assert stub.name == "model.nerf_raybased.NeRF_v3_2"
    assert stub.state["args"].state["use_residual"] is True
    assert stub.state["args"].state["trial"].state == {"res_scale": 0.5}
    assert stub.state["lasting"] == ["a"]
    assert stub.state["_modules"]["head"].state["_modules"]["1"].name == "torch.nn.modules.activation.ReLU"
    found = checkpoint.tensors(checkpoint.content["network_fn_state_dict"])
    assert torch.equal(found["head.0.weight"], network.head[0].weight)  # type: ignore[union-attr,index]


class _Touch:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path, way: str) -> None:
        self.path, self.way = str(path), way

    def __reduce__(self) -> Any:
        if self.way == "mkdir":
            return os.mkdir, (self.path,)
        if self.way == "eval":
            return eval, (f"open({self.path!r}, 'w').close()",)
        if self.way == "system":
            return os.system, (f"touch {self.path}",)
        return getattr, (Path(self.path), "touch")


class _Loads:
    """A pickle in a pickle."""

    def __init__(self, inner: Any) -> None:
        self.inner = pickle.dumps(inner, 2)

    def __reduce__(self) -> Any:
        return pickle.loads, (self.inner,)


class _SetState:
    """An object of a known class that is given a state by a function."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return argparse.Namespace, (), {"a": 1}, None, None, _setter


def _setter(target: Any, state: Any) -> None:
    raise AssertionError


def bombs(target: Path) -> dict[str, Any]:
    touch = _Touch(target, "eval")
    return {
        "mkdir": _Touch(target, "mkdir"),
        "eval": touch,
        "system": _Touch(target, "system"),
        "getattr": _Touch(target, "getattr"),
        "in a state dict": {"network_fn_state_dict": collections.OrderedDict(a=touch)},
        "in an OrderedDict's pairs": collections.OrderedDict([("a", [(1, touch)])]),
        "in a namespace": argparse.Namespace(use_residual=touch),
        "in another pickle": _Loads(touch),
        "as a setter of state": _SetState(target),
        "as a default factory": collections.defaultdict(print),
        "as an attribute of a known class": argparse.Namespace._get_kwargs,
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", bombs(Path()))
def test_a_bomb_is_refused_and_does_not_go_off(tmp_path, name, protocol) -> None:
    target = tmp_path / "touched"
    bomb = bombs(target)[name]
    pickled = pickle.dumps(bomb, protocol)
    if name in ("mkdir", "eval", "system"):  # it is one
        pickle.loads(pickled)
        assert target.exists()
        target.rmdir() if target.is_dir() else target.unlink()
    with pytest.raises(UserError) as refused:
        read(packed(tmp_path / "bomb.tar", pickled))
    assert not target.exists()
    line = str(refused.value)
    assert line.startswith(f"{tmp_path / 'bomb.tar'}: ")
    assert "\n" not in line
    if protocol == 2 and name not in ("as a setter of state", "as an attribute of a known class"):
        assert "which is code that nelf does not run" in line


def test_the_refused_name_is_given(tmp_path) -> None:
    for zipped in (True, False):
        path = written(tmp_path / "x.ckpt", {"a": torch.nn.Conv1d(1, 1, 1)}, zipped)
        with pytest.raises(UserError, match=r"names 'torch\.nn\.modules\.conv\.Conv1d', which is code"):
            read(path)


#: Pickles by hand: what comes before ``.`` (STOP).
RAW = {
    "a dotted name": b"\x80\x04\x8c\x08builtins\x8c\x0dset.__class__\x93)R",
    "a known name, dotted": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93)R",
    "attributes of a list": b"\x80\x02]}X\x01\x00\x00\x00aK\x01sb",
    "a call of a string": b"\x80\x02X\x01\x00\x00\x00a)R",
    "a key that has to be hashed": b"\x80\x02})\x85K\x01s",
    "an extension": b"\x80\x02\x82\x01",
    "an instance by name": b"(ios\nsystem\n",
    "a persistent id as text": b"Pabc\n",
    "an empty stack": b"\x80\x020",
    "a memo that is empty": b"\x80\x02h\x05",
    "pairs that are none": b"\x80\x02ccollections\nOrderedDict\n(K\x01K\x02tR",
    "too few arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R",
    "a storage that is none": b"\x80\x02X\x07\x00\x00\x00storageQ",
    "a huge number": b"\x80\x02\x8b\xff\xff\xff\x7f",
    "a huge text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a",
    "a byte array": b"\x80\x05\x96" + struct.pack("<Q", 2**40),
    "an odd count of items": b"\x80\x02}(K\x01u",
    "nothing": b"",
}


@pytest.mark.parametrize("name", RAW)
def test_a_pickle_by_hand_is_refused_in_one_line(tmp_path, name) -> None:
    with pytest.raises(UserError) as refused:
        read(packed(tmp_path / "raw.tar", RAW[name] + b"."))
    assert "\n" not in str(refused.value)


def test_a_huge_place_in_the_memo_takes_no_memory(tmp_path) -> None:
    assert read(packed(tmp_path / "memo.tar", b"\x80\x02}r\xff\xff\xff\x7f.")).content == {}


def test_a_pickle_without_end_is_refused(tmp_path, monkeypatch) -> None:
    path = packed(tmp_path / "long.tar", b"\x80\x02" + b"]0" * 1000 + b"N.")
    assert read(path).content is None
    monkeypatch.setattr(inert, "_INSTRUCTIONS", 1000)
    with pytest.raises(UserError, match="more instructions than a checkpoint's"):
        read(path)


#: By what copies it: a pickle that makes a value of a thousand items and copies it two thousand times.
MANY = b"(" + b"K\x01" * 1000
COPIERS = {
    "a dictionary": b"}(" + b"".join(b"M" + struct.pack("<H", key) + b"N" for key in range(1000)) + b"uq\x000"
    b"]q\x01(" + b"ccollections\nOrderedDict\nh\x00\x85R" * 2000 + b"e",
    "a set": MANY + b"lq\x000](" + b"cbuiltins\nset\nh\x00\x85R" * 2000 + b"e",
    "a shape": MANY + b"tq\x000](" + b"ctorch\nSize\nh\x00\x85R" * 2000 + b"e",
    "attributes": b"}(" + b"".join(b"M" + struct.pack("<H", key) + b"N" for key in range(1000)) + b"uq\x000"
    b"](" + b"cargparse\nNamespace\n)\x81h\x00b" * 2000 + b"e",
}


@pytest.mark.parametrize("name", COPIERS)
def test_a_small_pickle_makes_no_large_object(tmp_path, name) -> None:
    """Two million values of a file of a tenth of that."""
    with pytest.raises(UserError, match="copies more than a checkpoint's"):
        read(packed(tmp_path / "x.tar", b"\x80\x02" + COPIERS[name] + b"."))


def test_a_tensor_of_very_many_dimensions_is_refused(tmp_path) -> None:
    path = packed(tmp_path / "x.tar", tensor_pickle(4, (1,) * 100, (1,) * 100), _0=bytes(16))
    with pytest.raises(UserError, match="broken"):
        read(path)


def test_an_ordered_dict_with_attributes_keeps_only_its_items(tmp_path) -> None:
    pairs = collections.OrderedDict(a=1)
    pairs.copy = "not a method"  # type: ignore[assignment,method-assign]
    assert read(packed(tmp_path / "x.tar", pickle.dumps(pairs, 2))).content == {"a": 1}


@pytest.mark.parametrize(
    ("numel", "shape", "stride", "offset", "line"),
    [
        (2**40, (4,), (1,), 0, "a storage declares 4398046511104 bytes, where there are 16"),
        (4, (5,), (1,), 0, "lies beyond its storage of 4 numbers"),
        (4, (2,), (1,), 3, "lies beyond its storage"),
        (4, (2,), (2**61,), 0, "lies beyond its storage"),
        (4, (2**40,), (0,), 0, "lies beyond its storage"),  # one number, repeated for ever
        (4, (-1,), (1,), 0, "broken"),
        (4, (2,), (-1,), 1, "broken"),
        (4, (2, 2), (1,), 0, "broken"),
        (-4, (0,), (1,), 0, "a storage declares -16 bytes"),
    ],
)
def test_no_tensor_is_larger_than_its_part_of_the_file(tmp_path, numel, shape, stride, offset, line) -> None:
    path = packed(tmp_path / "x.tar", tensor_pickle(numel, shape, stride, offset), _0=bytes(16))
    with pytest.raises(UserError, match=line):
        read(path)


def test_many_views_of_one_storage_are_refused(tmp_path) -> None:
    whole = torch.zeros(1000)
    checkpoint = read(written(tmp_path / "x.tar", {f"{index}": whole for index in range(100)}))
    with pytest.raises(UserError, match=r"declares tensors of 400000 bytes, but has only \d+"):
        checkpoint.tensors(checkpoint.content)


def test_compressed_records_are_refused(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "x.tar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(2**20))
    with pytest.raises(UserError, match="is compressed"):
        read(tmp_path / "x.tar")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_a_truncated_file_is_one_line_wherever_it_ends(tmp_path, zipped) -> None:
    whole = written(tmp_path / "whole", {"a": torch.arange(50.0), "b": torch.ones(3)}, zipped).read_bytes()
    for length in {0, 1, 4, 20, *range(30, len(whole), 37), len(whole) - 1}:
        (tmp_path / "part").write_bytes(whole[:length])
        with pytest.raises(UserError) as refused:
            read(tmp_path / "part")
        assert "\n" not in str(refused.value)


def test_an_old_file_that_declares_a_huge_storage_is_refused(tmp_path) -> None:
    path = written(tmp_path / "x", {"a": torch.arange(5.0)}, zipped=False)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"K\x05N", b"J\xff\xff\xff\x7fN", 1))  # numel in the persistent id
    with pytest.raises(UserError, match="a storage declares 8589934588 bytes"):
        read(path)
    path.write_bytes(whole[:-28] + struct.pack("<q", 2**40) + whole[-20:])  # numel in front of the numbers
    with pytest.raises(UserError, match="is not whole"):
        read(path)


def test_a_damaged_record_is_noticed(tmp_path) -> None:
    path = written(tmp_path / "x", {"a": torch.arange(50.0)})
    whole = bytearray(path.read_bytes())
    at = whole.index(torch.arange(50.0).numpy().tobytes())
    whole[at + 7] ^= 1
    path.write_bytes(whole)
    checkpoint = read(path)
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.tensors(checkpoint.content)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_whatever_byte_is_another_it_is_read_or_refused_in_one_line(tmp_path, zipped) -> None:
    whole = written(tmp_path / "whole", {"a": torch.arange(50.0), "b": [1, "x", None]}, zipped).read_bytes()
    rng = np.random.default_rng(0)
    lines = []
    for place in rng.integers(min(len(whole), 600), size=300):
        (tmp_path / "x").write_bytes(whole[:place] + rng.bytes(1) + whole[place + 1 :])
        try:
            checkpoint = read(tmp_path / "x")
            checkpoint.tensors(checkpoint.content)
        except UserError as error:
            lines.append(str(error))
    assert 30 < len(lines) < 300
    assert not any("\n" in line for line in lines)


def test_other_files_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "absent")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"is not a file that torch\.save has written"):
        read(tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"without data\.pkl"):
        read(tmp_path / "x.zip")


def test_a_real_file_of_the_old_format(data) -> None:
    path = data / "checkpoints" / "nerf-pytorch_lego-lowres" / "checkpoint199999.ckpt"
    checkpoint, expected = read(path), torch.load(path, map_location="cpu", weights_only=True)
    assert checkpoint.content["iter"] == 199_999
    for key in ("model_coarse_state_dict", "model_fine_state_dict"):
        found = checkpoint.tensors(checkpoint.content[key])
        assert set(found) == set(expected[key])
        assert len(found) == 16
        assert all(torch.equal(found[name], values) for name, values in expected[key].items())
