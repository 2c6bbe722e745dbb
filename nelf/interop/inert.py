"""Read untrusted pickles as data, without calling anything that they name.

A pickle is a program for a stack machine, and Python's unpickler calls any function that the program names. This
machine supports only the instructions in PyTorch's checkpoints. A name in the file is looked up in tables of this
module, which map it to a safe replacement; any other name is refused.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Global", "Storage", "StoredTensor", "Stub", "module_state", "run"]

_INSTRUCTIONS = 2**20  # limit per pickle; a large network has a tenth of that
_DIMENSIONS = 64  # limit per tensor

#: Classes of the originals, and of PyTorch, that become a ``Stub``.
STUBS = frozenset(
    {
        "model.nerf_raybased.NeRF_v3_2",
        "model.nerf_raybased.Net_hyper",
        "model.nerf_raybased.Net_offset",
        "model.nerf_raybased.ResMLP",
        "model.R2L.R2L",
        "model.R2L.ResnetBlock",
        "argparse.Namespace",
        "smilelogging.utils.EmptyClass",
        "utils.EmptyClass",
        "easydict.EasyDict",
        "torch.nn.modules.activation.GELU",
        "torch.nn.modules.activation.ReLU",
        "torch.nn.modules.activation.Sigmoid",
        "torch.nn.modules.batchnorm.BatchNorm2d",
        "torch.nn.modules.batchnorm.SyncBatchNorm",
        "torch.nn.modules.container.ModuleList",
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.conv.Conv2d",
        "torch.nn.modules.conv.ConvTranspose2d",
        "torch.nn.modules.linear.Linear",
    }
)
_STORAGES = frozenset(
    f"torch.{kind}Storage"
    for kind in ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
)


class Global(NamedTuple):
    """A name in a pickle, ``module.name``, that is in one of this module's tables."""

    name: str


@dataclass(eq=False)
class Stub:
    """A replacement for an object of a foreign class: the name of its class and its attributes."""

    name: str
    state: dict[Any, Any] = field(default_factory=dict)


def module_state(module: Stub) -> dict[str, Any]:
    """The state dict of a pickled module: parameters and buffers by their paths.

    Args:
        module: the pickled module.

    Returns:
        Values by name, which are ``StoredTensor`` unless the file holds something else. A submodule that occurs twice
        is included once.
    """
    found: dict[str, Any] = {}
    left, seen = [("", module)], {id(module)}
    while left:
        path, part = left.pop()
        for kind in ("_parameters", "_buffers"):
            own = part.state.get(kind)
            found |= {f"{path}{name}": value for name, value in own.items()} if isinstance(own, dict) else {}
        parts = part.state.get("_modules")
        for name, value in parts.items() if isinstance(parts, dict) else ():
            if isinstance(value, Stub) and id(value) not in seen:
                seen.add(id(value))
                left.append((f"{path}{name}.", value))
    return found


@dataclass(eq=False)
class Storage:
    """``numel`` numbers in the file, of a kind such as ``torch.FloatStorage``, with a function that reads them."""

    kind: str
    numel: int
    fetch: Callable[[], bytes]


