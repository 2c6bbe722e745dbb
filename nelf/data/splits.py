"""Hold out views for validation and test, for captures whose files define no splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from nelf.cameras import Camera
from nelf.data.images import load_images
from nelf.errors import UserError
from nelf.scene import Split

__all__ = ["check_holdout", "held_out", "load_splits"]


def check_holdout(holdout: int) -> None:
    """Refuse to hold out so many views that none are left for training.

    Args:
        holdout: of every ``holdout`` views, the first is held out.

    Raises:
        UserError: it is below 2.
    """
    if holdout < 2:
        raise UserError(f"data.holdout: is {holdout}; allowed: 2 or more (of so many views, one is held out).")


def held_out(count: int, holdout: int) -> dict[str, list[int]]:
    """Assign views to training and test.

    Validation and test share the held-out views, as in NeRF's code and nerfstudio: a capture has few views, and
    published figures are those of models that were trained with all others.

    Args:
        count: number of views.
        holdout: of every ``holdout`` views, the first is held out.

    Returns:
        Indices of views by split: train and test. Train is empty if there is only one view.

    Example:
        >>> held_out(10, 8)
        {'train': [1, 2, 3, 4, 5, 6, 7, 9], 'test': [0, 8]}
    """
    return {"train": [view for view in range(count) if view % holdout], "test": list(range(0, count, holdout))}


def load_splits(
    root: Path, paths: Sequence[Path], camera: Camera, places: Mapping[str, list[int]], memory_limit: int
) -> dict[str, Split]:
    """Decode opaque photographs; training views get their index as ``view``.

    Args:
        root: the capture's directory.
        paths: N image files in it.
        camera: a batch of N cameras, at the size to which the images are downsampled.
        places: indices of views by split, see ``held_out``.
        memory_limit: bytes of images of one split above which they are memory-mapped.

    Returns:
        The splits by name; val is the same as test.
    """
    splits = {}
    for name, chosen in places.items():
        files = [paths[place] for place in chosen]
        text = f"reading {name} views of {root.resolve().name}"
        images = load_images(files, camera.width, camera.height, 3, root, text, memory_limit)
        names = [path.relative_to(root).with_suffix("").as_posix() for path in files]
        splits[name] = Split(camera[torch.tensor(chosen)], images, names)
    return {**splits, "train": splits["train"].numbered(), "val": splits["test"]}
