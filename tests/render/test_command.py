"""``python -m nelf.render``: what is written, and what is refused in one line."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from nelf import paths, storage
from nelf.cameras import Camera
from nelf.data import capture, demo_handheld, read_capture, read_scene
from nelf.errors import UserError
from nelf.fields import NGP
from nelf.lightfields import MobileR2L
from nelf.pipeline.documents import write_json, write_yaml
from nelf.render.command import _options, _path, _stated, main
from nelf.report.pictures import to_uint8

SMALL = {"levels": 2, "log2_table": 10, "finest_resolution": 32, "hidden": 16, "grid_resolution": 16, "max_samples": 32}


@pytest.fixture
def run(tmp_path: Path, tiny_scene: Path) -> Path:
    """A run directory with a teacher that draws something, and a student that knows no depth."""
    root, scene = tmp_path / "run", read_scene(tiny_scene)
    torch.manual_seed(3)
    teacher, student = NGP(**SMALL), MobileR2L(width=16, depth=4, sr_factor=4)
    for network, name, arguments in ((teacher, "teacher", SMALL), (student, "student", student.arguments)):
        network.prepare(scene.geometry)
        config = {"_target_": f"nelf.{'fields' if name == 'teacher' else 'lightfields'}.{type(network).__name__}"}
        storage.save(network, root / name / "model.safetensors", {**config, **arguments}, scene.digest)
    write_yaml(root / "config.yaml", {"data": {"_target_": "nelf.data.BlenderDataModule", "root": str(tiny_scene)}})
    write_json(root / "scene.json", {"name": scene.name, "root": str(tiny_scene), "digest": scene.digest})
    return root


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(each) for each in arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def pfm(path: Path) -> np.ndarray:
    """A reader of its own."""
    kind, size, scale, body = path.read_bytes().split(b"\n", 3)
    assert (kind, float(scale)) == (b"Pf", -1.0)
    width, height = map(int, size.split())
    return np.frombuffer(body, "<f4").reshape(height, width)[::-1]


def test_a_split_is_rendered_and_measured_with_its_depth(run: Path, tiny_scene: Path, capsys) -> None:
    main([str(run / "teacher"), "--split", "test", "--depth", "png,npy,pfm", "--out", str(run / "out")])
    folder = run / "out" / "test"
    scene, model = read_scene(tiny_scene), storage.load(run / "teacher")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [view["name"] for view in metrics["views"]] == scene.test.names
    assert f"2 views: PSNR {metrics['psnr']:.2f} dB" in capsys.readouterr().out
    expected = model.render(scene.test.camera[1])
    name = Path(scene.test.names[1]).name
    np.testing.assert_array_equal(iio.imread(sorted((folder / "images").glob("*.png"))[1]), to_uint8(expected.rgb))
    depth = np.load(folder / "depth" / f"{name}.npy")
    seen = (expected.opacity >= 0.5).numpy()
    assert 0 < seen.sum() < seen.size
    np.testing.assert_array_equal(np.isfinite(depth), seen)
    np.testing.assert_array_equal(depth[seen], expected.depth.numpy()[seen])
    np.testing.assert_array_equal(pfm(folder / "depth" / f"{name}.pfm"), depth)
    assert iio.imread(folder / "depth" / f"{name}.png").shape == (16, 16, 3)


def test_a_run_means_its_student_and_another_width_another_size(run: Path, capsys) -> None:
    main([str(run), "--split", "val", "--width", "12"])
    assert "MobileR2L" in capsys.readouterr().out
    picture = iio.imread(next((run / "render" / "val" / "images").glob("*.png")))
    assert picture.shape == (12, 12, 3)


@pytest.mark.parametrize("path", ["orbit", "spiral"])
def test_a_path_becomes_a_video(run: Path, path: str) -> None:
    main([str(run / "teacher"), "--path", path, "--frames", "3", "--out", str(run / "render")])
    folder = run / "render" / path
    assert (folder / f"{path}.mp4").stat().st_size > 0
    assert len(iio.imread(folder / f"{path}.gif")) == 3


def test_somebody_s_path_is_followed(run: Path, tiny_scene: Path, tmp_path: Path) -> None:
    scene = read_scene(tiny_scene)
    poses = scene.test.camera.c2w.tolist()
    frames = [{"transform_matrix": [*pose, [0.0, 0.0, 0.0, 1.0]]} for pose in poses]
    path = tmp_path / "way.json"
    path.write_text(json.dumps({"frames": frames}))
    main([str(run / "teacher"), "--path", str(path), "--depth", "npy", "--out", str(run / "render")])
    written = sorted((run / "render" / "way" / "depth").glob("*.npy"))
    assert len(written) == 2
    model = storage.load(run / "teacher")
    expected = model.render(replace(scene.test.camera, view=None)[0])
    depth = np.load(written[0])
    np.testing.assert_allclose(depth, expected.depth.masked_fill(expected.opacity < 0.5, float("nan")).numpy())


def test_a_path_of_nerfstudio_is_followed(run: Path, tiny_scene: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """With a note of what nerfstudio did to the poses they come back; without one they are the scene's."""
    films = []
    monkeypatch.setattr("nelf.report.evaluation.orbit_video", lambda _, *rest: films.append(rest) or [])
    scene = read_scene(tiny_scene)
    corner = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    turn = torch.cat([paths.look_at(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)), corner])
    poses = torch.stack([turn @ torch.cat([each, corner]) for each in scene.test.camera.c2w])
    poses[:, :3, 3] *= 0.5
    frames = [{"camera_to_world": each.flatten().tolist(), "fov": 60, "aspect": 2} for each in poses]
    path = tmp_path / "way.json"
    path.write_text(json.dumps({"camera_path": frames, "render_width": 64, "render_height": 32, "fps": 12}))
    start = [str(run / "teacher"), "--path", str(path)]
    main(start)
    assert "has no dataparser_transforms.json beside it" in capsys.readouterr().out
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps({"transform": turn[:3].tolist(), "scale": 0.5}))
    main(start)
    (apart, _, _), (back, name, fps) = films
    torch.testing.assert_close(apart.c2w, poses[:, :3])
    torch.testing.assert_close(back.c2w, scene.test.camera.c2w, atol=1e-5, rtol=0)
    assert (back.width, back.height, name.name, fps) == (16, 8, "way", 12)
    torch.testing.assert_close(back.intrinsics[0, :2], torch.full((2,), 4 / math.tan(math.radians(30))))
    other = replace(scene, root=tmp_path)
    with pytest.raises(UserError, match="but those of sphere are from none"):
        _path(_options(start), other, _stated(_options(start)))


