"""Every format that nelf reads: how to make a tiny valid example, and how to read it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nelf import data, paths, storage
from nelf.cameras import Camera
from nelf.data import capture, nerfstudio, transforms
from nelf.data.capture import Space
from nelf.data.capture_writer import write_capture
from nelf.data.ply import read_ply
from nelf.errors import UserError
from nelf.scene import Scene
from tests.fuzz.pictures import encoded

WIDTH, HEIGHT = 16, 12


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        make: writes a valid example into an empty folder.
        read: reads it as nelf does; raises nothing.
        files: patterns of the files that are damaged.
        alone: each of them is read by itself, not their folder.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    alone: bool = False


# ------------------------------------------------------------------------------------------------ scenes


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _pictures(folder: Path, names: list[str], kind: str = "PNG", mode: str = "RGB") -> None:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = random.integers(0, 255, (HEIGHT, WIDTH, len(mode)), np.uint8)
        (folder / name).write_bytes(encoded(Image.fromarray(pixels, mode), kind))


def _frames(count: int, **more: Any) -> list[dict[str, Any]]:
    c2w = paths.hemisphere(count, 4.0, (-60.0, 60.0))
    poses = [[*each.tolist(), [0.0, 0.0, 0.0, 1.0]] for each in c2w]
    frames = [{"file_path": f"train/r_{index}", "transform_matrix": pose} for index, pose in enumerate(poses)]
    return [{**frame, **{key: make(index) for key, make in more.items()}} for index, frame in enumerate(frames)]


def _blender(root: Path, **more: Any) -> None:
    frames = _frames(4, **more)
    names = [f"r_{index}.png" for index in range(4)]
    _pictures(root / "train", names, mode="RGBA")
    for split, some in (("train", frames), ("val", frames[:1]), ("test", frames[1:2])):
        _write(
            root / f"transforms_{split}.json", {"camera_angle_x": 0.7, "frames": some, "aabb": [-1.5] * 3 + [1.5] * 3}
        )


def _dnerf(root: Path) -> None:
    _blender(root, time=lambda index: index / 3, rotation=lambda index: 0.1)


def _nerfstudio(root: Path) -> None:
    """One transforms.json with most of the keys that there are."""
    frames = _frames(6, mask_path=lambda index: "masks/m.png", fl_x=lambda index: 18.0 + index)
    _pictures(root / "train", [f"r_{index}.png" for index in range(6)])
    _pictures(root / "masks", ["m.png"])
    names = [frame["file_path"] for frame in frames]
    lens = {
        "w": WIDTH,
        "h": HEIGHT,
        "cx": 8.2,
        "cy": 5.9,
        "camera_model": "OPENCV",
        "k1": -0.03,
        "k2": 0.01,
        "p1": 1e-3,
    }
    split = {"train_filenames": names[2:], "val_filenames": names[:1], "test_filenames": names[1:2]}
    applied = {"applied_transform": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "applied_scale": 1.0}
    cloud = {"ply_file_path": "points.ply", "license": "none", "background": "black"}
    _write(root / "transforms.json", {**lens, **split, **applied, **cloud, "frames": frames})
    _ply(root)


def _ply(root: Path) -> None:
    points = np.random.default_rng(0).normal(0, 0.4, (40, 3))
    header = (
        "ply\nformat ascii 1.0\ncomment a\nelement vertex 40\nproperty float x\nproperty float y\nproperty float z\n"
    )
    rows = "".join(f"{x:.4f} {y:.4f} {z:.4f}\n" for x, y, z in points)
    (root / "points.ply").write_text(f"{header}end_header\n{rows}")
    binary = header.replace("ascii", "binary_little_endian").encode() + b"end_header\n"
    (root / "binary.ply").write_bytes(binary + points.astype("<f4").tobytes())


def _ngp(root: Path) -> None:
    frames = _frames(6)
    _pictures(root / "train", [f"r_{index}.png" for index in range(6)])
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:4] = 255
    (root / "train/dynamic_mask_r_2.png").write_bytes(encoded(Image.fromarray(mask)))
    own = {"camera_angle_x": 0.7, "camera_angle_y": 0.5, "aabb_scale": 4, "scale": 0.33, "offset": [0.5, 0.5, 0.5]}
    _write(root / "transforms.json", {**own, "frames": frames})


def _capture(root: Path) -> None:
    c2w = paths.hemisphere(6, 4.0, (-20.0, 20.0))
    camera = Camera.from_fov(c2w, 0.7, 2 * WIDTH, 2 * HEIGHT)
    picture = np.random.default_rng(0).integers(0, 255, (2 * HEIGHT, 2 * WIDTH, 3), np.uint8)
    ids = [f"{index:03d}" for index in range(6)]
    moments = {each: {"warp_id": index, "appearance_id": index, "camera_id": 0} for index, each in enumerate(ids)}
    splits = {"train_ids": ids[::2], "val_ids": ids[1::2]}
    space = Space(0.5, np.array([0.1, 0.2, 0.0]), 0.5, 3.0)
    points = np.random.default_rng(0).normal(0, 1, (50, 3))
    write_capture(root, camera, lambda _: picture, moments, splits, space, points, {"orbit": camera}, (1, 2))


def _llff(root: Path) -> None:
    random = np.random.default_rng(0)
    rows = []
    for index in range(6):
        turn = np.linalg.qr(np.eye(3) + 0.02 * random.normal(size=(3, 3)))[0]
        turn *= np.sign(np.diagonal(turn))
        right, up, back = turn.T
        matrix = np.stack([-up, right, back, [0.1 * index, 0, 0], [HEIGHT, WIDTH, 18.0]], 1)
        rows.append([*matrix.ravel(), 1.5 + 0.1 * index, 9.0])
    np.save(root / "poses_bounds.npy", np.array(rows))
    _pictures(root / "images", [f"{index}.png" for index in range(6)])


def _colmap_numbers() -> tuple[list[Any], np.ndarray, list[list[tuple[float, float, int]]]]:
    """Poses (quaternion, translation), points, and what each image shows of them."""
    random = np.random.default_rng(0)
    points = random.normal(0, 0.4, (30, 3))
    poses, shown = [], []
    for index in range(6):
        angle = 0.1 * index
        rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        poses.append(([np.cos(angle / 2), 0.0, np.sin(angle / 2), 0.0], [0.0, 0.0, 4.0]))
        seen = points @ rotation.T + [0, 0, 4]
        x, y = 18 * seen[:, 0] / seen[:, 2] + 8, 18 * seen[:, 1] / seen[:, 2] + 6
        shown.append([(float(x[k]), float(y[k]), k + 1 if k % 5 else -1) for k in range(30)])
    return poses, points, shown


def _colmap_text(root: Path) -> None:
    poses, points, shown = _colmap_numbers()
    folder = root / "sparse/0"
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(f"# Camera list\n1 SIMPLE_RADIAL {WIDTH} {HEIGHT} 18.0 8.0 6.0 -0.01\n")
    text = "# Image list\n"
    for index, (turn, shift) in enumerate(poses):
        numbers = " ".join(str(float(value)) for value in (*turn, *shift))
        spots = " ".join(f"{x!r} {y!r} {key}" for x, y, key in shown[index])
        text += f"{index + 1} {numbers} 1 {index}.png\n{spots}\n"
    (folder / "images.txt").write_text(text)
    tracks = [[f"{image + 1} {k}" for image in range(6)] if k % 5 else [] for k in range(30)]
    rows = [f"{k + 1} {x} {y} {z} 9 9 9 0.1 {' '.join(tracks[k])}\n" for k, (x, y, z) in enumerate(points)]
    (folder / "points3D.txt").write_text("".join(row for k, row in enumerate(rows) if k % 5))
    _pictures(root / "images", [f"{index}.png" for index in range(6)])


def _colmap_binary(root: Path) -> None:
    poses, points, shown = _colmap_numbers()
    folder = root / "sparse/0"
    folder.mkdir(parents=True)
    camera = struct.pack("<QIiQQ4d", 1, 1, 2, WIDTH, HEIGHT, 18.0, 8.0, 6.0, -0.01)
    (folder / "cameras.bin").write_bytes(camera)
    images = struct.pack("<Q", len(poses))
    for index, (turn, shift) in enumerate(poses):
        images += struct.pack("<I7dI", index + 1, *turn, *shift, 1) + f"{index}.png\0".encode()
        images += struct.pack("<Q", 30) + b"".join(struct.pack("<ddq", *spot) for spot in shown[index])
    (folder / "images.bin").write_bytes(images)
    kept = [k for k in range(30) if k % 5]
    content = struct.pack("<Q", len(kept))
    for k in kept:
        content += struct.pack("<Q3d3BdQ", k + 1, *points[k], 9, 9, 9, 0.1, 6)
        content += b"".join(struct.pack("<II", image + 1, k) for image in range(6))
    (folder / "points3D.bin").write_bytes(content)
    _pictures(root / "images", [f"{index}.png" for index in range(6)])


def _photographs(root: Path) -> None:
    for index, (ending, kind) in enumerate((("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG"))):
        _pictures(root / "train", [f"r_{index}.{ending}"], kind)
    frames = _frames(4)
    _write(root / "transforms_train.json", {"camera_angle_x": 0.7, "frames": frames})


def checked(scene: Scene) -> None:
    """What is read has to be finite, and what is finite has to be drawn."""
    for split in (scene.train, scene.val, scene.test):
        for index in range(len(split)):
            view = split[index]
            rays = view.camera.rays(4)
            for values in (view.camera.c2w, view.camera.intrinsics, rays.origins, rays.directions, rays.viewdirs):
                assert bool(torch.isfinite(values).all()), "read, but not finite"
            assert view.rgb(scene.background).isfinite().all()
    assert bool(torch.isfinite(scene.aabb).all()), "read, but its box is not finite"
    assert bool((scene.aabb[:3] < scene.aabb[3:]).all()), "read, but its box is empty"
    depth = torch.tensor([scene.near, scene.far])
    assert bool(torch.isfinite(depth).all()), "read, but its depth range is not finite"
    assert 0 < depth[0] < depth[1], "read, but its depth range is empty"
    assert scene.points is None or bool(scene.points.isfinite().all()), "read, but its points are not finite"
    _ = scene.viewpoints


# ------------------------------------------------------------------------------------------------ paths


def _camera_paths(root: Path) -> None:
    c2w = paths.hemisphere(3, 4.0, (-20.0, 20.0)).tolist()
    poses = [[*each, [0.0, 0.0, 0.0, 1.0]] for each in c2w]
    frames = [
        {"camera_to_world": [value for row in pose for value in row], "fov": 50, "render_time": 0.5} for pose in poses
    ]
    _write(root / "path.json", {"camera_path": frames, "render_width": 64, "render_height": 48, "fps": 24})
    _write(root / "dataparser_transforms.json", {"transform": poses[0][:3], "scale": 0.3})
    _write(root / "transforms.json", {"camera_angle_x": 0.7, "frames": [{"transform_matrix": pose} for pose in poses]})
    _capture(root / "capture")


def _read_paths(root: Path) -> None:
    each(
        [
            lambda: _nerfstudio_path(root),
            lambda: transforms.read_path(root / "transforms.json"),
            lambda: _capture_path(root),
        ]
    )


def each(readings: Iterable[Callable[[], Any]]) -> None:
    """Read several things, whatever is wrong with the ones before; then raise the first mistake."""
    errors = [error for error in map(_mistake, readings) if error is not None]
    if errors:
        raise errors[0]


def _mistake(reading: Callable[[], Any]) -> UserError | None:
    try:
        reading()
    except UserError as error:
        return error
    return None


def _nerfstudio_path(root: Path) -> None:
    found = nerfstudio.read_camera_path(root / "path.json")
    moved = nerfstudio.into_file_space(found.c2w, root / "dataparser_transforms.json", root / "transforms.json")
    lenses, height = found.intrinsics(32)
    assert np.isfinite(moved.astype(np.float32)).all(), "read, but not finite"
    assert np.isfinite(lenses).all(), "read, but not finite"
    assert 0 < height < 2**20


def _capture_path(root: Path) -> None:
    camera = capture.read_path(root / "capture/camera-paths/orbit")
    assert camera.rays(8).directions.isfinite().all(), "read, but not finite"


# ------------------------------------------------------------------------------------------------ arrays


def _shards(root: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(3):
        np.save(root / f"data_{index}.npy", random.random((20 + index, 9), np.float32))


def _read_shards(root: Path) -> None:
    from nelf.interop.shards import RayShards

    shards = RayShards(root, 16)
    for index in range(5):
        assert shards.batch(index).rgba.isfinite().all()


def _pseudo(root: Path) -> None:
    set_root = root / "set"
    _write(
        set_root / "hwf/dataset_info.json",
        {"dataset_type": "nerf", "ff": False, "downscaled_height": 8, "downscaled_focal": 9.0, "scale": 2.0},
    )
    random = np.random.default_rng(0)
    (set_root / "8x8_rgb").mkdir()
    (set_root / "poses").mkdir()
    for index in range(3):
        np.save(set_root / f"8x8_rgb/rendered_rgb_{index:05d}.npy", random.random((64, 3), np.float32))
        np.save(set_root / f"poses/c2w_{index:05d}.npy", random.normal((0, 0, 2), 1).astype(np.float32))


def _read_pseudo(root: Path) -> None:
    import shutil

    from nelf.interop.mobile_r2l_pseudo import convert

    try:
        convert(root / "set", root / "out")
    finally:
        shutil.rmtree(root / "out", ignore_errors=True)


# ------------------------------------------------------------------------------------------------ weights


def _weights(root: Path) -> None:
    from nelf.fields import NGP, NeRF
    from nelf.lightfields import R2L, GridR2L, MobileR2L

    torch.manual_seed(0)
    made: dict[str, tuple[Any, dict[str, Any], str]] = {
        "ngp": (
            NGP,
            {"levels": 2, "log2_table": 8, "finest_resolution": 32, "hidden": 16, "grid_resolution": 16},
            "fp32",
        ),
        "nerf": (NeRF, {"width": 8, "depth": 3, "skips": [1], "samples": 4, "fine_samples": 4}, "fp16"),
        "mobile": (MobileR2L, {"width": 8, "depth": 4, "sr_factor": 2, "points": 4}, "int8_per_channel"),
        "r2l": (R2L, {"width": 8, "depth": 4, "points": 4}, "int8_per_tensor"),
        "grid": (GridR2L, {"width": 8, "depth": 4, "resolution": 8, "features": 4}, "fp32"),
    }
    for name, (kind, arguments, scheme) in made.items():
        config = {"_target_": f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}", **arguments}
        storage.save(kind(**arguments), root / f"{name}.safetensors", config, "digest", scheme)  # type: ignore[arg-type]


def _drawn(path: Path) -> None:
    network = storage.load(path)
    for name, values in network.state_dict().items():
        assert not values.is_floating_point() or bool(values.isfinite().all()), f"{name} is not finite"
    network.render(_one_camera())


@cache
def _one_camera() -> Camera:
    return Camera.from_fov(paths.hemisphere(1, 4.0, (-20.0, 20.0)), 0.7, 8, 8)[0]


def _layers(sizes: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    state = {}
    for name, size in sizes.items():
        state |= {f"{name}.weight": torch.randn(size), f"{name}.bias": torch.randn(size[0])}
    return state


def _checkpoints(root: Path) -> None:
    from nelf.interop.mobile_r2l import save_tar
    from nelf.interop.r2l import save_tar as save_r2l
    from nelf.lightfields import R2L, MobileR2L

    torch.manual_seed(0)
    save_tar(MobileR2L(width=8, depth=4, sr_factor=2, points=4), root / "mobile.tar")
    save_r2l(R2L(width=8, depth=4, points=4), root / "r2l.tar")
    width, x, d = 8, 63, 27
    nerf = _layers({f"pts_linears.{i}": (width, x if i == 0 else x + width if i == 5 else width) for i in range(8)})
    nerf |= _layers({"views_linears.0": (4, d + width), "feature_linear": (width, width)})
    nerf |= _layers({"alpha_linear": (1, width), "rgb_linear": (3, 4)})
    torch.save({"network_fn_state_dict": nerf, "network_fine_state_dict": nerf}, root / "nerf.tar")
    torch.save({"network_fn_state_dict": nerf}, root / "old.tar", _use_new_zipfile_serialization=False)
    pl = _layers(
        {f"xyz_encoding_{i + 1}.0": (width, x if i == 0 else x + width if i == 4 else width) for i in range(8)}
    )
    pl |= _layers(
        {"sigma": (1, width), "xyz_encoding_final": (width, width), "dir_encoding.0": (4, d + width), "rgb.0": (3, 4)}
    )
    torch.save({"state_dict": {f"nerf_coarse.{name}": values for name, values in pl.items()}}, root / "pl.ckpt")
    moving = {f"_occ.{name}": values for name, values in nerf.items()}
    moving |= _layers({f"_time.{i}": (width, {0: x + 21, 5: x + width}.get(i, width)) for i in range(8)})
    moving |= _layers({"_time_out": (3, width)})
    torch.save({"network_fn_state_dict": moving}, root / "dnerf.tar")


def _more_checkpoints(root: Path) -> None:
    """Those of krrish94's code, of nerf-pytorch without directions, and of DyLiN and R2L with pickled options."""
    width, x, d, each = 8, 63, 27, 5
    flexible = _layers({"layer1": (width, x), **{f"layers_xyz.{i}": (width, width) for i in range(3)}})
    flexible |= _layers({"fc_feat": (width, width), "fc_alpha": (1, width), "layers_dir.0": (4, width + d)})
    flexible |= _layers({"fc_rgb": (3, 4)})
    content = {"model_coarse_state_dict": flexible, "model_fine_state_dict": flexible, "iter": 3}
    torch.save(content, root / "krrish.ckpt", _use_new_zipfile_serialization=False)
    paper = _layers({f"layers_xyz.{i}": (width, x if i == 0 else x + width if i == 4 else width) for i in range(8)})
    paper |= _layers({"layers_dir.0": (4, width + d), **{f"layers_dir.{i}": (4, 4) for i in range(1, 4)}})
    paper |= _layers({"fc_feat": (width, width), "fc_alpha": (1, width), "fc_rgb": (3, 4)})
    torch.save({"model_coarse_state_dict": paper, "model_fine_state_dict": None}, root / "paper.ckpt")
    flat = _layers({f"pts_linears.{i}": (width, x if i == 0 else width) for i in range(3)})
    flat |= _layers({"output_linear": (4, width)})
    torch.save({"network_fn_state_dict": flat, "network_fine_state_dict": None}, root / "flat.tar")
    trunk = _layers({"head.0": (width, (3 * 2 + 2) * each), "body.0.body.0": (width, width), "tail.0": (3, width)})
    trunk |= _layers({"body.0.body.2": (width, width)})
    moved = _layers({"pts_linears.0": (width, 7 * each), "pts_linears.1": (width, width)})
    offset = moved | _layers({"output_linear_o": (3, width), "output_linear_d": (3, width)})
    hyper = moved | _layers({"output_linear": (2, width)})
    torch.save({"trunk": trunk, "offset": offset, "hyper": hyper}, root / "dylin.tar")


