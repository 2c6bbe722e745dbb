"""The commands in README.md compose, and its two targets exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import nelf
from nelf.cli.sweeps import first_job

ROOT = Path(__file__).parents[1]


def commands() -> list[str]:
    """Lines of the fences that run one of the scripts, comments and continuation lines taken care of."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    fences = re.findall(r"^```(?:sh|bash|console|shell)?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(fences).replace("\\\n", " ").splitlines()
    scripts = r"(?:python \S*(?:train|distill)\.py|nelf-train|nelf-distill)\b"
    return [match[0] for line in lines if (match := re.search(scripts + ".*", line))]


@pytest.mark.parametrize(
    "line", commands() or [pytest.param("", marks=pytest.mark.skip("no commands in README.md yet"))]
)
def test_a_command_composes(line: str) -> None:
    words = shlex.split(line, comments=True)
    script = "train" if "train" in words[1 if words[0] == "python" else 0] else "distill"
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    assert nelf.config(script, first_job(overrides))


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
