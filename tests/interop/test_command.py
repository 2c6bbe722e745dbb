"""``python -m nelf.interop``: files of others become files that nelf loads, and what is wrong is one line."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from nelf.cameras import Camera
from nelf.data import read_views
from nelf.interop.__main__ import main
from nelf.lightfields import MobileR2L
from nelf.paths import random_cameras
from nelf.storage import load, save

SMALL: dict[str, Any] = {"width": 8, "depth": 4, "points": 3, "sr_factor": 4, "sr_kernels": [6, 4]}


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The line with which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    assert leaving.value.code == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert "Traceback" not in line
    return line


def test_a_student_goes_out_and_comes_back(tmp_path, capsys) -> None:
    network = MobileR2L(**SMALL).eval()
    config = {"_target_": "nelf.lightfields.MobileR2L", **SMALL}
    save(network, tmp_path / "model.safetensors", config, scene="abc")
    view = Camera.from_fov(torch.eye(3, 4), 0.7, 16, 8)
    for flag in ([], ["--resume"]):
        main(["tar", str(tmp_path), "--out", str(tmp_path / "model.tar"), *flag])
        run = tmp_path / f"run{len(flag)}"
        main([str(tmp_path / "model.tar"), "--to", str(run)])
        shown = capsys.readouterr().out
        assert "MobileR2L, 1 blocks of width 8, 3 points, gelu, enlarges 4 times" in shown
        assert f"stage.student.file={run}/student/model.safetensors" in shown
        back = load(run / "student")
        assert torch.allclose(back.render(view).rgb, network.render(view).rgb, atol=1e-5)
    assert "--to, or delete it" in refused(capsys, tmp_path / "model.tar", "--to", tmp_path / "run0")


def test_an_unknown_layout_says_what_was_found_and_expected(tmp_path, capsys) -> None:
    torch.save({"epoch": 1, "state_dict": {"encoder.weight": torch.zeros(1)}}, tmp_path / "x.ckpt")
    line = refused(capsys, tmp_path / "x.ckpt", "--to", tmp_path / "run")
    assert "found epoch, state_dict.encoder.weight; expected model.density_bitfield (ngp_pl), head.0.weight" in line
    torch.save([1, 2], tmp_path / "x.ckpt")
    assert "found a list; expected" in refused(capsys, tmp_path / "x.ckpt", "--to", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_option_of_another_format_is_refused(tmp_path, capsys) -> None:
    save(MobileR2L(**SMALL), tmp_path / "model.safetensors", {"_target_": "MobileR2L", **SMALL}, scene="")
    main(["tar", str(tmp_path), "--out", str(tmp_path / "model.tar")])
    line = refused(capsys, tmp_path / "model.tar", "--to", tmp_path / "run", "--radius", 4)
    assert line.startswith("--radius: is no option of MobileR2L; allowed: --activation, --far, --multires, --near")
    line = refused(capsys, tmp_path / "model.tar", "--to", tmp_path / "run", "--near", 7)
    assert line == "--near, --far: are 7 and 6; allowed: from 0 on, and near before far."
    with pytest.raises(SystemExit):
        main([str(tmp_path / "model.tar"), "--to", "run", "--width", "0"])
    assert "--width: is 0; allowed: 1 to" in capsys.readouterr().err
    assert "no pseudo set of MobileR2L" in refused(capsys, tmp_path, "--to", tmp_path / "run")
    assert "is not a file that torch.save has written" in refused(
        capsys, tmp_path / "model.safetensors", "--to", tmp_path / "run"
    )


def test_poses_to_render_elsewhere_are_read_back_as_a_pseudo_set(tmp_path, tiny_scene, capsys) -> None:
    out = tmp_path / "pseudo" / "transforms_train.json"
    main(["poses", "--scene", str(tiny_scene), "--views", "3", "--out", str(out), "--poses", "r2l", "--seed", "5"])
    from nelf.data import read_scene
    from nelf.data.writer import SceneWriter

    camera = random_cameras(read_scene(tiny_scene).train.camera, 3, "r2l", 5)
    stated = json.loads(out.read_text())
    assert [frame["file_path"] for frame in stated["frames"]] == [f"./train/0000{index}.png" for index in range(3)]
    first = stated["frames"][0]
    assert np.tan(first["camera_angle_x"] / 2) * first["fl_x"] == pytest.approx(8.0)
    assert (stated["near"], stated["far"], len(stated["aabb"])) == (2.5, 5.5, 6)
    renderer = SceneWriter(out.parent, camera)
    for index in range(3):
        renderer.write(index, torch.full((16, 16, 3), index / 2))
    found = read_views(out.parent)
    assert torch.equal(found.camera.c2w, camera.c2w)
    assert torch.equal(found.camera.intrinsics, camera.intrinsics)
    assert found.images[1].min() == found.images[1].max() == 128
    common = ("poses", "--scene", tiny_scene, "--out", out)
    for views, seed, allowed in ((0, 1, "1 to 100000"), ("9" * 5000, 1, "1 to 100000"), (3, 2**32, "0 to 4294967295")):
        with pytest.raises(SystemExit):
            main([*map(str, common), f"--views={views}", f"--seed={seed}"])
        assert capsys.readouterr().err.strip().endswith(f"; allowed: {allowed}")


def test_what_argparse_quotes_is_printable(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["poses", "--scene", "scene", "--views", "3", "--out", "out.json", "\x1b[2J"])
    assert capsys.readouterr().err.strip().endswith("error: unrecognized arguments: \\x1b[2J")
