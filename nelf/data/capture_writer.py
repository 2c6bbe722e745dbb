"""Write captures in the format of Nerfies and HyperNeRF; see ``nelf.data.capture`` for its conventions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nelf.cameras import Camera
from nelf.data.capture import Space
from nelf.data.images import area_average, for_each

__all__ = ["write_capture"]


def write_capture(
    root: Path,
    camera: Camera,
    draw: Callable[[int], np.ndarray],
    metadata: Mapping[str, Mapping[str, int]],
    splits: Mapping[str, Sequence[str]],
    space: Space,
    points: np.ndarray | None = None,
    paths: Mapping[str, Camera] | None = None,
    image_scales: Sequence[int] = (1,),
) -> None:
    """Write a capture.

    Args:
        root: the directory.
        camera: a batch of N cameras of all images, in units of the files.
        draw: returns image ``index``, (H, W, 3) uint8; called from several threads.
        metadata: the entries of ``metadata.json`` by id, N in the order of the cameras.
        splits: ``train_ids`` and ``val_ids``.
        space: the transform from the files' coordinates to the scene's.
        points: (P, 3) background points in units of the files.
        paths: cameras of camera paths for novel views, by name.
        image_scales: factors by which the written images are smaller, each a divisor of width and height.

    Raises:
        ValueError: a lens has one of the coefficients ``k4`` to ``k6``, which the format does not have.
    """
    for cameras in (camera, *(paths or {}).values()):
        if cameras.lens is not None and cameras.lens[..., 6:].any():
            raise ValueError("Expected cameras without `k4`, `k5` and `k6`, but got cameras with them.")
    ids = list(metadata)
    for folder in ("camera", *(f"rgb/{scale}x" for scale in image_scales)):
        (root / folder).mkdir(parents=True, exist_ok=True)
    about = {"count": len(ids), "num_exemplars": len(splits["train_ids"]), "ids": ids, **splits}
    _write(root / "dataset.json", about)
    _write(root / "metadata.json", metadata)
    _write(root / "scene.json", {**vars(space), "center": space.center.tolist()})
    if points is not None:
        np.save(root / "points.npy", points)
    for index, each in enumerate(ids):
        _write(root / "camera" / f"{each}.json", _stated(camera[index]))
    for name, path in (paths or {}).items():
        (root / "camera-paths" / name).mkdir(parents=True)
        for index in range(len(path)):
            _write(root / "camera-paths" / name / f"{index:06d}.json", _stated(path[index]))

    def write_image(index: int) -> None:
        image = draw(index)
        for scale in image_scales:
            small = area_average(image, camera.width // scale, camera.height // scale)
            Image.fromarray(small).save(root / "rgb" / f"{scale}x" / f"{ids[index]}.png")

    for_each(len(ids), write_image, f"writing {len(ids)} views to {root}")


def _stated(camera: Camera) -> dict[str, Any]:
    """The content of the file of one camera."""
    fx, fy, cx, cy = camera.intrinsics.double().tolist()
    k1, k2, k3, p1, p2, skew = [0.0] * 6 if camera.lens is None else camera.lens[:6].double().tolist()
    c2w = camera.c2w.double().numpy()
    return {
        "orientation": (c2w[:, :3] * [1, -1, -1]).T.tolist(),
        "position": c2w[:, 3].tolist(),
        "focal_length": fx,
        "principal_point": [cx, cy],
        "skew": skew,
        "pixel_aspect_ratio": fy / fx,
        "radial_distortion": [k1, k2, k3],
        "tangential_distortion": [p1, p2],
        "image_size": [camera.width, camera.height],
    }


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
