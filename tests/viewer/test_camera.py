"""The page's rays are those of nelf's cameras."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import nelf.viewer
from nelf.cameras import Camera

SCRIPT = """
import { cameraOf, raysOf, shifted } from %s;
const bundle = { sr_factor: 2, image: { width: 12, height: 8 }, intrinsics: { fx: 11, fy: 9, cx: 5, cy: 4.5 } };
const camera = cameraOf(bundle, %s, 0.5);
console.log(JSON.stringify([...raysOf(shifted(camera, 0.03), 2).directions]));
"""


def test_rays_of_the_page_are_shifted_like_all_others() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, which runs the page's code without a browser")
    module = (Path(nelf.viewer.__file__).parent / "page" / "camera.js").as_uri()
    c2w = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1))).Q
    c2w = torch.cat([c2w, torch.tensor([[1.0], [2.0], [3.0]])], 1)
    script = SCRIPT % (json.dumps(module), json.dumps(c2w.flatten().tolist()))
    done = subprocess.run([node, "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    camera = Camera(c2w, torch.tensor([11.0, 9.0, 5.0, 4.5]), 12, 8).resized(6).shifted(0.03)
    expected = camera.rays(2).directions
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)).view_as(expected), expected, atol=1e-5, rtol=0)
