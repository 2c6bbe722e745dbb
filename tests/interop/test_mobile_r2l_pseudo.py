"""Pseudo sets of MobileR2L become data sets that nelf reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nelf.data import read_views
from nelf.errors import UserError
from nelf.interop.mobile_r2l_pseudo import convert, recognizes


@pytest.fixture
def pseudo(tmp_path: Path) -> Path:
    """Two views of 16 x 8 pixels."""
    root = tmp_path / "pseudo"
    rng = np.random.default_rng(0)
    for folder in ("8x16_rgb", "poses", "hwf"):
        (root / folder).mkdir(parents=True)
    for index, center in enumerate([(1.5, 0, 0), (0, -0.9, 1.2)]):
        np.save(
            root / "8x16_rgb" / f"rendered_rgb_{index:05d}.npy", rng.uniform(-0.1, 1.1, (128, 3)).astype(np.float32)
        )
        np.save(root / "poses" / f"c2w_{index:05d}.npy", np.array(center, np.float32))
    info = {
        **{"downscaled_height": 4, "downscaled_width": 8, "downscaled_focal": 10.0, "scale": 2.0, "max_radius": 1.5},
        **{"ff": False, "dataset_type": "nerf"},
    }
    (root / "hwf" / "dataset_info.json").write_text(json.dumps(info))
    return root


def test_views_are_where_the_student_of_the_original_sees_them(pseudo, tmp_path) -> None:
    assert recognizes(pseudo)
    assert not recognizes(tmp_path)
    split = read_views(convert(pseudo, tmp_path / "out"))
    camera = split.camera
    assert (camera.width, camera.height, len(camera)) == (16, 8, 2)
    assert camera.intrinsics[0].tolist() == pytest.approx([20.0, 20.0, 8.0, 4.0])
    # From +x: right is +y, up is +z, back is +x.
    assert torch.allclose(camera.c2w[0], torch.tensor([[0.0, 0, 1, 3], [1, 0, 0, 0], [0, 1, 0, 0]]), atol=1e-6)
    back = torch.tensor([0.0, -0.6, 0.8])  # the original: right = back x (-z), up = back x right
    right = torch.nn.functional.normalize(torch.linalg.cross(back, torch.tensor([0.0, 0, -1])), dim=0)
    expected = torch.stack([right, torch.linalg.cross(back, right), back, 3 * back], 1)
    assert torch.allclose(camera.c2w[1], expected, atol=1e-6)
    for index in range(2):
        colors = np.load(pseudo / "8x16_rgb" / f"rendered_rgb_{index:05d}.npy").reshape(8, 16, 3)
        assert np.array_equal(split[index].image, np.round(colors.clip(0, 1) * 255).astype(np.uint8))


def test_the_scene_s_radius_can_be_said(pseudo, tmp_path) -> None:
    split = read_views(convert(pseudo, tmp_path / "out", radius=4.5))
    assert split.camera.c2w[:, :, 3].norm(dim=-1).tolist() == pytest.approx([4.5, 4.5])


def test_a_set_that_is_not_whole_or_of_another_kind_is_refused(pseudo, tmp_path) -> None:
    path = pseudo / "poses" / "c2w_00001.npy"
    np.save(path, np.zeros((3, 4), np.float32))
    with pytest.raises(UserError, match=r"c2w_00001\.npy: holds float32 of shape \(3, 4\); allowed: \(3\)"):
        convert(pseudo, tmp_path / "out")
    np.save(path, np.zeros(3, np.float32))
    with pytest.raises(UserError, match=r"c2w_00001\.npy: its camera is 0 from the point that all look at; allowed: "):
        convert(pseudo, tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match=r"c2w_00001\.npy: no such file"):
        convert(pseudo, tmp_path / "out")
    info = json.loads((pseudo / "hwf" / "dataset_info.json").read_text())
    (pseudo / "hwf" / "dataset_info.json").write_text(json.dumps({**info, "dataset_type": "colmap"}))
    with pytest.raises(UserError, match="is of a 'colmap' scene"):
        convert(pseudo, tmp_path / "out")
    (pseudo / "hwf" / "dataset_info.json").write_text(json.dumps({**info, "downscaled_focal": "10"}))
    with pytest.raises(UserError, match=r"downscaled_focal is '10'; allowed: 1e-15 to 1e\+15"):
        convert(pseudo, tmp_path / "out")
    (pseudo / "hwf" / "dataset_info.json").write_text("[")
    with pytest.raises(UserError, match="not JSON"):
        convert(pseudo, tmp_path / "out")
