"""Look at a model: metrics, latency and pictures on a split's views, and a video along a camera path."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import torch
from torch import Tensor

from nelf import metrics
from nelf.data.images import track
from nelf.errors import UserError, atomic_path
from nelf.report.pictures import block_mean, comparison, depth_map, file_stem, to_uint8, write_png
from nelf.scene import compared

if TYPE_CHECKING:
    from nelf.cameras import Camera
    from nelf.rendering import Renderable
    from nelf.scene import Split

__all__ = ["MOVING_FIGURES", "evaluate", "latencies", "orbit_video"]

MOVING_FIGURES = ("ms_ssim", "psnr_after_0", "psnr_dnerf")
"""What is measured of views with a time besides, each where it can be: MS-SSIM (on pictures that are large enough); the
mean PSNR of all views but those of time 0; and PSNR as D-NeRF reports it, of the mean squared error of all these views
together. Time 0 is special in D-NeRF, whose network does not deform it, so it is left out there. (D-NeRF measures
files of whole bytes, rounded down; here nothing is rounded.)"""

_EQUAL_PICTURES_DB = 100.0  # JSON has no infinity
_VISIBLE = 0.5  # the opacity from which a pixel's depth means something
_GIF_WIDTH = 640
_FARTHEST = 65_504.0  # that half precision holds


def evaluate(
    model: Renderable,
    split: Split,
    background: str = "white",
    out_dir: str | os.PathLike[str] | None = None,
    *,
    samples: int = 4,
    save_images: bool = False,
    description: str = "Evaluating",
) -> dict[str, Any]:
    """Measure a model on every view of a split, and write sample pictures.

    Metrics are computed per picture and then averaged. Where a view does not count (see ``Split.masks``), PSNR leaves
    the pixels out, and SSIM and LPIPS find the truth in both pictures. The latency is the median over the views of one
    ``render`` call, the first left out as warm-up where there are more.

    Args:
        model: anything with ``render(camera)``.
        split: the views; ``split.view(i).rgb(background)`` is the ground truth.
        background: "white" or "black", what transparent ground truth is laid on; the model's own must be
            the same.
        out_dir: where to write, or None to write nothing. It gets ``metrics.json`` and
            ``samples/NAME_prediction_truth_error.png``, see :func:`nelf.report.pictures.comparison`.
        samples: how many views, evenly spread over the split, or over its views in the order of time, get such a
            picture.
        save_images: also write each view's prediction as ``images/NAME.png``.
        description: the words before the progress bar.

    Returns:
        Plain JSON: ``psnr`` (dB, mean), ``ssim``, ``lpips`` (None where its weights are not available),
        ``views`` (a list of ``name``, ``psnr``, ``ssim``, ``lpips``, ``seconds``), ``seconds_per_view`` and
        ``threads`` (of PyTorch, for the latency); for views with a time ``time`` and ``ms_ssim`` of each, and
        ``MOVING_FIGURES``. Pictures without any error count as 100 dB.

    Raises:
        UserError: the split has no views, a picture has another size than its view or values that are not
            finite (the view is named), or `out_dir` cannot be written to.
    """
    if len(split) == 0:
        raise UserError("evaluate: the split has no views; at least one is needed.")
    folder = None if out_dir is None else Path(out_dir)
    times = split.camera.time
    order = np.arange(len(split)) if times is None else np.argsort(times.cpu().numpy(), kind="stable")
    sampled = set(order[np.linspace(0, len(split) - 1, min(samples, len(split))).round().astype(int)].tolist())
    views: list[dict[str, Any]] = []
    for index in track(len(split), description):
        view = split.view(index)
        rgb, seconds = _timed_render(model, view.camera, view.name)
        target = view.rgb(background).to(rgb.device)
        if rgb.shape != target.shape:
            raise UserError(
                f"evaluate: view {view.name}: the model gave a picture of shape {tuple(rgb.shape)}, "
                f"the view has {tuple(target.shape)}."
            )
        pictures = compared(rgb, view, background)
        views.append({"name": view.name, **_measure(*pictures), "seconds": seconds})
        if times is not None:
            views[-1] |= {"time": float(times[index]), **_measure_moving(*pictures[:2])}
        if folder is not None and index in sampled:
            name = f"{file_stem(view.name)}_prediction_truth_error.png"
            write_png(folder / "samples" / name, comparison(rgb, target))
        if folder is not None and save_images:
            write_png(folder / "images" / f"{file_stem(view.name)}.png", to_uint8(rgb))
    result = _summary(views) if times is None else {**_summary(views), **_summary_moving(views)}
    if folder is not None:
        with atomic_path(folder / "metrics.json") as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def latencies(models: Mapping[str, Renderable], cameras: Camera, rounds: int = 5) -> dict[str, float]:
    """Time one ``render`` call of each model.

    The models take turns, so that other load on the machine affects all of them equally: compare ratios. In its turn a
    model renders the view before, too, untimed: who turns a scene about renders one view after the other.

    Args:
        models: by name, anything with ``render(camera)``.
        cameras: a batch of cameras; each round renders the next one.
        rounds: how many calls of each are timed.

    Returns:
        The median of each, seconds, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in track(rounds, f"Timing {len(models)} models in turns"):
        for name, model in models.items():
            for step in range(2):
                _, each = _timed_render(model, cameras[(turn + step) % len(cameras)], name)
            seconds[name].append(each)
    return {name: statistics.median(each) for name, each in seconds.items()}


