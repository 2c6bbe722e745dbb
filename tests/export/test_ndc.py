"""Light fields whose rays run in normalized device coordinates, exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch

from nelf.cameras import Camera
from nelf.errors import UserError
from nelf.export import load, onnx, write_bundle
from nelf.export.bundle import ndc_of, read_bundle
from nelf.export.graph import exact, graph_module
from nelf.export.inputs import feed
from nelf.lightfields import MobileR2L
from nelf.rays import NDC

NDC_HERE = NDC(0.8, 0.5, 0.6)


@pytest.fixture
def cameras() -> Camera:
    """Two that look along -z, neither straight nor from the origin."""
    c2w = torch.eye(3, 4).repeat(2, 1, 1)
    turn = torch.tensor([[0.98, 0.0, 0.2], [0.0, 1.0, 0.0], [-0.2, 0.0, 0.98]])
    c2w[:, :, :3] = turn / turn.norm(dim=0)
    c2w[:, :, 3] = torch.tensor([[0.2, -0.1, 0.1], [-0.3, 0.2, -0.2]])
    return Camera(c2w, torch.tensor([16.0, 14.0, 8.0, 7.5]).expand(2, 4), 16, 16, ndc=NDC_HERE)


@pytest.mark.parametrize("name", ["features", "points"])
def test_a_bundle_makes_rays_in_its_ndc(bundles, cameras, tmp_path, name: str) -> None:
    """The graph is the same; where its points lie is the bundle's to say, whatever the camera that is asked."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundles[name].path.parent, folder)
    about = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**about, "ndc": asdict(NDC_HERE)}))
    expected = exact(bundles[name].network).render(cameras[0]).rgb
    plain = replace(cameras[0], ndc=None)
    torch.testing.assert_close(load(folder).render(plain).rgb, expected, atol=1e-4, rtol=0)
    assert (load(bundles[name].path.parent).render(plain).rgb - expected).abs().max() > 0.01


@pytest.mark.parametrize(("name", "kind"), [("rays", "rays"), ("points", "rays"), ("pose", "pose")])
def test_graphs_are_given_rays_and_poses_of_the_scene(bundles, cameras, name: str, kind: str) -> None:
    network = exact(bundles[name].network)
    arrays = feed(kind, cameras[1], network.rays)
    if kind == "rays":
        torch.testing.assert_close(
            torch.from_numpy(arrays["rays_o"]), cameras[1].c2w[:, 3].expand(arrays["rays_o"].shape)
        )
    with torch.no_grad():
        drawn = graph_module(network, kind, cameras[0])(*map(torch.from_numpy, arrays.values()))
        expected = network(network.rays(cameras[1])[None]).movedim(-1, 1)
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=0)


def test_a_graph_from_the_pose_on_is_written(cameras, tmp_path) -> None:
    torch.manual_seed(0)
    network = MobileR2L(width=8, depth=4, sr_factor=4, upsampling="shuffle").eval()
    assert onnx(network, tmp_path / "model.onnx", cameras, "pose") < 1e-4


def test_the_bundle_of_a_scene_says_its_ndc(bundles, scene, cameras, tmp_path) -> None:
    network = bundles["points"].network
    assert ndc_of(read_bundle(bundles["points"].path.parent)) is None
    warped = replace(scene, test=replace(scene.test, camera=replace(scene.test.camera, ndc=NDC_HERE)))
    path = write_bundle(tmp_path, warped, network, [])
    assert ndc_of(read_bundle(tmp_path)) == NDC_HERE
    about = json.loads(path.read_text())
    del about["ndc"]  # as before there was any
    path.write_text(json.dumps(about))
    assert ndc_of(read_bundle(tmp_path)) is None
    for bad in ([1, 2, 3], {"near": 0, "half_width": 1, "half_height": 1}, {"near": 1.0, "half_width": 1}):
        path.write_text(json.dumps({**about, "ndc": bad}))
        with pytest.raises(UserError, match=r"bundle.json: ndc: allowed: null, or near, half_width and half_height"):
            read_bundle(tmp_path)
