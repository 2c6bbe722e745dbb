"""The LightningModules that train teachers and students. Loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nelf.systems.student import Student
    from nelf.systems.teacher import Teacher

__all__ = ["Student", "Teacher"]


def __getattr__(name: str) -> Any:
    """Import the module that defines ``name``, so that a student does not load what only teachers need."""
    if name in __all__:
        return getattr(import_module(f"nelf.systems.{name.lower()}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
