"""Parameters of classes and functions; settings of finished stages, completed with arguments added since."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

__all__ = ["parameters", "with_new_defaults"]


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


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Arguments that can be passed by name, including those of base classes that receive ``**options``.

    Args:
        target: a class or a function.

    Returns:
        Parameters by name, without ``self``; ``**options`` is included only if no base class receives it. Annotations
        are types; those that exist only for type checkers stay strings.
    """
    if not isinstance(target, type):
        return _annotated(target)
    found: dict[str, inspect.Parameter] = {}
    for kind in target.__mro__:
        if "__init__" not in vars(kind) or kind is object:
            continue
        arguments = list(_annotated(kind.__init__).items())[1:]  # type: ignore[misc]
        own = {name: value for name, value in arguments if value.kind is not value.POSITIONAL_ONLY}
        found = {
            **own,
            **{name: value for name, value in found.items() if value.kind is not value.VAR_KEYWORD},
        }
        if not any(value.kind is value.VAR_KEYWORD for value in own.values()):
            break
    return found


def _defaults(target: str) -> dict[str, Any]:
    """The default of each argument of a class or function that has one."""
    module, _, name = target.rpartition(".")
    known = parameters(getattr(import_module(module), name))
    return {name: each.default for name, each in known.items() if each.default is not each.empty}


def _annotated(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A function's parameters; each annotation is resolved separately, so that one that fails leaves the others."""
    known = getattr(inspect.unwrap(function), "__globals__", {})
    found = dict(inspect.signature(function).parameters)
    for name, parameter in found.items():
        alone = types.SimpleNamespace(__annotations__={name: parameter.annotation})
        with suppress(NameError, AttributeError, TypeError, SyntaxError):
            found[name] = parameter.replace(annotation=typing.get_type_hints(alone, known, include_extras=True)[name])
    return found
