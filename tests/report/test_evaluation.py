"""Evaluation with models whose pictures are known in advance."""

import gc
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from nelf import metrics
from nelf.errors import UserError
from nelf.report import evaluation
from nelf.report.pictures import ERROR_SCALE

torch.set_num_threads(1)

HEIGHT, WIDTH = 18, 25


class Rendering(NamedTuple):
    rgb: torch.Tensor
    depth: torch.Tensor | None = None
    opacity: torch.Tensor | None = None


class View(NamedTuple):
    camera: int
    image: torch.Tensor
    name: str

    def rgb(self, background: str) -> torch.Tensor:
        assert background == "black"
        return self.image


class Split:
    """Views whose camera is their index; noise with a fixed seed."""

    def __init__(self, n: int = 5, times: list[float] | None = None, height: int = HEIGHT, width: int = WIDTH) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.rand(n, height, width, 3, generator=generator)
        self.camera = SimpleNamespace(time=None if times is None else torch.tensor(times))

    def __len__(self) -> int:
        return len(self.images)

    def view(self, index: int) -> View:
        return View(index, self.images[index], f"test/r {index}")


class Shifted:
    """Renders the ground truth plus a constant: its error is known."""

    def __init__(self, split: Split, offset: float = 0.125, nan_at: int | None = None) -> None:
        self.split, self.offset, self.nan_at = split, offset, nan_at

    def render(self, camera: int) -> Rendering:
        rgb = self.split.images[camera] + self.offset
        if camera == self.nan_at:
            rgb[3, 4, 0] = torch.nan
        return Rendering(rgb)


@pytest.fixture(autouse=True)
def _no_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_lpips_network", lambda: None)


def test_means_of_per_image_metrics(tmp_path: Path) -> None:
    split = Split()
    split.images *= torch.linspace(0.2, 1.0, 5).view(5, 1, 1, 1)
    result = evaluation.evaluate(Shifted(split), split, "black", tmp_path)
    targets = split.images.double().numpy()
    pictures = (split.images + 0.125).clamp(0, 1).double().numpy()
    expected_psnr = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(pictures, targets, strict=True)]
    expected_ssim = [
        structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1
        )
        for a, b in zip(pictures, targets, strict=True)
    ]
    assert [view["psnr"] for view in result["views"]] == pytest.approx(expected_psnr, abs=1e-5)
    assert [view["ssim"] for view in result["views"]] == pytest.approx(expected_ssim, abs=1e-5)
    assert result["psnr"] == pytest.approx(np.mean(expected_psnr), abs=1e-5)
    assert result["ssim"] == pytest.approx(np.mean(expected_ssim), abs=1e-5)
    assert result["lpips"] is None
    assert [view["name"] for view in result["views"]] == [f"test/r {i}" for i in range(5)]
    assert result["threads"] == torch.get_num_threads()
    assert json.loads((tmp_path / "metrics.json").read_text()) == result


TIMES = [0.5, 0.0, 1.0, 0.25, 0.75]


class Worse(Shifted):
    """The further in the split, the worse."""

    def render(self, camera: int) -> Rendering:
        return Rendering(self.split.images[camera] * (0.95 - 0.05 * camera))


def test_views_with_a_time_are_measured_as_d_nerf_does_too() -> None:
    split = Split(5, TIMES)
    moving, static = (evaluation.evaluate(Worse(each), each, "black") for each in (split, Split()))
    error = (split.images.double() * torch.linspace(0.05, 0.25, 5).view(5, 1, 1, 1)).square()
    later = torch.cat([error[:1], error[2:]])  # frame 1 is that of time 0
    each = (-10 * later.mean((1, 2, 3)).log10()).tolist()
    assert moving["psnr"] == static["psnr"]
    assert moving["psnr_after_0"] == pytest.approx(np.mean(each), abs=1e-4)
    assert moving["psnr_dnerf"] == pytest.approx(float(-10 * later.mean().log10()), abs=1e-4)
    assert len({round(moving[key], 2) for key in ("psnr", "psnr_after_0", "psnr_dnerf")}) == 3
    assert [view["time"] for view in moving["views"]] == TIMES
    assert "ms_ssim" not in moving  # too small
    # Static scenes are measured as ever.
    assert set(static) == {"psnr", "ssim", "lpips", "seconds_per_view", "threads", "views"}
    assert set(static["views"][0]) == {"name", "psnr", "ssim", "lpips", "seconds"}


