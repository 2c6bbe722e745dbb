"""Stage pseudo: the teacher's views from random poses, as a data set like any other."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nelf.cameras import Camera
from nelf.data import Scene, SceneWriter, with_pseudo_views
from nelf.data.images import progress_bar
from nelf.data.writer import stated
from nelf.errors import Count, UserError
from nelf.paths import FOLLOWING, Poses, random_cameras, rolled
from nelf.pipeline.processes import agree, rank, wait_for_all, world
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run
from nelf.pipeline.stage import BATCHES, stage
from nelf.pipeline.stages.given import faster
from nelf.rendering import Renderable, Rendering
from nelf.scene import background_color
from nelf.storage import described

__all__ = ["check", "pseudo", "write_views"]


_NEAR = 30.0  # degrees, seen from what the cameras look at: so far a view tells what a student has to draw
_ROLL = 30.0  # degrees: less is a hand that is not steady


def check(recipe: Recipe) -> None:
    """Refuse a folder without views.

    Raises:
        UserError: names the key and what is allowed.
    """
    root = recipe.config["stage"]["pseudo"]["root"]
    if root is not None and not any(
        Path(root, name).is_file() for name in ("transforms_train.json", "transforms.json")
    ):
        raise UserError(f"stage.pseudo.root: {root} has no transforms_train.json; allowed: a Blender folder, or null.")


@stage(sections=("data", "seed"), inputs=("teacher",), instead="root", without=BATCHES, check=check, spreads=True)
def pseudo(
    run: Run,
    *,
    views: Count = 10_000,
    poses: Poses | None = None,
    root: str | None = None,
) -> dict[str, Any]:
    """Render random views with the teacher into the stage's folder, or take those that another program has rendered.

    A NeRF is rendered through an occupancy grid, which is filled from its density. In a scene with a time each view is
    of a moment of its own.

    Args:
        run: the run to write into.
        views: how many.
        poses: where from, see ``nelf.paths.random_cameras``; None for what the scene's trajectory says: ``hemisphere``
            for ``orbit``, ``forward``, or ``interpolate`` for ``between``.
        root: a folder in the Blender format, of the scene and in its coordinates, whose training views take the place
            of the teacher's; there need not be a teacher then. It stays where it is.

    Returns:
        ``views`` and ``bytes`` of the set; of a folder ``coverage``, too: the share of the scene's training cameras
        that have a view nearby.

    Raises:
        UserError: the directory cannot be written; the folder's views cannot be read, or are not of the scene; the
            cameras of the scene do not stand upright, but ``hemisphere`` cameras do.
    """
    recipe, scene = run.recipe, run.recipe.scene
    if root is not None:
        return agree(lambda: _take(Path(root), scene))
    roll = rolled(scene.train.camera)
    poses = FOLLOWING[scene.trajectory] if poses is None else poses
    if poses == "hemisphere" and roll > _ROLL:
        raise UserError(
            f"stage.pseudo.poses: is hemisphere, but the cameras of {scene.name} roll by {roll:.0f} degrees "
            "from upright; allowed: interpolate."
        )
    cameras = random_cameras(scene.train.camera, views, poses, recipe.seed)
    network = recipe.load(run.input("teacher"), "teacher", recipe.device)
    quick = faster(network, described(run.input("teacher")), scene.geometry)
    network = network if quick is None else quick[1]
    folder = write_views(network, cameras, run.folder("pseudo"), scene)
    return {"views": views, "bytes": sum(path.stat().st_size for path in (folder / "train").glob("*.png"))}


def _take(root: Path, scene: Scene) -> dict[str, Any]:
    """Check somebody's views, and say what they are."""
    split = with_pseudo_views(scene, root, real_views=False).train
    center = torch.from_numpy(scene.viewpoints.target).float()
    angles = _nearest(scene.train.camera, split.camera, center)
    coverage = float((angles <= _NEAR).float().mean())
    print(f"pseudo: {len(split)} views of {root} take the place of the teacher's", flush=True)
    if coverage < 1.0:
        print(
            f"pseudo: {round((1 - coverage) * len(angles))} of {len(angles)} training cameras have no view within "
            f"{_NEAR:.0f} degrees, the farthest has {float(angles.max()):.0f}: expect worse pictures from there.",
            flush=True,
        )
    return {"views": len(split), "bytes": math.prod(split.images.shape), "coverage": coverage}


def _nearest(cameras: Camera, views: Camera, center: Tensor) -> Tensor:
    """The angle, in degrees and seen from a point, between each of N cameras and the nearest of M views: (N,)."""
    one, other = (normalize(each.c2w[:, :, 3] - center, dim=-1) for each in (cameras, views))
    return torch.rad2deg(torch.acos((one @ other.T).amax(1).clamp(-1.0, 1.0)))


def write_views(model: Renderable, cameras: Camera, root: Path | str, scene: Scene | None = None) -> Path:
    """Write a model's views as a Blender data set; those that are there whole are not rendered again.

    They have an alpha channel where the model's pictures have an opacity.

    One view is in memory at a time. Where there are several processes (``RANK`` and ``WORLD_SIZE`` in the environment),
    each takes its share of the views, and the first one writes the transforms file.

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
    mine = [index for index in writer.missing() if index % world() == rank()]
    with progress_bar(f"rendering views (of {len(cameras)})", len(mine)) as progress:
        for index in mine:
            writer.write(index, _image(model.render(cameras[index]), background))
            progress.advance(progress.task_ids[0])
    wait_for_all()
    agree(writer.finish)
    return Path(root)


def _image(rendering: Rendering, background: Tensor) -> Tensor:
    """A picture to write: with alpha, color not premultiplied, where the model knows its opacity."""
    rgb = rendering.rgb
    if rendering.opacity is None:
        return rgb
    alpha = rendering.opacity[..., None].clamp(0.0, 1.0)
    own = (rgb - (1.0 - alpha) * background.to(rgb)) / alpha.clamp(min=1e-6)
    return torch.cat([own.clamp(0.0, 1.0), alpha], dim=-1)