def orbit_video(
    model: Renderable, cameras: Camera, path_stem: str | os.PathLike[str], fps: float = 30
) -> tuple[Path, Path]:
    """Render a camera path to ``STEM.mp4`` and ``STEM.gif``, depth beside the colors where there is one.

    Depth is colored with "turbo" between the 1st and 99th percentile of the whole video, so that a point
    keeps its color while the camera moves; it is white where the opacity is below one half. Sizes are padded
    to even ones, which the codec needs; the GIF is at most 640 pixels wide. All frames are held in memory,
    eight bytes a pixel.

    Args:
        model: anything with ``render(camera)``.
        cameras: a batch of N cameras, one frame each.
        path_stem: where to write, without extension; missing folders are made.
        fps: frames per second. GIF counts in hundredths of a second, so its speed is rounded.

    Returns:
        The paths of the mp4 and of the gif.

    Raises:
        UserError: no cameras, a frame with values that are not finite, or a folder that cannot be written to.
    """
    if len(cameras) == 0:
        raise UserError("orbit_video: the camera path is empty; at least one camera is needed.")
    frames, depths = [], []
    for index in track(len(cameras), "Rendering video"):
        rendering = model.render(cameras[index])
        frames.append(to_uint8(_finite(rendering.rgb, f"frame {index}")))
        if rendering.depth is not None:
            depths.append(_visible_depth(rendering.depth, rendering.opacity))
    if depths:
        _put_beside(frames, depths)
    stem = Path(path_stem)
    mp4, gif = stem.with_name(stem.name + ".mp4"), stem.with_name(stem.name + ".gif")
    _write_mp4(mp4, frames, fps)
    _write_gif(gif, frames, fps)
    return mp4, gif


def _timed_render(model: Renderable, camera: Camera, name: str) -> tuple[Tensor, float]:
    """Render one view: (H, W, 3) clamped to [0, 1], and the seconds until the picture was there."""
    start = time.perf_counter()
    rgb = model.render(camera).rgb
    if rgb.device.type != "cpu":
        torch.accelerator.synchronize(rgb.device)
    seconds = time.perf_counter() - start
    return _finite(rgb, f"view {name}").float().clamp(0, 1), seconds


def _finite(rgb: Tensor, where: str) -> Tensor:
    """Refuse pictures with NaN or infinite pixels; a mean over them would say nothing."""
    if not bool(torch.isfinite(rgb).all()):
        bad = int((~torch.isfinite(rgb)).any(dim=-1).sum())
        raise UserError(
            f"{where}: the model's picture has {bad} pixels that are not finite numbers; "
            "its weights are damaged or its training diverged."
        )
    return rgb


