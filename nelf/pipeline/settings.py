"""Settings of a finished stage, read by a later version of nelf, whose classes take more arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

__all__ = ["with_new_defaults"]


def with_new_defaults(earlier: Any, present: Any) -> Any:
    """Add to settings what did not exist when they were written, where it has its default today.

    Args:
        earlier: plain settings as they were written; nothing in them is imported.
        present: those of today. Of their nodes with the same ``_target_``, arguments that the earlier ones lack are
            added, if their value is the default of the target's signature.

    Returns:
        A copy of the earlier settings. Work that they describe is what the present ones describe where both are equal.

    Example:
        >>> with_new_defaults({"_target_": "collections.Counter"}, {"_target_": "collections.Counter", "iterable": None})
        {'_target_': 'collections.Counter', 'iterable': None}
    """
    if not isinstance(earlier, Mapping) or not isinstance(present, Mapping):
        return earlier
    known = {key: with_new_defaults(value, present.get(key)) for key, value in earlier.items()}
    target = present.get("_target_")
    if not isinstance(target, str) or earlier.get("_target_") != target:
        return known
    defaults = _defaults(target)
    new = (key for key in present if key not in known and key in defaults)
    return {**known, **{key: present[key] for key in new if defaults[key] == present[key]}}


def _defaults(target: str) -> dict[str, Any]:
    """The default of each argument of a class or function that has one."""
    module, _, name = target.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}
