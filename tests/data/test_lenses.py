"""Camera models by name, against COLMAP itself and against OpenCV's equations in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nelf.cameras import Camera
from nelf.data.lenses import PARAMETERS, check_rays, coefficients, from_parameters, stack
from nelf.errors import UserError

WIDTH, HEIGHT = 90, 60

CAMERAS = {
    "SIMPLE_PINHOLE": [70.0, 43.0, 31.5],
    "PINHOLE": [70.0, 74.0, 43.0, 31.5],
    "SIMPLE_RADIAL": [70.0, 43.0, 31.5, -0.18],
    "RADIAL": [70.0, 43.0, 31.5, -0.25, 0.09],
    "OPENCV": [70.0, 74.0, 43.0, 31.5, -0.22, 0.07, 0.011, -0.008],
    "FULL_OPENCV": [70.0, 74.0, 43.0, 31.5, 0.3, -0.12, 0.004, -0.006, 0.02, 0.45, -0.05, 0.03],
}


def one_of(model: str) -> Camera:
    lens = from_parameters(model, CAMERAS[model], "here")
    stacked = stack([lens.coefficients])
    return Camera(
        torch.eye(3, 4), torch.tensor(lens.intrinsics), WIDTH, HEIGHT, lens=None if stacked is None else stacked[0]
    )


def seen(model: str, x: np.ndarray, y: np.ndarray, **changed: float) -> np.ndarray:
    """Pixels (N, 2) of what a pinhole has at x, y (y down), by OpenCV's documentation."""
    p = {"k1": 0, "k2": 0, "k3": 0, "k4": 0, "k5": 0, "k6": 0, "p1": 0, "p2": 0}
    p |= dict(zip(PARAMETERS[model], CAMERAS[model], strict=True)) | changed
    fx, fy = (p["f"], p["f"]) if "f" in p else (p["fx"], p["fy"])
    r2 = x**2 + y**2
    radial = (1 + p["k1"] * r2 + p["k2"] * r2**2 + p["k3"] * r2**3) / (
        1 + p["k4"] * r2 + p["k5"] * r2**2 + p["k6"] * r2**3
    )
    drawn_x = x * radial + 2 * p["p1"] * x * y + p["p2"] * (r2 + 2 * x**2)
    drawn_y = y * radial + p["p1"] * (r2 + 2 * y**2) + 2 * p["p2"] * x * y
    return np.stack([fx * drawn_x + p["cx"], fy * drawn_y + p["cy"]], -1)


def centers() -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5), -1).reshape(-1, 2)


@pytest.mark.parametrize("model", CAMERAS)
def test_rays_of_each_model_go_where_its_equations_say(model) -> None:
    rays_d = one_of(model).rays().directions.reshape(-1, 3).double().numpy()
    np.testing.assert_allclose(seen(model, rays_d[:, 0], -rays_d[:, 1]), centers(), atol=1e-4)
    if "RADIAL" in model or "OPENCV" in model:  # more than a pixel, so that no coefficient is lost in the tolerance
        straight = one_of(model).pinhole().rays().directions.reshape(-1, 3).double().numpy()
        assert np.abs(seen(model, straight[:, 0], -straight[:, 1]) - centers()).max() > 1
    points = torch.tensor([[0.3, -0.2, -1.1], [-0.4, 0.35, -0.9], [0.0, 0.0, -2.0]])
    x, y, _ = one_of(model).project(points)
    at = points.double().numpy()
    expected = seen(model, at[:, 0] / -at[:, 2], at[:, 1] / at[:, 2])
    np.testing.assert_allclose(torch.stack([x, y], -1).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("model", CAMERAS)
def test_each_model_is_colmap_s(model) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    theirs = pycolmap.Camera(model=model, width=WIDTH, height=HEIGHT, params=CAMERAS[model])
    local = np.random.default_rng(0).uniform([-0.5, -0.4, 0.8], [0.5, 0.4, 1.5], (50, 3))
    expected = np.stack([np.ravel(theirs.img_from_cam(point)) for point in local])
    x, y, _ = one_of(model).project(torch.from_numpy(local * [1, -1, -1]).float())  # OpenCV's axes to OpenGL's
    np.testing.assert_allclose(torch.stack([x, y], -1).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in PARAMETERS["FULL_OPENCV"] if name[0] in "kp"])
def test_every_coefficient_counts(name) -> None:
    """Without any one of them a pixel moves by more than the tests above let pass."""
    x, y = np.array([0.5]), np.array([-0.35])
    assert np.abs(seen("FULL_OPENCV", x, y, **{name: 0.0}) - seen("FULL_OPENCV", x, y)).max() > 2e-3


