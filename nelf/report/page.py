"""The report of a run: one row per artifact, images beside the ground truth, in self-contained files."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from nelf.errors import atomic_path
from nelf.report.plots import curves_svg, trade_off_svg
from nelf.report.views import Comparison, data_uri, html_view

__all__ = ["write_report"]

_EMBED_BYTES = 8 * 2**20
_FEW = 4  # up to so many rows, plots show the baseline, too


class Column(NamedTuple):
    """How a key of the rows is shown: title, format, and whether more is better (None: neither)."""

    title: str
    text: Callable[[float], str]
    more_is_better: bool | None = None


def _si(value: float) -> str:
    """Format a count with an SI prefix: 4305539 -> '4.31 M'."""
    power = 0 if value < 1e3 else min(int(math.log10(value) // 3), 3)
    return f"{value:.0f}" if power == 0 else f"{value / 1e3**power:.2f} {'kMG'[power - 1]}"


_COLUMNS = {
    "psnr": Column("PSNR (dB)", lambda value: f"{value:.2f}", True),
    "ssim": Column("SSIM", lambda value: f"{value:.4f}", True),
    "ms_ssim": Column("MS-SSIM", lambda value: f"{value:.4f}", True),
    "lpips": Column("LPIPS", lambda value: f"{value:.4f}", False),
    "psnr_after_0": Column("PSNR after time 0 (dB)", lambda value: f"{value:.2f}", True),
    "psnr_dnerf": Column("PSNR as D-NeRF (dB)", lambda value: f"{value:.2f}", True),
    "delta_db": Column("\N{GREEK CAPITAL LETTER DELTA} PSNR (dB)", lambda value: f"{value:+.2f}"),
    "parameters": Column("Parameters", _si, False),
    "nonzero": Column("Not zero", _si, False),
    "sparsity": Column("Sparsity", lambda value: f"{100 * value:.0f} %"),
    "bytes": Column("Size (MB)", lambda value: f"{value / 1e6:.2f}", False),
    "compressed_bytes": Column("Deflated (MB)", lambda value: f"{value / 1e6:.2f}", False),
    "macs": Column("MACs / view", _si, False),
    "latency_ms": Column("ms / view", lambda value: f"{value:.1f}" if value < 100 else f"{value:.0f}", False),
    "speedup": Column("Speed-up", lambda value: f"{value:.1f}\N{MULTIPLICATION SIGN}", True),
    "train_seconds": Column("Training (min)", lambda value: f"{value / 60:.1f}"),
    "peak_memory_mb": Column("Training memory (MB)", lambda value: f"{value:.0f}", False),
    "memory_mb": Column("Rendering memory (MB)", lambda value: f"{value:.0f}", False),
    "max_abs_error": Column("Max. error", lambda value: f"{value:.1g}", False),
}


def write_report(
    folder: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    pictures: Sequence[Comparison] = (),
    *,
    title: str = "nelf report",
    baseline: str | None = None,
    subject: str | None = None,
    videos: Mapping[str, str | os.PathLike[str]] | None = None,
    curves: Mapping[str, str | os.PathLike[str]] | None = None,
    plots: Mapping[str, str | os.PathLike[str]] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Write ``report.json``, ``report.md`` and ``report.html``, each atomically.

    The page is one file that makes no requests. A column is shown if any row has its key.

    Args:
        folder: where to write.
        rows: one per artifact: ``name`` and any of ``psnr`` (dB), ``ssim``, ``lpips``, the additional metrics of scenes
            with a time (``nelf.report.evaluation.MOVING_FIGURES``), ``parameters``, ``sparsity`` (0 to 1), ``bytes``,
            ``latency_ms`` (per view), ``train_seconds``, ``peak_memory_mb`` (of its training), ``memory_mb`` (to load
            and render); further numbers become additional columns, other values are in the JSON only. ``speedup`` is
            computed if the baseline has a latency.
        pictures: the views to show; see :func:`nelf.report.views.comparisons`.
        title: the page's headline.
        baseline: name of the row that speed-ups refer to; the first row if None.
        subject: name of the row whose figures are at the top; the last row if None.
        videos: mp4 files by caption, embedded up to 8 MB; else the GIF beside it is embedded, or, if that is too large,
            the mp4 is linked.
        curves: ``metrics.csv`` of CSV loggers by name, for plots of PSNR during training.
        plots: SVG files by caption, shown after the plots of quality against cost.
        meta: further facts (scene, machine, command, threads ...), shown unchanged.

    Returns:
        The paths under "json", "md" and "html".

    Raises:
        ValueError: no rows, a row without name, two rows with the same name, or an unknown baseline or subject.
        UserError: the folder cannot be written to.
    """
    table = _with_speedup(rows, baseline)
    about = dict(meta or {})
    columns = _columns(table)
    document = {"title": title, "rows": table, "meta": about}
    page = Template(files("nelf.report").joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        subtitle=f"{len(table)} artifacts, compared on the same test views" if len(table) > 1 else "",
        tiles=_tiles(table[_index(table, baseline, 0)], table[_index(table, subject, -1)]),
        table=_html_table(table, columns),
        columns=1 + max((len(view.predictions) for view in pictures), default=0),
        sections="\n".join(
            [
                *_section("Quality against cost", _trade_offs(table, plots or {})),
                *_section("Test views", [html_view(view) for view in pictures]),
                *_section("Around the scene", _html_videos(videos or {}, Path(folder))),
                *_section("Training", _html_curves(curves or {})),
                *_section("About this run", [_html_meta(about)] if about else []),
            ]
        ),
    )
    texts = {
        "json": json.dumps(document, indent=1, allow_nan=False, default=str) + "\n",
        "md": _markdown(title, table, columns, about),
        "html": page,
    }
    paths = {kind: Path(folder) / f"report.{kind}" for kind in texts}
    for kind, text in texts.items():
        with atomic_path(paths[kind]) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def _index(rows: Sequence[Mapping[str, Any]], name: str | None, otherwise: int) -> int:
    """The index of a row by name, or ``otherwise`` if the name is None."""
    if name is None:
        return otherwise
    names = [row["name"] for row in rows]
    if name not in names:
        raise ValueError(f"Expected `baseline` and `subject` to be one of {names}, but got {name!r}.")
    return names.index(name)