@pytest.mark.parametrize("times", [[0.1, 0.5], [0.0, 0.0]])
def test_without_a_first_moment_to_leave_out_there_is_no_figure_of_the_rest(times: list[float]) -> None:
    split = Split(2, times)
    result = evaluation.evaluate(Worse(split), split, "black")
    assert "psnr_dnerf" not in result
    assert "psnr_after_0" not in result


def test_large_pictures_with_a_time_have_ms_ssim() -> None:
    size = {"height": 161, "width": 164}
    split, static = Split(2, [0.0, 1.0], **size), Split(2, **size)
    result = evaluation.evaluate(Worse(split), split, "black")
    images = split.images.permute(0, 3, 1, 2)
    drawn = images * torch.tensor([0.95, 0.90]).view(2, 1, 1, 1)
    expected = metrics.ms_ssim(drawn, images).tolist()
    assert [view["ms_ssim"] for view in result["views"]] == pytest.approx(expected, abs=1e-9)
    assert result["ms_ssim"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert "ms_ssim" not in evaluation.evaluate(Worse(static), static, "black")


def test_samples_are_spread_over_the_time(tmp_path: Path) -> None:
    split = Split(5, TIMES)
    evaluation.evaluate(Worse(split), split, "black", tmp_path, samples=3)
    files = {file.name for file in (tmp_path / "samples").iterdir()}
    assert files == {f"test_r_{index}_prediction_truth_error.png" for index in (1, 0, 2)}  # times 0, 0.5 and 1


def test_equal_pictures_stay_json() -> None:
    split = Split(2)
    result = evaluation.evaluate(Shifted(split, 0.0), split, "black")
    assert result["psnr"] == 100.0
    assert result["ssim"] == pytest.approx(1.0)
    json.dumps(result, allow_nan=False)


def test_sample_pictures_show_prediction_truth_and_error(tmp_path: Path) -> None:
    split = Split()
    split.images *= 0.8
    evaluation.evaluate(Shifted(split), split, "black", tmp_path, samples=2)
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name for file in files] == [f"test_r_{i}_prediction_truth_error.png" for i in (0, 4)]
    picture = iio.imread(files[0])
    assert picture.shape == (HEIGHT, 3 * WIDTH, 3)
    truth = (split.images[0].numpy() * 255).round()
    np.testing.assert_array_equal(picture[:, WIDTH : 2 * WIDTH], truth)
    np.testing.assert_allclose(picture[:, :WIDTH], truth + 0.125 * 255, atol=1)
    # Half the scale is the middle of matplotlib's inferno: (188, 55, 84).
    assert ERROR_SCALE == 0.25
    np.testing.assert_allclose(picture[:, 2 * WIDTH :], np.broadcast_to([188, 55, 84], (HEIGHT, WIDTH, 3)), atol=3)
    assert not (tmp_path / "images").exists()


def test_all_predictions_on_request(tmp_path: Path) -> None:
    split = Split()
    evaluation.evaluate(Shifted(split), split, "black", tmp_path, save_images=True)
    assert len(list((tmp_path / "images").iterdir())) == 5
    assert iio.imread(tmp_path / "images" / "test_r_3.png").shape == (HEIGHT, WIDTH, 3)


def test_first_view_is_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([9.0, 0.2, 0.1, 0.4])
    clock = [0.0]
    split = Split(4)
    model = Shifted(split)

    class Slow:
        def render(self, camera: int) -> Rendering:
            clock[0] += next(durations)
            return model.render(camera)

    monkeypatch.setattr("nelf.report.evaluation.time.perf_counter", lambda: clock[0])
    assert evaluation.evaluate(Slow(), split, "black")["seconds_per_view"] == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_pictures_that_are_not_finite_name_the_view(tmp_path: Path, bad: float) -> None:
    split = Split()
    with pytest.raises(UserError, match=r"view test/r 2: .* 1 pixels") as caught:
        evaluation.evaluate(Shifted(split, nan_at=2), split, "black", tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "metrics.json").exists()


def test_pictures_of_another_size_name_the_view() -> None:
    other = Split()
    other.images = other.images[:, :12]
    with pytest.raises(UserError, match=r"view test/r 0: .*\(12, 25, 3\).*\(18, 25, 3\)"):
        evaluation.evaluate(Shifted(other), Split(), "black")


def test_empty_split_is_refused() -> None:
    split = Split(0)
    with pytest.raises(UserError, match="no views"):
        evaluation.evaluate(Shifted(split), split, "black")