def test_a_path_of_a_capture_is_followed_while_time_goes_by(tmp_path: Path) -> None:
    """A teacher of a capture, drawn along one of its camera paths: from there, without lens, from first to last."""
    root, place = demo_handheld.write(tmp_path / "capture", moments=5, width=24), tmp_path / "run"
    scene = read_capture(root, image_scale=2)
    teacher = NGP(**SMALL)
    teacher.prepare(scene.geometry)
    storage.save(teacher, place / "teacher" / "model.safetensors", {"_target_": "nelf.fields.NGP", **SMALL}, "")
    data = {"_target_": "nelf.data.HyperNeRFDataModule", "root": str(root), "image_scale": 2}
    write_yaml(place / "config.yaml", {"data": data})
    write_json(place / "scene.json", {"name": scene.name, "root": str(root), "digest": scene.digest})
    path = root / "camera-paths" / "sway"
    for extra in sorted(path.glob("*.json"))[3:]:
        extra.unlink()
    out = place / "render" / "sway"
    main([str(place / "teacher"), "--path", str(path), "--depth", "npy", "--out", str(place / "render")])
    assert len(list((out / "depth").glob("*.npy"))) == 3
    camera = capture.read_path(path).resized(12)
    assert (camera.width, camera.height, len(camera)) == (12, 16, 3)
    drawn = storage.load(place / "teacher").render(camera[1])
    expected = drawn.depth.masked_fill(drawn.opacity < 0.5, float("nan")).numpy()
    np.testing.assert_allclose(np.load(out / "depth" / "00001.npy"), expected, rtol=1e-5)
    cameras = _path(_options([str(place), "--path", str(path)]), scene)
    assert cameras.time.tolist() == [0.0, 0.5, 1.0]
    assert cameras.lens is None
    # Named by its folder, a capture is known from other scenes; its images are a quarter of the size unless told.
    (root / "rgb" / "2x").rename(root / "rgb" / "4x")
    for each in (root / "camera").glob("*.json"):
        each.write_text(json.dumps({**json.loads(each.read_text()), "image_size": [48, 64]}))
    main([str(place / "teacher"), "--split", "val", "--scene", str(root), "--out", str(place / "other")])
    assert iio.imread(next((place / "other" / "val" / "images").glob("*.png"))).shape == (16, 12, 3)


