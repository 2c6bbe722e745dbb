"""The overrides that a run directory remembers from earlier commands, checked before they are used.

A run directory may be untrusted, so its ``overrides.yaml`` may hold only values for the keys of conf/ and classes that
conf/ names or nelf exports: no other class, no ``${...}``, and no path except those in ``SHOWN``. The composed
configuration is checked as well as the text, because Hydra has many notations for the same value. The command line and
``--config-dir`` may name anything; what a run directory may not hold has to be passed again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from nelf.errors import UserError
from nelf.pipeline.documents import read_yaml
from nelf.pipeline.recipe import PLACES

__all__ = ["PATHS", "check", "key_of", "memorable", "read", "still_meant"]

#: Arguments that are paths. Except for ``SHOWN``, only null or the value in conf/ is accepted from a run directory.
PATHS = (*PLACES, "root", "shards", "default_root_dir", "root_dir", "sub_dir", "dir")
#: Paths that are accepted; they are printed before they are read.
SHOWN = ("data.root", "stage.pseudo.root", "stage.teacher.file", "stage.student.file")
#: Classes of nelf that are accepted: those in ``__all__`` of these packages that derive from this base class.
_OFFERED = {
    "nelf.fields": ("torch.nn", "Module"),
    "nelf.lightfields": ("torch.nn", "Module"),
    "nelf.data": ("pytorch_lightning", "LightningDataModule"),
    "nelf.systems": ("pytorch_lightning", "LightningModule"),
    "nelf.callbacks": ("pytorch_lightning", "Callback"),
}
_TRAINER = "pytorch_lightning.Trainer"
_LOOKS_LIKE_A_PATH = re.compile(r"[/\\]|^~|^\.{1,2}$|^[A-Za-z]:|://")
_METRIC = re.compile(r"\w+(/\w+)*")
_MISSING = object()
#: Keys that are never carried over from an earlier command.
_FORGET = ("run", "base", "stages", "sweep", "launcher", "hydra")
#: A choice in these groups decides the keys of these sections.
_FOLLOWERS = {"data": ("data",), "model": ("model", "system"), "teacher": ("teacher",)}
_MAX_BYTES = 100_000


def read(file: Path) -> list[str]:
    """Read the overrides that a directory remembers.

    Args:
        file: its ``overrides.yaml``.

    Returns:
        The overrides, each of which can be parsed; an empty list if there is no file.

    Raises:
        UserError: it is not a list of overrides, or one concerns Hydra itself.
    """
    if file.is_file() and file.stat().st_size > _MAX_BYTES:
        raise UserError(f"{file}: has more than {_MAX_BYTES} bytes; allowed: a list of overrides. Delete it.")
    content = read_yaml(file)
    if content is None:
        return []
    if not isinstance(content, list) or not all(isinstance(text, str) and text.isprintable() for text in content):
        raise UserError(f"{file}: is not a list of overrides, each a line such as model.width=64. Delete it.")
    for text in content:
        try:
            key = OverridesParser.create().parse_override(text).key_or_group
        except (HydraException, RecursionError, ValueError):  # of very many brackets, or digits
            raise UserError(f"{file}: {text!r} is not an override such as model.width=64. Delete it there.") from None
        if re.split(r"[./]", key)[0] == "hydra":
            raise UserError(f"{file}: {text!r} concerns Hydra itself, and is not remembered. Delete it there.")
    return content


def memorable(overrides: Sequence[str]) -> list[str]:
    """The overrides that later commands in the same run directory inherit."""
    return [text for text in overrides if key_of(text).split(".")[0].split("/")[0] not in _FORGET]


def still_meant(stored: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The stored overrides that the new ones neither replace nor invalidate.

    Args:
        stored: of earlier commands in the run directory.
        overrides: of this command.
    """
    new = {key_of(text): text for text in overrides}
    old = {key_of(text): text for text in memorable(stored)}
    if "experiment" in new and old.get("experiment") != new["experiment"]:
        return []  # another preset replaces all stored overrides
    changed = [key for key in _FOLLOWERS if key in new and old.get(key) != new[key]]
    orphans = tuple(f"{section}." for key in changed for section in _FOLLOWERS[key])
    return [text for key, text in old.items() if key not in new and not key.startswith(orphans)]


