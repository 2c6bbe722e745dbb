"""Read files of ``torch.save`` without running any code in them.

``torch.load(weights_only=True)`` refuses files with pickled modules, such as the checkpoints of R2L and MobileR2L, and
allocates the declared sizes. This reader replaces modules with inert stubs (``nelf.interop.inert``), and loads no
tensor that is larger than its part of the file.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nelf.errors import UserError
from nelf.files import is_file, reason_of
from nelf.interop.inert import Global, Storage, StoredTensor, run

__all__ = ["Checkpoint", "read"]

_DTYPES = {
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.ShortStorage": torch.int16,
}
_OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number at the beginning of legacy files
#: Exceptions for damaged files; zipfile can raise all of them.
_BROKEN = (ValueError, OverflowError, EOFError, NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile)
_PICKLE = 2**26  # maximum bytes; the pickle of a network takes about a thousandth


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A file of PyTorch, whose tensors have not been loaded yet.

    Attributes:
        path: the file.
        content: the saved object, see ``nelf.interop.inert.run``.
        size: size of the file, bytes.
    """

    path: Path
    content: Any
    size: int

    def tensors(self, state: Any) -> dict[str, Tensor]:
        """Load the tensors of a state dict.

        Args:
            state: a part of ``content``; values that are not tensors are left out.

        Returns:
            Tensors by name; in the file's types, contiguous.

        Raises:
            UserError: it is not a state dict, or its tensors are damaged or, by repeating numbers, larger than the
                file.
        """
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise UserError(f"{self.path}: holds no state dict where one is expected, but {type(state).__name__}.")
        stored = {name: value for name, value in state.items() if isinstance(value, StoredTensor)}
        size = sum(math.prod(each.shape) * _DTYPES[each.storage.kind].itemsize for each in stored.values())
        if size > self.size:
            raise UserError(f"{self.path}: declares tensors of {size} bytes, but has only {self.size}.")
        numbers: dict[int, Tensor] = {}  # by storage, each read once however many tensors lie in it
        try:
            return {name: _load(value, numbers) for name, value in stored.items()}
        except (*_BROKEN, OSError) as error:
            raise UserError(f"{self.path}: is damaged ({reason_of(error)}).") from None


def _load(tensor: StoredTensor, numbers: dict[int, Tensor]) -> Tensor:
    dtype = _DTYPES[tensor.storage.kind]
    if not math.prod(tensor.shape):
        return torch.empty(tensor.shape, dtype=dtype)
    key = id(tensor.storage)
    if key not in numbers:
        numbers[key] = torch.frombuffer(bytearray(tensor.storage.fetch()), dtype=dtype)
    return (
        numbers[key].as_strided(tensor.shape, tensor.stride, tensor.offset).clone(memory_format=torch.contiguous_format)
    )


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a file of ``torch.save``, in its present (zip) or its legacy format.

    Args:
        path: the file.

    Raises:
        UserError: the file is missing, has another format, is incomplete, names unknown code, or declares more than it
            holds.
    """
    path = Path(path)
    if not is_file(path):
        raise UserError(f"{path}: cannot be read (no such file).")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(_OLD_FORMAT))
            if start.startswith(b"PK\3\4"):
                return Checkpoint(path, _read_zip(path, size), size)
            if start == _OLD_FORMAT:
                return Checkpoint(path, _read_old(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except _BROKEN as error:
        raise UserError(
            f"{path}: is not a whole checkpoint of PyTorch, or not a safe one: {reason_of(error)}."
        ) from None
    raise UserError(f"{path}: is not a file that torch.save has written.")


# ------------------------------------------------------------------------------------------------ the zip format


def _read_zip(path: Path, size: int) -> Any:
    archive = zipfile.ZipFile(path)
    records = {record.filename: record for record in archive.infolist()}
    for record in records.values():
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise ValueError(f"{record.filename} is compressed, which torch.save does not do")
    if sum(record.file_size for record in records.values()) > size:
        raise ValueError("its records are larger than the file")
    described = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(described) != 1:
        raise ValueError("it is a zip file without data.pkl")
    folder = described[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in records and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are not little-endian")
    if records[described[0]].file_size > _PICKLE:
        raise ValueError(f"its pickle is larger than {_PICKLE} bytes")

    storages: dict[tuple[str, str, int], Storage] = {}

    def storage(stated: Any) -> Storage:
        kind, key, numel = _stated(stated, 5)
        name = f"{folder}data/{key}"
        if name not in records:
            raise ValueError(f"the record {name} is missing")
        _check_size(kind, numel, records[name].file_size)
        return storages.setdefault((kind, key, numel), Storage(kind, numel, lambda: archive.read(name)))

    return run(io.BytesIO(archive.read(described[0])), storage)


# ------------------------------------------------------------------------------------------------ the old format


def _read_old(file: mmap.mmap) -> Any:
    """Five pickles (magic number, version, machine, content, keys of the storages), then the storages."""

    def nothing(stated: Any) -> Any:
        raise ValueError("its header refers to a storage")

    run(file, nothing)
    if run(file, nothing) != 1001:
        raise ValueError("its version is not 1001")
    machine = run(file, nothing)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    storages: dict[str, Storage] = {}

    def storage(stated: Any) -> Storage:
        kind, key, numel = _stated(stated, 6)
        if stated[5] is not None:
            raise ValueError("it has a view of a storage, which only versions before 0.4 of PyTorch wrote")
        _check_size(kind, numel, len(file))
        found = storages.setdefault(key, Storage(kind, numel, bytes))
        if (found.kind, found.numel) != (kind, numel):
            raise ValueError(f"it states the storage {key} twice, differently")
        return found

    content = run(file, storage)
    keys = run(file, nothing)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise ValueError("its storages are not those that it refers to")
    at = file.tell()
    for key in keys:
        numel = int.from_bytes(file[at : at + 8], "little")
        found = storages[key]
        first, last = at + 8, at + 8 + numel * _DTYPES[found.kind].itemsize
        if numel != found.numel or last > len(file):
            raise ValueError(f"the storage {key} is not whole")
        found.fetch = _part(file, first, last)
        at = last
    return content


def _part(file: mmap.mmap, first: int, last: int) -> Any:
    return lambda: file[first:last]


# ------------------------------------------------------------------------------------------------ storages


def _stated(stated: Any, length: int) -> tuple[str, str, int]:
    """Kind, key and number of elements of a storage that a pickle refers to."""
    if not isinstance(stated, tuple) or len(stated) != length or stated[0] != "storage":
        raise ValueError("it refers to something that is not a storage")
    _, kind, key, _, numel = stated[:5]
    if not isinstance(kind, Global) or kind.name not in _DTYPES or not isinstance(key, str) or type(numel) is not int:
        raise ValueError("it refers to a storage that cannot be read")
    return kind.name, key, numel


def _check_size(kind: str, numel: int, held: int) -> None:
    needed = numel * _DTYPES[kind].itemsize
    if numel < 0 or needed > held:
        raise ValueError(f"a storage declares {needed} bytes, where there are {held}")
