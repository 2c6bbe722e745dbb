"""Somebody's own data set, radiance field, light field and stage: none of nelf is changed for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nelf import paths
from nelf.cameras import Camera
from nelf.data import SceneDataModule, Split
from nelf.fields import RadianceField, StratifiedSampler
from nelf.lightfields import LightField
from nelf.pipeline.documents import write_json
from nelf.pipeline.run import Run
from nelf.pipeline.stage import stage
from nelf.rays import Rays
from nelf.scene import Scene
from nelf.storage import save


def ball(rays: Rays) -> Tensor:
    """A white unit ball, (..., 4)."""
    along = (rays.origins * rays.viewdirs).sum(-1, keepdim=True)
    hit = ((rays.origins - along * rays.viewdirs).norm(dim=-1, keepdim=True) < 1.0).float()
    return hit.expand(*hit.shape[:-1], 4)


class ToyData(SceneDataModule):
    """A file with the number of views, and views that are made from it."""

    def __init__(self, root: str, *, width: int | None = None, background: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.width, self.background = Path(root), width or 16, background

    def read(self) -> Scene:
        count = json.loads((self.root / "toy.json").read_text())["views"]

        def split(name: str, elevation: float) -> Split:
            camera = Camera.from_fov(paths.orbit(count, 4.0, elevation), 0.8, self.width, self.width)
            images = (ball(camera.rays()) * 255).byte().numpy()
            return Split(camera, images, [f"{name}_{index}" for index in range(count)])

        splits = {"train": split("train", 30.0), "val": split("val", 10.0), "test": split("test", -20.0)}
        box = torch.tensor([-1.2, -1.2, -1.2, 1.2, 1.2, 1.2])
        background = self.background or "black"
        return Scene("toy", self.root, **splits, aabb=box, near=2.0, far=6.0, background=background, digest="toy")


class ToyField(RadianceField):
    """A ball whose brightness is learned."""

    def __init__(self, samples: int = 32) -> None:
        super().__init__(StratifiedSampler(samples))
        self.brightness = nn.Parameter(torch.zeros(()))

    def density(self, positions: Tensor, controls: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (self.to_scene(positions).norm(dim=-1) < 1.0) * 1e3, positions

    def color(self, features: Tensor, viewdirs: Tensor, view: Tensor | None = None) -> Tensor:
        return torch.sigmoid(self.brightness).expand(len(features), 3)


class ToyLightField(LightField):
    """One convolution over where the rays begin and go."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.net = nn.Conv2d(6, 3, kernel, padding=kernel // 2)

    def forward(self, rays: Rays) -> Tensor:
        seen = torch.cat([rays.origins, rays.directions], -1).movedim(-1, 1)
        return torch.sigmoid(self.net(seen)).movedim(1, -1)


@stage(sections=("data", "model"), inputs=("student",))
def halve(run: Run, *, factor: float = 0.5) -> dict[str, Any]:
    """Make the student's weights smaller, and list what that gives."""
    network, folder = run.recipe.load(run.input("student")), run.folder("halve")
    with torch.no_grad():
        for values in network.parameters():
            values.mul_(factor)
    save(network, folder / "halved.safetensors", run.recipe.model_config(), run.recipe.scene.digest)
    write_json(folder / "artifacts.json", [{"name": "halved", "file": "halved.safetensors", "kind": "toy"}])
    return {"factor": factor}