@pytest.fixture
def moving(tiny_scene: Path, tmp_path: Path) -> Path:
    """The tiny scene with times from 0.25 to 0.75 and a second control."""
    root = Path(shutil.copytree(tiny_scene, tmp_path / "moving"))
    for path in root.glob("transforms_*.json"):
        content = json.loads(path.read_text())
        for index, frame in enumerate(content["frames"]):
            frame |= {"time": 0.25 + 0.5 * index / (len(content["frames"]) - 1), "controls": [0.2 + 0.1 * (index % 2)]}
        path.write_text(json.dumps({**content, "controls": ["jaw"]}))
    return root


@pytest.fixture
def filmed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Camera, str]]:
    """The cameras of the videos that would be made, and their names."""
    made: list[tuple[Camera, str]] = []

    def film(model: object, cameras: Camera, stem: Path, fps: float) -> tuple[Path]:
        made.append((cameras, stem.name))
        return (stem,)

    monkeypatch.setattr("nelf.report.evaluation.orbit_video", film)
    return made


def test_time_camera_or_both_move(run: Path, moving: Path, filmed: list[tuple[Camera, str]]) -> None:
    start = [str(run / "teacher"), "--scene", str(moving), "--path", "orbit", "--frames", "5"]
    for options in ([], ["--motion", "both"], ["--motion", "time"], ["--motion", "camera"], ["--time", "0.6"]):
        main([*start, *options])
    cameras = [each for each, _ in filmed]
    assert [name for _, name in filmed] == ["orbit", "orbit", "orbit_time", "orbit_camera", "orbit"]
    goes_by = [0.25, 0.375, 0.5, 0.625, 0.75]
    expected = [goes_by, goes_by, goes_by, [0.25] * 5, [0.6] * 5]
    for camera, times in zip(cameras, expected, strict=True):
        np.testing.assert_allclose(camera.time, times, atol=1e-6)
        np.testing.assert_allclose(camera.controls[:, 1], 0.25, atol=1e-6)  # the middle of its range
    around = cameras[0].c2w
    assert len(around.unique(dim=0)) == 5
    for index in (1, 3, 4):
        assert torch.equal(cameras[index].c2w, around)
    assert torch.equal(cameras[2].c2w, around[:1].expand(5, 3, 4))


def test_the_path_of_d_nerf_s_videos(run: Path, moving: Path, filmed: list[tuple[Camera, str]]) -> None:
    main([str(run / "teacher"), "--scene", str(moving), "--path", "dnerf"])
    ((camera, name),) = filmed
    assert name == "dnerf"
    assert len(camera) == 40
    height = camera.c2w[:, 2, 3]
    np.testing.assert_allclose(height, 4.0 * np.sin(np.pi / 6), atol=1e-5)  # 30 degrees up, four away
    np.testing.assert_allclose(camera.c2w[:, :, 3].norm(dim=-1), 4.0, atol=1e-5)
    np.testing.assert_allclose(camera.time, np.linspace(0.25, 0.75, 40), atol=1e-6)


