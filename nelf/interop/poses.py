"""Poses for other programs: what distillation wants rendered, as a Blender transforms file without pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from nelf.cameras import Camera
from nelf.errors import atomic_path

__all__ = ["write_poses"]


def write_poses(camera: Camera, path: Path | str, **known: Any) -> Path:
    """Write a transforms file that names the pictures to render.

    Rendered beside it as ``train/00000.png`` and so on, the file, named ``transforms_train.json``, is a pseudo set.

    Args:
        camera: a batch of N cameras.
        path: the file.
        **known: what ``nelf.data.writer.stated`` says of their scene.

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
    header["camera_angle_x"] = frames[0]["camera_angle_x"]  # where all are alike, what other programs look for
    content = {key: value for key, value in header.items() if value is not None}
    with atomic_path(path) as partial:
        partial.write_text(json.dumps({**content, "frames": frames}, indent=1), encoding="utf-8")
    return Path(path)
