"""Weights, checkpoints and graphs whose parts no longer belong together."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import torch

from tests.fuzz.plain import dumped, nested, tree

__all__ = ["onnx_graph", "poisoned", "safetensors", "torch_file"]

_SIZES = [0, -1, 1, 2, 7, 64, 2**31 - 1, 2**40, 2**62, 10**30]


def poisoned(random: Random, content: bytes) -> bytes:
    """One number in it is none, or large."""
    at = 4 * random.randrange(max(len(content) // 4, 1))
    return content[:at] + struct.pack("<f", random.choice([float("nan"), float("inf"), 1e38])) + content[at + 4 :]


# ------------------------------------------------------------------------------------------------ safetensors


def safetensors(random: Random, content: bytes) -> bytes:
    """Weights with another header, or with numbers that are none."""
    (size,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    kind = random.randrange(6)
    if kind == 0:
        return content[: 8 + size] + poisoned(random, rest)
    about = header["__metadata__"]
    if kind == 1:
        header = tree(random, header)
    elif kind < 4:
        key = random.choice([key for key in about if about[key][:1] in "{["] or list(about))
        try:
            about[key] = dumped(tree(random, json.loads(about[key]))).decode("utf-8", "replace")
        except ValueError:
            about[key] = random.choice(["", "x", "int8_per_channel", "int8_per_tensor", "fp16", "fp32", "0"])
    else:
        _other_tensor(random, header, len(rest))
    text = dumped(header)
    length = len(text) if kind < 5 or random.random() < 0.8 else random.choice([0, 2**63, 10**8, len(text) - 1])
    return struct.pack("<Q", length) + text + rest


def _other_tensor(random: Random, header: dict[str, Any], held: int) -> None:
    """Another type, shape, place or name of one tensor; or two of them are changed for each other."""
    names = [name for name in header if name != "__metadata__"]
    about, other = header[random.choice(names)], header[random.choice(names)]
    kind = random.randrange(5)
    if kind == 0:
        about["dtype"] = random.choice(["F64", "F16", "BF16", "I8", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "x"])
    elif kind == 1:
        about["shape"] = random.choice(
            [about["shape"][::-1], [*about["shape"], 1], [], [0], [2**40, 2**40], [-1], about["shape"][1:]]
        )
    elif kind == 2:
        about["data_offsets"] = random.choice([[0, held], [held, held + 4], [4, 0], other["data_offsets"], [0, 2**62]])
    elif kind == 3:
        about["shape"], other["shape"] = other["shape"], about["shape"]
        about["data_offsets"], other["data_offsets"] = other["data_offsets"], about["data_offsets"]
    else:
        name = random.choice(names)
        header[random.choice(["x", f"{name}.x", "é", "a\nb", "", "near"])] = header.pop(name)


# ------------------------------------------------------------------------------------------------ PyTorch's


def torch_file(random: Random, content: bytes) -> bytes:
    """What ``torch.save`` writes of other values, or a zip file whose records do not belong together."""
    kind = random.randrange(8)
    if kind < 6 or not content.startswith(b"PK"):
        values = torch.load(io.BytesIO(content), weights_only=False)
        out = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(_other_values(random, values), out, _use_new_zipfile_serialization=content.startswith(b"PK"))
        return out.getvalue()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    return _records(random, records) if kind == 6 else _zipped(_other_pickle(random, records))


def _other_values(random: Random, content: Any) -> Any:
    """Nested values, of which a few are others, have other names, or are missing."""
    for _ in range(random.choice([1, 1, 2])):
        places = nested(content)
        if not places:
            return random.choice(_values(random))
        # The many tensors would hide the few numbers and dictionaries.
        plain = [place for place in places if not isinstance(place[0][place[1]], torch.Tensor)]
        node, key = random.choice(plain if plain and random.random() < 0.4 else places)
        kind = random.randrange(7)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[random.choice(["x", 7, None, f"{key}.0", f"module.{key}", "a\nb", "\ud800", "é" * 500, 1.5])] = node[
                key
            ]
        elif kind == 2 and isinstance(node, dict):
            node[random.choice(["x", f"{key}.0", f"module.{key}"])] = node.pop(key)
        elif kind < 6 and isinstance(node[key], torch.Tensor):
            node[key] = _other_tensor_of(random, node[key])
        else:
            node[key] = random.choice(_values(random))
    return content


def _values(random: Random) -> list[Any]:
    inside: Any = torch.zeros(3)
    for _ in range(200):
        inside = [inside]
    return [
        *(None, True, 7, -1, 2**70, 1.5, float("nan"), "x", "", "é" * 300, b"x", [], {}, (), [[]], {1: {2: 3}}, inside),
        *(torch.zeros(0), torch.zeros(()), torch.zeros(3, 0), torch.full((2, 2), float("nan")), torch.zeros(1)),
        *(set(), {"a": torch.zeros(1)}, torch.nn.Linear(2, 2), torch.Size([2]), complex(1, 2)),
    ]


def _other_tensor_of(random: Random, tensor: torch.Tensor) -> torch.Tensor:
    """Other numbers, another type, shape or layout."""
    flat = tensor.flatten()
    numbers = tensor.clone()
    if numbers.numel() and numbers.is_floating_point():
        numbers.view(-1)[random.randrange(numbers.numel())] = random.choice(
            [float("nan"), float("inf"), 1e38, -1e30, 0.0]
        )
    real = tensor.float() if not tensor.is_quantized else torch.zeros(2)
    makes: list[Callable[[], torch.Tensor]] = [
        *[lambda: numbers] * 3,
        lambda: tensor.to(
            random.choice([torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool, torch.uint8])
        ),
        lambda: tensor.to(random.choice([torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.int64])),
        lambda: random.choice([flat, tensor[None], tensor[..., None], tensor[:0], tensor[:1], tensor.T]),
        lambda: torch.cat([tensor, tensor]) if tensor.dim() else tensor[None],
        lambda: flat[:1].expand(random.choice([2, 10**6, 2**40])),  # much that the file does not hold
        lambda: flat[:1].expand(tensor.shape),
        lambda: torch.cat([flat, flat])[::2].view(tensor.shape),  # with steps
        lambda: torch.as_strided(flat, (2, 2), (0, 1)) if len(flat) > 2 else flat,
        lambda: real.to_sparse(),
        lambda: torch.quantize_per_tensor(real, 0.1, 0, torch.qint8),
        lambda: torch.nn.Parameter(real),
        lambda: torch.empty(tensor.shape, device="meta"),
        lambda: tensor.flip(0) if tensor.dim() else tensor,
    ]
    try:
        return random.choice(makes)()
    except (RuntimeError, ValueError, IndexError, NotImplementedError):
        return flat


def _zipped(records: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return out.getvalue()


def _records(random: Random, records: dict[str, bytes]) -> bytes:
    """A zip file that is packed, that lacks a record, or has another one."""
    name = random.choice(list(records))
    pickle = next(name for name in records if name.endswith("data.pkl"))
    folder = pickle.removesuffix("data.pkl")
    kind = random.randrange(8)
    if kind == 0:
        return _zipped(records, zipfile.ZIP_DEFLATED)
    if kind == 1:
        return _zipped({**records, f"{folder}data/9": b"\0" * 50_000_000}, zipfile.ZIP_DEFLATED)
    if kind == 2:
        return _zipped({each: record for each, record in records.items() if each != name})
    if kind == 3:
        return _zipped({**records, name: records[name][: len(records[name]) // 2]})
    if kind == 4:
        return _zipped({**records, f"{folder}byteorder": random.choice([b"big", b"", b"x"])})
    if kind == 5:
        return _zipped({random.choice(["../", "/", "", "a/b/"]) + each: record for each, record in records.items()})
    if kind == 6:
        return _zipped({**records, "other/data.pkl": records[pickle]})
    bomb = b"\x80\x02" + b"]" + b"q\0" + b"(" + b"h\0" * 1000 + b"t" + b"h\0\x86" * random.choice([10, 100_000]) + b"."
    return _zipped({**records, pickle: bomb})


def _other_pickle(random: Random, records: dict[str, bytes]) -> dict[str, bytes]:
    """The description of the tensors states another number, or names something else."""
    pickle = next(name for name in records if name.endswith("data.pkl"))
    content = records[pickle]
    spots = [(code, argument, at) for code, argument, at in pickletools.genops(content)]
    ends = [at for _, _, at in spots[1:]] + [len(content)]
    numbers = [
        index for index, (code, _, _) in enumerate(spots) if code.name in ("BININT", "BININT1", "BININT2", "LONG1")
    ]
    names = [index for index, (code, _, _) in enumerate(spots) if code.name == "GLOBAL"]
    if names and random.random() < 0.3:
        index = random.choice(names)
        new = random.choice(
            [b"cos\nsystem\n", b"ctorch\nHalfStorage\n", b"ctorch\nComplexFloatStorage\n", b"cbuiltins\neval\n"]
        )
    else:
        index, number = random.choice(numbers), random.choice(_SIZES)
        packed = number.to_bytes(16, "little", signed=True)
        new = b"\x8a\x10" + packed
    return {**records, pickle: content[: spots[index][2]] + new + content[ends[index] :]}


# ------------------------------------------------------------------------------------------------ ONNX


def onnx_graph(random: Random, content: bytes) -> bytes:
    """A graph with other nodes, shapes, names or versions."""
    import onnx

    model = onnx.load_model_from_string(content)
    random.choice([_other_node, _other_node, _other_weight, _other_weight, _other_end, _other_version, _much])(
        random, model
    )
    return model.SerializeToString()  # type: ignore[no-any-return]


def _other_node(random: Random, model: Any) -> None:
    node = random.choice(model.graph.node)
    kind, names = random.randrange(4), list(node.input)
    if kind == 0:
        node.op_type = random.choice(
            ["Relu", "Loop", "If", "NoSuchOperation", "", "ConvTranspose", "Resize", "Identity"]
        )
    elif kind == 1:
        node.domain = random.choice(["com.microsoft", "x", "ai.onnx.ml", "\n"])
    elif kind == 2:
        node.input[random.randrange(len(names))] = random.choice(["", "x", *names, *node.output])
    for attribute in node.attribute if kind == 3 else []:
        attribute.i = random.choice([0, -1, 10**9])
        attribute.ints.extend([random.choice([0, -1, 10**9])])


def _other_weight(random: Random, model: Any) -> None:
    from onnx import TensorProto

    weight = random.choice(model.graph.initializer)
    kind = random.randrange(3)
    if kind == 0:
        weight.dims[random.randrange(len(weight.dims))] = random.choice([0, -1, 1, 10**6, 2**62])
    elif kind == 1:
        weight.data_type = random.choice([0, 2, 7, 8, 10, 11, 14, 99])
    else:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=random.choice(["/etc/passwd", "../x", "volume.bin.gz"]))


def _other_end(random: Random, model: Any) -> None:
    """An input or output of another name, type or shape."""
    end = random.choice([model.graph.input[0], model.graph.output[0]])
    kind = random.randrange(3)
    if kind == 0:
        end.name = random.choice(["", "x", "a\nb"])
    elif kind == 1:
        end.type.tensor_type.elem_type = random.choice([0, 1, 7, 8, 10, 11])
    else:
        random.choice(end.type.tensor_type.shape.dim).dim_value = random.choice([0, -1, 3, 7, 2**62])


def _other_version(random: Random, model: Any) -> None:
    model.ir_version = random.choice([0, 10, 99, 2**40])
    model.opset_import[0].version = random.choice([0, 1, 20, 99, 2**40])


def _much(random: Random, model: Any) -> None:
    """A small node that makes a large tensor, which takes part in the output."""
    from onnx import TensorProto, helper

    side, graph = random.choice([10**3, 10**5]), model.graph
    drawn = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["drawn" if name == drawn else name for name in node.output]
    graph.initializer.append(helper.make_tensor("sides", TensorProto.INT64, [2], [side, side]))
    graph.node.append(helper.make_node("ConstantOfShape", ["sides"], ["much"]))
    graph.node.append(helper.make_node("ReduceSum", ["much"], ["sum"], keepdims=0))
    graph.node.append(helper.make_node("Add", ["drawn", "sum"], [drawn]))
