"""Stage pseudo: the teacher's views from random poses, as a data set like any other."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nelf import paths
from nelf.cameras import Camera
from nelf.data import Scene, SceneWriter
from nelf.data.images import progress_bar
from nelf.data.writer import stated
from nelf.errors import UserError
from nelf.pipeline.fit import device
from nelf.pipeline.run import Run
from nelf.pipeline.stage import BATCHES, stage
from nelf.rendering import Renderable, Rendering
from nelf.scene import background_color

__all__ = ["check", "pseudo", "random_cameras", "write_views"]


def check(run: Run) -> None:
    """Refuse to render no views.

    Raises:
        UserError: names the key and what is allowed.
    """
    views = run.config["stage"]["pseudo"]["views"]
    if views < 1:
        raise UserError(f"stage.pseudo.views: is {views}; allowed: 1 or more.")


@stage(sections=("data", "seed"), inputs=("teacher",), without=BATCHES, check=check)
def pseudo(
    run: Run,
    *,
    views: int = 10_000,
    poses: Literal["hemisphere", "mobile_r2l", "r2l"] = "hemisphere",
) -> dict[str, Any]:
    """Render random views with the teacher into the stage's folder.

    Args:
        run: the run to write into.
        views: how many.
        poses: where from, see ``random_cameras``.

    Returns:
        ``views`` and ``bytes`` of the set.

    Raises:
        UserError: the directory cannot be written.
    """
    scene = run.data().scene
    cameras = random_cameras(scene, views, poses, run.config.get("seed", 0))
    network = run.load(run.input("teacher"), "teacher", device(run))
    root = write_views(network, cameras, run.folder("pseudo"), scene)
    return {"views": views, "bytes": sum(path.stat().st_size for path in (root / "train").glob("*.png"))}


def random_cameras(
    scene: Scene, n: int, poses: Literal["hemisphere", "mobile_r2l", "r2l"] = "hemisphere", seed: int = 0
) -> Camera:
    """Random cameras for a scene, of the size and the intrinsics of its training views.

    Args:
        scene: whose training cameras are followed.
        n: how many.
        poses: see ``nelf.paths.random_cameras``.
        seed: which set; the first m of n cameras do not depend on n.

    Returns:
        A batch of n cameras.
    """
    return paths.random_cameras(scene.train.camera, n, poses, seed)


def write_views(model: Renderable, cameras: Camera, root: Path | str, scene: Scene | None = None) -> Path:
    """Write a model's views as a Blender data set; those that are there whole are not rendered again.

    They have an alpha channel where the model's pictures have an opacity.

    One view is in memory at a time. Started by several processes (``RANK`` and ``WORLD_SIZE`` in the
    environment), each takes its share of the views and the last to finish writes the transforms file.

    Args:
        model: anything with ``render(camera)``.
        cameras: a batch of N cameras.
        root: the data set's directory.
        scene: whose box, background and license are noted in it.

    Returns:
        The directory.

    Raises:
        UserError: the directory cannot be written.
    """
    known: dict[str, Any] = {}
    if scene is not None:
        known = stated(scene)
    writer = SceneWriter(root, cameras, **known)
    background = background_color(known.get("background", "white"))
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    mine = [index for index in writer.missing() if index % world == rank]
    with progress_bar(f"rendering views (of {len(cameras)})", len(mine)) as progress:
        for index in mine:
            writer.write(index, _image(model.render(cameras[index]), background))
            progress.advance(progress.task_ids[0])
    if not writer.missing():
        writer.finish()
    return Path(root)


def _image(rendering: Rendering, background: Tensor) -> Tensor:
    """A picture to write: with alpha, color not premultiplied, where the model knows its opacity."""
    rgb = rendering.rgb
    if rendering.opacity is None:
        return rgb
    alpha = rendering.opacity[..., None].clamp(0.0, 1.0)
    own = (rgb - (1.0 - alpha) * background.to(rgb)) / alpha.clamp(min=1e-6)
    return torch.cat([own.clamp(0.0, 1.0), alpha], dim=-1)