def test_a_path_without_times_lets_the_time_go_by(
    run: Path, moving: Path, tmp_path: Path, filmed: list[tuple[Camera, str]]
) -> None:
    pose = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]
    path = tmp_path / "way.json"
    start = [str(run / "teacher"), "--scene", str(moving), "--path", str(path)]
    path.write_text(json.dumps({"frames": [{"transform_matrix": pose}] * 3}))
    main(start)
    frames = [{"transform_matrix": pose, "time": time, "controls": [1]} for time in (0.9, 0.1, 0.3)]
    path.write_text(json.dumps({"frames": frames, "controls": ["jaw"]}))
    main(start)
    np.testing.assert_allclose(filmed[0][0].time, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(filmed[1][0].controls, [[0.9, 1], [0.1, 1], [0.3, 1]])


def test_what_does_not_move_has_no_motion(run: Path, moving: Path, capsys) -> None:
    teacher = run / "teacher"
    both = refused(capsys, teacher, "--scene", moving, "--path", "orbit", "--time", "0.5", "--motion", "time")
    assert both == "--time: holds one moment, so nothing is left of --motion time; leave one out."
    for word, value in (("--motion", "time"), ("--time", "0.5")):
        still = refused(capsys, teacher, "--path", "orbit", word, value)
        assert still == f"{word}: the views of sphere have no time; allowed: scenes that move."


def test_what_cannot_be_is_one_line(run: Path, tmp_path: Path, tiny_scene: Path, capsys) -> None:
    teacher, student = run / "teacher", run / "student"
    assert refused(capsys, tmp_path / "no").endswith("nothing to do: pass --split, --path or --mesh")
    assert "no such file or folder" in refused(capsys, tmp_path / "no", "--mesh")
    assert "holds no model.safetensors" in refused(capsys, tiny_scene, "--mesh")
    assert refused(capsys, student, "--mesh").startswith(f"{student}: a MobileR2L has no density")
    assert refused(capsys, student, "--split", "test", "--depth", "npy").startswith("--depth: a MobileR2L gives no")
    assert "allowed: some of png,npy,pfm. Did you mean 'pfm'?" in refused(capsys, teacher, "--mesh", "--depth", "pfmm")
    assert refused(capsys, teacher, "--split", "test", "--width", "8") == "--width: is 8; allowed: 11 to 16384."
    for word, value, allowed in (("frames", 10**9, "1 to 100000"), ("resolution", 10**9, "8 to 2048")):
        asked = refused(capsys, teacher, "--mesh", f"--{word}", str(value))
        assert asked == f"--{word}: is {value}; allowed: {allowed}."
    assert refused(capsys, teacher, "--mesh", "--device", "banana").endswith("allowed: cpu, cuda, cuda:N.")
    assert "GPUs are here; allowed: cpu" in refused(capsys, teacher, "--mesh", "--device", "cuda:99")
    assert refused(capsys, teacher, "--mesh", "--time", "1.5") == "--time: is 1.5; allowed: 0 to 1."
    assert refused(capsys, teacher, "--path", tmp_path / "a.json").startswith(
        f"{tmp_path / 'a.json'}: no such camera path"
    )
    (tmp_path / "b.json").write_text('{"frames": [{"transform_matrix": 5}]}')
    assert "transform_matrix" in refused(capsys, teacher, "--path", tmp_path / "b.json")
    alone = tmp_path / "alone" / "model.safetensors"
    alone.parent.mkdir()
    alone.write_bytes((teacher / "model.safetensors").read_bytes())
    assert "pass --scene ROOT" in refused(capsys, alone, "--mesh")


def test_a_run_that_somebody_sends_names_readers_only(run: Path, capsys) -> None:
    touched = run / "touched"
    write_yaml(run / "config.yaml", {"data": {"_target_": "pathlib.Path.touch", "self": str(touched)}})
    assert "its scene is read by pathlib.Path.touch; pass --scene ROOT instead" in refused(capsys, run, "--mesh")
    nested = {"_target_": "nelf.data.BlenderDataModule", "root": {"_target_": "os.system", "command": "true"}}
    write_yaml(run / "config.yaml", {"data": nested})
    assert "pass --scene ROOT instead" in refused(capsys, run, "--mesh")
    assert not touched.exists()