def _measure(rgb: Tensor, target: Tensor, mask: Tensor | None) -> dict[str, float | None]:
    """Compute all metrics of one picture, of ``compared``."""
    perceptual = metrics.lpips(rgb, target)
    return {
        "psnr": min(float(metrics.psnr(rgb, target, mask)), _EQUAL_PICTURES_DB),
        "ssim": float(metrics.ssim(rgb, target)),
        "lpips": None if perceptual is None else float(perceptual),
    }


def _summary(views: list[dict[str, Any]]) -> dict[str, Any]:
    """Average the metrics of the views; LPIPS is there for all of them or for none."""
    means = {
        key: None if views[0][key] is None else math.fsum(view[key] for view in views) / len(views)
        for key in ("psnr", "ssim", "lpips")
    }
    seconds = [view["seconds"] for view in views]
    return {
        **means,
        "seconds_per_view": statistics.median(seconds[1:] or seconds),
        "threads": torch.get_num_threads(),
        "views": views,
    }


def _measure_moving(rgb: Tensor, target: Tensor) -> dict[str, float]:
    """Compute what is measured of a (1, 3, H, W) picture with a time besides."""
    if min(rgb.shape[2:]) < metrics.MS_SSIM_SIDE:
        return {}
    return {"ms_ssim": float(metrics.ms_ssim(rgb, target))}


def _summary_moving(views: list[dict[str, Any]]) -> dict[str, float]:
    """Average the metrics of the views, and of those of a later moment than 0; all pictures have one size."""
    later = [view["psnr"] for view in views if view["time"] > 0.0]
    means = {"ms_ssim": statistics.fmean(view["ms_ssim"] for view in views)} if "ms_ssim" in views[0] else {}
    if later and len(later) < len(views):
        pooled = statistics.fmean(10 ** (-psnr / 10) for psnr in later)
        means |= {"psnr_after_0": statistics.fmean(later), "psnr_dnerf": -10 * math.log10(pooled)}
    return means


def _visible_depth(depth: Tensor, opacity: Tensor | None) -> np.ndarray:
    """Copy a depth picture to (H, W) float16, NaN where a pixel is mostly background."""
    depth = depth.float()
    if opacity is not None:
        depth = depth.masked_fill(opacity < _VISIBLE, torch.nan)
    # Half precision keeps a depth to one part in two thousand; its picture has 256 colors.
    return depth.clamp(max=_FARTHEST).cpu().numpy().astype(np.float16)


def _put_beside(frames: list[np.ndarray], depths: list[np.ndarray]) -> None:
    """Widen each frame, in place, by its colored depth."""
    # Every fourth pixel each way is plenty for two percentiles.
    visible = np.concatenate([depth[::4, ::4][np.isfinite(depth[::4, ::4])] for depth in depths])
    near, far = np.percentile(visible.astype(np.float32), (1, 99)) if visible.size else (0.0, 1.0)
    for index, depth in enumerate(depths):
        frames[index] = np.concatenate([frames[index], depth_map(depth, float(near), float(far))], axis=1)


def _write_mp4(path: Path, frames: list[np.ndarray], fps: float) -> None:
    """Write H.264 that every browser plays, its index in front."""
    height, width = (side + side % 2 for side in frames[0].shape[:2])
    with atomic_path(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            quality=8,
            macro_block_size=2,
            output_params=["-movflags", "+faststart"],
        )
        writer.send(None)
        for frame in frames:
            odd = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
            writer.send(np.ascontiguousarray(np.pad(frame, odd, mode="edge")))
        writer.close()


def _write_gif(path: Path, frames: list[np.ndarray], fps: float) -> None:
    """Write an endless GIF; frames wider than the limit are reduced by a whole factor."""
    step = math.ceil(frames[0].shape[1] / _GIF_WIDTH)
    small = [block_mean(frame, step) for frame in frames]
    with atomic_path(path) as temporary:
        iio.imwrite(temporary, small, duration=1000 / fps, loop=0)
