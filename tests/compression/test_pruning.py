"""Which weights go: schedules against their formulas, choices against numpy, volume and network apart."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nelf.compression.pruning import (
    apply_masks,
    choose_weights,
    compressed_bytes,
    find_masks,
    global_l1,
    sparsities,
    sparsity_after,
)
from nelf.lightfields import GridR2L, MobileR2L

VOLUME = {"volume.features"}


def mobile() -> MobileR2L:
    return MobileR2L(width=8, depth=6, sr_factor=2, sr_kernels=(8,))


def grid() -> GridR2L:
    return GridR2L(width=8, depth=4, resolution=12, features=4)


@pytest.mark.parametrize("amount", [0.05, 0.3, 0.5, 0.99])
def test_exactly_so_many_and_the_smallest(amount: float) -> None:
    weights = {"a": torch.randn(7, 5, 3, 3), "b": torch.randn(11), "c": torch.randn(4, 6)}
    masks = global_l1(weights, amount)
    flat = np.concatenate([value.numpy().ravel() for value in weights.values()])
    gone = ~np.concatenate([masks[name].numpy().ravel() for name in weights])
    assert gone.sum() == round(amount * 350)
    assert np.abs(flat[gone]).max() < np.abs(flat[~gone]).min()


def test_ties_go_in_order_and_zeros_first() -> None:
    weights = {"a": torch.full((4,), -2.0), "b": torch.tensor([2.0, 0.0, 2.0, 1.0])}
    masks = global_l1(weights, 0.5)
    assert masks["a"].tolist() == [False, False, True, True]
    assert masks["b"].tolist() == [True, False, True, False]


@pytest.mark.parametrize("schedule", ["geometric", "uniform", "cubic"])
def test_schedules_rise_to_the_amount(schedule: str) -> None:
    shares = [sparsity_after(number, 5, 0.8, schedule) for number in range(1, 6)]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.8)
    if schedule == "cubic":  # Zhu and Gupta, eq. 1, with s_i = 0, s_f = 0.8, n = 5
        assert shares == pytest.approx([0.8 + (0 - 0.8) * (1 - t / 5) ** 3 for t in range(1, 6)])
    if schedule == "geometric":
        kept = np.diff(np.log(1 - np.array([0.0, *shares])))
        np.testing.assert_allclose(kept, kept[0])


def test_an_unknown_schedule_is_refused_with_all_that_exist() -> None:
    with pytest.raises(ValueError, match=r"no 'linear'; allowed: geometric, uniform, cubic, constant\.$"):
        sparsity_after(1, 2, 0.5, "linear")
    assert [sparsity_after(number, 2, 0.5, "constant") for number in (1, 2)] == [0.5, 0.5]


def test_words_mean_what_the_original_prunes() -> None:
    """Static facts 4.4: the head, all convolutions and norms of the body, nothing of the tail."""
    names = set(choose_weights(mobile(), ["head", "body", "norms"]))
    blocks = {f"body.{block}.conv_block.{layer}.weight" for block in range(2) for layer in (0, 1, 3, 4)}
    assert names == {"head.0.weight", *blocks}
    assert set(choose_weights(mobile(), ["norms"])) == {name for name in blocks if name.split(".")[3] in "14"}
    assert "tail.0.weight" in choose_weights(mobile(), ["tail"])
    assert set(choose_weights(grid(), ["head", "norms", "volume"])) == VOLUME | {"head.0.weight"}


def test_a_prefix_does_not_matter_and_patterns_match_names() -> None:
    wrapped = nn.ModuleDict({"network": mobile()})
    assert list(choose_weights(wrapped, ["head"])) == ["network.head.0.weight"]
    found = choose_weights(wrapped, ["*.conv_block.0.weight"])
    assert {name.split(".")[-2] for name in found} == {"0"}
    assert len(found) == 4


def test_layers_that_match_nothing() -> None:
    with pytest.raises(ValueError, match=r"'body\.9\.\*' matches no weight; allowed: head, .*volume\.features, "):
        choose_weights(grid(), ["head", "body.9.*"])
    with pytest.raises(ValueError, match="'norms' matches no weight"):
        choose_weights(grid(), ["norms"])


def test_volume_and_network_each_give_their_share() -> None:
    network = grid()
    nn.init.normal_(network.volume.features, std=100.0)
    nn.init.normal_(network.volume.density, std=100.0)
    weights = choose_weights(network, ["head", "body", "volume"])
    apply_masks(weights, find_masks(network, weights, 0.6))
    volume = {name: value for name, value in weights.items() if name in VOLUME}
    rest = {name: value for name, value in weights.items() if name not in volume}
    for part in (volume, rest, weights):
        assert sparsities(part)["total"] == pytest.approx(0.6, abs=1e-3)


def test_zeros_shrink_the_compressed_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    sizes = []
    for share in (0.0, 0.5, 0.9):
        (tmp_path / "w").write_bytes(np.where(np.arange(20_000) < share * 20_000, np.float32(0), noise).tobytes())
        sizes.append(compressed_bytes(tmp_path / "w"))
        with zipfile.ZipFile(tmp_path / "z", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(tmp_path / "w", "w")
            assert sizes[-1] == pytest.approx(archive.getinfo("w").compress_size, rel=0.01)
    assert sizes[1] == pytest.approx(0.5 * sizes[0], rel=0.02)
    assert sizes[2] == pytest.approx(0.1 * sizes[0], rel=0.05)
