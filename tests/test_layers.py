"""Imports point down only, and what is heavy is imported only where it must be."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nelf"

#: Low to high. A module may import those of its own layer and of the layers before it.
LAYERS = [
    {"errors"},
    {"arguments", "files", "metrics", "rays"},
    {"cameras"},
    {"kernels", "rendering", "paths", "scene"},
    {"encodings"},
    {"fields", "lightfields", "data"},
    {"systems", "data.datamodules"},
    {"compression"},
    {"callbacks", "report", "storage"},
    {"export"},
    {"interop", "viewer"},
    {"pipeline"},
    {"render"},
    {"cli", "__main__"},
]
ORDER = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def level(name: str) -> int:
    """The layer of a module: its own entry, else that of the package that holds it."""
    while name not in ORDER:
        assert "." in name, f"nelf.{name} belongs to no layer: add it to LAYERS"
        name = name.rpartition(".")[0]
    return ORDER[name]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports when it runs; what is for type checkers only does not count."""
    skipped: set[ast.AST] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "nelf":
                yield from (f"nelf.{alias.name}" for alias in node.names if (PACKAGE / alias.name).exists())
                yield from (f"nelf.{alias.name}" for alias in node.names if (PACKAGE / f"{alias.name}.py").exists())


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_point_down(path: Path) -> None:
    name = module(path)
    own = level(name)
    package = name.split(".")[0]
    for imported in imports(path):
        if imported.startswith("nelf."):
            target = imported.removeprefix("nelf.")
            if path.name == "__init__.py" and target.startswith(package):
                continue  # a package shows its own modules
            assert level(target) <= own, f"nelf.{name} imports {imported}, which lies above it"


def test_no_import_goes_in_a_circle() -> None:
    """Packages that show their own modules do not count: whoever imports from a package gets what lies in it."""
    names = {module(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        if path.name == "__init__.py" and name != "kernels":
            continue
        found = {imported.removeprefix("nelf.") for imported in imports(path) if imported.startswith("nelf.")}
        graph[name] = {target for target in found if target in names and names[target].name != "__init__.py"}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_root_stays_small_and_no_file_is_long() -> None:
    assert len([path for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")]) <= 10
    lengths = {module(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("hydra", {"cli"}),
        ("omegaconf", {"cli"}),
        ("pytorch_lightning", {"systems", "data.datamodules", "callbacks", "pipeline", "data"}),
        ("torchvision", set()),
        ("triton", {"kernels"}),
        ("tinycudann", {"kernels"}),
    ],
)
def test_heavy_libraries_have_their_place(library: str, allowed: set[str]) -> None:
    for path in FILES:
        if any(name.split(".")[0] == library for name in imports(path)):
            name = module(path)
            assert name in allowed or name.split(".")[0] in allowed, f"nelf.{name} imports {library}"


def shown_by(code: str) -> str:
    """What a new Python prints, beside whose modules nelf lies."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent, env=clean)
    return shown.stdout.strip()


def test_importing_nelf_loads_no_torch() -> None:
    code = "import sys, nelf; print(sorted({'torch', 'hydra', 'numpy', 'pytorch_lightning'} & set(sys.modules)))"
    assert shown_by(code) == "[]"


def test_importing_nelf_changes_nothing_outside() -> None:
    code = """
import logging, os, sys, warnings
state = lambda: (dict(os.environ), list(sys.path), warnings.filters[:], logging.root.level, logging.root.handlers[:])
before = state()
import nelf, nelf.fields, nelf.kernels.cpu_rays, nelf.systems, nelf.data
after = state()
print([name for name, one, two in zip(("environ", "path"), before, after) if one != two], before[3:] == after[3:])
"""
    assert shown_by(code) == "[] True"


def test_a_command_says_how_idle_threads_wait_before_torch_is_loaded() -> None:
    code = """
import os, sys
from nelf import cli
sys.argv = ["train.py", "model=none"]
try:
    cli.main("train", print)
except SystemExit as leaving:
    print(leaving.code, os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules)
"""
    assert shown_by(code) == "2 PASSIVE 1000 False"
    assert shown_by("import os; os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'" + code) == "2 ACTIVE 1000 False"


def test_a_wrong_word_on_the_command_line_does_not_wait_for_torch() -> None:
    assert shown_by("import sys, nelf.cli; print('torch' in sys.modules)") == "False"