def _with_speedup(rows: Sequence[Mapping[str, Any]], baseline: str | None) -> list[dict[str, Any]]:
    """Copy the rows, replace numbers that are not finite with None, and add speed-ups."""
    names = [row.get("name") for row in rows]
    if not rows or None in names or len(set(names)) != len(names):
        raise ValueError(f"Expected `rows` to have different names and at least one row, but got names {names}.")
    table = [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in rows
    ]
    reference = table[_index(table, baseline, 0)].get("latency_ms")
    for row in table:
        if reference and row.get("latency_ms"):
            row["speedup"] = reference / row["latency_ms"]
    return table


def _columns(rows: list[dict[str, Any]]) -> dict[str, Column]:
    """The columns that any row has: the known ones in their order, then other numbers."""
    present = [key for row in rows for key, value in row.items() if isinstance(value, int | float)]
    known = {key: column for key, column in _COLUMNS.items() if key in present}
    other = {key: Column(key.replace("_", " "), "{:.4g}".format) for key in present if key not in _COLUMNS}
    return {**known, **other}


def _best(rows: list[dict[str, Any]], key: str, column: Column) -> float | None:
    """The best value of a column, if values differ and one direction is better."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if column.more_is_better is None or len(set(values)) < 2:
        return None
    return max(values) if column.more_is_better else min(values)


def _html_table(rows: list[dict[str, Any]], columns: dict[str, Column]) -> str:
    """Write the sortable table."""
    titles = ["Artifact", *(column.title for column in columns.values())]
    head = "".join(f'<th scope="col"><button>{html.escape(title)}</button></th>' for title in titles)
    best = {key: _best(rows, key, column) for key, column in columns.items()}
    body = []
    for row in rows:
        name = html.escape(str(row["name"]))
        cells = [f'<td data-value="{name}">{name}</td>']
        for key, column in columns.items():
            value = row.get(key)
            if value is None:
                cells.append('<td data-value="">\N{EN DASH}</td>')
            else:
                mark = ' class="best"' if value == best[key] else ""
                cells.append(f'<td data-value="{value}"{mark}>{html.escape(column.text(value))}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    rows_html = "\n".join(body)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows_html}\n</tbody>\n</table>"


def _markdown(title: str, rows: list[dict[str, Any]], columns: dict[str, Column], meta: dict[str, Any]) -> str:
    """Write the same table and facts as Markdown."""

    def cells(row: dict[str, Any]) -> list[str]:
        values = [(column, row.get(key)) for key, column in columns.items()]
        return [
            str(row["name"]),
            *("\N{EN DASH}" if value is None else column.text(value) for column, value in values),
        ]

    lines = [["Artifact", *(column.title for column in columns.values())], [":--", *["--:"] * len(columns)]]
    table = ["| " + " | ".join(line) + " |" for line in [*lines, *map(cells, rows)]]
    facts = [f"- {key}: {value}" for key, value in meta.items()]
    return "\n".join([f"# {title}", "", *table, "", *facts, ""])


def _tiles(baseline: dict[str, Any], last: dict[str, Any]) -> str:
    """Tiles with the main figures of an artifact, compared with the baseline's."""

    def against(key: str) -> float | None:
        different = last is not baseline and last.get(key) and baseline.get(key)
        return baseline[key] / last[key] if different else None

    tiles = []
    if last.get("psnr") is not None:
        difference = last["psnr"] - baseline["psnr"] if last is not baseline and baseline.get("psnr") else None
        note = "" if difference is None else f", {difference:+.2f} dB against {baseline['name']}"
        tiles.append((f"{last['psnr']:.2f} dB", f"PSNR of {last['name']}{note}"))
    for key, what, better, worse in (
        ("latency_ms", "ms per view", "faster", "slower"),
        ("bytes", "MB on disk, {name}", "smaller", "larger"),
    ):
        if last.get(key):
            ratio, (unit, noun) = against(key), what.split(" ", 1)
            word = better if ratio and ratio >= 1 else worse
            note = f", {max(ratio, 1 / ratio):.1f} times {word}" if ratio else ""
            tiles.append((f"{_COLUMNS[key].text(last[key])} {unit}", noun.format(name=last["name"]) + note))
    if last.get("parameters"):
        tiles.append((_si(last["parameters"]), "parameters"))
    cards = [
        f'<div class="card"><b>{value}</b><span class="soft">{html.escape(note)}</span></div>' for value, note in tiles
    ]
    return f'<div class="tiles">{"".join(cards)}</div>' if cards else ""


