"""Compile the kernels of the page: ``python nelf/viewer/kernels/build.py``, after ``pip install ziglang==0.17.1``.

Writes ``page/kernels.wasm``, which is part of the source tree so that nobody else needs a compiler, and the checksums
of it and of what it was made of, so that they cannot drift apart.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE.parent / "page" / "kernels.wasm"
SUMS = HERE / "SHA256SUMS"
COMMAND = [
    *("-m", "ziglang", "cc", "-target", "wasm32-freestanding", "-O3", "-msimd128", "-mbulk-memory", "-nostdlib"),
    *("-Wall", "-Wextra", "-Werror", "-fno-math-errno"),
    # Memory is the page's; it begins with 16 KiB of stack, and what lies behind __heap_base is free.
    *("-Wl,--no-entry", "-Wl,--import-memory", "-Wl,-z,stack-size=16384", "-Wl,--export=__heap_base"),
    "-Wl,--strip-all",
]


def compile_to(path: Path) -> None:
    """Compile all ``*.c`` beside this file."""
    subprocess.run([sys.executable, *COMMAND, "-o", path, *sorted(HERE.glob("*.c"))], check=True)


def checksums() -> str:
    """What ``sha256sum`` prints of the sources, this file and the result, from their folder."""
    names = [path.name for path in sorted(HERE.iterdir()) if path.suffix in (".c", ".h", ".py")]
    digests = {
        name: hashlib.sha256((HERE / name).read_bytes()).hexdigest() for name in [*names, "../page/kernels.wasm"]
    }
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


if __name__ == "__main__":
    compile_to(OUT)
    SUMS.write_text(checksums())
