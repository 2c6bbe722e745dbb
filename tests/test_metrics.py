"""Metrics against scikit-image, and against numbers that can be worked out by hand."""

import logging
import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from nelf import metrics

torch.set_num_threads(1)


def _pictures(batch: int = 3, height: int = 40, width: int = 56) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures with a pure white half, as Blender scenes have, and a noisy copy of them."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(batch, 3, 5, 7, generator=generator)
    target = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    target[..., : width // 2] = 1.0
    rgb = (target + 0.08 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    rgb[0, :, :, : width // 2] = 1.0
    return rgb, target


def _numpy(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).double().numpy()


def _skimage_ssim(rgb: torch.Tensor, target: torch.Tensor) -> float:
    return structural_similarity(
        _numpy(rgb),
        _numpy(target),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=-1,
    )


def test_psnr_equals_scikit_image_per_image() -> None:
    rgb, target = _pictures()
    expected = [peak_signal_noise_ratio(_numpy(b), _numpy(a), data_range=1) for a, b in zip(rgb, target, strict=True)]
    assert metrics.psnr(rgb, target).tolist() == pytest.approx(expected, abs=1e-5)


def test_psnr_by_hand() -> None:
    target = torch.zeros(3, 3, 2, 2)
    rgb = torch.zeros(3, 3, 2, 2)
    rgb[0] = 0.1  # mean squared error 0.01: 20 dB
    rgb[1, 0, 0, 0] = 1.0  # one of 12 values is wrong by 1: 10 log10(12) dB
    values = metrics.psnr(rgb, target)
    assert values.shape == (3,)
    assert values.tolist()[:2] == pytest.approx([20.0, 10 * math.log10(12)], abs=1e-6)
    assert values[2] == math.inf


@pytest.mark.parametrize("size", [(11, 11), (40, 56), (33, 12)])
def test_ssim_equals_scikit_image_per_image(size: tuple[int, int]) -> None:
    rgb, target = _pictures(3, *size)
    expected = [_skimage_ssim(a, b) for a, b in zip(rgb, target, strict=True)]
    values = metrics.ssim(rgb, target)
    assert values.shape == (3,)
    assert values.tolist() == pytest.approx(expected, abs=1e-5)


def _ssim_on_the_wrong_axis(rgb: torch.Tensor, target: torch.Tensor) -> float:
    """SSIM of (H, W, 3) pictures taken for H channels of W x 3 pixels, zero-padded: published tables."""
    rows = rgb.shape[1]
    distance = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-distance.square() / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).expand(rows, 1, 11, 11)

    def blur(image: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(image, window, padding=5, groups=rows)

    a, b = (image.permute(1, 2, 0)[None].double() for image in (rgb, target))
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    return float((luminance * (2 * covariance + 9e-4) / (variance_a + variance_b + 9e-4)).mean())


def test_ssim_is_not_taken_on_the_wrong_axis() -> None:
    rgb, target = _pictures(1)
    value = float(metrics.ssim(rgb, target))
    assert _ssim_on_the_wrong_axis(rgb[0], target[0]) > value + 0.1
    assert value == pytest.approx(_skimage_ssim(rgb[0], target[0]), abs=1e-5)


def test_ssim_of_equal_pictures_is_one() -> None:
    rgb, _ = _pictures()
    assert metrics.ssim(rgb, rgb).tolist() == pytest.approx([1.0] * 3, abs=1e-9)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim, metrics.ms_ssim, metrics.lpips])
@pytest.mark.parametrize("shape", [(2, 16, 16, 3), (3, 16, 16), (2, 4, 16, 16), (2, 1, 16, 16)])
def test_other_layouts_are_refused_with_their_shape(metric, shape: tuple[int, ...]) -> None:
    image = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\)") as caught:
        metric(image, image)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim, metrics.ms_ssim, metrics.lpips])
def test_different_shapes_are_refused(metric) -> None:
    with pytest.raises(ValueError, match=r"same shape.*\(1, 3, 16, 16\) and \(2, 3, 16, 16\)"):
        metric(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match=r"11 x 11 pixels.*\(1, 3, 10, 40\)"):
        metrics.ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