def _ngp_pl(root: Path) -> None:
    """A checkpoint of ngp_pl, whose sizes are given."""
    from nelf.kernels import HashGrid

    scale = 0.5
    entries = HashGrid(16, 2, 19, 16, (2048 * scale / 16) ** (1 / 15)).entries
    state = {
        "model.xyz_min": torch.full((1, 3), -scale),
        "model.xyz_max": torch.full((1, 3), scale),
        "model.density_bitfield": torch.ones(128**3 // 8, dtype=torch.uint8),
        "model.xyz_encoder.params": torch.randn(64 * 32 + 16 * 64 + 2 * entries) * 0.1,
        "model.rgb_net.params": torch.randn(64 * 32 + 64 * 64 + 16 * 64) * 0.1,
    }
    torch.save({"state_dict": state, "epoch": 3}, root / "ngp.ckpt")


def _converted(path: Path) -> None:
    from nelf.interop.recognize import conversion

    options = {"r2l.tar": {"residual": True}, "ngp.ckpt": {"radius": 4.0}}
    found = conversion(path, options.get(path.name, {}))
    network = found.network(path)
    network.render(_one_camera().at(0.5) if path.name in ("dylin.tar", "dnerf.tar") else _one_camera())


# ------------------------------------------------------------------------------------------------ trainings


@cache
def _training() -> Any:
    """The recipe of a training of one step."""
    tiny = ["levels=2", "log2_table=8", "finest_resolution=32", "hidden=16", "grid_resolution=16", "max_samples=8"]
    model = ["model=ngp_small", *(f"model.{each}" for each in tiny), "system.batch_size=16"]
    return _built("train", *model, "trainer.max_steps=1", "trainer.limit_val_batches=1")


def _checkpointed(root: Path) -> None:
    """Two checkpoints of one training, of which the newest that is whole is taken."""
    from nelf.pipeline.quiet import quiet_lightning

    recipe = _training()
    system = recipe.system()
    with quiet_lightning():
        trainer = recipe.trainer(root)
        trainer.fit(system, datamodule=recipe.data(system))
        for name in ("older", "newer"):
            trainer.save_checkpoint(root / f"checkpoints/{name}.ckpt")


def _resumed(root: Path) -> None:
    from nelf.pipeline.fit import fit

    recipe = _training()
    system = recipe.system()
    metrics = fit(recipe, system, recipe.data(system), root)
    assert metrics["steps"] >= 1
    assert all(bool(values.isfinite().all()) for values in system.state_dict().values()), "resumed, but not finite"


# ------------------------------------------------------------------------------------------------ bundles


def _bundle(root: Path) -> None:
    """A volume in 8 bits, and a graph that makes one convolution of its features."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from nelf.export.bundle import artifact, write_bundle
    from nelf.export.volume import write_volume
    from nelf.lightfields import GridR2L

    torch.manual_seed(0)
    network = GridR2L(width=8, depth=4, resolution=8, features=4)
    torch.nn.init.normal_(network.volume.density)
    torch.nn.init.normal_(network.volume.features)
    side = network.sr_factor
    channels = 5 * side**2 + 16
    weight = numpy_helper.from_array(np.random.default_rng(0).random((4 * side**2, channels, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["features", "w"], ["blocks"]),
        helper.make_node("DepthToSpace", ["blocks"], ["rgba"], blocksize=side),
    ]
    inputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, channels, "h", "w"])]
    outputs = [helper.make_tensor_value_info("rgba", TensorProto.FLOAT, [1, 4, "H", "W"])]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, root / "model.onnx")
    volume = write_volume(network, root / "volume.bin.gz")
    about = {"output": "rgba", "window": network.window}
    entry = artifact("fp32", root / "model.onnx", "features", "fp32", volume, **about)
    # What a digest would refuse is to be read here.
    del entry["sha256"], volume["sha256"]
    write_bundle(root, _tiny_scene(), network, [entry])


@cache
def _tiny_scene() -> Scene:
    camera = Camera.from_fov(paths.hemisphere(4, 4.0, (-60.0, 60.0)), 0.7, WIDTH, HEIGHT)
    images = np.zeros((4, HEIGHT, WIDTH, 3), np.uint8)
    split = data.Split(camera, images, [str(index) for index in range(4)])
    box = torch.tensor([-1.5, -1.5, -1.5, 1.5, 1.5, 1.5])
    return Scene("tiny", None, split, split, split, aabb=box, near=2.0, far=6.0)


def _read_bundle(root: Path) -> None:
    from nelf.export.loading import load

    assert load(root).render(_one_camera().resized(8)).rgb.isfinite().all(), "drawn, but not finite"


# ------------------------------------------------------------------------------------------------ runs


def _run(root: Path) -> None:
    run = _opened(root / "run", root)
    for name in ("teacher", "student", "prune"):
        run.folder(name).mkdir(parents=True)
        run._finish(name, {"val/psnr": 20.0, "seconds": 1.0, "peak_memory_bytes": 100})
        run.prepare(name)
        run._finish(name, {"val/psnr": 20.0, "seconds": 1.0, "peak_memory_bytes": 100})
    prune = run.folder("prune")
    (prune / "p50.safetensors").write_bytes(b"x")
    _write(prune / "artifacts.json", [{"name": "p50", "file": "p50.safetensors", "sparsity": 0.5, "bytes": 1}])
    (run.folder("teacher") / "metrics.csv").write_text("step,train/psnr,val/psnr\n1,10.0,\n2,,11.0\n3,12.0,\n")
    (run.root / "overrides.yaml").write_text("- model.width=64\n- seed=3\n- data.width=12\n")
    _write(run.root / "report.json", {"rows": [{"name": "student", "psnr": 20.0, "ssim": 0.9, "bytes": 100}]})
    run.lock.release()


@cache
def _recipe() -> Any:
    """The recipe of a chain, whose scene is read once."""
    return _built("distill", "run=out", "stages=[teacher,pseudo,student,prune]")


def _built(command: str, *overrides: str) -> Any:
    """A recipe for a tiny scene of its own."""
    import tempfile

    from omegaconf import OmegaConf

    from nelf.cli.command import build, config
    from nelf.pipeline.recipe import Recipe

    root = Path(tempfile.mkdtemp())
    _blender(root)
    common = ["data=blender", f"data.root={root}", "trainer=cpu"]
    plain: Any = OmegaConf.to_container(config(command, [*common, *overrides]), resolve=True)
    return Recipe(plain, build)


def _opened(root: Path, scene: Path) -> Any:
    from nelf.pipeline.run import Run

    run = Run(root, _recipe())
    run.open()
    return run


def _read_run(root: Path) -> None:
    from nelf.cli import remembered
    from nelf.cli.sweeps import write_table
    from nelf.pipeline.documents import read_artifacts
    from nelf.pipeline.run import Run
    from nelf.render.command import _scene
    from nelf.report.plots import curves_svg

    run = Run(root / "run", _recipe())
    each(
        [
            run.check,
            run.planned,
            *(partial(run.current, name) for name in ("teacher", "student", "prune")),
            *(partial(run._begin, name) for name in ("teacher", "prune")),
            lambda: read_artifacts(root / "run/prune"),
            lambda: curves_svg(root / "run/teacher/metrics.csv"),
            lambda: remembered.read(root / "run/overrides.yaml"),
            lambda: write_table(root),
            lambda: _scene(root / "run", None, None),
        ]
    )


def _scene_format(make: Callable[[Path], None], read: Callable[[Path], Scene], *files: str) -> Format:
    return Format(make, lambda root: checked(read(root)), files)


_JSON, _PICTURES = "*.json", "*.png"
FORMATS: dict[str, Format] = {
    "blender": _scene_format(_blender, data.read_scene, _JSON),
    "dnerf": _scene_format(_dnerf, lambda root: data.read_scene(root, moving=True), _JSON),
    "nerfstudio": _scene_format(_nerfstudio, data.read_scene, _JSON, "points.ply"),
    "ngp": _scene_format(_ngp, data.read_scene, _JSON),
    "pictures": _scene_format(_photographs, data.read_scene, "*.png", "*.jpg", "*.webp"),
    "capture": _scene_format(_capture, lambda root: data.read_capture(root, image_scale=2), _JSON, "*.npy"),
    "llff": _scene_format(_llff, lambda root: data.read_llff(root, factor=1), "*.npy"),
    "colmap_text": _scene_format(_colmap_text, data.read_colmap, "*.txt"),
    "colmap_binary": _scene_format(_colmap_binary, data.read_colmap, "*.bin"),
    "ply": Format(_ply, read_ply, ("*.ply",), alone=True),
    "paths": Format(
        _camera_paths, _read_paths, ("path.json", "dataparser_transforms.json", "transforms.json", "0*.json")
    ),
    "shards": Format(_shards, _read_shards, ("*.npy",)),
    "pseudo": Format(_pseudo, _read_pseudo, (_JSON, "*.npy")),
    "weights": Format(_weights, _drawn, ("*.safetensors",), alone=True),
    "checkpoints": Format(_checkpoints, _converted, ("*",), alone=True),
    "more_checkpoints": Format(_more_checkpoints, _converted, ("*",), alone=True),
    "ngp_pl": Format(_ngp_pl, _converted, ("*",), alone=True),
    "training": Format(_checkpointed, _resumed, ("*.ckpt",)),
    "bundle": Format(_bundle, _read_bundle, ("bundle.json", "*.gz", "*.onnx")),
    "run": Format(_run, _read_run, ("*.json", "*.yaml", "*.csv")),
}
