"""Arguments of classes and functions: their annotations, and whether a plain value matches one."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from nelf.errors import Range
from nelf.files import quoted

__all__ = ["accepts", "parameters", "refusal"]

_LISTS, _MAPPINGS = (list, tuple, Sequence), (dict, Mapping)
_WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", Path: "a path"}


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


def accepts(annotation: Any, value: Any) -> bool:
    """Whether a plain value matches an annotation; annotations that cannot be checked accept everything.

    An object's description, a dictionary, matches all annotations but those of plain values.

    Example:
        >>> accepts(int | None, None), accepts(int, 3.5), accepts(Literal["a", "b"], "c")
        (True, False, False)
        >>> accepts(float, float("nan")), accepts(Annotated[int, Range(1)] | None, 0)
        (False, False)
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        ranges = [each for each in inner[1:] if isinstance(each, Range)]
        return accepts(inner[0], value) and all(each.holds(value) for each in ranges)
    if origin in (Union, types.UnionType):
        return any(accepts(part, value) for part in inner)
    if origin is Literal:
        return value in inner
    if annotation is None or annotation is types.NoneType:
        return value is None
    if annotation in (int, float):
        allowed = (int,) if annotation is int else (int, float)
        most = 2**63 - 1 if annotation is int else sys.float_info.max
        return isinstance(value, allowed) and not isinstance(value, bool) and abs(value) <= most  # NaN is not, either
    if annotation in (str, Path):
        return isinstance(value, str)
    if annotation is bool:
        return isinstance(value, bool)
    if origin in (*_LISTS, *_MAPPINGS):
        return _accepts_items(origin, inner, value)
    told = annotation not in (Any, inspect.Parameter.empty) and isinstance(annotation, type)
    if told and isinstance(value, str | int | float):
        with suppress(TypeError):  # a protocol
            return isinstance(value, annotation)
    return True


def _accepts_items(origin: Any, inner: tuple[Any, ...], value: Any) -> bool:
    """``accepts`` for a list or mapping; items of a tuple of different kinds are not checked."""
    if origin in _MAPPINGS:
        return isinstance(value, dict) and all(accepts(inner[1], item) for item in value.values())
    parts = {part for part in inner if part is not Ellipsis}
    return isinstance(value, list) and (len(parts) != 1 or all(accepts(part, item) for part in parts for item in value))


def refusal(annotation: Any, value: Any) -> str | None:
    """Why a plain value does not match an annotation: *is ...; allowed: ...*; None if it does.

    Example:
        >>> refusal(Annotated[int, Range(1)] | None, 0.5)
        'is 0.5; allowed: a whole number of 1 or more, null'
    """
    if accepts(annotation, value):
        return None
    return f"is {'null' if value is None else quoted(value)}; allowed: {_in_words(annotation)}"


def _in_words(annotation: Any) -> str:
    """Describe what a value may be."""
    if typing.get_origin(annotation) is Annotated:
        kind, *more = typing.get_args(annotation)
        return " ".join([_in_words(kind), *(str(each) for each in more if isinstance(each, Range))])
    if typing.get_origin(annotation) is Literal:
        return ", ".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) in (Union, types.UnionType):
        words = [word for part in typing.get_args(annotation) for word in _in_words(part).split(", ")]
        return ", ".join(dict.fromkeys(words))
    if annotation is types.NoneType:
        return "null"
    if typing.get_origin(annotation) in _LISTS:
        return "a list"
    if typing.get_origin(annotation) in _MAPPINGS:
        return f"a mapping with values that are each {_in_words(typing.get_args(annotation)[1])}"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _annotated(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A function's parameters; each annotation is resolved separately, so that one that fails leaves the others."""
    known = getattr(inspect.unwrap(function), "__globals__", {})
    found = dict(inspect.signature(function).parameters)
    for name, parameter in found.items():
        alone = types.SimpleNamespace(__annotations__={name: parameter.annotation})
        with suppress(NameError, AttributeError, TypeError, SyntaxError):
            found[name] = parameter.replace(annotation=typing.get_type_hints(alone, known, include_extras=True)[name])
    return found