class Ball:
    """A red picture; a square of known depth that comes nearer from frame to frame, background elsewhere."""

    def __init__(self, height: int, width: int, depth: bool) -> None:
        self.size, self.depth = (height, width), depth

    def render(self, camera: int) -> Rendering:
        rgb = torch.zeros(*self.size, 3)
        rgb[..., 0] = 1 - 0.1 * camera
        opacity = torch.zeros(self.size)
        opacity[: self.size[0] // 2] = 1
        depth = torch.full(self.size, 5.0 - camera)
        return Rendering(rgb, depth, opacity) if self.depth else Rendering(rgb)


def _read_mp4(path: Path) -> tuple[np.ndarray, dict]:
    """All frames and what is known of them; imageio leaves pipes to the garbage collector, which warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        frames = iio.imread(path, plugin="FFMPEG")
        about = iio.immeta(path, plugin="FFMPEG")
        gc.collect()
    return frames, about


@pytest.mark.parametrize(("size", "shown"), [((32, 48), (32, 96)), ((33, 51), (34, 102))])
def test_video_has_all_frames_in_even_sizes(tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]) -> None:
    mp4, gif = evaluation.orbit_video(Ball(*size, depth=True), list(range(5)), tmp_path / "new" / "orbit", fps=10)
    assert (mp4, gif) == (tmp_path / "new" / "orbit.mp4", tmp_path / "new" / "orbit.gif")
    frames, about = _read_mp4(mp4)
    assert frames.shape == (5, *shown, 3)
    assert (about["fps"], about["codec"]) == (10, "h264")
    pictures = iio.imread(gif, index=None, extension=".gif")
    assert pictures.shape == (5, size[0], 2 * size[1], 3)
    assert iio.immeta(gif, extension=".gif")["duration"] == 100
    assert sorted(file.name for file in mp4.parent.iterdir()) == ["orbit.gif", "orbit.mp4"]


def test_depth_is_turbo_over_the_whole_video_and_white_without_opacity(tmp_path: Path) -> None:
    _, gif = evaluation.orbit_video(Ball(32, 48, depth=True), list(range(5)), tmp_path / "orbit")
    frames = iio.imread(gif, index=None, extension=".gif").astype(int)
    first, last = frames[0, 8, 72], frames[-1, 8, 72]
    np.testing.assert_allclose(first, [122, 4, 3], atol=8)  # turbo's red end: the farthest
    np.testing.assert_allclose(last, [48, 18, 59], atol=8)  # its blue end: the nearest
    assert (frames[:, 24:, 52:] > 245).all()
    np.testing.assert_allclose(frames[0, 8, 8], [255, 0, 0], atol=4)


def test_video_without_depth_and_wide_gif(tmp_path: Path) -> None:
    mp4, gif = evaluation.orbit_video(Ball(20, 700, depth=False), list(range(3)), tmp_path / "orbit")
    assert _read_mp4(mp4)[0].shape == (3, 20, 700, 3)
    assert iio.imread(gif, index=None, extension=".gif").shape == (3, 10, 350, 3)


def test_video_of_nothing_or_of_nan_writes_nothing(tmp_path: Path) -> None:
    split = Split()
    with pytest.raises(UserError, match="path is empty"):
        evaluation.orbit_video(Shifted(split), [], tmp_path / "orbit")
    with pytest.raises(UserError, match="frame 2"):
        evaluation.orbit_video(Shifted(split, nan_at=2), list(range(5)), tmp_path / "orbit")
    assert list(tmp_path.iterdir()) == []


def test_latencies_are_medians_of_calls_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that each model moves on: slow takes 3 s, fast takes 1 s, the first of a turn a minute more."""
    clock, calls = [0.0], []

    class Model:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds

        def render(self, camera: int) -> Rendering:
            clock[0] += self.seconds + (60 if not calls or calls[-1][0] != self.name else 0)
            calls.append((self.name, camera))
            return Rendering(torch.zeros(2, 2, 3))

    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: clock[0])
    found = evaluation.latencies({"slow": Model("slow", 3), "fast": Model("fast", 1)}, [10, 11], rounds=4)
    assert found == {"slow": 3, "fast": 1}
    assert calls[:6] == [("slow", 10), ("slow", 11), ("fast", 10), ("fast", 11), ("slow", 11), ("slow", 10)]
    assert len(calls) == 16