def check(
    file: Path,
    kept: Sequence[str],
    choices: Sequence[str],
    folders: Sequence[Path],
    compose: Callable[[list[str]], DictConfig],
) -> None:
    """Refuse remembered overrides that are more than plain data.

    Args:
        file: the file that holds them.
        kept: those that still apply.
        choices: the present command's own choices of groups, such as ``model=ngp``, which determine the valid keys.
        folders: the folders of configuration files: conf/, and that of ``--config-dir``.
        compose: composes from overrides.

    Raises:
        UserError: names the file, the override and what is allowed.
    """
    if not kept:
        return
    parsed = [OverridesParser.create().parse_override(text) for text in kept]
    groups = [str(item.input_line) for item in parsed if _check_override(file, item, folders)]
    try:
        base, full = compose([*choices, *groups]), compose([*choices, *kept])
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    plain: Any = OmegaConf.to_container(full)
    stated: Any = OmegaConf.to_container(base)
    _Walk(file, parsed, _stated(folders))(plain, stated, "")
    _refuse_new_scene(file, plain["data"], stated["data"])


def _refuse_new_scene(file: Path, data: dict[str, Any], stated: dict[str, Any]) -> None:
    """Refuse a missing folder for the built-in scene, because the scene would be written into it."""
    root = data.get("root")
    written = data.get("_target_") == "nelf.data.DemoDataModule" and root != stated.get("root")
    if root is not None and written and not Path(root, "transforms_train.json").is_file():
        raise UserError(f"{file}: data.root={root} would be written; allowed: a scene. {_again(f'data.root={root}')}")


def _check_override(file: Path, item: Override, folders: Sequence[Path]) -> bool:
    """Refuse an override that is not a plain value for a plain key; return whether it is the choice of a group."""
    text, key = str(item.input_line), item.key_or_group
    if "${" in text or any("${" in value for value in _strings(item.value())):
        raise UserError(f"{file}: {text!r} holds an interpolation; allowed: plain values. {_again(text)}")
    if item.package is not None or not re.fullmatch(r"[A-Za-z_]\w*([./]\w+)*", key) or item.is_sweep_override():
        raise UserError(f"{file}: {text!r} is not one value for one key. {_again(text)}")
    if item.type is OverrideType.DEL and re.split(r"[./]", key)[0] not in ("callbacks", "logger"):
        raise UserError(f"{file}: {text!r} removes what is needed; allowed: callbacks and loggers. {_again(text)}")
    group = [folder / key for folder in folders if (folder / key).is_dir()]
    if not group or item.type is OverrideType.DEL:
        return False
    value = item.value()
    for choice in value if isinstance(value, list) else [value]:
        words = sorted({path.stem for folder in group for path in folder.glob("*.yaml")})
        if choice is not None and _plain(choice) not in words:
            raise UserError(
                f"{file}: {text!r} is none of nelf's own choices ({', '.join(words)}). "
                "If it is yours, pass --config-dir again."
            )
    return True


