"""Unstructured pruning: which weights, how many in each round, and the masks that keep them at zero.

Nothing is reparametrized: a pruned network is an ordinary one with some weights exactly zero, and its checkpoints and
weight files are ordinary ones, too.
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
    "apply_masks",
    "check_amount",
    "choose_weights",
    "compressed_bytes",
    "find_masks",
    "global_l1",
    "sparsities",
    "sparsity_after",
]

SCHEDULES = ("geometric", "uniform", "cubic", "constant")

_DENSE = (nn.modules.conv._ConvNd, nn.Linear)
_NORM = nn.modules.batchnorm._BatchNorm


def check_amount(amount: float, key: str = "amount") -> None:
    """Check a fraction to prune.

    Args:
        amount: fraction of weights or of channels to remove.
        key: the argument's name, for the message.

    Raises:
        ValueError: it is not between 0 and 1, both excluded.
    """
    if not 0.0 < amount < 1.0:
        raise ValueError(f"{key}: is {amount}; allowed: a share between 0 and 1, both excluded.")


def sparsity_after(number: int, rounds: int, amount: float, schedule: str = "geometric") -> float:
    """The sparsity of the chosen weights from the beginning of a round; in the last one it is ``amount``.

    ``geometric`` removes the same fraction of the remaining weights in each round: ``1 - (1 - amount) ** (r / R)``.
    ``uniform`` removes the same number in each: ``amount * r / R``.
    ``cubic`` removes many at first and few at last: ``amount * (1 - (1 - r / R) ** 3)``.
    ``constant`` is ``amount`` in each.

    Args:
        number: r, the round, counted from 1.
        rounds: R, the number of rounds.
        amount: final sparsity, between 0 and 1.
        schedule: one of ``SCHEDULES``.

    Raises:
        ValueError: ``amount`` is not between 0 and 1, there is no such schedule, or no such round.

    Source:
        Cubic: Zhu and Gupta 2017, eq. 1 (arXiv 1710.01878), from a sparsity of 0. Geometric: repeated pruning by a
        fixed fraction, as in Han et al. 2015 (arXiv 1506.02626).

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
    if schedule == "constant":
        return amount
    raise ValueError(f"schedule: there is no {schedule!r}; allowed: {', '.join(SCHEDULES)}.")


def choose_weights(module: nn.Module, layers: Sequence[str]) -> dict[str, nn.Parameter]:
    """Find the weights to prune; biases are never pruned.

    Args:
        module: a light field, a system with one as its ``network``, or anything with convolutions, linear layers or
            batch norms.
        layers: groups and patterns. The groups are those of ``LightField.prunable``, such as ``head``, ``body``,
            ``norms``, ``tail`` and ``volume``. A group may be empty (``GridR2L`` has no norms) as long as another one
            is not. Anything else is a pattern of names, such as ``*.conv_block.0.weight``, and has to match something.

    Returns:
        Weights by their names in ``module``, in the order of its parameters.

    Raises:
        ValueError: a pattern, or all groups together, match no weight; lists the names.
    """
    words = _words(module)
    known = {name: value for weights in words.values() for name, value in weights.items()}
    names = {*known, *_layer_weights(module)}
    known = {name: value for name, value in module.named_parameters() if name in names}
    found: set[str] = set()
    for layer in layers:
        own = set(words[layer]) if layer in words else {name for name in known if _matches(name, layer)}
        if not own and layer not in (*words, *_USUAL):
            raise _nothing_found(layer, known, words)
        found |= own
    if not found:
        raise _nothing_found(", ".join(layers), known, words)
    return {name: value for name, value in module.named_parameters() if name in found}


#: Groups that presets use, whether or not a light field has them.
_USUAL = ("head", "body", "norms", "tail", "volume")


def _words(module: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """The prunable weights of a light field by group, with their names in the module that holds it."""
    holder = next((path for path, part in module.named_modules() if hasattr(part, "prunable")), None)
    if holder is None:
        return {}
    prefix = f"{holder}." if holder else ""
    found = module.get_submodule(holder).prunable()  # type: ignore[operator]
    return {word: {prefix + name: value for name, value in weights.items()} for word, weights in found.items()}


def _layer_weights(module: nn.Module) -> set[str]:
    """The names of the weights of layers and norms."""
    kinds = (*_DENSE, _NORM)
    return {f"{path}.weight".lstrip(".") for path, part in module.named_modules() if isinstance(part, kinds)}


def _matches(name: str, pattern: str) -> bool:
    """Whether a name, or a suffix of it after a dot, matches: a LightningModule adds its own prefix."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def _nothing_found(layers: str, known: Mapping[str, Tensor], words: Mapping[str, object]) -> ValueError:
    names = list(known)
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    allowed = "".join(f"{word}, " for word in words) + ("or " if words else "") + "a pattern of these names"
    return ValueError(f"layers: {layers!r} matches no weight; allowed: {allowed}: {listed}.")


def global_l1(weights: Mapping[str, Tensor], amount: float) -> dict[str, Tensor]:
    """Choose the smallest of all weights together: exactly ``round(amount * n)`` of n.

    Of equal weights, the earlier are pruned first. Weights pruned in one round are zero, so the next one keeps them
    pruned.

    Args:
        weights: by name, of any shapes.
        amount: fraction of all entries, between 0 and 1.

    Returns:
        Masks by name, of the same shapes: False for weights to be zero.

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


def find_masks(module: nn.Module, weights: Mapping[str, Tensor], amount: float) -> dict[str, Tensor]:
    """Choose the weights of a light field to prune, see ``global_l1``.

    Parameters that are no weights of layers, such as the features of a volume, are ranked separately and lose the same
    fraction, since their magnitudes are not comparable: on lego, ranked together, 80 % removed every weight of the
    network.

    Args:
        module: holds the weights.
        weights: of ``choose_weights``.
        amount: fraction of them, between 0 and 1.

    Returns:
        Masks by name, of the same shapes: False for weights to be zero.
    """
    layers = _layer_weights(module)
    pools = [{name: value for name, value in weights.items() if (name in layers) is own} for own in (True, False)]
    return {name: mask for pool in pools if pool for name, mask in global_l1(pool, amount).items()}


@torch.no_grad()
def apply_masks(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set weights to exactly zero, in place, where the masks of the same names are False."""
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0.0)


def sparsities(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """The fraction of exact zeros, by name, and of all weights together under ``"total"``."""
    zeros = {name: int((value == 0).sum()) for name, value in weights.items()}
    entries = {name: value.numel() for name, value in weights.items()}
    each = {name: zeros[name] / entries[name] for name in weights}
    return {**each, "total": sum(zeros.values()) / sum(entries.values())}


def compressed_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a file after deflate compression, as in a zip archive, bytes: zeros then take almost no space."""
    return len(zlib.compress(Path(path).read_bytes(), 6))
