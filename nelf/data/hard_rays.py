"""R2L's pool of hard rays: training rays with large errors, drawn again."""

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

    In each step, with B fresh rays, ``extend`` appends rays drawn from the pool, and ``update`` adds the fresh rays
    with the largest errors to the pool. Once the pool is full, the hardest fresh rays replace some of the drawn rays,
    so its size stays constant: ``mul`` times B, plus up to the rays of one step.

    The drawn rays are a function of the seed, the rank and the number of steps. ``state_dict`` holds the pool and the
    number of steps, so a resumed training draws the same rays as an uninterrupted one.

    Args:
        ratio_in: share of B that is added per step; ``ratio_out`` is an upper limit.
        ratio_out: share of B that is drawn per step.
        mul: capacity of the pool, as a multiple of B.
        seed: seed of the draws.
        rank: rank of the process; each process has its own pool.

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
        """Plain data: ``rays`` (P, 10 + K), origins, directions, rgba and K controls; ``full``; ``steps``."""
        return {"rays": self.rays, "full": self.full, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.rays, self.full, self.steps = state["rays"], state["full"], state["steps"]

    def clear(self) -> None:
        """Empty the pool; the number of steps is kept."""
        self.rays, self.full = self.rays[:0], False

    def extend(self, batch: RayBatch) -> RayBatch:
        """Append rays drawn from the pool to a batch, if the pool is full.

        Args:
            batch: B rays; only origins, directions and controls are used.

        Returns:
            B rays, or B + int(``ratio_out`` B).

        Raises:
            UserError: the pool of a checkpoint has other rays, or is larger than its capacity.
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
        """Add the hardest rays of the batch that was extended last.

        Args:
            errors: (B,) errors of its fresh rays.
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
        """Move the pool to the device of the fresh rays; check that a pool from a checkpoint fits them."""
        if not self.rays.numel():
            self.rays = fresh[:0]
        most = int((self.mul + self.ratio_in) * len(fresh)) + 1
        if self.rays.shape[1:] != fresh.shape[1:] or len(self.rays) > most:
            raise UserError(
                f"callbacks.hard_rays: the checkpoint's pool has shape {tuple(self.rays.shape)}; allowed: at most "
                f"{most} rays of {fresh.shape[1]} numbers. Choose another directory with run=."
            )
        self.rays = self.rays.to(fresh)
