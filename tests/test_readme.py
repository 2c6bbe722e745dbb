"""What README.md and the pages of docs/ say can be done: commands compose, links lead somewhere, Python compiles."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

import nelf
from nelf.cli.sweeps import first_job

ROOT = Path(__file__).parents[1]
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if path.is_file()]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def fences(path: Path, *languages: str) -> list[str]:
    """The code blocks of a page that are in one of some languages."""
    words = "|".join(languages)
    return re.findall(rf"^```(?:{words})\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Lines of the pages that run one of the scripts, comments and continuation lines taken care of."""
    blocks = [block for path in PAGES for block in fences(path, "sh", "bash", "console", "shell", "")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    scripts = r"(?:python \S*(?:train|distill)\.py|nelf-train|nelf-distill)\b"
    found = [match[0] for line in lines if (match := re.search(scripts + ".*", line))]
    return list(dict.fromkeys(line for line in found if "--config-dir" not in line))


def imports(code: str) -> list[tuple[str, str]]:
    """What a piece of Python takes from nelf: module and name."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    taken = [(str(node.module), name.name) for node in nodes for name in node.names]
    return [(module, name) for module, name in taken if module.startswith("nelf")]


@pytest.mark.parametrize("line", commands() or [pytest.param("", marks=pytest.mark.skip("no pages here"))])
def test_a_command_composes(line: str) -> None:
    words = shlex.split(line, comments=True)
    script = "train" if "train" in words[1 if words[0] == "python" else 0] else "distill"
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    assert nelf.config(script, first_job(overrides))


@pytest.mark.parametrize("target", ["demo", "test", "docs", "baselines"])
def test_the_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    made = {"configuration.md", "api.md"}  # when the site is built
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if re.match(r"\w+:", link):
            continue
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.name in made or target.is_file(), f"{link}: there is no such file"
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", words.lower()).replace(" ", "-") for words in headings]
            assert heading in anchors, f"{link}: there is no such heading"


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_python_compiles_and_its_imports_exist(path: Path) -> None:
    for code in fences(path, "python"):
        for module, name in imports(code):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


@pytest.mark.skipif("docs/papers.md" not in NAMES, reason="no pages here")
def test_the_code_of_each_paper_exists() -> None:
    named = re.findall(r"`(nelf\.[\w.]+)`", (ROOT / "docs/papers.md").read_text(encoding="utf-8"))
    assert named
    for place in named:
        module, _, name = place.rpartition(".")
        is_module = (ROOT / f"{place.replace('.', '/')}.py").is_file()
        assert is_module or hasattr(importlib.import_module(module), name), f"{place} does not exist"
