"""Poses for other programs to render: a Blender transforms file without images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from nelf.cameras import Camera
from nelf.errors import atomic_path

__all__ = ["write_poses"]


def write_poses(camera: Camera, path: Path | str, **known: Any) -> Path:
    """Write a transforms file that names the images to render.

    With the images rendered as ``train/00000.png`` and so on beside it, and named ``transforms_train.json``, it forms a
    pseudo set.

    Args:
        camera: a batch of N cameras.
        path: the file.
        **known: properties of their scene, from ``nelf.data.writer.stated``.

    Returns:
        The file.

    Raises:
        UserError: the directory cannot be written.
    """
    frames = []
    for index in range(len(camera)):
        each = camera[index]
        fl_x, fl_y, cx, cy = each.intrinsics.tolist()
        frame = {
            "file_path": f"./train/{index:05d}.png",
            "transform_matrix": [*each.c2w.tolist(), [0.0, 0.0, 0.0, 1.0]],
            "camera_angle_x": 2 * math.atan(0.5 * each.width / fl_x),
            **{"fl_x": fl_x, "fl_y": fl_y, "cx": cx, "cy": cy, "w": each.width, "h": each.height},
        }
        if each.controls is not None:
            frame["time"], *further = each.controls.tolist()
            frame |= {"controls": further} if further else {}
        frames.append(frame)
    aabb = known.pop("aabb", None)
    header = {"aabb": None if aabb is None else [float(value) for value in aabb], **known}
    header["controls"] = list(header.get("controls") or ())[1:] or None
    header["camera_angle_x"] = frames[0]["camera_angle_x"]  # for programs that expect it at the top level
    content = {key: value for key, value in header.items() if value is not None}
    with atomic_path(path) as partial:
        partial.write_text(json.dumps({**content, "frames": frames}, indent=1), encoding="utf-8")
    return Path(path)
