"""Evaluate a model: metrics, latency and images on the views of a split, and a video along a camera path."""

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
"""Additional metrics of views with a time, if they can be computed: MS-SSIM (on images that are large enough); the mean
PSNR of all views except those of time 0; and the PSNR that D-NeRF reports, of the mean squared error over all these
views. Time 0 is left out as in D-NeRF, whose network does not deform it. (D-NeRF evaluates images truncated to 8 bits;
here nothing is rounded.)"""

_EQUAL_PICTURES_DB = 100.0  # JSON has no infinity
_VISIBLE = 0.5  # minimum opacity of a pixel with a meaningful depth
_GIF_WIDTH = 640
_FARTHEST = 65_504.0  # the largest number in half precision


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
    """Evaluate a model on every view of a split, and write sample images.

    Metrics are computed per image and then averaged. Masked pixels (see ``Split.masks``) are left out of PSNR, and
    replaced by the ground truth for SSIM and LPIPS. The latency is the median over views of one ``render`` call; if
    there are several views, the first is a warm-up and not counted.

    Args:
        model: anything with ``render(camera)``.
        split: the views; ``split.view(i).rgb(background)`` is the ground truth.
        background: "white" or "black", over which transparent ground truth is composited; must be the model's own.
        out_dir: where to write, or None to write nothing. It receives ``metrics.json`` and
            ``samples/NAME_prediction_truth_error.png``, see :func:`nelf.report.pictures.comparison`.
        samples: number of sample images, evenly spaced over the views (sorted by time, if they have one).
        save_images: also write each view's prediction as ``images/NAME.png``.
        description: label of the progress bar.

    Returns:
        Plain JSON: ``psnr`` (dB, mean), ``ssim``, ``lpips`` (None if its weights are not available), ``views`` (a list
        of ``name``, ``psnr``, ``ssim``, ``lpips``, ``seconds``), ``seconds_per_view`` and ``threads`` (of PyTorch, for
        the latency); for views with a time ``time`` and ``ms_ssim`` of each, and ``MOVING_FIGURES``. The PSNR of a view
        is at most 100 dB.

    Raises:
        UserError: the split has no views, an image has another size than its view or values that are not finite (the
            message names the view), or `out_dir` cannot be written to.
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

    The models take turns, so that other load on the machine affects all of them equally: compare ratios. In each turn,
    a model first renders the previous view, untimed, as in interactive use, where one view follows the other.

    Args:
        models: models by name, with ``render(camera)``.
        cameras: a batch of cameras; each round times the next one.
        rounds: number of timed calls per model.

    Returns:
        Median seconds by name.
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
    """Render a camera path to ``STEM.mp4`` and ``STEM.gif``, with depth beside the colors if the model has depth.

    Depth is colored with "turbo" between the 1st and 99th percentile of the whole video, so that colors are consistent
    between frames; it is white where the opacity is below one half. Sizes are padded to even ones, which the codec
    needs; the GIF is at most 640 pixels wide. All frames are held in memory, up to eight bytes per pixel.

    Args:
        model: anything with ``render(camera)``.
        cameras: a batch of N cameras, one frame each.
        path_stem: path without extension; missing folders are created.
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
    """Render one view: (H, W, 3) clamped to [0, 1], and the seconds until the device has finished."""
    start = time.perf_counter()
    rgb = model.render(camera).rgb
    if rgb.device.type != "cpu":
        torch.accelerator.synchronize(rgb.device)
    seconds = time.perf_counter() - start
    return _finite(rgb, f"view {name}").float().clamp(0, 1), seconds


def _finite(rgb: Tensor, where: str) -> Tensor:
    """Refuse images with NaN or infinite pixels, whose mean would be meaningless."""
    if not bool(torch.isfinite(rgb).all()):
        bad = int((~torch.isfinite(rgb)).any(dim=-1).sum())
        raise UserError(
            f"{where}: the model's picture has {bad} pixels that are not finite numbers; "
            "its weights are damaged or its training diverged."
        )
    return rgb


def _measure(rgb: Tensor, target: Tensor, mask: Tensor | None) -> dict[str, float | None]:
    """Compute all metrics of one image, from ``compared``."""
    perceptual = metrics.lpips(rgb, target)
    return {
        "psnr": min(float(metrics.psnr(rgb, target, mask)), _EQUAL_PICTURES_DB),
        "ssim": float(metrics.ssim(rgb, target)),
        "lpips": None if perceptual is None else float(perceptual),
    }


def _summary(views: list[dict[str, Any]]) -> dict[str, Any]:
    """Average the metrics of the views; LPIPS exists for all of them or for none."""
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
    """Compute the additional metrics of a (1, 3, H, W) image of a view with a time."""
    if min(rgb.shape[2:]) < metrics.MS_SSIM_SIDE:
        return {}
    return {"ms_ssim": float(metrics.ms_ssim(rgb, target))}


def _summary_moving(views: list[dict[str, Any]]) -> dict[str, float]:
    """Average the additional metrics over the views, and over those after time 0; all images have one size."""
    later = [view["psnr"] for view in views if view["time"] > 0.0]
    means = {"ms_ssim": statistics.fmean(view["ms_ssim"] for view in views)} if "ms_ssim" in views[0] else {}
    if later and len(later) < len(views):
        pooled = statistics.fmean(10 ** (-psnr / 10) for psnr in later)
        means |= {"psnr_after_0": statistics.fmean(later), "psnr_dnerf": -10 * math.log10(pooled)}
    return means


def _visible_depth(depth: Tensor, opacity: Tensor | None) -> np.ndarray:
    """Copy a depth map to (H, W) float16, NaN where a pixel is mostly background."""
    depth = depth.float()
    if opacity is not None:
        depth = depth.masked_fill(opacity < _VISIBLE, torch.nan)
    # Half precision has a relative error of 1/2000, which is enough for 256 colors.
    return depth.clamp(max=_FARTHEST).cpu().numpy().astype(np.float16)


def _put_beside(frames: list[np.ndarray], depths: list[np.ndarray]) -> None:
    """Append its colored depth to the right of each frame, in place."""
    # Every fourth pixel in each direction is enough for two percentiles.
    visible = np.concatenate([depth[::4, ::4][np.isfinite(depth[::4, ::4])] for depth in depths])
    near, far = np.percentile(visible.astype(np.float32), (1, 99)) if visible.size else (0.0, 1.0)
    for index, depth in enumerate(depths):
        frames[index] = np.concatenate([frames[index], depth_map(depth, float(near), float(far))], axis=1)


def _write_mp4(path: Path, frames: list[np.ndarray], fps: float) -> None:
    """Write H.264 that every browser plays, with the index at the beginning."""
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
    """Write a looping GIF; frames wider than the limit are downsampled by an integer factor."""
    step = math.ceil(frames[0].shape[1] / _GIF_WIDTH)
    small = [block_mean(frame, step) for frame in frames]
    with atomic_path(path) as temporary:
        iio.imwrite(temporary, small, duration=1000 / fps, loop=0)
