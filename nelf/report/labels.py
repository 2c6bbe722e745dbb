"""Place the labels of a plot's points without overlaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

__all__ = ["Labels"]

_SIZE = 9.5  # points, as all lengths here
_MARKER = 5.0  # radius of a point, with a small margin
_AIR = 1.5  # margin around a label
_BESIDE = (9.0, 13.0)  # distances at which a label needs no line to its point
_FULL = (*_BESIDE, *np.geomspace(20.0, 260.0, 16).tolist())
_DIRECTIONS = 24


class Labels:
    """Adds labels to a finished plot one by one, each where there is space; the most important should come first.

    Args:
        axes: the axes, with points drawn and limits set.
        points: all points, in data coordinates.
        curve: the points of a line, which labels cover only if there is no other space.
    """

    def __init__(
        self, axes: Axes, points: Sequence[tuple[float, float]], curve: Sequence[tuple[float, float]] = ()
    ) -> None:
        figure = axes.figure
        assert isinstance(figure, Figure)
        self._renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()  # determines the position of the axes
        self._axes, self._point = axes, figure.dpi / 72
        self._inside = axes.get_window_extent(self._renderer)
        radius = _MARKER * self._point
        self._markers = [Bbox([place - radius, place + radius]) for place in axes.transData.transform(points)]
        self._curve = Path(axes.transData.transform(curve)) if len(curve) > 1 else None
        self._names: list[Bbox] = []
        self._lines: list[Path] = []

    def add(self, name: str, point: tuple[float, float], color: str, far: bool = True) -> Annotation | None:
        """Add a label.

        Args:
            name: the text.
            point: the labeled point, in data coordinates.
            color: color of the text and the line.
            far: whether it may be placed away from its point, at the end of a line.

        Returns:
            The text; None if there was no space for it.
        """
        anchor = self._axes.transData.transform(point)
        width, height = self._size(name)
        half = np.array([width / 2 + _AIR, height / 2 + _AIR]) * self._point
        places = [(each, offset) for each in (_FULL if far else _BESIDE) for offset in _around(each, width, height)]
        for curve in (self._curve, None):
            for distance, offset in places:
                middle = anchor + np.array(offset) * self._point
                box = Bbox([middle - half, middle + half])
                line = None if distance in _BESIDE else Path([anchor, middle])
                if self._free(box, line, anchor) and not (curve and curve.intersects_bbox(box, filled=False)):
                    self._names.append(box)
                    self._lines += [] if line is None else [line]
                    return self._write(name, point, offset, color, line is not None)
        return None

    def _size(self, name: str) -> tuple[float, float]:
        """Width and height of a label, in points."""
        text = self._axes.text(0, 0, name, fontsize=_SIZE)
        box = text.get_window_extent(self._renderer)
        text.remove()
        return box.width / self._point, box.height / self._point

    def _free(self, box: Bbox, line: Path | None, anchor: np.ndarray) -> bool:
        """Whether a label is within the axes and covers nothing, and its line crosses no label and no other point."""
        inside = self._inside
        if box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1:
            return False
        if any(box.overlaps(other) for other in (*self._names, *self._markers)):
            return False
        if any(other.intersects_bbox(box, filled=False) for other in self._lines):
            return False
        others = [each for each in self._markers if not each.contains(*anchor)]
        return line is None or not any(line.intersects_bbox(each, filled=False) for each in (*self._names, *others))

    def _write(
        self, name: str, point: tuple[float, float], offset: tuple[float, float], color: str, line: bool
    ) -> Annotation:
        style = {"arrowstyle": "-", "color": color, "lw": 0.7, "alpha": 0.6, "shrinkA": 1.0, "shrinkB": 4.0}
        return self._axes.annotate(
            name,
            point,
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            color=color,
            fontsize=_SIZE,
            arrowprops=style if line else None,
        )


def _around(distance: float, width: float, height: float) -> list[tuple[float, float]]:
    """Candidate positions for the center of a label, above and below first.

    Close to its point there are only four, so that it is clear which point a label belongs to.

    Args:
        distance: distance from the point, in points.
        width: width of the label.
        height: height of the label.

    Returns:
        Offsets from the point.
    """
    if distance in _BESIDE:
        up, aside = distance + height / 2, distance + width / 2
        return [(0.0, up), (0.0, -up), (aside, 0.0), (-aside, 0.0)]
    order = sorted(range(_DIRECTIONS), key=lambda k: abs(math.cos(2 * math.pi * k / _DIRECTIONS)))
    angles = [2 * math.pi * k / _DIRECTIONS for k in order]
    return [((distance + width / 2) * math.cos(each), (distance + height / 2) * math.sin(each)) for each in angles]