def _ms_ssim(rgb: torch.Tensor, target: torch.Tensor) -> float:
    """Wang et al. 2003 in plain loops over channels and scales; the luminance counts on the last scale only."""
    distance = np.arange(11) - 5
    line = np.exp(-(distance**2) / (2 * 1.5**2))
    line /= line.sum()

    def blur(image: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            image = np.lib.stride_tricks.sliding_window_view(image, 11, axis=axis) @ line
        return image

    def half(image: np.ndarray) -> np.ndarray:
        height, width = image.shape
        image = np.pad(image, ((0, height % 2), (0, width % 2)), mode="symmetric")
        return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4

    result = []
    for channel in range(3):
        a, b = _numpy(rgb)[..., channel], _numpy(target)[..., channel]
        product = 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            mean_a, mean_b = blur(a), blur(b)
            variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
            structure = (2 * (blur(a * b) - mean_a * mean_b) + 9e-4) / (variance_a + variance_b + 9e-4)
            luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
            product *= max(float((structure * luminance if scale == 4 else structure).mean()), 0.0) ** weight
            a, b = half(a), half(b)
        result.append(product)
    return float(np.mean(result))


@pytest.mark.parametrize("size", [(161, 176), (183, 229)])
def test_ms_ssim_is_that_of_tensorflow(size: tuple[int, int]) -> None:
    rgb, target = _pictures(2, *size)
    values = metrics.ms_ssim(rgb, target)
    assert values.tolist() == pytest.approx([_ms_ssim(a, b) for a, b in zip(rgb, target, strict=True)], abs=1e-6)
    assert (values - metrics.ssim(rgb, target)).abs().min() > 0.01  # noise is forgiven on coarse scales
    assert metrics.ms_ssim(rgb, rgb).tolist() == pytest.approx([1.0, 1.0], abs=1e-9)
    assert metrics.ms_ssim(rgb, 1 - rgb).tolist() == [0.0, 0.0]


def test_ms_ssim_refuses_pictures_whose_last_scale_is_smaller_than_its_window() -> None:
    # 161, 81, 41, 21, 11; and 160, 80, 40, 20, 10.
    assert metrics.MS_SSIM_SIDE == 161
    with pytest.raises(ValueError, match=r"161 x 161 pixels.*\(1, 3, 160, 200\)"):
        metrics.ms_ssim(torch.zeros(1, 3, 160, 200), torch.zeros(1, 3, 160, 200))


def test_ms_ssim_is_near_that_of_torchmetrics() -> None:
    """Which takes the mean over channels on each scale, and windows beyond the edge on the last one."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    rgb, target = _pictures(2, 176, 192)
    other = multiscale_structural_similarity_index_measure(rgb, target, data_range=1.0, reduction="none")
    assert metrics.ms_ssim(rgb, target).tolist() == pytest.approx(other.tolist(), abs=2e-3)


def test_psnr_and_ssim_are_differentiable() -> None:
    rgb, target = _pictures(1, 16, 16)
    rgb.requires_grad_(True)
    (metrics.psnr(rgb, target) + metrics.ssim(rgb, target)).sum().backward()
    assert rgb.grad is not None
    assert torch.isfinite(rgb.grad).all()


class TestLPIPS:
    @pytest.fixture(autouse=True)
    def _fresh_network(self):
        load = metrics._lpips_network
        load.cache_clear()
        yield
        load.cache_clear()

    def test_without_weights_it_says_so_once_and_goes_on(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        class NoWeights:
            def __init__(self, **_) -> None:
                raise OSError("<urlopen error no network>\nsecond line")

        monkeypatch.setattr("torchmetrics.image.LearnedPerceptualImagePatchSimilarity", NoWeights, raising=False)
        image = torch.zeros(2, 3, 16, 16)
        with caplog.at_level(logging.WARNING):
            assert metrics.lpips(image, image) is None
            assert metrics.lpips(image, image) is None
        (record,) = caplog.records
        message = record.getMessage()
        assert message.startswith("LPIPS is left out")
        assert "no network" in message
        assert "\n" not in message

    def test_one_value_per_image_with_inputs_in_unit_range(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Distance(nn.Module):
            def forward(self, a: torch.Tensor, b: torch.Tensor, normalize: bool) -> torch.Tensor:
                assert normalize  # the network itself moves [0, 1] to [-1, 1]
                return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)

        monkeypatch.setattr(metrics, "_lpips_network", Distance)
        rgb = torch.tensor([0.25, 1.5]).view(2, 1, 1, 1).expand(2, 3, 8, 8)
        assert metrics.lpips(rgb, torch.zeros(2, 3, 8, 8)).tolist() == [0.25, 1.0]

    def test_with_weights(self) -> None:
        pytest.importorskip("torchvision", reason="LPIPS needs torchvision")
        rgb, target = _pictures(2, 64, 64)
        values = metrics.lpips(rgb, target)
        if values is None:
            pytest.skip("the VGG weights of LPIPS are not available")
        assert values.shape == (2,)
        assert (values > 0).all()
        assert metrics.lpips(rgb, rgb).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
