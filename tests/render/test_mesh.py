"""Meshes against closed forms, and their files against an independent reader."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nelf.errors import UserError
from nelf.render.mesh import Mesh, extract_mesh, write_ply

CENTER, RADIUS = torch.tensor([0.3, -0.2, 0.1]), 0.7
BOX = torch.tensor([-1.0, -1.2, -0.9, 1.4, 1.0, 1.3])


class Ball:
    """Density that falls linearly through 10 at the surface; its color says where a point lies and who looks."""

    def sigma(self, positions: Tensor, controls: Tensor | None = None) -> Tensor:
        radius = RADIUS if controls is None else RADIUS * controls[:, 0]
        return 10.0 + 100.0 * (radius - (positions - CENTER).norm(dim=-1))

    def rgb(self, positions: Tensor, viewdirs: Tensor, controls: Tensor | None = None) -> Tensor:
        inward = -(positions - CENTER) / (positions - CENTER).norm(dim=-1, keepdim=True)
        assert (viewdirs * inward).sum(-1).min() > 0.97, "a surface is seen from outside"
        return 0.5 + 0.5 * inward


def volume(mesh: Mesh) -> float:
    """Enclosed volume by the divergence theorem: positive where faces are counterclockwise from outside."""
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].astype(np.float64) for corner in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def test_a_ball_is_a_ball() -> None:
    mesh = extract_mesh(Ball(), BOX, resolution=64, threshold=10.0)
    distance = np.linalg.norm(mesh.vertices - CENTER.numpy(), axis=-1)
    assert np.abs(distance - RADIUS).max() < 2e-3  # linear along a radius, so that only the angle between edges errs
    assert volume(mesh) == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.01)
    expected = 0.5 - 0.5 * (mesh.vertices - CENTER.numpy()) / distance[:, None]
    assert np.abs(mesh.colors / 255 - expected).max() < 1 / 255


def test_the_box_cuts_and_the_cut_is_closed() -> None:
    half = torch.tensor([-1.0, -1.2, -0.9, 0.3, 1.0, 1.3])
    mesh = extract_mesh(_Uncolored(), half, resolution=64, threshold=10.0)
    assert volume(mesh) == pytest.approx(2 / 3 * math.pi * RADIUS**3, rel=0.03)
    edges = np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()  # every edge has two faces: no hole


class _Uncolored(Ball):
    def rgb(self, positions: Tensor, viewdirs: Tensor, controls: Tensor | None = None) -> Tensor:
        return torch.zeros_like(positions)


def test_a_moving_field_is_caught_at_its_moment() -> None:
    mesh = extract_mesh(Ball(), BOX, resolution=48, threshold=10.0, controls=torch.tensor([0.5]))
    assert np.linalg.norm(mesh.vertices - CENTER.numpy(), axis=-1).mean() == pytest.approx(RADIUS / 2, abs=3e-3)


def test_no_surface_is_said_with_figures() -> None:
    with pytest.raises(UserError, match=r"the surface was looked for at 1e\+03; allowed: a threshold between the two"):
        extract_mesh(Ball(), BOX, resolution=16, threshold=1000.0)


def test_the_file_is_read_back_by_hand(tmp_path: Path) -> None:
    mesh = Mesh(
        np.array([[0.0, 1.5, -2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.25]], np.float32),
        np.array([[2, 1, 0]], np.int32),
        np.array([[1, 2, 3], [4, 5, 6], [255, 0, 9]], np.uint8),
    )
    content = write_ply(tmp_path / "mesh.ply", mesh).read_bytes()
    header, _, body = content.partition(b"end_header\n")
    lines = header.decode().split("\n")
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 3"]
    assert "property list uchar int vertex_indices" in lines
    vertices = [struct.unpack_from("<fffBBB", body, 15 * index) for index in range(3)]
    assert vertices[2] == (6.0, 7.0, 8.25, 255, 0, 9)
    assert struct.unpack_from("<Biii", body, 45) == (3, 2, 1, 0)
    assert len(body) == 45 + 13
