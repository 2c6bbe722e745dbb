"""A record of the files that a stage has finished, so that a killed stage resumes after the last one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nelf.errors import UserError, lies_in
from nelf.pipeline.documents import read_record, write_json

__all__ = ["Journal"]


class Journal:
    """A file, beside a stage's files, that lists which of them are finished.

    Args:
        path: the journal's file, in the folder of the stage's files.
        fingerprint: of everything that the files depend on, ``Run.fingerprint``; a journal with another is ignored.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint
        noted = None
        with suppress(UserError):  # a damaged journal is ignored
            noted = read_record(path)
        known = noted is not None and noted.get("fingerprint") == fingerprint and isinstance(noted.get("made"), dict)
        self._made: dict[str, Any] = noted["made"] if noted is not None and known else {}

    def recall(self, key: str) -> Any:
        """The value that was noted under a key, if its files are unchanged; else None."""
        noted = self._made.get(key)
        folder = self._path.parent
        if not isinstance(noted, dict) or "value" not in noted or not isinstance(noted.get("files"), dict):
            return None
        if not all(lies_in(folder, file) for file in noted["files"]):
            return None
        whole = all(_digest(folder / file) == digest for file, digest in noted["files"].items())
        return noted["value"] if whole else None

    def note(self, key: str, value: Any, files: Sequence[str]) -> None:
        """Note that files are finished.

        Args:
            key: any word.
            value: plain values that ``recall`` returns.
            files: their names, in the journal's folder.

        Raises:
            UserError: the directory cannot be written.
        """
        self._made[key] = {"value": value, "files": {file: _digest(self._path.parent / file) for file in files}}
        write_json(self._path, {"fingerprint": self._fingerprint, "made": self._made})

    def close(self) -> None:
        """Delete the journal, at the end of the stage."""
        self._path.unlink(missing_ok=True)


def _digest(path: Path) -> str | None:
    """The hash of a file, or of all files in a folder; None if it does not exist."""
    if path.is_dir():
        state = hashlib.sha256()
        for inner in sorted(path.rglob("*")):
            state.update(f"{inner.relative_to(path)} {_digest(inner) if inner.is_file() else ''}\n".encode())
        return state.hexdigest()
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
