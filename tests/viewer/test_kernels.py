"""The compiled kernels of the page are those of the sources beside them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import runpy
from pathlib import Path

import pytest

import nelf.viewer

KERNELS = Path(nelf.viewer.__file__).parent / "kernels"
BUILD = runpy.run_path(str(KERNELS / "build.py"))


def test_what_is_compiled_is_what_the_sources_say() -> None:
    """Whoever changes one of them runs build.py."""
    noted = (KERNELS / "SHA256SUMS").read_text()
    assert noted == BUILD["checksums"](), "run python nelf/viewer/kernels/build.py"
    names = [line.split("  ")[1] for line in noted.splitlines()]
    sources = [path.name for path in KERNELS.iterdir() if path.suffix in (".c", ".h")]
    assert {*sources, "build.py", "../page/kernels.wasm"} == set(names)


def test_the_sources_compile_to_the_same_file(tmp_path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed, which compiles the kernels")
    version = importlib.metadata.version("ziglang")
    if f"ziglang=={version}" not in (KERNELS / "build.py").read_text():
        pytest.skip(f"the kernels are compiled by another ziglang than {version}")
    BUILD["compile_to"](tmp_path / "kernels.wasm")
    assert (tmp_path / "kernels.wasm").read_bytes() == BUILD["OUT"].read_bytes()
