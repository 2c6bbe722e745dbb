"""Check a configuration against the classes that it names, and explain Hydra's errors in one line."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException, MissingConfigException
from hydra.utils import get_object
from omegaconf import DictConfig

from nelf.arguments import parameters, refusal
from nelf.cli.sweeps import EXTRAS
from nelf.errors import UserError, did_you_mean
from nelf.files import quoted, short
from nelf.pipeline.recipe import PLACES

__all__ = ["check_kinds", "check_letters", "check_types", "explain"]

_ODD, _DEEPEST = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|\d{1001}"), 100
_KINDS = {
    "data": "nelf.data.datamodules.base.SceneDataModule",
    "model": "torch.nn.modules.module.Module",
    "system": "nelf.systems.system.System",
    "trainer": "pytorch_lightning.trainer.trainer.Trainer",
    "callbacks": "pytorch_lightning.callbacks.callback.Callback",
    "logger": "pytorch_lightning.loggers.logger.Logger",
}


def check_letters(overrides: Sequence[str]) -> None:
    """Refuse an override that Hydra's parser ends on, or that no run directory could remember.

    Args:
        overrides: the command's.

    Raises:
        UserError: one has control characters, bytes that are no text, or digits or brackets by the hundred.
    """
    for text in overrides:
        depth = max(itertools.accumulate((letter in "[({") - (letter in "])}") for letter in text), default=0)
        if _ODD.search(text) or depth > _DEEPEST:
            words = "has control characters, or very many digits or brackets; allowed: text, 1000 digits, 100 brackets"
            raise UserError(f"{short(text.partition('=')[0])}: {words}.")


def check_types(node: Any, where: str = "") -> None:
    """Check every value against the annotation of its argument.

    Args:
        node: a resolved configuration, or a part of it.
        where: the path of that part.

    Raises:
        UserError: a key that its class does not take, or a value of the wrong type or out of range.
    """
    if isinstance(node, list):
        for index, item in enumerate(node):
            check_types(item, f"{where}[{index}]")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        _check_node(node, where)
    for key, value in node.items():
        check_types(value, f"{where}.{key}" if where else str(key))


def check_kinds(plain: dict[str, Any]) -> None:
    """Check that each section describes an object of its kind; a function may return any, and is accepted.

    Args:
        plain: a resolved configuration.

    Raises:
        UserError: a section has no ``_target_``, or names a class of another kind.
    """
    nodes = {"trainer": plain["trainer"], **{f"callbacks.{name}": node for name, node in plain["callbacks"].items()}}
    nodes |= {"logger": plain.get("logger"), **{name: plain[name] for name in ("data", "model", "system")}}
    nodes |= {f"teacher.{name}": plain["teacher"][name] for name in ("model", "system") if "teacher" in plain}
    for where, node in nodes.items():
        section, _, last = where.partition(".")
        if node is None and section in ("callbacks", "logger"):
            continue
        kind = _KINDS[last if section == "teacher" else section]
        stated = node.get("_target_") if isinstance(node, dict) else None
        target = get_object(stated) if isinstance(stated, str) else None
        # Bases are compared by name, since a typo has to be reported before Lightning is imported.
        bases = [f"{base.__module__}.{base.__name__}" for base in getattr(target, "__mro__", ())]
        if target is None or (bases and kind not in bases):
            shown = "is not set" if stated is None else f"is {quoted(stated)}"
            raise UserError(f"{where}._target_: {shown}; allowed: a subclass of {kind}.")


def explain(error: Exception, overrides: list[str], compose: Callable[[list[str]], DictConfig]) -> UserError:
    """Turn Hydra's error into one line that also says what is allowed.

    Args:
        error: what Hydra raised.
        overrides: those of the command line.
        compose: composes the configuration from a list of overrides.

    Returns:
        The error to raise.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and choice in EXTRAS:
            package, extra = EXTRAS[choice]
            return UserError(
                f"launcher: {package} is not installed, and {choice} needs it: pip install 'nelf[{extra}]'."
            )
        if group:
            allowed = ", ".join(error.options)
            near = did_you_mean(choice, error.options)
            return UserError(f"{group}={choice}: there is no such choice; allowed: {allowed}.{near}")
    unknown = re.search(r"[Cc]ould not override '([^']+)'", str(error))
    if unknown:
        return _unknown_key(unknown[1].split("@")[0], overrides, compose)
    return UserError(" ".join(re.split(r"\n\n|\nSee ", str(error))[0].split()))


def _unknown_key(key: str, overrides: list[str], compose: Callable[[list[str]], DictConfig]) -> UserError:
    """Name an unknown key, and the keys that are allowed in its place."""
    parser = OverridesParser.create()
    others = [text for text in overrides if parser.parse_override(text).key_or_group != key]
    node: Any = compose(others)
    parents: list[str] = []
    for part in key.replace("/", ".").split(".")[:-1]:
        if not isinstance(node, DictConfig) or part not in node or not isinstance(node._get_node(part), DictConfig):
            break
        node = node[part]
        parents.append(part)
    wrong = key.replace("/", ".").split(".")[len(parents)]
    allowed = [str(name) for name in node if not str(name).startswith("_") and name != "hydra"]
    place = ".".join(parents) or "the configuration"
    near = did_you_mean(wrong, allowed)
    return UserError(f"{key}: there is no key {wrong!r} in {place}; allowed: {', '.join(allowed)}.{near}")


def _check_node(node: dict[str, Any], where: str) -> None:
    """Check the arguments of one object."""
    try:
        target = get_object(str(node["_target_"]))
    except (ImportError, InstantiationException, ValueError) as error:
        raise UserError(f"{where}._target_: {' '.join(str(error).split())}") from error
    known = parameters(target)
    # The signature of a built-in class cannot be inspected.
    open_ended = not known or any(value.kind is value.VAR_KEYWORD for value in known.values())
    for key, value in node.items():
        if key in ("_target_", "_partial_") or (key in PLACES and value is None):
            continue
        if key not in known:
            if not open_ended:
                allowed = ", ".join(known)
                raise UserError(f"{where}.{key}: there is no such key; allowed: {allowed}.{did_you_mean(key, known)}")
            continue
        if key in PLACES and isinstance(value, str):
            _check_place(f"{where}.{key}", Path(value))
        if reason := refusal(known[key].annotation, value):
            raise UserError(f"{where}.{key}: {reason}.")


def _check_place(where: str, folder: Path) -> None:
    """Check that a folder exists or can be created."""
    existing = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK):
        raise UserError(f"{where}: {existing} is no directory that can be written; allowed: a directory, or null.")