class _Walk:
    """Checks every value of a composed configuration that does not come from the configuration files.

    Args:
        file: the file that holds the overrides.
        overrides: the overrides that may have set the values.
        stated: the classes that the configuration files name, and the arguments that they state for them.
    """

    def __init__(self, file: Path, overrides: list[Override], stated: dict[str, set[str]]) -> None:
        self._file, self._overrides, self._stated = file, overrides, stated

    def __call__(self, value: Any, base: Any, where: str) -> None:
        """Check a value against that of the configuration composed without the overrides."""
        if value == base and type(value) is type(base):
            return
        if isinstance(value, dict):
            known = base if isinstance(base, dict) else {}
            target = value.get("_target_")
            if target is not None and target != known.get("_target_"):
                self._check_target(target, where)
            for key, inner in value.items():
                place = f"{where}.{key}" if where else str(key)
                self._check_key(str(key), inner, known, target, place)
                self(inner, known.get(key, _MISSING), place)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                self(inner, _MISSING, f"{where}[{index}]")
        elif isinstance(value, str):
            self._check_string(value, where)

    def _check_target(self, target: Any, where: str) -> None:
        if not isinstance(target, str) or not (target in self._stated or _is_offered(target)):
            self._refuse(
                f"{where}._target_ is {target!r}",
                "classes that conf/ names, and nelf's public fields, light fields, data modules, systems and callbacks",
                f"{where}._target_",
            )

    def _check_key(self, key: str, value: Any, known: dict[str, Any], target: Any, where: str) -> None:
        """Refuse Hydra's own keys, and arguments of other libraries' classes that no file states."""
        if key.startswith("_") and key != "_target_" and known.get(key, _MISSING) != value:
            self._refuse(f"{where} is one of Hydra's own keys", "arguments", where)
        foreign = isinstance(target, str) and not target.startswith("nelf.") and target != _TRAINER
        here = known if target == known.get("_target_") else {}
        if foreign and key not in here and key not in {*self._stated.get(target, ()), "_target_"}:
            self._refuse(f"{where} is an argument of {target} that conf/ does not state", "those that it states", where)

    def _check_string(self, value: str, where: str) -> None:
        key = where.rpartition(".")[2].partition("[")[0]
        if "${" in value:
            self._refuse(f"{where} is an interpolation", "plain values", where)
        if key == "_target_" or where in SHOWN:
            return
        metric = key == "monitor" and _METRIC.fullmatch(value)
        if key in PATHS or (not metric and _LOOKS_LIKE_A_PATH.search(value)):
            self._refuse(f"{where} is the path {value!r}", f"no path but {' and '.join(SHOWN)}", where)

    def _refuse(self, what: str, allowed: str, where: str) -> None:
        near = [item for item in self._overrides if where.startswith(item.key_or_group.replace("/", "."))]
        text = str(max(near, key=lambda item: len(item.key_or_group)).input_line) if near else where
        raise UserError(f"{self._file}: {what}; allowed in a run directory: {allowed}. {_again(text)}")


def key_of(override: str) -> str:
    """The key or the group that an override sets."""
    return OverridesParser.create().parse_override(override).key_or_group


def _again(text: str) -> str:
    return f"If it is yours, pass {text} again; else delete it there."


def _plain(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def _strings(value: Any) -> Iterator[str]:
    """All strings in a parsed value, keys too."""
    value = _plain(value)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (*_strings(key), *_strings(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value


def _stated(folders: Sequence[Path]) -> dict[str, set[str]]:
    """The classes that configuration files name, with the keys beside each."""
    found: dict[str, set[str]] = {}

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("_target_"), str):
                found.setdefault(node["_target_"], set()).update(map(str, node))
            for inner in node.values():
                collect(inner)
        elif isinstance(node, list):
            for inner in node:
                collect(inner)

    for path in (path for folder in folders for path in folder.rglob("*.yaml")):
        with suppress(UserError):  # Hydra reports it if the file is needed
            collect(read_yaml(path))
    return found


def _is_offered(target: str) -> bool:
    """Whether a target is ``PACKAGE.CLASS``: a package of ``_OFFERED``, and a public class of the base given there."""
    package, _, name = target.rpartition(".")
    if package not in _OFFERED or name not in import_module(package).__all__:
        return False
    module, base = _OFFERED[package]
    kind = getattr(import_module(package), name)
    return isinstance(kind, type) and issubclass(kind, getattr(import_module(module), base))
