"""Stage report: what its videos show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from nelf import paths
from nelf.data import Scene, read_scene
from nelf.pipeline.stages import report


def moving_scene(tiny_scene: Path) -> Scene:
    """With a time from 0 to 0.8 and a second control from 0.5 to 1."""
    scene = read_scene(tiny_scene)
    count = len(scene.train)
    values = torch.stack([torch.linspace(0.0, 0.8, count), torch.linspace(1.0, 0.5, count)], -1)
    train = replace(scene.train, camera=replace(scene.train.camera, controls=values))
    return replace(scene, train=train, controls=("time", "jaw"))


def test_a_still_scene_has_one_video(tiny_scene: Path) -> None:
    (film,) = report._films(read_scene(tiny_scene), 4).items()
    assert film[0] == "orbit"
    assert film[1].controls is None
    assert len(film[1]) == 4


def test_a_film_goes_where_the_cameras_stood(tiny_scene: Path) -> None:
    """LLFF's spiral in front of what lies ahead; of a capture from one side, a loop on this side."""
    scene = read_scene(tiny_scene)
    ahead = torch.eye(3, 4).repeat(8, 1, 1)
    ahead[:, 0, 3], ahead[:, 1, 3] = torch.arange(8) % 4 / 4.0, torch.arange(8) // 4 / 4.0
    train = replace(scene.train, camera=replace(scene.train.camera, c2w=ahead))
    forward = replace(scene, train=train, trajectory="forward")
    expected = paths.llff_spiral(train.camera, scene.near, scene.far, 6)
    torch.testing.assert_close(report.film_cameras(forward, 6).c2w, expected.c2w)
    side = paths.orbit(8, 4.0, 20.0, turns=0.3)
    train = replace(scene.train, camera=replace(scene.train.camera, c2w=side))
    film = report.film_cameras(replace(scene, train=train, trajectory="between"), 12).c2w[:, :, 3]
    azimuth = torch.rad2deg(torch.atan2(film[:, 1], film[:, 0]))
    assert -0.1 < azimuth.min() < 15  # of 0 to 94.5, where they stand
    assert 80 < azimuth.max() < 94.6


def test_a_moving_scene_is_filmed_in_three_ways(tiny_scene: Path) -> None:
    films = report._films(moving_scene(tiny_scene), 5)
    assert set(films) == {"time", "camera", "both"} < set(report._FILMS)
    for camera in films.values():
        assert camera.controls is not None
        torch.testing.assert_close(camera.controls[:, 1], torch.full((5,), 0.75))
    goes_by = torch.linspace(0.0, 0.8, 5)
    torch.testing.assert_close(films["both"].time, goes_by)
    torch.testing.assert_close(films["time"].time, goes_by)
    assert films["camera"].time.tolist() == [0.0] * 5
    poses = {name: len(camera.c2w.unique(dim=0)) for name, camera in films.items()}
    assert poses == {"time": 1, "camera": 5, "both": 5}


def test_figures_of_a_moving_scene_are_in_its_row(tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_bytes(b"12345")
    known = {"psnr": 30.0, "ssim": 0.9, "lpips": None, "seconds_per_view": 0.5}
    moving = {**known, "ms_ssim": 0.95, "psnr_after_0": 29.0, "psnr_dnerf": 28.0}
    still, other = (report.row("a", None, result, file, {}, None) for result in (known, moving))  # type: ignore[arg-type]
    assert set(still) == {"name", "psnr", "ssim", "lpips", "bytes", "latency_ms"}
    assert {key: other[key] for key in set(other) - set(still)} == {
        "ms_ssim": 0.95,
        "psnr_after_0": 29.0,
        "psnr_dnerf": 28.0,
    }
