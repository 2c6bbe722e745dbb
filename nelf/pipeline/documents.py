"""The small JSON and YAML files of a run directory, written atomically."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from nelf import files
from nelf.errors import UserError, atomic_path, lies_in
from nelf.files import quoted, short

__all__ = [
    "hash_of",
    "read_artifacts",
    "read_done",
    "read_json",
    "read_record",
    "read_settings",
    "read_yaml",
    "write_json",
    "write_yaml",
]

_MENDED = "a whole file as nelf writes it, or none: delete it"
_FIGURES = ("bytes", "sparsity", "max_abs_error")  # of an artifact; each is optional
_MOST_BYTES, _MOST_VALUES = 2**20, 2**17  # of a YAML file
_TOLD: set[Path] = set()  # damaged files that have been reported


def hash_of(settings: Any) -> str:
    """A hash of plain values, 16 hex digits, independent of the order of keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where there is no such file.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_symlink() and not path.exists():
        return None
    return files.read_json(path, _MENDED)


def read_record(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict | None):
        raise UserError(f"{path}: holds a {type(content).__name__}; allowed: {_MENDED}.")
    return content


def read_done(folder: Path) -> dict[str, Any]:
    """The content of a finished stage's ``done.json``; an empty dict if it has not finished.

    A damaged file counts as missing, and a line says so: the file may be incomplete after a machine crashed.
    """
    path = folder / "done.json"
    try:
        done = read_record(path) or {}
        if not isinstance(done.get("inputs", {}), dict) or not isinstance(done.get("mark", ""), str):
            raise UserError(f"{path}: holds something else than marks.")
    except UserError as error:
        if path not in _TOLD:
            print(f"{error} The stage counts as not done.", flush=True)
            _TOLD.add(path)
        return {}
    return done


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_artifacts(folder: Path) -> list[dict[str, Any]]:
    """The files that a stage lists in its ``artifacts.json``; an empty list if there is no such file.

    Raises:
        UserError: it lists something else, or files outside the folder.
    """
    path, listed = folder / "artifacts.json", read_json(folder / "artifacts.json")
    for each in listed if isinstance(listed, list) else [] if listed is None else [None]:
        if not _is_artifact(folder, each):
            words = f"allowed: artifacts with a name, and a file beside it; numbers for {', '.join(_FIGURES)}"
            raise UserError(f"{path}: lists {quoted(each)}; {words}.")
    names = [each["name"] for each in listed or []]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: lists two artifacts of one name; allowed: each once.")
    return listed or []


def _is_artifact(folder: Path, each: Any) -> bool:
    return (
        isinstance(each, dict)
        and isinstance(each.get("name"), str)
        and lies_in(folder, each.get("file"))
        and all(isinstance(each.get(key), int | float | None) for key in _FIGURES)
    )


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, or None where there is none.

    Raises:
        UserError: it is not YAML, is too large, or holds more than plain values.
    """
    if not path.is_symlink() and not path.exists():
        return None
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: is no file, or has more than {_MOST_BYTES} bytes; allowed: {_MENDED}.")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, OSError) as error:
        raise UserError(f"{path}: is not a YAML file ({short(' '.join(str(error).split()))}).") from None
    _check_plain(path, content)
    return content


def read_settings(path: Path) -> dict[str, Any] | None:
    """A mapping in a YAML file, or None where there is no such file.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    content = read_yaml(path)
    if not isinstance(content, dict | None):
        raise UserError(f"{path}: holds a {type(content).__name__}; allowed: keys and values. Delete it.")
    return content


def _check_plain(path: Path, content: Any) -> None:
    """Refuse anything but plain values, and too many of them: with aliases, a few lines can expand to millions."""
    left, values = [content], 0
    while left:
        value = left.pop()
        values += 1
        if values > _MOST_VALUES:
            raise UserError(f"{path}: stands for more than {_MOST_VALUES} values; allowed: {_MENDED}.")
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        elif not isinstance(value, str | int | float | None):
            raise UserError(f"{path}: holds {quoted(value)}; allowed: texts, numbers, lists and keys with values.")


def write_yaml(path: Path, content: Any) -> None:
    """Write plain values as YAML, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