class StoredTensor(NamedTuple):
    """A tensor that has not been loaded: a view of a storage, checked to be within it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def run(file: Any, persistent: Callable[[Any], Any]) -> Any:
    """Run the next pickle of a file.

    Args:
        file: an object with ``read``, ``readline`` and ``tell`` in memory or mapped (``io.BytesIO``, ``mmap``).
        persistent: makes objects from the persistent ids of the pickle.

    Returns:
        The object, made of numbers, text, lists, tuples, dictionaries, ``StoredTensor`` and ``Stub``. An
        ``OrderedDict`` becomes a dictionary, a set a list, a parameter its tensor.

    Raises:
        ValueError: an unknown name (the message states it), an unsupported instruction, or a damaged pickle.
    """
    machine = _Machine(persistent)
    for count, (code, argument, _) in enumerate(pickletools.genops(file)):
        if count >= _INSTRUCTIONS:
            raise ValueError("its pickle has more instructions than a checkpoint's")
        if code.name == "STOP":
            break
        try:
            machine.step(code.name, argument)
        except (IndexError, KeyError, TypeError, AttributeError):
            raise ValueError(f"its pickle is broken at {code.name}") from None
    if len(machine.stack) != 1 or machine.marks:
        raise ValueError("its pickle is broken at its end")
    return machine.stack[0]


class _Machine:
    """The state of a running pickle: its stack, marks and memo."""

    def __init__(self, persistent: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.persistent = persistent
        self.copies = _INSTRUCTIONS

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise ValueError(f"its pickle has the instruction {name}, which no checkpoint needs")

    def take(self, count: int) -> list[Any]:
        """Pop values off the stack."""
        if len(self.stack) < count:
            raise IndexError
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def spend(self, copied: Any) -> None:
        """Limit the number of copied values: a few instructions could copy the same ones repeatedly."""
        self.copies -= sum(len(value) for value in copied if isinstance(value, list | tuple | dict))
        if self.copies < 0:
            raise ValueError("its pickle copies more than a checkpoint's")

    def marked(self) -> list[Any]:
        """Pop the values since the last mark."""
        return self.take(len(self.stack) - self.marks.pop())

    def remember(self, place: int) -> None:
        """Store the top value in the memo."""
        self.memo[place] = self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        """Append values to the list on top."""
        _a(list, self.stack[-1]).extend(values)

    def fill(self, values: list[Any]) -> None:
        """Put pairs into the dictionary on top."""
        top = self.stack[-1]
        _items(_a(dict, top.state if isinstance(top, Stub) else top), values)

    def call(self) -> None:
        """Call the replacement of a known function or class."""
        called, values = self.take(2)
        name, values = _a(Global, called).name, _a(tuple, values)
        self.spend(values)
        self.stack.append(Stub(name) if name in STUBS else _CALLS[name](*values))

    def build(self) -> None:
        """Set the attributes of the object on top; those of a dictionary are ignored."""
        (state,) = self.take(1)
        target = self.stack[-1]
        if isinstance(target, Stub):
            parts = state if isinstance(state, tuple) else (state,)  # attributes, and those in slots
            self.spend((parts, *parts))
            for part in parts:
                target.state.update(_a(dict, part or {}))
        else:
            _a(dict, target)


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    }
)
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.take(1),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "LIST": lambda machine, _: machine.stack.append(machine.marked()),
    "DICT": lambda machine, _: machine.stack.append(_items({}, machine.marked())),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": lambda machine, _: machine.fill(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.fill(machine.marked()),
    "GLOBAL": lambda machine, name: machine.stack.append(_known(name.replace(" ", ".", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.stack.append(_known(".".join(machine.take(2)))),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.stack.append(machine.persistent(machine.take(1)[0])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, place: machine.remember(place)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, place: machine.stack.append(machine.memo[place])),
    **{
        f"TUPLE{count}": lambda machine, _, count=count: machine.stack.append(tuple(machine.take(count)))  # type: ignore[misc]
        for count in (1, 2, 3)
    },
}


def _a(kind: type, value: Any) -> Any:
    """Check that a value has the type that an instruction requires, and return it."""
    if not isinstance(value, kind):
        raise TypeError
    return value


def _items(target: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    """Put pairs into a dictionary; keys must be plain, since nested ones could take forever to hash."""
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str | int | float | None):
            raise ValueError(f"its pickle has a key that is a {type(key).__name__}")
        target[key] = value
    return target


def _known(name: str) -> Global:
    """Check that a name is in one of the tables."""
    if name not in STUBS and name not in _STORAGES and name not in _CALLS:
        raise ValueError(f"its pickle names {name[:200]!r}, which is code that nelf does not run")
    return Global(name)


def _dictionary(pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    return _items({}, [value for pair in _a((list, tuple), pairs) for value in _a((list, tuple), pair)])  # type: ignore[arg-type]


def _listed(values: Any = ()) -> list[Any]:
    return list(_a((list, tuple), values))  # type: ignore[arg-type]


def _parameter(tensor: Any, *_: Any) -> StoredTensor:
    return _a(StoredTensor, tensor)  # type: ignore[no-any-return]


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """A view of a storage; refused if it exceeds the storage, or repeats numbers so that it is larger."""
    storage = _a(Storage, storage)
    numbers = [offset, *_a(tuple, shape), *_a(tuple, stride)]
    if not len(shape) == len(stride) <= _DIMENSIONS or any(
        type(number) is not int or not 0 <= number < 2**63 for number in numbers
    ):
        raise TypeError
    count = math.prod(shape)
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if count and (last >= storage.numel or count > storage.numel):
        raise ValueError(f"a tensor of shape {shape} lies beyond its storage of {storage.numel} numbers")
    return StoredTensor(storage, offset, shape, stride)


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "builtins.set": _listed,
    "__builtin__.set": _listed,
    "torch.Size": lambda sides: tuple(_listed(sides)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
