"""The result of converting a foreign checkpoint, and writing it as a file of nelf."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from nelf.errors import UserError
from nelf.files import quoted, reason_of, short
from nelf.storage import differences, save

__all__ = ["Conversion", "depth_range", "prepared", "strip_prefix", "unknown_layout"]

_HOMES = {"teacher": "nelf.fields", "student": "nelf.lightfields"}


class Conversion(NamedTuple):
    """A foreign network in nelf's terms.

    Attributes:
        role: its role in a run.
        kind: the name of nelf's class.
        arguments: arguments of its constructor.
        state: its state dict, without buffers that only training needs.
        found: one line that describes the file, for the user.
    """

    role: Literal["teacher", "student"]
    kind: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    found: str

    def network(self, path: Path) -> nn.Module:
        """Build the network.

        Args:
            path: the foreign file, for errors.

        Raises:
            UserError: tensors that do not fit together, or numbers that are not finite.
        """
        infinite = [name for name, values in self.state.items() if not bool(torch.isfinite(values).all())]
        if infinite:
            raise UserError(f"{path}: {infinite[0]} holds numbers that are not finite.")
        kind = getattr(import_module(_HOMES[self.role]), self.kind)
        try:
            # A stranger's sizes: nothing is allocated before they are known to fit the file.
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("error")  # such as of a layer without numbers
                described = kind(**self.arguments)
        except Exception as error:  # whatever a constructor makes of them
            raise UserError(f"{path}: is no {self.kind} of nelf's: {reason_of(error)}") from None
        left_out = getattr(described, "training_state", ())
        differing = [line for name, line in differences(described, self.state).items() if name not in left_out]
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise UserError(f"{path}: its tensors do not fit together: {', '.join(differing[:3])}{more}.")
        network: nn.Module = kind(**self.arguments)
        network.load_state_dict(self.state, strict=False)
        return network.eval()

    def save(self, path: Path, out: Path) -> Path:
        """Write ``out/ROLE/model.safetensors``.

        Args:
            path: the foreign file, for errors.
            out: a run directory.

        Raises:
            UserError: see ``network``; or the directory cannot be written.
        """
        config = {"_target_": f"{_HOMES[self.role]}.{self.kind}", **self.arguments}
        return save(self.network(path), out / self.role / "model.safetensors", config, scene="")


def depth_range(near: float, far: float) -> dict[str, Tensor]:
    """The buffers of a depth range.

    Raises:
        UserError: the range is empty.
    """
    if not 0 <= near < far < math.inf:
        raise UserError(f"--near, --far: are {near:g} and {far:g}; allowed: from 0 on, and near before far.")
    return {"near": torch.tensor(float(near)), "far": torch.tensor(float(far))}


def prepared(near: float, far: float) -> dict[str, Tensor]:
    """The buffers of a light field with a known depth range; its box is that of the Blender scenes."""
    return {
        **depth_range(near, far),
        "aabb": torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5]),
        "prepared": torch.tensor(True),
    }


def strip_prefix(state: Mapping[str, Any], prefix: str = "module.") -> dict[str, Any]:
    """A state dict without the prefix that all of its names have; as it is where one has not."""
    if all(isinstance(name, str) and name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def unknown_layout(path: Path, name: str, found: Mapping[Any, Any], expected: str) -> UserError:
    """The error for an unknown layout of a checkpoint.

    Args:
        path: the file.
        name: the program whose checkpoint it is not.
        found: a mapping with the keys that were found.
        expected: the keys that were expected.
    """
    keys = [short(key) if isinstance(key, str) else quoted(key) for key in found]
    listed = ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
    return UserError(f"{path}: is no checkpoint of {name}: found {listed or 'nothing'}; expected {expected}.")
