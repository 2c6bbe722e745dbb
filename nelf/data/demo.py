"""The built-in procedural scene."""

from pathlib import Path

SCENES = ("blocks",)


def write(root: Path, scene: str = "blocks", width: int = 200) -> None:
    """Write a built-in scene."""
    raise NotImplementedError
