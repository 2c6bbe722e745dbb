"""Rays that a light field finds hard, kept to be seen again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nelf.data.batches import RayBatch
from nelf.data.resident import sent
from nelf.errors import UserError
from nelf.rays import Rays

__all__ = ["HardRayPool"]


class HardRayPool:
    """A pool of hard rays.

    In each step, of B fresh rays: ``extend`` puts rays of the pool behind them, and ``update`` takes those of the fresh
    ones with the largest errors into it. Until it is full, rays only come in. From then on the hardest fresh rays take
    the places of some of those that were drawn, so the pool keeps its size: ``mul`` B, or up to a step's rays more.

    What is drawn is a function of the seed and the number of steps, and both are in ``state_dict``: a training that is
    resumed goes on with the same pool, and draws what it would have drawn.

    Args:
        ratio_in: share of B that comes in, at most ``ratio_out``.
        ratio_out: share of B that is drawn.
        mul: the pool is full with so many times B rays.
        seed: what is drawn.
        rank: of the process, each of which has a pool of its own.

    Raises:
        ValueError: a ratio is not above 0 and at most 1, or ``mul`` is below 1.

    Source:
        R2L's training code, ``--hard_ratio`` and ``--hard_mul`` (Wang et al. 2022, arXiv 2203.17261).
    """

    def __init__(
        self, ratio_in: float = 0.2, ratio_out: float = 0.2, mul: float = 20.0, seed: int = 0, rank: int = 0
    ) -> None:
        for name, ratio in {"ratio_in": ratio_in, "ratio_out": ratio_out}.items():
            if not 0 < ratio <= 1:
                raise ValueError(f"Expected argument `{name}` to be above 0 and at most 1, but got {ratio}.")
        if mul < 1:
            raise ValueError(f"Expected argument `mul` to be 1 or more, but got {mul}.")
        self.ratio_in, self.ratio_out, self.mul = ratio_in, ratio_out, mul
        self.seed, self.rank = seed, rank
        self.rays = torch.empty(0, 0)
        self.full = False
        self.steps = 0
        self._fresh = torch.empty(0, 0)
        self._slots = torch.empty(0, dtype=torch.long)

    def state_dict(self) -> dict[str, Any]:
        """The rays, (P, 10 + K) origins, directions, rgba and K controls, and how far it is: plain data."""
        return {"rays": self.rays, "full": self.full, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the pool of a checkpoint."""
        self.rays, self.full, self.steps = state["rays"], state["full"], state["steps"]

    def clear(self) -> None:
        """Begin to fill it again; the number of steps goes on."""
        self.rays, self.full = self.rays[:0], False

    def extend(self, batch: RayBatch) -> RayBatch:
        """Put rays of the pool behind those of a batch, if it is full.

        Args:
            batch: B rays; of their parts, origins, directions and controls count.

        Returns:
            B rays, or B + int(``ratio_out`` B).

        Raises:
            UserError: the pool of a checkpoint is not of such rays, or larger than it can be.
        """
        rays = batch.rays
        parts = [rays.origins, rays.directions, batch.rgba, *([] if rays.controls is None else [rays.controls])]
        self._fresh = torch.cat(parts, dim=-1)
        self._adopt(self._fresh)
        if not self.full:
            return batch
        generator = np.random.default_rng((self.seed, self.rank, self.steps))
        drawn = generator.choice(len(self.rays), int(self.ratio_out * len(self._fresh)), replace=False)
        self._slots = sent(drawn, self.rays.device)
        table = torch.cat([self._fresh, self.rays[self._slots]])
        controls = table[:, 10:] if rays.controls is not None else None
        return RayBatch(Rays(table[:, :3], table[:, 3:6], controls), table[:, 6:10])

    def update(self, errors: Tensor) -> None:
        """Take the hardest rays of the batch that was extended last.

        Args:
            errors: (B,) of its fresh rays, from the same forward pass as its loss.
        """
        count = len(self._fresh)
        taken = min(int(self.ratio_in * count), int(self.ratio_out * count))
        hardest = self._fresh[errors.topk(taken).indices]
        if self.full:
            self.rays[self._slots[:taken]] = hardest
        else:
            self.rays = torch.cat([self.rays, hardest])
            self.full = len(self.rays) >= self.mul * count
        self.steps += 1

    def _adopt(self, fresh: Tensor) -> None:
        """Bring the pool to the device of some fresh rays; one of a checkpoint may be of other ones."""
        if not self.rays.numel():
            self.rays = fresh[:0]
        most = int((self.mul + self.ratio_in) * len(fresh)) + 1
        if self.rays.shape[1:] != fresh.shape[1:] or len(self.rays) > most:
            raise UserError(
                f"callbacks.hard_rays: the checkpoint's pool has shape {tuple(self.rays.shape)}; allowed: at most "
                f"{most} rays of {fresh.shape[1]} numbers. Choose another directory with run=."
            )
        self.rays = self.rays.to(fresh)
