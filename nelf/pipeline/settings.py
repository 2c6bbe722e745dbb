"""Settings of finished stages, completed with arguments added since."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from nelf.arguments import parameters

__all__ = ["with_new_defaults"]


def with_new_defaults(earlier: Any, present: Any) -> Any:
    """Complete earlier settings with arguments that have been added since, if these have their defaults.

    Args:
        earlier: plain settings as they were written; nothing that they name is imported.
        present: the present settings. In nodes with the same ``_target_``, an argument that the earlier settings lack
            is added if its present value is the default in the target's signature.

    Returns:
        A copy of the earlier settings. If it equals the present ones, both describe the same work.

    Example:
        >>> with_new_defaults({"_target_": "builtins.sum"}, {"_target_": "builtins.sum", "start": 0})
        {'_target_': 'builtins.sum', 'start': 0}
    """
    if not isinstance(earlier, Mapping) or not isinstance(present, Mapping):
        return earlier
    known = {key: with_new_defaults(value, present.get(key)) for key, value in earlier.items()}
    target, new = present.get("_target_"), present.keys() - known.keys()
    if not new or not isinstance(target, str) or earlier.get("_target_") != target:
        return known
    defaults = _defaults(target)
    return known | {key: present[key] for key in new & defaults.keys() if defaults[key] == present[key]}


def _defaults(target: str) -> dict[str, Any]:
    """The default of each argument of a class or function that has one."""
    module, _, name = target.rpartition(".")
    known = parameters(getattr(import_module(module), name))
    return {name: each.default for name, each in known.items() if each.default is not each.empty}
