"""Stage pseudo: the teacher's views from random poses, as a data set like any other."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
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
from nelf.rendering import Renderable
from nelf.scene import background_color
from nelf.storage import described, save

__all__ = ["TEACHER", "check", "pseudo", "pseudo_cameras", "write_views"]


#: In the stage's folder, where its views are rendered online: the teacher.
TEACHER = "teacher.safetensors"

_NEAR = 30.0  # degrees, seen from what the cameras look at: so far a view tells what a student has to draw
_ROLL = 30.0  # degrees: less is a hand that is not steady


def check(recipe: Recipe) -> None:
    """Refuse a folder without views, and what cannot be rendered online.

    Raises:
        UserError: names the key and what is allowed.
    """
    options = recipe.config["stage"]["pseudo"]
    root = options["root"]
    if root is not None and not any(
        Path(root, name).is_file() for name in ("transforms_train.json", "transforms.json")
    ):
        raise UserError(f"stage.pseudo.root: {root} has no transforms_train.json; allowed: a Blender folder, or null.")
    if options["mode"] != "online":
        return
    if root is not None:
        raise UserError(f"stage.pseudo.mode: is online, but stage.pseudo.root={root} has views; allowed: stored.")
    workers = recipe.config["data"].get("num_workers", 0)
    if workers:
        raise UserError(
            f"data.num_workers: is {workers}, but with stage.pseudo.mode=online the process that trains renders; "
            "allowed: 0."
        )


@stage(sections=("data", "seed"), inputs=("teacher",), instead="root", without=BATCHES, check=check, spreads=True)
def pseudo(
    run: Run,
    *,
    views: Count = 10_000,
    poses: Poses | None = None,
    mode: Literal["stored", "online"] = "stored",
    pool: Count | None = 100,
    renew_every: Count = 8,
    root: str | None = None,
) -> dict[str, Any]:
    """Render random views with the teacher into the stage's folder, or take those that another program has rendered.

    Or render none: with ``mode="online"`` the teacher renders for each batch while the student learns, and this stage
    keeps a copy of it, ready to render. The student then sees other views as long as it learns, and no set is on disk.

    A NeRF is rendered through an occupancy grid, which is filled from its density. In a scene with a time each view is
    of a moment of its own.

    Args:
        run: the run to write into.
        views: how many; online, after how many a new set of random poses begins.
        poses: where from, see ``nelf.paths.random_cameras``; None for what the scene's trajectory says: ``hemisphere``
            for ``orbit``, ``forward``, or ``interpolate`` for ``between``.
        mode: ``stored`` or ``online``.
        pool: online, how many views are kept in memory, to draw batches from; None renders each batch by itself: views
            for a student of views, single rays, each of a random view, for one of rays.
        renew_every: online, batches from one new view of the pool to the next.
        root: a folder in the Blender format, of the scene and in its coordinates, whose training views take the place
            of the teacher's; there need not be a teacher then. It stays where it is.

    Returns:
        ``mode``, and ``views`` and ``bytes`` of the set; of a folder ``coverage``, too: the share of the scene's
        training cameras that have a view nearby.

    Raises:
        UserError: the directory cannot be written; the folder's views cannot be read, or are not of the scene; the
            cameras of the scene do not stand upright, but ``hemisphere`` cameras do.
    """
    recipe, scene = run.recipe, run.recipe.scene
    if root is not None:
        return agree(lambda: _take(Path(root), scene))
    cameras = pseudo_cameras(recipe, views, poses)
    teacher = run.input("teacher")
    config, network = described(teacher), recipe.load(teacher, "teacher", recipe.device)
    config, network = faster(network, config, scene.geometry) or (config, network)
    if mode == "online":
        agree(lambda: save(network, run.folder("pseudo") / TEACHER, config, scene.digest))
        return {"mode": mode, "views": views, "bytes": 0}
    folder = write_views(network, cameras, run.folder("pseudo"), scene)
    return {
        "mode": mode,
        "views": views,
        "bytes": sum(path.stat().st_size for path in (folder / "train").glob("*.png")),
    }


def pseudo_cameras(recipe: Recipe, views: int, poses: Poses | None, number: int = 0) -> Camera:
    """The cameras of a set of a teacher's views.

    Args:
        recipe: of whose scene.
        views: how many.
        poses: see ``pseudo``.
        number: which set; the first one is that which is stored.

    Returns:
        A batch of cameras.

    Raises:
        UserError: as ``pseudo``.
    """
    scene = recipe.scene
    roll = rolled(scene.train.camera)
    poses = FOLLOWING[scene.trajectory] if poses is None else poses
    if poses == "hemisphere" and roll > _ROLL:
        raise UserError(
            f"stage.pseudo.poses: is hemisphere, but the cameras of {scene.name} roll by {roll:.0f} degrees "
            "from upright; allowed: interpolate."
        )
    seed = recipe.seed if number == 0 else int(np.random.SeedSequence((recipe.seed, number)).generate_state(1)[0])
    return random_cameras(scene.train.camera, views, poses, seed)


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
            writer.write(index, model.render(cameras[index]).rgba(background))
            progress.advance(progress.task_ids[0])
    wait_for_all()
    agree(writer.finish)
    return Path(root)
