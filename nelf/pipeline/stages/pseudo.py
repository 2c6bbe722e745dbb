"""Stage pseudo: the teacher's views from random poses, as a data set in the Blender format."""

import math
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
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


#: In the stage's folder, if views are rendered online: the teacher's weights.
TEACHER = "teacher.safetensors"

_ENCODERS = 8  # threads that write views, at most
_NEAR = 30.0  # degrees, seen from the point that the cameras look at: within this angle a pose counts as covered
_ROLL = 30.0  # degrees: a smaller roll is that of an unsteady hand


def check(recipe: Recipe) -> None:
    """Check the stage's options: a folder of views, and the requirements of online rendering.

    Raises:
        UserError: names the key and what is allowed.
    """
    options = recipe.config["stage"]["pseudo"]
    root = options.get("root")
    if root is not None and not any(
        Path(root, name).is_file() for name in ("transforms_train.json", "transforms.json")
    ):
        raise UserError(f"stage.pseudo.root: {root} has no transforms_train.json; allowed: a Blender folder, or null.")
    if options.get("mode") != "online":
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
    """Render random views with the teacher into the stage's folder, or use views that another program has rendered.

    With ``mode="online"``, this stage only stores a copy of the teacher, which renders views while the student trains:
    the student sees new views throughout its training, and no set is stored.

    A NeRF is rendered with an occupancy grid computed from its density. In a scene with a time, each view has its own
    random time.

    Args:
        run: the run to write into.
        views: number of views; online, number of random poses per round.
        poses: distribution of the poses, see ``nelf.paths.random_cameras``; None to choose by the scene's trajectory:
            ``hemisphere`` for ``orbit``, ``forward`` for ``forward``, ``interpolate`` for ``between``.
        mode: ``stored`` or ``online``.
        pool: online, number of views in memory from which batches are drawn; None renders each batch separately: whole
            views for a student of views, single rays of random views for a student of rays.
        renew_every: online, number of batches after which one view of the pool is replaced.
        root: a folder in the Blender format, of the same scene and coordinates, whose training views replace the
            teacher's; no teacher is needed then. It is read in place.

    Returns:
        ``mode``, ``views`` and ``bytes`` of the set; for a folder ``views``, ``bytes`` and ``coverage``, the share of
        the scene's training cameras that have a view nearby.

    Raises:
        UserError: the directory cannot be written; the folder's views cannot be read, or are not of the scene;
            ``hemisphere`` poses, which are upright, for a scene whose cameras are not.
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
    """The cameras of a pseudo set.

    Args:
        recipe: gives the scene and the seed.
        views: number of cameras.
        poses: see ``pseudo``.
        number: index of the set (online: of the round); set 0 is the stored one.

    Returns:
        A batch of cameras.

    Raises:
        UserError: see ``pseudo``.
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
    """Check the views of another program, and return their metrics."""
    split = with_pseudo_views(scene, root, real_views=False).train
    center = torch.from_numpy(scene.viewpoints.target).float()
    angles = _nearest(scene.train.camera, split.camera, center)
    coverage = float((angles <= _NEAR).float().mean())
    print(f"pseudo: {len(split)} views of {root} replace the teacher's", flush=True)
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
    """Write a model's views as a Blender data set; complete files are not rendered again.

    They have an alpha channel if the model renders opacity.

    Threads encode the views while the next ones are rendered; only a few are in memory. With several processes
    (``RANK`` and ``WORLD_SIZE`` in the environment), each renders its share of the views, and the first one writes the
    transforms file.

    Args:
        model: anything with ``render(camera)``.
        cameras: a batch of N cameras.
        root: the data set's directory.
        scene: gives depth range, box, controls, background and license for the transforms file.

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
    encoders = min(_ENCODERS, os.cpu_count() or 1)
    with (
        progress_bar(f"rendering views (of {len(cameras)})", len(mine)) as progress,
        ThreadPoolExecutor(encoders) as pool,
    ):
        written: deque[Future[Path]] = deque()

        def wait_for_one() -> None:
            written.popleft().result()
            progress.advance(progress.task_ids[0])

        try:
            for index in mine:
                image = model.render(cameras[index]).rgba(background)
                written.append(pool.submit(writer.write, index, image))
                if len(written) > encoders:
                    wait_for_one()
            while written:
                wait_for_one()
        except BaseException:  # including Ctrl-C
            pool.shutdown(cancel_futures=True)
            raise
    wait_for_all()
    agree(writer.finish)
    return Path(root)
