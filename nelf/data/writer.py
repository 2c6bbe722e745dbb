"""Write scenes in the Blender format, which nelf's own reader and every other NeRF tool reads.

Files are written atomically, so an incomplete image or transforms file is never read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nelf.cameras import Camera
from nelf.data.lenses import COEFFICIENTS
from nelf.errors import UserError, atomic_path
from nelf.scene import Scene, Split

__all__ = ["SceneWriter", "write_scene"]

_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"IEND\xaeB`\x82"


class SceneWriter:
    """Write the views of one split one by one, in any order, by any number of processes, over several runs.

    View ``i`` is ``SPLIT/0000i.png``, where ``i`` is its index in ``camera``. The transforms file lists the complete
    views on disk, so a set can be read while it grows. Existing views are recognized by name and size only, so a
    directory must be used with one set of cameras.

    Args:
        root: the scene's directory; created if it does not exist.
        camera: a batch of all N cameras.
        split: ``train``, ``val`` or ``test``.
        aabb: the scene's box, (6,) numbers, smallest xyz, largest xyz.
        near: smallest z-depth ``t`` of the scene.
        far: largest z-depth.
        controls: names of the cameras' controls, the time first; None for generated names.
        background: name of the background of the views.
        license: license of the images.

    Raises:
        ValueError: the cameras have a lens with skew, which the format does not have.
        UserError: the directory cannot be created.

    Example:
        A loop that can be killed and started again (one of several processes takes ``missing()[rank::world]``):

        >>> writer = SceneWriter("runs/pseudo", camera)               # doctest: +SKIP
        >>> for i in writer.missing():                                # doctest: +SKIP
        ...     writer.write(i, teacher.render(camera[i]).rgb)
        >>> writer.finish()                                           # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | Path,
        camera: Camera,
        split: str = "train",
        *,
        aabb: Any = None,
        near: float | None = None,
        far: float | None = None,
        controls: Sequence[str] | None = None,
        background: str = "white",
        license: str | None = None,
    ) -> None:
        if camera.lens is not None and camera.lens[..., 5].any():
            raise ValueError("Expected cameras without skew, but got cameras with it; see `Camera.pinhole`.")
        self.root, self.camera, self.split = Path(root), camera, split
        count = 0 if camera.controls is None else camera.controls.shape[-1]
        names = [f"control_{index}" for index in range(count)] if controls is None else list(controls)[:count]
        rational = camera.lens is not None and camera.lens.shape[-1] > 6
        self._header: dict[str, Any] = {
            "camera_model": None if camera.lens is None else "FULL_OPENCV" if rational else "OPENCV",
            "aabb": None if aabb is None else [float(value) for value in aabb],
            "near": near,
            "far": far,
            "controls": list(names[1:]) or None,
            "background": background,
            "license": license,
        }
        try:
            (self.root / split).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.root}: cannot be written ({error.strerror}).") from None

    def path(self, index: int) -> Path:
        """The file of view ``index``."""
        return self.root / self.split / f"{index:05d}.png"

    def exists(self, index: int) -> bool:
        """Whether view ``index`` is on disk, complete and of the right size."""
        try:
            with self.path(index).open("rb") as file:
                head = file.read(24)
                file.seek(-len(_PNG_END), 2)
                tail = file.read()
        except OSError:
            return False
        size = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        return head[:16] == _PNG_START and tail == _PNG_END and size == (self.camera.width, self.camera.height)

    def missing(self) -> list[int]:
        """Indices of the views that have not been written yet."""
        return [index for index in range(len(self.camera)) if not self.exists(index)]

    def write(self, index: int, image: Any) -> Path:
        """Write one view.

        Args:
            index: its index in ``camera``.
            image: (H, W, 3|4) tensor or array, uint8, or floats in [0, 1] that are clamped and rounded to
                nearest; alpha not premultiplied.

        Returns:
            The file.

        Raises:
            ValueError: the image has another size than the camera.
            UserError: the directory is read-only or full.
        """
        pixels = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
        size = (self.camera.height, self.camera.width)
        if pixels.ndim != 3 or pixels.shape[:2] != size or pixels.shape[2] not in (3, 4):
            raise ValueError(f"Expected `image` of shape {(*size, 3)} or {(*size, 4)}, but got {pixels.shape}.")
        if pixels.dtype != np.uint8:
            pixels = (pixels.astype(np.float32).clip(0, 1) * 255 + 0.5).astype(np.uint8)
        path = self.path(index)
        with atomic_path(path) as partial:
            Image.fromarray(pixels).save(partial, format="PNG", compress_level=3)
        return path

    def write_index(self) -> Path:
        """Write the transforms file, which lists the views on disk.

        Returns:
            ``root/transforms_SPLIT.json``.
        """
        frames = [self._frame(index) for index in range(len(self.camera)) if self.exists(index)]
        path = self.root / f"transforms_{self.split}.json"
        content = {key: value for key, value in self._header.items() if value is not None}
        with atomic_path(path) as partial:
            partial.write_text(json.dumps({**content, "frames": frames}, indent=1), encoding="utf-8")
        return path

    def finish(self) -> Path:
        """Write the transforms file of the complete set.

        Returns:
            ``root/transforms_SPLIT.json``.

        Raises:
            UserError: a view is missing.
        """
        missing = self.missing()
        if missing:
            raise UserError(
                f"{self.root}: {len(missing)} of {len(self.camera)} {self.split} views are missing, "
                f"the first is {self.path(missing[0]).name}; write them first."
            )
        return self.write_index()

    def _frame(self, index: int) -> dict[str, Any]:
        """The entry of one view. A float32 written as a double is read back exactly."""
        camera = self.camera[index]
        fl_x, fl_y, cx, cy = camera.intrinsics.tolist()
        frame: dict[str, Any] = {
            "file_path": f"./{self.split}/{self.path(index).name}",
            "transform_matrix": [*camera.c2w.tolist(), [0.0, 0.0, 0.0, 1.0]],
            "fl_x": fl_x,
            "fl_y": fl_y,
            "cx": cx,
            "cy": cy,
            "w": camera.width,
            "h": camera.height,
        }
        if camera.lens is not None:
            frame |= {
                key: value for key, value in zip(COEFFICIENTS, camera.lens.tolist(), strict=False) if key != "skew"
            }
        if camera.controls is not None:
            frame["time"], *further = camera.controls.tolist()
            frame |= {"controls": further} if further else {}
        return frame


def stated(scene: Scene) -> dict[str, Any]:
    """Arguments of ``SceneWriter`` that describe a scene.

    A box in NDC is left out, since the format has no NDC.
    """
    known = ["near", "far", "controls", "background", "license"]
    if scene.train.camera.ndc is None:
        known.append("aabb")
    return {key: getattr(scene, key) for key in known}


def write_scene(root: str | Path, scene: Scene) -> Path:
    """Write a whole scene; reading it returns the same poses, intrinsics, lenses, times and images, bit for bit.

    Args:
        root: the directory to write.
        scene: what to write.

    Returns:
        The directory.

    Raises:
        ValueError: its cameras have a lens with skew, or its views have masks.
        UserError: the directory cannot be written.
    """
    splits: dict[str, Split] = {"test": scene.test, "val": scene.val, "train": scene.train}
    for name, split in splits.items():
        if split.masks is not None:
            raise ValueError(f"Expected views without masks, but got {name} views with them.")
        writer = SceneWriter(root, split.camera, name, **stated(scene))
        for index in range(len(split)):
            writer.write(index, split.images[index])
        writer.finish()
    return Path(root)
