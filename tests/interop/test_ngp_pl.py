"""Checkpoints of ngp_pl: packed here as tiny-cuda-nn packs them, and drawn by a restatement of its march in NumPy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nelf import paths
from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.interop import ngp_pl
from nelf.interop.torch_file import read

RADIUS = 4.0


def resolutions(scale: float) -> tuple[list[np.float32], list[int], list[int]]:
    """Scale, side and entries of each level, in float32 as tiny-cuda-nn computes them."""
    growth = np.float32(np.exp(np.log(2048 * scale / 16) / 15))
    scales = [np.float32(np.exp2(np.float32(level * np.log2(growth))) * 16 - 1) for level in range(16)]
    sides = [math.ceil(each) + 1 for each in scales]
    return scales, sides, [min((side**3 + 7) // 8 * 8, 2**19) for side in sides]


class Packed:
    """A random network of ngp_pl's, and the state dict of its slim checkpoint."""

    def __init__(self, scale: float) -> None:
        rng = np.random.default_rng(0)
        self.scale = scale
        self.scales, self.sides, self.entries = resolutions(scale)
        self.cascades = max(1 + math.ceil(math.log2(2 * scale)), 1)
        self.w1 = rng.normal(0, 0.5, (64, 32)).astype(np.float32)
        self.w2 = rng.normal(0, 0.25, (16, 64)).astype(np.float32)
        self.c1 = rng.normal(0, 0.3, (64, 32)).astype(np.float32)
        self.c2 = rng.normal(0, 0.2, (64, 64)).astype(np.float32)
        self.c3 = rng.normal(0, 0.2, (16, 64)).astype(np.float32)
        self.grid = rng.uniform(-1, 1, (sum(self.entries), 2)).astype(np.float32)
        self.occupied = rng.random((self.cascades, 128, 128, 128)) < 0.4  # [cascade, x, y, z]

    def state(self) -> dict[str, torch.Tensor]:
        bits = np.zeros(self.cascades * 128**3, np.uint8)
        axis = np.arange(128)
        spread = sum(((axis >> bit) & 1) << (3 * bit) for bit in range(7))
        morton = spread[:, None, None] + 2 * spread[None, :, None] + 4 * spread[None, None, :]
        for cascade in range(self.cascades):
            bits[cascade * 128**3 + morton] = self.occupied[cascade]
        bitfield = (bits.reshape(-1, 8) << np.arange(8)).sum(1).astype(np.uint8)
        corner = torch.full((1, 3), self.scale)
        xyz = np.concatenate([self.w1.ravel(), self.w2.ravel(), self.grid.ravel()])
        rgb = np.concatenate([self.c1.ravel(), self.c2.ravel(), self.c3.ravel()])
        return {
            "model.center": torch.zeros(1, 3),
            "model.xyz_min": -corner,
            "model.xyz_max": corner,
            "model.half_size": corner,
            "model.density_bitfield": torch.from_numpy(bitfield),
            "model.xyz_encoder.params": torch.from_numpy(xyz),
            "model.dir_encoder.params": torch.zeros(0),
            "model.rgb_net.params": torch.from_numpy(rgb),
        }

    # ------------------------------------------------------------------------------------------------ its picture

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Features (N, 32) at positions (N, 3) in [0, 1]."""
        out, first = [], 0
        for scale, side, size in zip(self.scales, self.sides, self.entries, strict=True):
            at = x * float(scale) + 0.5
            low = np.floor(at).astype(np.int64)
            part = at - low
            features = np.zeros((len(x), 2))
            for corner in np.ndindex(2, 2, 2):
                i, j, k = (low + corner).T
                if side**3 <= size:
                    index = (i + side * j + side * side * k) % size
                else:
                    index = ((i & 0xFFFFFFFF) ^ (j * 2654435761 & 0xFFFFFFFF) ^ (k * 805459861 & 0xFFFFFFFF)) % size
                weight = np.where(corner, part, 1 - part).prod(1)
                features += weight[:, None] * self.grid[first + index]
            out.append(features)
            first += size
        return np.concatenate(out, 1)

    def query(self, x: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Density (N,) and color (N, 3) at positions in the box, seen along directions of any length."""
        h = np.maximum(self.encode((x + self.scale) / (2 * self.scale)) @ self.w1.T, 0) @ self.w2.T
        h = h.astype(np.float64)
        x, y, z = (d / np.linalg.norm(d, axis=1, keepdims=True)).T
        sh = [
            *(0.2820948 + 0 * x, -0.4886025 * y, 0.4886025 * z, -0.4886025 * x),
            *(1.0925484 * x * y, -1.0925484 * y * z, 0.9461747 * z * z - 0.3153916, -1.0925484 * x * z),
            *(0.5462742 * (x * x - y * y), 0.5900436 * y * (y * y - 3 * x * x), 2.8906114 * x * y * z),
            *(0.4570458 * y * (1 - 5 * z * z), 0.3731763 * z * (5 * z * z - 3), 0.4570458 * x * (1 - 5 * z * z)),
            *(1.4453057 * z * (x * x - y * y), 0.5900436 * x * (3 * y * y - x * x)),
        ]
        c = np.concatenate([np.stack(sh, 1), h], 1)
        c = np.maximum(np.maximum(c @ self.c1.T, 0) @ self.c2.T, 0) @ self.c3.T
        return np.exp(h[:, 0]), 1 / (1 + np.exp(-c[:, :3]))

    def ray(self, o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Color, opacity and depth of one ray, marched as its kernel for tests marches."""
        with np.errstate(divide="ignore"):
            faces = np.stack([(-self.scale - o) / d, (self.scale - o) / d])
        t, end = max(faces.min(0).max(), 0.01), faces.max(0).min()
        low, high = math.sqrt(3) / 1024, math.sqrt(3) * 2 * self.scale / 128
        factor = 0.0 if self.scale <= 0.5 else 1 / 256
        ts, dts = [], []
        while t < end:
            dt = min(max(t * factor, low), high)
            x = o + t * d
            largest = np.abs(x).max()
            by_place = next((c for c in range(self.cascades) if 2.0 ** (c - 1) >= largest), self.cascades - 1)
            by_step = max(0, math.ceil(math.log2(dt * 128)))
            cascade = min(max(by_place, by_step), self.cascades - 1)
            half = min(2.0 ** (cascade - 1), self.scale)
            i, j, k = np.clip(64 * (x / half + 1), 0, 127).astype(int)
            if self.occupied[cascade, i, j, k]:
                ts.append(t)
                dts.append(dt)
            t += dt
        if not ts:
            return np.zeros(3), 0.0, 0.0
        t, dt = np.array(ts), np.array(dts)
        sigma, rgb = self.query(o + t[:, None] * d, np.broadcast_to(d, (len(t), 3)))
        through = np.exp(-np.concatenate([[0], np.cumsum(sigma * dt)]))
        weights = np.where(through[:-1] > 1e-4, through[:-1] - through[1:], 0)
        return weights @ rgb, weights.sum(), weights @ t

    def picture(self, c2w: np.ndarray, fx: float, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Color (H, W, 3) and depth (H, W) in its units, of an OpenGL camera in the scene's."""
        rotation, position = c2w[:, :3] * [1, -1, -1], c2w[:, 3] * 1.5 / np.linalg.norm(c2w[:, 3])
        background = 1.0 if self.scale <= 0.5 else 0.0
        rgb, depth = np.zeros((height, width, 3)), np.zeros((height, width))
        for v in range(height):
            for u in range(width):
                d = rotation @ [(u + 0.5 - width / 2) / fx, (v + 0.5 - height / 2) / fx, 1.0]
                color, opacity, depth[v, u] = self.ray(position, d)
                rgb[v, u] = color + (1 - opacity) * background
        return rgb, depth


def camera(width: int = 6, height: int = 4) -> Camera:
    origin = torch.tensor([[2.2, -2.6, 1.9]])
    c2w = paths.look_at(origin / origin.norm() * RADIUS, torch.tensor([0.05, 0.1, -0.05]))
    return Camera.from_fov(c2w, 0.75, width, height)[0]


def converted(tmp_path: Path, packed: Packed, whole: bool = False, **options: Any) -> Any:
    state = packed.state()
    path = tmp_path / "epoch=29_slim.ckpt"
    torch.save({"state_dict": {**state, "model.density_grid": torch.zeros(5)}, "epoch": 29} if whole else state, path)
    found = ngp_pl.convert(read(path), radius=RADIUS)
    return found._replace(arguments={**found.arguments, "low_precision": False, **options}).network(path)


@pytest.mark.parametrize(("scale", "error"), [(0.5, 2e-3), (2.0, 5e-3)])
def test_it_is_drawn_as_ngp_pl_draws_it(tmp_path, scale, error) -> None:
    """To what early ends of rays leave out; and beyond the box, where steps grow, to 1/512 of a sample's density."""
    packed, view = Packed(scale), camera()
    rgb, depth = packed.picture(view.c2w.double().numpy(), float(view.intrinsics[0]), view.width, view.height)
    drawn = converted(tmp_path, packed).render(view)
    assert np.abs(drawn.rgb.numpy() - rgb).max() < error
    assert np.abs(drawn.depth.numpy() - depth * RADIUS / 1.5).max() < 5 * error
    assert rgb.std() > 0.03
    assert depth.std() > 0.03
    if scale == 0.5:  # what it would be without the rules of ngp_pl
        other = converted(tmp_path, packed, z_steps=False).render(view)
        assert np.abs(other.rgb.numpy() - rgb).max() > 5 * error


def test_a_whole_checkpoint_is_read_like_a_slim_one(tmp_path) -> None:
    packed = Packed(0.5)
    network = converted(tmp_path, packed, whole=True)
    assert network.encoding.table.numel() == 11_445_040
    assert torch.equal(network.encoding.table, torch.from_numpy(packed.grid))
    assert torch.equal(network.color_net[4].weight, torch.from_numpy(packed.c3[:3]))
    assert torch.equal(network.sampler.grid.occupied, torch.from_numpy(packed.occupied))


@pytest.mark.parametrize("scale", [0.5, 1, 2, 4, 8, 16])
def test_the_grid_has_ngp_pl_s_size(tmp_path, scale) -> None:
    """The file says the scale; the sizes are those that ngp_pl allocates."""
    entries = {0.5: 11_445_040, 1: 12_196_240, 2: 12_599_920, 4: 13_074_912, 8: 13_288_400, 16: 13_623_184}[scale]
    state = {
        "model.xyz_max": torch.full((1, 3), float(scale)),
        "model.density_bitfield": torch.zeros(8, dtype=torch.uint8),
        "model.xyz_encoder.params": torch.zeros(8),
        "model.rgb_net.params": torch.zeros(7168),
    }
    torch.save(state, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=rf"has shape \(8,\); expected \({entries + 3072},\) at scale {scale:g}"):
        ngp_pl.convert(read(tmp_path / "x.ckpt"), radius=4.0)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model.rgb_net.params": None}, "expected model.rgb_net.params"),
        ({"tonemapper_net_0.params": torch.zeros(3)}, "was trained with --use_exposure"),
        ({"model.xyz_max": torch.full((1, 3), 0.25)}, "allowed: a cube of half-size 0.5 to 64"),
        ({"model.xyz_max": torch.full((1, 3), math.nan)}, "allowed: a cube"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, change, line) -> None:
    state = {
        "model.xyz_max": torch.full((1, 3), 0.5),
        "model.density_bitfield": torch.zeros(8, dtype=torch.uint8),
        "model.xyz_encoder.params": torch.zeros(8),
        "model.rgb_net.params": torch.zeros(7168),
        **change,
    }
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=line):
        ngp_pl.convert(read(tmp_path / "x.ckpt"), radius=4.0)


@pytest.mark.parametrize("radius", [None, 0.0, math.inf, math.nan])
def test_the_radius_is_asked_for(tmp_path, radius) -> None:
    names = ("xyz_max", "density_bitfield", "xyz_encoder.params", "rgb_net.params")
    torch.save({f"model.{name}": torch.zeros(1) for name in names}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="say the distance of the scene's cameras from its origin: --radius"):
        ngp_pl.convert(read(tmp_path / "x.ckpt"), radius=radius)
