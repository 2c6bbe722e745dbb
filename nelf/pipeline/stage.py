"""The declaration of a stage, built-in or from outside nelf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from nelf.errors import UserError

if TYPE_CHECKING:
    from nelf.pipeline.recipe import Recipe

__all__ = ["BATCHES", "EVERYTHING", "Declaration", "declarations", "stage"]

F = TypeVar("F", bound=Callable[..., Any])

#: Keys of the section data that determine how training batches are drawn.
BATCHES = ("sampling", "time_curriculum")
#: As the value of ``optional``: all stages that do not declare this themselves.
EVERYTHING = ("*",)


@dataclass(frozen=True)
class Declaration:
    """What the result of a stage depends on.

    Attributes:
        sections: sections of the configuration, in addition to the stage's own options.
        inputs: stages that have to be done before.
        optional: stages whose results it uses if they are done; without ``inputs``, at least one has to be.
        instead: an option that, if it is set, replaces the inputs.
        without: keys of the section data that do not affect it.
        spreads: whether all processes run it; else the first one runs it, and the others wait.
        check: checks its options in a recipe before anything is written or trained.
    """

    sections: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    instead: str | None = None
    without: tuple[str, ...] = ()
    spreads: bool = False
    check: Callable[[Recipe], None] | None = None


def stage(
    *,
    sections: tuple[str, ...] = (),
    inputs: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    instead: str | None = None,
    without: tuple[str, ...] = (),
    spreads: bool = False,
    check: Callable[[Recipe], None] | None = None,
) -> Callable[[F], F]:
    """Declare a function ``(run, **options) -> metrics`` as a stage. See ``Declaration`` for the arguments.

    Example:
        >>> @stage(sections=("data",), inputs=("student",))
        ... def measure(run, *, views=3):
        ...     return {"views": views}
        >>> measure.declaration.inputs
        ('student',)
    """

    def declare(function: F) -> F:
        declared = Declaration(sections, inputs, optional, instead, without, spreads, check)
        function.declaration = declared  # type: ignore[attr-defined]
        return function

    return declare


def declarations(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Declaration]:
    """Look up the declarations of the stages of a configuration.

    Args:
        nodes: the section ``stage``: nodes with ``_target_`` by name.

    Returns:
        Declarations by name, in the order of the nodes.

    Raises:
        UserError: a target is not a stage.
    """
    found = {}
    for name, node in nodes.items():
        module, _, function = str(node["_target_"]).rpartition(".")
        declared = getattr(getattr(import_module(module), function, None), "declaration", None)
        if not isinstance(declared, Declaration):
            raise UserError(f"stage.{name}._target_: {node['_target_']} is not a stage; see nelf.pipeline.stage.stage.")
        is_given = declared.instead is not None and node.get(declared.instead) is not None
        found[name] = replace(declared, inputs=()) if is_given else declared
    everything = tuple(name for name, declared in found.items() if declared.optional != EVERYTHING)
    return {
        name: declared if name in everything else replace(declared, optional=everything)
        for name, declared in found.items()
    }
