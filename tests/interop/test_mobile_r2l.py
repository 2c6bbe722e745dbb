"""Checkpoints in the layout of the original."""

from __future__ import annotations

import pytest
import torch

from nelf.errors import UserError
from nelf.interop.mobile_r2l import save_tar
from nelf.lightfields import MobileR2L


def test_a_checkpoint_has_the_originals_keys_and_nothing_pickled(tmp_path) -> None:
    network = MobileR2L()
    checkpoint = torch.load(save_tar(network, tmp_path / "lego.tar"), weights_only=True)
    assert {"global_step", "best_psnr", "best_psnr_step", "optimizer_state_dict", "scaler"} < set(checkpoint)
    state = checkpoint["network_fn_state_dict"]
    assert len(state) == 500
    assert state["body.28.conv_block.4.running_var"].shape == (256,)
    assert {"head.0.weight", "tail.0.weight", "tail.9.bias"} < set(state)
    assert torch.equal(state["tail.9.bias"], network.tail[9].bias)


def test_a_tail_that_the_original_does_not_have_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="MobileR2L's code has no tail 'shuffle', only 'transposed'"):
        save_tar(MobileR2L(width=8, depth=2, upsampling="shuffle"), tmp_path / "x.tar")
