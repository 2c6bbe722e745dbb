"""Plots of a report, as SVG with a transparent background, in colors that are legible on white and on black."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from nelf.errors import UserError
from nelf.files import LARGEST, is_file, reason_of
from nelf.report.labels import Labels

__all__ = ["curves_svg", "pareto_front", "sparsity_svg", "trade_off", "trade_off_svg"]

_GRAY = "#868e99"
_BLUE = "#3d82e8"
_ORANGE = "#e8853d"
_NAMED = 6  # up to so many points are all labeled; of more, those on the front and others if there is space
_WIDE = 300.0  # range of an axis from which only powers of ten are labeled


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the Pareto front: the points that no other one dominates in cost and quality.

    Args:
        points: (cost, quality) of each; lower cost and higher quality are better.

    Returns:
        Indices into `points`, by increasing cost. Of equal points, the first.

    Example:
        >>> pareto_front([(9.0, 30.0), (1.0, 25.0), (2.0, 24.0)])
        [1, 0]
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def trade_off_svg(points: Sequence[tuple[str, float, float]], cost: str) -> str:
    """Draw PSNR over a cost, with the Pareto front, as an SVG document; see ``trade_off``."""
    return _svg(trade_off(points, cost))


def trade_off(points: Sequence[tuple[str, float, float]], cost: str) -> Figure:
    """Draw PSNR over a cost, with the Pareto front.

    Args:
        points: (name, cost > 0, PSNR in dB) of each artifact.
        cost: the label of the horizontal axis, which is logarithmic.

    Returns:
        A figure. Labels overlap neither each other nor points: a label without space beside its point is placed
        farther away, at the end of a line; with many points, those off the front are labeled only if there is space
        beside them.
    """
    figure, axes = _axes(cost)
    costs, qualities = [point[1] for point in points], [point[2] for point in points]
    front = pareto_front(list(zip(costs, qualities, strict=True)))
    # At least a factor of ten wide, so that the axis has ticks and small differences look small.
    center, reach = math.sqrt(min(costs) * max(costs)), max(math.sqrt(max(costs) / min(costs)) * 1.5, 10**0.5)
    axes.set_xscale("log")
    axes.set_xlim(center / reach, center * reach)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if reach**2 < _WIDE else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.plot([costs[i] for i in front], [qualities[i] for i in front], color=_BLUE, lw=1.5, alpha=0.6, zorder=1)
    colors = [_BLUE if index in front else _GRAY for index in range(len(points))]
    axes.scatter(costs, qualities, s=60, c=colors, zorder=2)
    axes.margins(y=0.22)
    places = [(costs[index], qualities[index]) for index in range(len(points))]
    labels = Labels(axes, places, [places[index] for index in front])
    for index in [*front, *(index for index in range(len(points)) if index not in front)]:
        far = index in front or len(points) <= _NAMED
        labels.add(points[index][0], places[index], colors[index], far)
    return figure


def curves_svg(path: Path) -> str | None:
    """Draw the training and validation PSNR of a CSV logger's file over the steps.

    Args:
        path: ``metrics.csv`` with a ``step`` column and ``train/psnr`` or ``val/psnr``.

    Returns:
        An SVG document, or None if there is no such file or no such column.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    if not is_file(path):
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        curves = {key: _curve(rows, key) for key in ("train/psnr", "val/psnr")}
    except (csv.Error, OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({reason_of(error)}); allowed: a CSV logger's file, or none.") from None
    figure, axes = _axes("step")
    drawn = False
    for (key, points), color, style in zip(curves.items(), (_BLUE, _ORANGE), ("-", "o-"), strict=True):
        if points:
            drawn = True
            axes.plot(*zip(*points, strict=True), style, color=color, lw=1.4, ms=4, label=key.split("/")[0])
    if not drawn:
        return None
    axes.legend(frameon=False, labelcolor=_GRAY)
    return _svg(figure)


def _curve(rows: Sequence[Mapping[str, str]], key: str) -> list[tuple[float, float]]:
    """Steps and values of a column, without those that are not finite."""
    points = [(float(row["step"]), float(row[key])) for row in rows if row.get(key) and row.get("step")]
    return [(step, value) for step, value in points if abs(step) <= LARGEST and abs(value) <= LARGEST]


def sparsity_svg(rounds: Sequence[tuple[float, float]]) -> str:
    """Draw PSNR over sparsity, one point per round of pruning.

    Args:
        rounds: (sparsity from 0 to 1, PSNR in dB) of each, the dense network first.

    Returns:
        An SVG document.
    """
    figure, axes = _axes("zeros among the chosen weights (%)")
    axes.plot([100 * share for share, _ in rounds], [psnr for _, psnr in rounds], "o-", color=_BLUE, lw=1.5, ms=6)
    axes.set_xlim(0, 100)
    axes.margins(y=0.22)
    return _svg(figure)


def _axes(label: str) -> tuple[Figure, Axes]:
    """An empty plot of PSNR over a quantity."""
    figure = Figure(figsize=(5.2, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(label, color=_GRAY)
    axes.set_ylabel("PSNR (dB)", color=_GRAY)
    axes.tick_params(which="both", colors=_GRAY)
    axes.grid(color=_GRAY, alpha=0.2)
    axes.patch.set_alpha(0)
    for side, spine in axes.spines.items():
        spine.set_color(_GRAY)
        spine.set_visible(side in ("left", "bottom"))
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
