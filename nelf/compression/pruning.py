"""Unstructured pruning: which weights, how many of them in each round, and masks that keep them at zero.

Nothing is reparametrized: a pruned network is a plain network some of whose weights are exactly zero, so its
checkpoints and its files of weights are those of any other.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = [
    "SCHEDULES",
    "WORDS",
    "apply_masks",
    "check_amount",
    "choose_weights",
    "compressed_bytes",
    "find_masks",
    "global_l1",
    "sparsities",
    "sparsity_after",
]

SCHEDULES = ("geometric", "uniform", "cubic")

#: Words for weights of a light field: pattern of their names, and whether they are scales of batch norms.
WORDS: dict[str, tuple[tuple[str, ...], bool]] = {
    "head": (("head.*",), False),
    "body": (("body.*",), False),
    "norms": (("body.*",), True),
    "tail": (("tail.*",), False),
    "volume": (("volume.features",), False),  # a density of zero is a half-opaque corner, not an empty one
}
_DENSE = (nn.modules.conv._ConvNd, nn.Linear)
_NORM = nn.modules.batchnorm._BatchNorm


def check_amount(amount: float, key: str = "amount") -> None:
    """Refuse a share that is not one.

    Args:
        amount: share of weights or of channels to remove.
        key: what it is called where the user wrote it.

    Raises:
        ValueError: it is not between 0 and 1, both excluded.
    """
    if not 0.0 < amount < 1.0:
        raise ValueError(f"{key}: is {amount}; allowed: a share between 0 and 1, both excluded.")


def sparsity_after(number: int, rounds: int, amount: float, schedule: str = "geometric") -> float:
    """Say how sparse the chosen weights are after a round; after the last one it is ``amount``.

    ``geometric`` removes the same share of what remains in each round: ``1 - (1 - amount) ** (r / R)``.
    ``uniform`` removes the same number in each: ``amount * r / R``.
    ``cubic`` removes much first and little last: ``amount * (1 - (1 - r / R) ** 3)``.

    Args:
        number: r, the round, from 1 on.
        rounds: R, of so many.
        amount: final sparsity, between 0 and 1.
        schedule: one of the words above.

    Raises:
        ValueError: ``amount`` is not between 0 and 1, there is no such schedule, or no such round.

    Source:
        Cubic: Zhu and Gupta 2017, eq. 1 (arXiv 1710.01878), from a sparsity of 0. Geometric: what repeated
        pruning by a fixed share amounts to, as in Han et al. 2015 (arXiv 1506.02626).

    Example:
        >>> [round(sparsity_after(r, 3, 0.488), 3) for r in (1, 2, 3)]
        [0.2, 0.36, 0.488]
        >>> [round(sparsity_after(r, 2, 0.8, "cubic"), 3) for r in (1, 2)]
        [0.7, 0.8]
    """
    check_amount(amount)
    if not 1 <= number <= rounds:
        raise ValueError(f"rounds: are {rounds}, there is no round {number}; allowed: 1 or more.")
    share = number / rounds
    if schedule == "geometric":
        return 1.0 - (1.0 - amount) ** share
    if schedule == "uniform":
        return amount * share
    if schedule == "cubic":
        return amount * (1.0 - (1.0 - share) ** 3)
    raise ValueError(f"schedule: there is no {schedule!r}; allowed: {', '.join(SCHEDULES)}.")


def choose_weights(module: nn.Module, layers: Sequence[str]) -> dict[str, nn.Parameter]:
    """Find the weights that may be pruned: never biases, and nothing that is not asked for.

    Args:
        module: anything with convolutions, linear layers or batch norms.
        layers: words and patterns. The words mean parts of a light field: ``head``, ``body`` and ``tail`` their
            convolutions, ``norms`` the scales of the body's batch norms, ``volume`` the features
            of ``GridR2L``. Head, body and norms are what the original prunes. A word may find nothing
            (``GridR2L`` has no norms) as long as another one does. Anything else is a pattern of names, such
            as ``*.conv_block.0.weight``, and has to find something.

    Returns:
        Weights by their names in ``module``, in the order of its parameters.

    Raises:
        ValueError: a pattern, or all words together, match no weight; lists the names.
    """
    kinds: dict[str, bool] = {}  # name of each weight that can be pruned -> whether it scales a norm
    for path, part in module.named_modules():
        if isinstance(part, (*_DENSE, _NORM)) and part.weight is not None:
            kinds[f"{path}.weight".lstrip(".")] = isinstance(part, _NORM)
    volume = {name for name, _ in module.named_parameters() if _matches(name, WORDS["volume"][0])}
    candidates = {name: value for name, value in module.named_parameters() if name in {*kinds, *volume}}
    found: set[str] = set()
    for layer in layers:
        patterns, norms = WORDS.get(layer, ((layer,), None))
        own = {name for name in candidates if _matches(name, patterns) and norms in (None, kinds.get(name, False))}
        if not own and layer not in WORDS:
            raise _nothing_found(layer, candidates)
        found |= own
    if not found:
        raise _nothing_found(", ".join(layers), candidates)
    return {name: value for name, value in candidates.items() if name in found}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name, or what follows any of its dots, matches: a LightningModule puts its own prefix first."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}") for pattern in patterns)


def _nothing_found(layers: str, candidates: Mapping[str, Tensor]) -> ValueError:
    names = list(candidates)
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return ValueError(
        f"layers: {layers!r} matches no weight; allowed: {', '.join(WORDS)}, or a pattern of these names: {listed}."
    )


def global_l1(weights: Mapping[str, Tensor], amount: float) -> dict[str, Tensor]:
    """Choose the smallest of all weights together: exactly ``round(amount * n)`` of n.

    Of equal ones the earlier goes first. What was pruned in one round is zero, so it stays pruned in the next.

    Args:
        weights: by name, of any shapes.
        amount: share of all entries, between 0 and 1.

    Returns:
        Masks by name, of the same shapes: False where a weight is to be zero.

    Raises:
        ValueError: ``amount`` is not between 0 and 1.

    Source:
        The criterion of ``torch.nn.utils.prune.global_unstructured`` with ``L1Unstructured``.
    """
    check_amount(amount)
    saliency = torch.cat([value.detach().abs().float().flatten() for value in weights.values()])
    keep = torch.ones_like(saliency, dtype=torch.bool)
    keep[torch.argsort(saliency, stable=True)[: round(amount * len(saliency))]] = False
    sizes = [value.numel() for value in weights.values()]
    return {name: mask.view(weights[name].shape) for name, mask in zip(weights, keep.split(sizes), strict=True)}


def find_masks(weights: Mapping[str, Tensor], amount: float) -> dict[str, Tensor]:
    """Choose what of a light field's weights goes, see ``global_l1``.

    A volume is ranked by itself, and gives the same share: its features are not of a size with the network's weights.
    On lego, ranked together, 80 % of both took every weight of the network.

    Args:
        weights: of ``choose_weights``.
        amount: share of them, between 0 and 1.

    Returns:
        Masks by name, of the same shapes: False where a weight is to be zero.
    """
    volume = {name: value for name, value in weights.items() if _matches(name, WORDS["volume"][0])}
    network = {name: value for name, value in weights.items() if name not in volume}
    return {name: mask for pool in (network, volume) if pool for name, mask in global_l1(pool, amount).items()}


@torch.no_grad()
def apply_masks(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set to exactly zero, in place, what the masks of the same names leave out."""
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0.0)


def sparsities(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of exact zeros, by name, and of all of them together under ``"total"``."""
    zeros = {name: int((value == 0).sum()) for name, value in weights.items()}
    entries = {name: value.numel() for name, value in weights.items()}
    each = {name: zeros[name] / entries[name] for name in weights}
    return {**each, "total": sum(zeros.values()) / sum(entries.values())}


def compressed_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a file once deflated, as in a zip archive, bytes: where zeros cost next to nothing."""
    return len(zlib.compress(Path(path).read_bytes(), 6))
