"""Hold out views for validation and test, for captures whose files define no splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nelf.cameras import Camera
from nelf.data.images import load_images
from nelf.errors import UserError
from nelf.scene import Split

__all__ = ["check_holdout", "held_out", "load_splits"]

_PLACES = {"test": 0, "val": 1}  # index in each group of ``holdout`` views


def check_holdout(holdout: int) -> None:
    """Refuse to hold out so many views that none are left for training.

    Args:
        holdout: of every ``holdout`` views, one each is held out for test and val.

    Raises:
        UserError: it is below 3.
    """
    if holdout < 3:
        raise UserError(f"data.holdout: is {holdout}; allowed: 3 or more (one test, one val, the rest train).")


def held_out(count: int, holdout: int, names: Sequence[str] = ("test", "val")) -> dict[str, list[int]]:
    """Assign views to the splits.

    Args:
        count: number of views.
        holdout: of every ``holdout`` views, the first is for test and the second for val.
        names: the splits that are held out, of these two.

    Returns:
        Indices of views by split; a split may be empty if there are few views.

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
    """Decode opaque photographs; training views get their index as ``view``.

    Args:
        root: the capture's directory.
        paths: N image files in it.
        camera: a batch of N cameras, at the size to which the images are downsampled.
        places: indices of views by split, see ``held_out``.
        memory_limit: bytes of images of one split above which they are memory-mapped.

    Returns:
        The splits by name.
    """
    splits = {}
    for name, chosen in places.items():
        files = [paths[place] for place in chosen]
        text = f"reading {name} views of {root.resolve().name}"
        images = load_images(files, camera.width, camera.height, 3, root, text, memory_limit)
        names = [path.relative_to(root).with_suffix("").as_posix() for path in files]
        splits[name] = Split(camera[torch.tensor(chosen)], images, names)
    return {**splits, "train": splits["train"].numbered()}