def test_a_rational_lens_goes_along() -> None:
    one = one_of("FULL_OPENCV")
    simple = one_of("OPENCV")
    both = Camera.stack([one, simple, simple.pinhole()])
    assert both.lens.shape == (3, 9)
    for index, each in enumerate((one, simple, simple.pinhole())):
        expected = each.rays().directions
        torch.testing.assert_close(both[index].rays().directions, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(both.rays().directions[index], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.resized(45).rays().directions, one.rays(2).directions, atol=1e-5, rtol=0)
    window = one.window(torch.tensor([20, 10]), 8, 6).rays().directions
    torch.testing.assert_close(window, one.rays().directions[10:16, 20:28], atol=1e-5, rtol=0)
    torch.testing.assert_close(one.padded(7).rays().directions[:60, :90], one.rays().directions)


def test_a_lens_takes_no_more_than_it_needs() -> None:
    pinhole, radial, rational = (
        coefficients("FULL_OPENCV", {key: 0.1 for key in keys}, "") for keys in ("", ("k1",), ("k6",))
    )
    assert stack([pinhole, pinhole]) is None
    assert stack([pinhole, radial]).tolist() == pytest.approx(np.array([[0.0] * 6, [0.1, *[0.0] * 5]]))
    assert stack([radial, rational]).shape == (2, 9)


@pytest.mark.parametrize(
    ("model", "parameters", "words"),
    [
        ("OPENCV_FISHEYE", [1.0] * 8, "camera model 'OPENCV_FISHEYE'; allowed: SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL"),
        ("EQUIRECTANGULAR", [], "camera model 'EQUIRECTANGULAR'; allowed: .*, FULL_OPENCV"),
        ("opencv", [1.0] * 8, "camera model 'opencv'; allowed"),
        (["OPENCV"], [1.0] * 8, "camera model .'OPENCV'.; allowed"),
        ("OPENCV", [1.0] * 7, r"OPENCV with 7 parameters; allowed: 8 \(fx, fy, cx, cy, k1, k2, p1, p2\)"),
        ("PINHOLE", [1.0, float("nan"), 1.0, 1.0], "allowed: finite numbers"),
        ("SIMPLE_PINHOLE", [0.0, 1.0, 1.0], "focal lengths 0 and 0; allowed: above 0"),
        ("PINHOLE", [5.0, -1.0, 1.0, 1.0], "focal lengths 5 and -1; allowed: above 0"),
    ],
)
def test_what_is_no_such_camera_is_refused(model, parameters, words) -> None:
    with pytest.raises(UserError, match=f"^cameras.txt: camera 3: .*{words}"):
        from_parameters(model, parameters, "cameras.txt: camera 3")


@pytest.mark.parametrize(
    ("model", "stated", "words"),
    [
        ("OPENCV", {"k1": 0.1, "k4": 0.02}, "OPENCV has no k4, which is 0.02; .*or model FULL_OPENCV"),
        ("PINHOLE", {"k1": 0.1}, "PINHOLE has no k1, which is 0.1; allowed: no distortion, or model SIMPLE_RADIAL"),
        ("RADIAL", {"k1": 0.1, "p2": 1e-3}, "RADIAL has no p2, which is 0.001; allowed: k1, k2, or model OPENCV"),
    ],
)
def test_coefficients_of_another_model_are_refused(model, stated, words) -> None:
    with pytest.raises(UserError, match=words):
        coefficients(model, stated, "transforms.json")


def test_coefficients_go_by_their_names() -> None:
    stated = {"p2": 6.0, "k2": 2.0, "k3": 3.0, "fl_x": 9.0, "p1": 5.0, "k1": 1.0, "k4": 0.0}
    assert coefficients("OPENCV", stated, "") == (1.0, 2.0, 3.0, 5.0, 6.0, 0.0, 0.0, 0.0, 0.0)


def test_a_lens_that_folds_back_within_its_picture_is_refused() -> None:
    """With k1 = -0.2 alone x (1 + k1 x^2) turns at x = 1.29, where it is 0.86: 8.6 pixels from the center, not 20."""
    lens = torch.zeros(3, 6)
    lens[1, 0] = -0.2
    intrinsics = torch.tensor([[10.0, 10, 20, 20]]).repeat(3, 1)
    camera = Camera(torch.eye(3, 4).repeat(3, 1, 1), intrinsics, 40, 40, lens=lens)
    with pytest.raises(UserError, match=r"t\.json: b: its lens \(k1 -0\.2\) folds back within the picture"):
        check_rays(camera, ["a", "b", "c"], Path("t.json"))
    check_rays(camera.window(torch.tensor([[15, 15]] * 3), 10, 10), ["a", "b", "c"], Path("t.json"))
    check_rays(camera.pinhole(), ["a", "b", "c"], Path("t.json"))
    for model in CAMERAS:
        check_rays(Camera.stack([one_of(model)]), [model], Path("t.json"))
