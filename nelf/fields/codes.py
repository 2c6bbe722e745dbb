"""Learned latent codes, one for each moment or training view of a scene."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TimeCodes", "ViewCodes"]

LARGEST = 0.05  # upper limit of the initial values


class _Codes(nn.Module):
    """A table of codes; loading a state also sets the number of its rows.

    Args:
        width: C, size of each code.
    """

    sized_by_state: tuple[str, ...] = ("rows",)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.rows = nn.Parameter(torch.empty(1, width).uniform_(0.0, LARGEST))

    def resize(self, count: int) -> None:
        """Replace the codes by ``count`` random ones."""
        self.rows = nn.Parameter(self.rows.new_empty(count, self.width).uniform_(0.0, LARGEST))

    def _check(self, prefix: str, state_dict: dict[str, Any]) -> None:
        """Refuse a state whose parts are inconsistent."""
        rows = state_dict[f"{prefix}rows"]
        if rows.ndim != 2 or rows.shape[1] != self.width or len(rows) == 0:
            raise ValueError(f"{prefix}rows: is {tuple(rows.shape)}, not one or more codes of {self.width} numbers.")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize to the number of rows in the state."""
        if f"{prefix}rows" in state_dict:
            self._check(prefix, state_dict)
            for name in self.sized_by_state:
                shape = state_dict[prefix + name].shape
                own = getattr(self, name)
                if own.shape != shape:
                    empty = torch.empty(shape, dtype=own.dtype, device=own.device)
                    setattr(self, name, nn.Parameter(empty) if name in self._parameters else empty)
        super()._load_from_state_dict(state_dict, prefix, *args)


class TimeCodes(_Codes):
    """One code for each time of the training views, interpolated linearly, and constant beyond the first and last.

    Args:
        width: C, size of each code.

    Source:
        The codes of Nerfies and HyperNeRF (arXiv 2011.12948, 2106.13228), which are initialized from U[0, 0.05) and
        interpolated between frames.
    """

    sized_by_state = ("rows", "times")
    times: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("times", torch.zeros(1))

    def prepare(self, times: Tensor) -> None:
        """Make a code for each distinct one of these times (N,); keeps the codes if these are already its times."""
        distinct = times.unique().to(self.times)
        if not torch.equal(distinct, self.times):
            self.resize(len(distinct))
            self.times = distinct

    def forward(self, times: Tensor) -> Tensor:
        """The codes (S, C) at times (S,)."""
        last = len(self.times) - 1
        after = torch.searchsorted(self.times, times.contiguous()).clamp(max=last)
        before = (after - 1).clamp(min=0)
        gap = (self.times[after] - self.times[before]).clamp(min=torch.finfo(self.times.dtype).tiny)
        share = ((times - self.times[before]) / gap).clamp(0.0, 1.0)
        return torch.lerp(self.rows.index_select(0, before), self.rows.index_select(0, after), share[:, None])

    def _check(self, prefix: str, state_dict: dict[str, Any]) -> None:
        super()._check(prefix, state_dict)
        rows, times = state_dict[f"{prefix}rows"], state_dict.get(f"{prefix}times")
        if times is None or times.shape != rows.shape[:1] or not _ascending(times):
            raise ValueError(f"{prefix}times: are not {len(rows)} moments, one for each code, in their order.")


def _ascending(times: Tensor) -> bool:
    return bool(times.isfinite().all()) and bool((times.diff() > 0).all())


class ViewCodes(_Codes):
    """One code for each training view; their mean for rays without a view.

    Args:
        width: C, size of each code.

    Source:
        The appearance codes of NeRF in the Wild (arXiv 2008.02268), and of Nerfies.
    """

    def prepare(self, views: Tensor) -> None:
        """Make a code for each index up to the largest of these (N,); keeps the codes if there are as many already."""
        count = int(views.max()) + 1
        if count != len(self.rows):
            self.resize(count)

    def forward(self, views: Tensor | None, count: int) -> Tensor:
        """The codes (N, C) of views (N,), with indices clamped to the table; without views, ``count`` mean codes."""
        if views is None:
            return self.rows.mean(0).expand(count, -1)
        return self.rows.index_select(0, views.clamp(0, len(self.rows) - 1))
