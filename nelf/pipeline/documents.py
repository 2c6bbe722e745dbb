"""The small files of a run directory: JSON and YAML, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from nelf.errors import UserError, atomic_path, lies_in

__all__ = ["hash_of", "read_artifacts", "read_json", "read_yaml", "write_json", "write_yaml"]


def hash_of(settings: Any) -> str:
    """16 hex digits of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where there is no whole one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_artifacts(folder: Path) -> list[dict[str, Any]]:
    """The files that a stage has noted in its ``artifacts.json``; none where there is no such list.

    Raises:
        UserError: it lists something else, or files elsewhere.
    """
    path, listed = folder / "artifacts.json", read_json(folder / "artifacts.json")
    for each in listed if isinstance(listed, list) else [] if listed is None else [None]:
        if not isinstance(each, dict) or not isinstance(each.get("name"), str) or not lies_in(folder, each.get("file")):
            raise UserError(f"{path}: lists {each!r}; allowed: artifacts with a name, and a file beside it.")
    return listed or []


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, or None where there is none.

    Raises:
        UserError: it is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not a YAML file ({' '.join(str(error).split())[:120]}).") from None


def write_yaml(path: Path, content: Any) -> None:
    """Write plain values as YAML, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
