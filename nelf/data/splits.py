"""Views that are held out of one list of them, for captures whose files name no splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nelf.cameras import Camera
from nelf.data.images import load_images
from nelf.errors import UserError
from nelf.scene import Split

__all__ = ["check_holdout", "held_out", "load_splits"]

_PLACES = {"test": 0, "val": 1}  # in each run of ``holdout`` views


def check_holdout(holdout: int) -> None:
    """Refuse to hold out so many views that none are left.

    Args:
        holdout: of every so many views one is held out for each of test and val.

    Raises:
        UserError: it is below 3.
    """
    if holdout < 3:
        raise UserError(f"data.holdout: is {holdout}; allowed: 3 or more (one test, one val, the rest train).")


def held_out(count: int, holdout: int, names: Sequence[str] = ("test", "val")) -> dict[str, list[int]]:
    """Which views are held out, and which are left to train on.

    Args:
        count: of the views.
        holdout: of every so many views, the first is for test and the second for val.
        names: those of the two that are held out.

    Returns:
        Places by the names of the splits; some may be empty where there are few views.

    Example:
        >>> held_out(10, 8)
        {'test': [0, 8], 'val': [1, 9], 'train': [2, 3, 4, 5, 6, 7]}
    """
    places = {_PLACES[name]: name for name in names}
    found: dict[str, list[int]] = {name: [] for name in (*names, "train")}
    for view in range(count):
        found[places.get(view % holdout, "train")].append(view)
    return found


def load_splits(
    root: Path, paths: Sequence[Path], camera: Camera, places: dict[str, list[int]], memory_limit: int
) -> dict[str, Split]:
    """Decode opaque photographs; the training views are numbered.

    Args:
        root: the capture's directory.
        paths: of N images in it.
        camera: a batch of N cameras, of the size that the images are reduced to.
        places: which belong to each split, see ``held_out``.
        memory_limit: bytes of images that one split may take in RAM before it is memory-mapped.

    Returns:
        The splits by their names.
    """
    splits = {}
    for name, chosen in places.items():
        files = [paths[place] for place in chosen]
        text = f"reading {name} views of {root.resolve().name}"
        images = load_images(files, camera.width, camera.height, 3, root, text, memory_limit)
        names = [path.relative_to(root).with_suffix("").as_posix() for path in files]
        splits[name] = Split(camera[torch.tensor(chosen)], images, names)
    return {**splits, "train": splits["train"].numbered()}
