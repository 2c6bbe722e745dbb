"""Image metrics: one number per image of a batch, on (B, 3, H, W) in [0, 1].

Papers report the mean of per-image PSNRs, which differs from the PSNR of the pooled error. Images in any other
layout are refused, because SSIM and LPIPS give plausible numbers on the wrong axes, too: some published figures
were computed that way.
"""

import functools
import logging

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MS_SSIM_SIDE", "lpips", "ms_ssim", "psnr", "ssim"]

_log = logging.getLogger(__name__)

_SSIM_WINDOW = 11  # pixels; kornia derives sigma 1.5 from it, as in Wang et al. 2004

_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, the finest first

MS_SSIM_SIDE = 161
"""The shortest side, pixels, for which the fifth scale, a sixteenth of it, still holds a window of SSIM."""


def psnr(rgb: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the peak signal-to-noise ratio of each image, ``-10 log10(mean squared error)``.

    Args:
        rgb: (B, 3, H, W) in [0, 1].
        target: (B, 3, H, W) in [0, 1].
        mask: (B, H, W) bool, True for the pixels to compare; None for all.

    Returns:
        (B,) float64, dB; infinite where the two images are equal. Differentiable.

    Raises:
        ValueError: the shapes differ or are not (B, 3, H, W).

    Example:
        >>> psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5))
        tensor([20.0000], dtype=torch.float64)
    """
    _check(rgb, target)
    errors = (rgb.double() - target.double()).square()
    if mask is None:
        return -10 * errors.mean(dim=(1, 2, 3)).log10()
    return -10 * ((errors.mean(dim=1) * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2))).log10()


def ssim(rgb: Tensor, target: Tensor) -> Tensor:
    """Compute the structural similarity of each image with a Gaussian window of 11 pixels, sigma 1.5.

    The mean is taken over the windows that lie inside the image and over the channels, in double precision: in large
    uniform areas (a white background), single precision loses the variances that SSIM divides by.

    Args:
        rgb: (B, 3, H, W) in [0, 1], H and W at least 11.
        target: (B, 3, H, W) in [0, 1].

    Returns:
        (B,) float64 in [-1, 1]; 1 where the two images are equal. Differentiable.

    Raises:
        ValueError: the shapes differ, are not (B, 3, H, W), or a side is shorter than the window.

    Source:
        Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity".
    """
    # Imported here, since it takes seconds and PSNR does not need it.
    from kornia.metrics import ssim as similarity_map

    _check(rgb, target)
    if min(rgb.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(
            f"Expected images of at least {_SSIM_WINDOW} x {_SSIM_WINDOW} pixels, the window of SSIM, "
            f"but got shape {tuple(rgb.shape)}."
        )
    return similarity_map(rgb.double(), target.double(), _SSIM_WINDOW, padding="valid").mean(dim=(1, 2, 3))


def ms_ssim(rgb: Tensor, target: Tensor) -> Tensor:
    """Compute the structural similarity of each image on five scales, each half as large as the one before.

    Windows and precision are those of ``ssim``. As in TensorFlow, whose MS-SSIM HyperNeRF reports: it is computed for
    each channel, then averaged over channels; an odd side is extended by its last pixel before it is halved; and
    negative factors are clamped to zero.

    Args:
        rgb: (B, 3, H, W) in [0, 1], H and W at least ``MS_SSIM_SIDE``.
        target: (B, 3, H, W) in [0, 1].

    Returns:
        (B,) float64 in [0, 1]; 1 where the two images are equal. Differentiable where no factor is zero.

    Raises:
        ValueError: the shapes differ, are not (B, 3, H, W), or a side is too short.

    Source:
        Wang et al. 2003, "Multi-scale structural similarity for image quality assessment"; ``tf.image``.
    """
    _check(rgb, target)
    if min(rgb.shape[-2:]) < MS_SSIM_SIDE:
        raise ValueError(
            f"Expected images of at least {MS_SSIM_SIDE} x {MS_SSIM_SIDE} pixels for the five scales of MS-SSIM, "
            f"but got shape {tuple(rgb.shape)}."
        )
    pair = torch.cat([rgb.double(), target.double()])
    factors = []
    for scale in range(len(_MS_SSIM_WEIGHTS)):
        if scale:
            odd = (0, pair.shape[-1] % 2, 0, pair.shape[-2] % 2)
            pair = functional.avg_pool2d(functional.pad(pair, odd, mode="replicate"), 2)
        luminance, structure = _luminance_and_structure(*pair.chunk(2))
        last = scale == len(_MS_SSIM_WEIGHTS) - 1
        factors.append((luminance * structure if last else structure).mean(dim=(2, 3)).clamp(min=0.0))
    weights = rgb.new_tensor(_MS_SSIM_WEIGHTS, dtype=torch.float64)
    return torch.stack(factors, dim=-1).pow(weights).prod(dim=-1).mean(dim=1)


def _luminance_and_structure(rgb: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of SSIM in each window that lies inside the image, (B, 3, H - 10, W - 10) each."""
    line = torch.exp(-0.5 * ((torch.arange(_SSIM_WINDOW, device=rgb.device) - _SSIM_WINDOW // 2).double() / 1.5) ** 2)
    line /= line.sum()

    def mean(image: Tensor) -> Tensor:
        return image.unfold(2, _SSIM_WINDOW, 1).matmul(line).unfold(3, _SSIM_WINDOW, 1).matmul(line)

    mean_rgb, mean_target = mean(rgb), mean(target)
    variances = mean(rgb.square()) - mean_rgb.square() + mean(target.square()) - mean_target.square()
    covariance = mean(rgb * target) - mean_rgb * mean_target
    luminance = (2 * mean_rgb * mean_target + 0.01**2) / (mean_rgb.square() + mean_target.square() + 0.01**2)
    return luminance, (2 * covariance + 0.03**2) / (variances + 0.03**2)


def lpips(rgb: Tensor, target: Tensor) -> Tensor | None:
    """Compute the learned perceptual distance of each image (VGG-16), or None if its weights are missing.

    The weights are downloaded by torchvision on first use. Without torchvision, or without its weights and a network
    connection, None is returned; the reason is logged once as a warning.

    Args:
        rgb: (B, 3, H, W) in [0, 1].
        target: (B, 3, H, W) in [0, 1].

    Returns:
        (B,) float32, 0 for equal images, smaller is better; or None.

    Raises:
        ValueError: the shapes differ or are not (B, 3, H, W).

    Source:
        Zhang et al. 2018, arXiv 1801.03924; VGG as in the tables of NeRF and instant-ngp.
    """
    _check(rgb, target)
    network = _lpips_network()
    if network is None:
        return None
    with torch.no_grad():
        distance = network.to(rgb.device)(rgb.float().clamp(0, 1), target.float().clamp(0, 1), normalize=True)
    return distance.reshape(len(rgb))


@functools.cache
def _lpips_network() -> nn.Module | None:
    """Load the LPIPS network once; the cache makes the warning appear once, too."""
    try:
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity(net_type="vgg").net
    except ImportError:
        _log.warning("LPIPS is left out: it needs torchvision.")
        return None
    except OSError as error:  # no network (URLError), unreadable cache
        reason = str(error).strip().split("\n")[0]
        _log.warning("LPIPS is left out: its VGG weights are not available (%s).", reason)
        return None


def _check(rgb: Tensor, target: Tensor) -> None:
    """Refuse anything but two equal (B, 3, H, W) batches."""
    for name, image in (("rgb", rgb), ("target", target)):
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"Expected `{name}` to have shape (B, 3, H, W), but got {tuple(image.shape)}.")
    if rgb.shape != target.shape:
        raise ValueError(
            f"Expected `rgb` and `target` to have the same shape, but got {tuple(rgb.shape)} and {tuple(target.shape)}."
        )