def _section(title: str, parts: list[str]) -> list[str]:
    """The parts under a headline; nothing if there are no parts."""
    return [f"<h2>{title}</h2>", *parts] if parts else []


def _trade_offs(rows: list[dict[str, Any]], more: Mapping[str, str | os.PathLike[str]]) -> list[str]:
    """Plot quality against latency and size, if at least two rows have both, then add the given plots.

    With many rows, the first one, the teacher, is left out, since its cost would compress the scale of the others.
    """
    plots = []
    shown = rows[1:] if len(rows) > _FEW else rows
    for key, label, scale in (("latency_ms", "ms per view", 1.0), ("bytes", "size in MB", 1e-6)):
        points = [(row["name"], row[key] * scale, row["psnr"]) for row in shown if row.get(key) and row.get("psnr")]
        if len(points) > 1:
            plots.append(
                _html_plot(trade_off_svg(points, label), f"PSNR against {label}; the line is the Pareto front")
            )
    plots += [_html_plot(Path(path).read_text(encoding="utf-8"), words) for words, path in more.items()]
    return [f'<div class="plots">{"".join(plots)}</div>'] if plots else []


def _html_curves(curves: Mapping[str, str | os.PathLike[str]]) -> list[str]:
    """Plot the trainings whose files hold a PSNR."""
    drawn = [(name, curves_svg(Path(path))) for name, path in curves.items()]
    plots = [_html_plot(svg, f"PSNR while training: {name}") for name, svg in drawn if svg]
    return [f'<div class="plots">{"".join(plots)}</div>'] if plots else []


def _html_plot(svg: str, words: str) -> str:
    """Embed a plot in a card."""
    words = html.escape(words)
    source = data_uri("image/svg+xml", svg.encode())
    return f'<figure class="card"><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def _html_videos(videos: Mapping[str, str | os.PathLike[str]], folder: Path) -> list[str]:
    """Show the videos that exist: one alone, several side by side with their captions."""
    found = {words: Path(video) for words, video in videos.items() if Path(video).is_file()}
    if len(found) < 2:
        return [f'<div class="card">{_html_video(video, folder)}</div>' for video in found.values()]
    cards = [
        f'<figure class="card">{_html_video(video, folder)}<figcaption>{html.escape(words)}</figcaption></figure>'
        for words, video in found.items()
    ]
    return [f'<div class="plots">{"".join(cards)}</div>']


def _html_video(mp4: Path, folder: Path) -> str:
    """Embed the video, or the GIF beside it, or link to it, whichever is small enough."""
    gif = mp4.with_suffix(".gif")
    if mp4.stat().st_size < _EMBED_BYTES:
        source = data_uri("video/mp4", mp4.read_bytes())
        return f'<video src="{source}" autoplay loop muted playsinline controls></video>'
    if gif.is_file() and gif.stat().st_size < _EMBED_BYTES:
        source = data_uri("image/gif", gif.read_bytes())
        return f'<img class="film" src="{source}" alt="orbit">'
    link = html.escape(Path(os.path.relpath(mp4, folder)).as_posix())
    return f'<a href="{link}">{link}</a>'


def _html_meta(meta: dict[str, Any]) -> str:
    """List the facts."""
    facts = "".join(
        f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>" for key, value in meta.items()
    )
    return f'<div class="card"><dl>{facts}</dl></div>'
