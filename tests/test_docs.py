"""What is documented is so: examples run, public names exist and say what they take."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

import nelf

PACKAGE = Path(nelf.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "scripts" not in path.parts)
MODULES = [
    ".".join(part for part in path.relative_to(PACKAGE.parent).with_suffix("").parts if part != "__init__")
    for path in FILES
]


def loaded(name: str) -> ModuleType:
    if name.startswith("nelf.kernels.triton_"):
        pytest.importorskip("triton")
    return importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = loaded(name)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    outcome = doctest.testmod(module, extraglobs={"torch": torch, "nelf": nelf}, optionflags=flags)
    assert outcome.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_public_names_exist(name: str) -> None:
    module = loaded(name)
    for public in getattr(module, "__all__", ()):
        assert getattr(module, public) is not None


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'nelf' has no attribute 'teleport'"):
        _ = nelf.teleport


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_functions_with_several_arguments_describe_them(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [*node.args.args, *node.args.kwonlyargs]
            text = ast.get_docstring(node) or ""
            assert text, f"{node.name} has no docstring"
            described = "Args:" in text or "See ``" in text
            assert len(arguments) < 4 or described, f"{node.name} does not describe its arguments"
