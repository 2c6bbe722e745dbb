"""The report, read back as a stranger would: as JSON, as a table, as a parsed page."""

import base64
import csv
import itertools
import json
from html.parser import HTMLParser
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from nelf.report.page import write_report
from nelf.report.plots import curves_svg, pareto_front, trade_off
from nelf.report.views import Comparison, comparisons

NONE, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
ROWS = [
    {"name": "teacher", "psnr": 30.5, "ssim": 0.95, "lpips": None, "latency_ms": 260.0, "bytes": 9_400_000},
    {
        "name": "student <b>",
        "psnr": 27.25,
        "ssim": 0.92,
        "lpips": float("nan"),
        "latency_ms": 20.0,
        "bytes": 8_400_000,
    },
    {
        "name": "int8",
        "psnr": 27.0,
        "latency_ms": 10.0,
        "parameters": 4_305_539,
        "depth_levels": 3,
        "note": "text",
    },
]


class Page(HTMLParser):
    """Collects cells, sources and links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        self._cell = tag in ("td", "th") or (self._cell and tag == "button")
        self.sources += [values["src"]] if values.get("src") else []
        self.links += [values["href"]] if values.get("href") else []

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th", "button")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1].append(data)


def _pictures() -> list[Comparison]:
    truth = np.full((40, 80, 3), 200, np.uint8)
    student = truth.copy()
    student[25:30, 60:70] = 0
    return [Comparison("test/r_0", truth, {"teacher": truth, "student": student})]


def _page(folder: Path) -> tuple[str, Page]:
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_all_rows_in_all_three_files(tmp_path: Path) -> None:
    paths = write_report(tmp_path / "new", ROWS, title="lego & co", meta={"scene": "lego"})
    assert {path.name for path in paths.values()} == {"report.json", "report.md", "report.html"}
    document = json.loads(paths["json"].read_text())
    assert [row["name"] for row in document["rows"]] == ["teacher", "student <b>", "int8"]
    assert [row["speedup"] for row in document["rows"]] == [1.0, 13.0, 26.0]
    assert document["rows"][1]["lpips"] is None
    assert document["meta"] == {"scene": "lego"}
    table = [line for line in paths["md"].read_text().splitlines() if line.startswith("|")]
    assert len(table) == 5
    assert f"| int8 | 27.00 | {NONE} | 4.31 M | {NONE} | 10.0 | 26.0{TIMES} | 3 |" in table
    _, page = _page(tmp_path / "new")
    titles = [
        "Artifact",
        "PSNR (dB)",
        "SSIM",
        "Parameters",
        "Size (MB)",
        "ms / view",
        "Speed-up",
        "depth levels",
    ]
    assert page.rows[0] == titles
    assert page.rows[2] == ["student <b>", "27.25", "0.9200", NONE, "8.40", "20.0", f"13.0{TIMES}", NONE]
    assert len(page.rows) == 4


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    video = tmp_path / "orbit.mp4"
    video.write_bytes(b"not really a video")
    log = _csv(tmp_path / "metrics.csv")
    write_report(tmp_path, ROWS, _pictures(), videos={"orbit": video}, curves={"teacher": log})
    text, page = _page(tmp_path)
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert page.links == []
    # Two trade-offs, one training; three pictures with a crop each, two error maps; the video.
    assert len(page.sources) == 3 + 3 + 3 + 2 + 1
    assert all(source.startswith("data:") for source in page.sources)
    assert "data:video/mp4;base64," + base64.b64encode(b"not really a video").decode() in page.sources


def test_crop_shows_where_the_last_artifact_errs(tmp_path: Path) -> None:
    write_report(tmp_path, ROWS[:1], _pictures())
    _, page = _page(tmp_path)
    pictures = [iio.imread(base64.b64decode(source.split(",")[1])) for source in page.sources]
    assert [picture.shape for picture in pictures] == [
        *[(40, 80, 3), (10, 20, 3)] * 2,
        (40, 80, 3),
        *[(40, 80, 3), (10, 20, 3)],
        (40, 80, 3),
    ]
    assert (pictures[6] == 0).all(axis=-1).sum() == 50  # the whole of the wrong patch
    text = (tmp_path / "report.html").read_text()
    # 50 of 3200 pixels are wrong by 200/255: 10 log10(64 (255/200)^2) = 20.17 dB; the teacher is exact.
    assert "20.17 dB" in text
    assert "100.00 dB" in text


def test_columns_appear_only_if_some_row_has_them(tmp_path: Path) -> None:
    write_report(tmp_path, [{"name": "a", "psnr": 20.0}])
    text, page = _page(tmp_path)
    assert page.rows == [["Artifact", "PSNR (dB)"], ["a", "20.00"]]
    for headline in ("Quality against cost", "Test views", "Around the scene", "Training", "About this run"):
        assert f"<h2>{headline}</h2>" not in text


def test_large_videos_give_way_to_the_gif_and_then_to_a_link(tmp_path: Path) -> None:
    video = tmp_path / "student" / "orbit.mp4"
    video.parent.mkdir()
    video.write_bytes(bytes(9 * 2**20))
    write_report(tmp_path, ROWS, videos={"orbit": video})
    assert _page(tmp_path)[1].links == ["student/orbit.mp4"]
    video.with_suffix(".gif").write_bytes(b"GIF")
    write_report(tmp_path, ROWS, videos={"orbit": video})
    assert _page(tmp_path)[1].links == []
    assert _page(tmp_path)[1].sources[-1].startswith("data:image/gif")


def test_comparisons_reads_the_samples_that_all_have(tmp_path: Path) -> None:
    for artifact, level, views in (("teacher", 10, ("a", "b")), ("student", 20, ("b", "c"))):
        (tmp_path / artifact).mkdir()
        picture = np.repeat(np.array([level, 99, 0], np.uint8), 6)[None, :, None].repeat(4, 0).repeat(3, 2)
        for view in views:
            iio.imwrite(tmp_path / artifact / f"{view}_prediction_truth_error.png", picture)
    (only,) = comparisons({name: tmp_path / name for name in ("teacher", "student")})
    assert only.view == "b"
    assert only.truth.shape == (4, 6, 3)
    assert (only.truth == 99).all()
    levels = {name: image.max() for name, image in only.predictions.items()}
    assert levels == {"teacher": 10, "student": 20}
    assert comparisons({}) == []


@pytest.mark.parametrize(
    ("rows", "baseline", "message"),
    [
        ([], None, "at least one row"),
        ([{"psnr": 1.0}], None, "different names"),
        ([{"name": "a"}, {"name": "a"}], None, "different names"),
        ([{"name": "a"}], "b", r"one of \['a'\], but got 'b'"),
    ],
)
def test_wrong_rows_are_refused(tmp_path: Path, rows: list, baseline: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path, rows, baseline=baseline)
    assert list(tmp_path.iterdir()) == []


def test_pareto_front_by_hand() -> None:
    # b is beaten by a in both; d costs what c costs and is worse.
    points = {"a": (1.0, 20.0), "b": (2.0, 19.0), "c": (3.0, 25.0), "d": (3.0, 24.0), "e": (9.0, 30.0)}
    names = list(points)
    assert [names[index] for index in pareto_front(list(points.values()))] == ["a", "c", "e"]


NAMES = [
    *("teacher", "student", "student, optimized", "pruned 36.9 %", "pruned 60 %", "narrowed by 50 %", "fp16", "bf16"),
    *("int8 per tensor", "int8 QAT", "onnx fp32", "onnx fp16", "onnx int8 static", "onnx fp32 from rays"),
    "onnx narrowed by 50 %, quantization-aware, from rays",
]


def _points(kind: str, count: int) -> list[tuple[str, float, float]]:
    draw = np.random.default_rng(count)
    if kind == "front":
        places = [(1.4**place, 25 + 0.3 * place) for place in range(count)]
    elif kind == "apart":
        places = zip(10 ** draw.uniform(0, 4, count), draw.normal(25, 2, count), strict=True)
    elif kind == "together":
        places = zip(20 * np.exp(draw.normal(0, 0.1, count)), draw.normal(28, 0.1, count), strict=True)
    else:
        places = [(20.0, 28.0)] * count
    return [(name, float(cost), float(quality)) for name, (cost, quality) in zip(NAMES, places, strict=False)]


@pytest.mark.parametrize("count", [3, 8, 15])
@pytest.mark.parametrize("kind", ["front", "apart", "together", "equal"])
def test_no_label_of_a_plot_covers_another(kind: str, count: int) -> None:
    points = _points(kind, count)
    figure = trade_off(points, "ms per view")
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (axes,) = figure.axes
    drawn = [
        *(label for label in axes.get_xticklabels() if axes.viewLim.x0 <= label.get_position()[0] <= axes.viewLim.x1),
        *(label for label in axes.get_yticklabels() if axes.viewLim.y0 <= label.get_position()[1] <= axes.viewLim.y1),
    ]
    texts = [each for each in (*axes.texts, *drawn, axes.xaxis.label, axes.yaxis.label) if each.get_text()]
    # The text's own box: that of an annotation would hold its line as well.
    boxes = {text: Text.get_window_extent(text, renderer) for text in texts}
    assert len(boxes) > len(axes.texts) + 4
    for text, other in itertools.combinations(boxes, 2):
        assert not boxes[text].overlaps(boxes[other]), f"{text.get_text()!r} covers {other.get_text()!r}"
    for text in axes.texts:
        box = boxes[text]
        assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 < box.y1 <= axes.bbox.y1
        for place in axes.transData.transform([point[1:] for point in points]):
            assert not box.contains(*place), f"{text.get_text()!r} covers a point"
    named = {text.get_text() for text in axes.texts}
    front = {points[index][0] for index in pareto_front([point[1:] for point in points])}
    assert named
    assert named <= set(NAMES)
    if count <= 8:
        assert front <= named


def test_the_headline_is_of_the_subject(tmp_path: Path) -> None:
    write_report(tmp_path, ROWS, subject="student <b>")
    text = (tmp_path / "report.html").read_text()
    assert "<b>27.25 dB</b>" in text
    assert "PSNR of student &lt;b&gt;, -3.25 dB against teacher" in text
    assert "<b>8.40 MB</b>" in text
    assert "on disk, student &lt;b&gt;, 1.1 times smaller" in text


def _csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train/psnr", "val/psnr"])
        writer.writeheader()
        writer.writerows(
            [{"step": 1, "train/psnr": 10.0}, {"step": 2, "train/psnr": 12.0}, {"step": 2, "val/psnr": 11.0}]
        )
    return path


def test_curves_only_where_there_is_a_psnr(tmp_path: Path) -> None:
    assert curves_svg(tmp_path / "none.csv") is None
    (tmp_path / "other.csv").write_text("step,loss\n1,2\n")
    assert curves_svg(tmp_path / "other.csv") is None
    assert "<svg" in curves_svg(_csv(tmp_path / "metrics.csv"))


def test_views_of_a_moving_scene_stand_in_the_order_of_time(tmp_path: Path) -> None:
    picture = np.zeros((8, 24, 3), np.uint8)
    for index in (0, 2, 10):
        iio.imwrite(tmp_path / f"val_r_{index}_prediction_truth_error.png", picture)
    times = {"val/r_0": 0.0, "val/r_2": 0.25, "val/r_10": 1.0, "val/r_3": 0.5}
    views = comparisons({"teacher": tmp_path}, times)
    assert [(view.view, view.time) for view in views] == [("val_r_0", 0.0), ("val_r_2", 0.25), ("val_r_10", 1.0)]
    write_report(tmp_path, ROWS[:1], views)
    text = (tmp_path / "report.html").read_text()
    assert "<h3>val_r_2, time 0.25</h3>" in text
    assert text.index("val_r_0,") < text.index("val_r_2,") < text.index("val_r_10,")


def test_figures_of_a_moving_scene_are_columns(tmp_path: Path) -> None:
    rows = [{"name": "a", "psnr": 30.0, "ms_ssim": 0.98765, "psnr_after_0": 29.5, "psnr_dnerf": 29.25}]
    write_report(tmp_path, rows)
    _, page = _page(tmp_path)
    titles = ["Artifact", "PSNR (dB)", "MS-SSIM", "PSNR after time 0 (dB)", "PSNR as D-NeRF (dB)"]
    assert page.rows == [titles, ["a", "30.00", "0.9877", "29.50", "29.25"]]


def test_several_videos_stand_side_by_side_with_their_words(tmp_path: Path) -> None:
    videos = {words: tmp_path / f"{words}.mp4" for words in ("time goes by", "both")}
    for words, path in videos.items():
        path.write_bytes(words.encode())
    write_report(tmp_path, ROWS[:1], videos={**videos, "missing": tmp_path / "no.mp4"})
    text, page = _page(tmp_path)
    assert [base64.b64decode(source.split(",")[1]).decode() for source in page.sources] == ["time goes by", "both"]
    for words in videos:
        assert f"</video><figcaption>{words}</figcaption>" in text
    assert "missing" not in text
