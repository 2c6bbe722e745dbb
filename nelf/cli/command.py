"""From a script's command line to a run: compose, add remembered overrides, check, sweep, report errors."""

from __future__ import annotations

import functools
import os
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nelf.arguments import accepts
from nelf.cli import remembered
from nelf.cli.check import check_kinds, check_letters, check_types, explain
from nelf.cli.failures import fail, first_line, line_of
from nelf.cli.remembered import key_of
from nelf.cli.sweeps import (
    FAILURE,
    check_launcher,
    first_job,
    is_elsewhere,
    is_search,
    launcher_line,
    note_failure,
    refuse_unfinished,
    shared_stages,
    swept_keys,
    write_table,
)
from nelf.cli.threads import let_idle_threads_sleep
from nelf.errors import Range, UserError
from nelf.files import escape_output, is_dir, quoted
from nelf.pipeline.documents import write_yaml
from nelf.pipeline.processes import adopt_launcher, agree, is_first, launch, world
from nelf.pipeline.quiet import quiet_lightning
from nelf.pipeline.recipe import Recipe, bare_trainer
from nelf.pipeline.run import Run, check_stages
from nelf.pipeline.stage import declarations

__all__ = ["build", "config", "distill", "main", "start", "train"]

_HERE = Path(__file__).parents[1]
#: The configuration and the scripts are inside an installed package, but beside the package in the source tree.
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"
_SCRIPTS = _HERE / "scripts" if (_HERE / "scripts").is_dir() else _HERE.parent

_SEEDS = Range(0, 2**32 - 1)
#: Keys left out of the names of a sweep's jobs, unless they are swept.
_UNNAMED = ("run", "base", "stages", "sweep", "launcher", "trainer", "experiment", "data", "data.root")


def train() -> None:
    """``nelf-train``: the script train.py, from anywhere."""
    runpy.run_path(str(_SCRIPTS / "train.py"), run_name="__main__")


def distill() -> None:
    """``nelf-distill``: the script distill.py, from anywhere."""
    runpy.run_path(str(_SCRIPTS / "distill.py"), run_name="__main__")


def config(command: str, overrides: list[str] | None = None, *, config_dir: str | None = None) -> DictConfig:
    """Compose the configuration of a command, for example in a notebook.

    Args:
        command: ``train`` or ``distill``.
        overrides: as on the command line, such as ``["experiment=lego", "data.root=/x"]``.
        config_dir: a folder with more configuration, as ``--config-dir``.

    Returns:
        The configuration. Missing values (``???``) stay missing.

    Raises:
        UserError: an unknown key or choice; the message lists the allowed ones.
    """
    return _compose(command, overrides or [], config_dir)


def build(node: dict[str, Any], **arguments: Any) -> Any:
    """Make the object that a node of the configuration describes.

    Args:
        node: ``_target_`` and its arguments, nested to any depth.
        **arguments: more arguments, passed on unchanged.

    Returns:
        The object; with ``_partial_: true``, the function with its options bound.

    Raises:
        UserError: the class refuses an argument, or needs a package that is not installed.
    """
    make = instantiate({**node, "_partial_": True}, _convert_="all")
    if node.get("_partial_"):
        return functools.partial(make, **arguments)
    try:
        return make(**arguments)
    except Exception as error:
        # Lightning's MisconfigurationException is not a ValueError; its name saves the import of Lightning.
        wrong = isinstance(error, ValueError) or type(error).__name__ == "MisconfigurationException"
        if wrong or isinstance(error, ModuleNotFoundError):  # of a logger's package
            raise UserError(f"{node['_target_']}: {first_line(error)}") from error
        raise


def start(cfg: DictConfig) -> Run:
    """Check a configuration and its scene, then open the run directory.

    Nothing is written before everything has been checked.

    Args:
        cfg: what Hydra composed.

    Returns:
        The run, its scene read. A context manager: until it exits, no other process can write into the directory.

    Raises:
        UserError: a value is missing or of the wrong type, the scene cannot be read or is not that of the directory,
            the directory cannot be written, or another process writes into it.
    """
    plain = agree(lambda: _checked(cfg))
    root = _place(plain["run"])
    job = os.path.relpath(root) != os.path.relpath(plain["run"])  # a sweep's job, not the run that its jobs share
    shared = [*([plain["run"]] if job else []), *([plain["base"]] if plain.get("base") else [])]
    run = Run(root, Recipe(plain, build), shared)
    if planned := run.planned():  # printed first, because reading the scene may take long
        print(f"time: {planned}", flush=True)
    agree(lambda: _open(run, job))
    return run


def _checked(cfg: DictConfig) -> dict[str, Any]:
    """The plain values of a configuration, after all checks that do not need the scene."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]}: is not set. Add {missing[0]}=VALUE to the command.")
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    _check_words(plain)
    if "stages" in plain:
        check_stages(plain["stages"], plain["stage"])
    check_types(plain)
    check_kinds(plain)
    seed = plain.get("seed", 0)
    if not accepts(Annotated[int, _SEEDS], seed):
        raise UserError(f"seed: is {seed!r}; allowed: a whole number {_SEEDS}.")
    from nelf.pipeline.fit import check_trainer  # imports torch, which takes seconds; typos are reported before

    check_trainer(Recipe(plain, build))
    return plain


def _check_words(plain: dict[str, Any]) -> None:
    """Check the top-level values that are no class's arguments, and so have no annotation."""
    run, stages, length = plain["run"], plain.get("stages", []), plain["trainer"].get("max_time")
    if not isinstance(run, str) or not run:
        raise UserError(f"run: is {run!r}; allowed: a directory.")
    if not isinstance(stages, list) or not all(isinstance(name, str) for name in stages):
        raise UserError(f"stages: is {stages!r}; allowed: a list of names, as in stages=[teacher,report].")
    if not isinstance(length, str | None):
        raise UserError(f"trainer.max_time: is {length!r}; allowed: days:hours:minutes:seconds, or null.")
    for section, others in (("stage", ""), ("callbacks", ", or null")):
        nodes = plain.get(section)
        for name, node in nodes.items() if isinstance(nodes, dict) else ():
            if not isinstance(node, dict) and not (node is None and others):
                allowed = f"its options, as in {section}.{name}.KEY=VALUE{others}"
                raise UserError(f"{section}.{name}: is {quoted(node)}; allowed: {allowed}.")


def _open(run: Run, job: bool) -> None:
    """Check a run, lock its directory, and write its overrides into it."""
    run.lock.refuse()  # before the scene is read, which may take long
    run.check()
    try:
        run.open()
        if HydraConfig.initialized():
            overrides = list(HydraConfig.get().overrides.task)
            write_yaml(run.root / "overrides.yaml", overrides if job else remembered.memorable(overrides))
    except BaseException:
        run.lock.release()
        raise


def main(command: str, task: Callable[[DictConfig], Any]) -> None:
    """Run a script: compose its configuration with Hydra, call its function, exit with a code.

    Exit codes: 0; 2 with one line on standard error for what the user can fix; 130 after Ctrl-C, with a line that
    says how to resume. Any other error keeps its traceback.

    Args:
        command: ``train`` or ``distill``, the name of the top-level configuration.
        task: the script's function, called with the configuration.
    """
    let_idle_threads_sleep()  # before anything loads torch
    escape_output()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors here instead of printing them
    adopt_launcher()
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, only the first process prints
    try:
        _main(command, task)
    except Exception as error:
        fail(error)
    except KeyboardInterrupt:
        _interrupted()


def _main(command: str, task: Callable[[DictConfig], Any]) -> None:
    flags, overrides, config_dir = _split_arguments(sys.argv[1:])
    if {"--help", "-h", "--hydra-help", "--version", "--info", "--shell-completion", "-sc"} & set(flags):
        _run_hydra(command, task, [*flags, *overrides])
        return
    # Only these keys determine the directory; other overrides may be valid only together with those stored in it.
    typed = list(overrides)
    naming = [text for text in first_job(overrides) if key_of(text) in ("run", "experiment", "sweep", "base")]
    named = _compose(command, naming, config_dir)
    kept: list[str] = []
    for place in filter(None, (named.run, named.get("base"))):
        earlier = _recall(command, Path(place) / "overrides.yaml", overrides, config_dir)
        if earlier:
            print(f"{place}: begun with {shlex.join(earlier)}, which still holds", flush=True)
            kept, overrides = [*earlier, *kept], [*earlier, *overrides]
    first = _compose(command, first_job(overrides), config_dir, hydra_too=True)
    if "run" not in map(key_of, overrides):
        # A run directory named by the time gets its name once, for all jobs and processes and after Ctrl-C.
        overrides = [*overrides, f"run={first.run}"]
        sys.argv = [*sys.argv, f"run={first.run}"]
    count = 1 if world() > 1 else _devices(first)
    swept = swept_keys(overrides, first)
    single = "--multirun" not in flags and "-m" not in flags and not swept
    check_launcher(first, single, count)
    if is_search(first):
        from nelf.cli import search  # noqa: F401, registers the sweeper with Hydra
    if count > 1:
        sys.exit(launch(count, [sys.executable, *sys.argv]))
    if single:
        _run_hydra(command, task, [*flags, *overrides])
        return
    if not swept:  # a sweep of a single job is named by the typed overrides
        swept = [key for key in map(key_of, typed) if key not in _UNNAMED]
    _sweep(command, task, flags, overrides, first, swept, [key_of(text) for text in kept])


def _devices(cfg: DictConfig) -> int:
    """How many processes a configuration asks for on this machine; 1 if it is invalid, which is reported later."""
    if cfg.trainer.devices in (1, "1"):
        return 1
    try:
        plain: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
        with quiet_lightning():
            return bare_trainer(plain, build).num_devices
    except (UserError, OmegaConfBaseException):
        return 1


def _recall(command: str, file: Path, overrides: list[str], config_dir: str | None) -> list[str]:
    """The overrides of a run directory that still apply, checked because the directory may be untrusted."""
    kept = remembered.still_meant(remembered.read(file), overrides)
    folders = [CONF, *([Path(config_dir)] if config_dir else [])]
    choices = [text for text in first_job(overrides) if any(is_dir(folder / key_of(text)) for folder in folders)]
    remembered.check(file, kept, choices, folders, functools.partial(_compose, command, config_dir=config_dir))
    return kept


def _sweep(
    command: str,
    task: Callable[[DictConfig], Any],
    flags: list[str],
    overrides: list[str],
    first: DictConfig,
    swept: list[str],
    recalled: list[str],
) -> None:
    """Run the shared stages once, then the jobs, then write the table of results."""
    common = []
    if "stages" in first:
        common = shared_stages(list(first.stages), swept, declarations(OmegaConf.to_container(first.stage)))  # type: ignore[arg-type]
    if common:
        print(f"sweep: {', '.join(common)} first, for all jobs", flush=True)
        dropped = {*swept, "stages", "sweep"}
        fixed = [text for text in overrides if key_of(text) not in dropped and "hydra.sweeper." not in text]
        one = [flag for flag in flags if flag not in ("--multirun", "-m")]
        if is_elsewhere(first):  # the shared stages run where the jobs run
            fixed += [f"hydra.sweep.dir={first.run}", "hydra.sweep.subdir=."]
            one.append("--multirun")
        _run_hydra(command, task, [*one, *fixed, f"stages=[{','.join(common)}]"])
        refuse_unfinished(Path(first.run), common)
    # Remembered overrides, such as the scene, are equal in all jobs and left out of their names.
    unnamed = {*_UNNAMED, *recalled} - {*swept}
    naming = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(unnamed))}]"
    lost = None
    try:
        _run_hydra(command, task, [*flags, *overrides, naming])
    except Exception as error:  # a job is gone, and the launcher waits for no other
        if not (lost := launcher_line(error)):
            raise
    failed = write_table(Path(first.hydra.sweep.dir))
    if lost:
        raise UserError(f"{lost}. The same command goes on, once no other job runs.")
    if failed:
        raise UserError(f"{first.hydra.sweep.dir}: {failed} of the jobs failed; their lines stand above.")


def _run_hydra(command: str, task: Callable[[DictConfig], Any], arguments: list[str]) -> None:
    """Hand over to Hydra's own main, with these arguments."""
    typed = sys.argv
    sys.argv = [sys.argv[0], *arguments]
    job = functools.partial(_job, task)
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(job)()
    finally:
        sys.argv = typed


def _job(task: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run one job: an error ends a single run, but not the other jobs of a sweep."""
    place = _place(cfg.run)
    single = HydraConfig.get().mode is hydra.types.RunMode.RUN
    if not single:
        (Path(place) / FAILURE).unlink(missing_ok=True)
    try:
        return task(cfg)
    except Exception as error:
        if single:
            fail(error, place)
        line = line_of(error, place)
        note_failure(Path(place), line or f"{type(error).__name__}: {first_line(error)}")
        if line is None:
            raise
        print(f"{HydraConfig.get().job.override_dirname}: {line}", file=sys.stderr, flush=True)
        return None


def _place(run: str) -> str:
    """The directory of this run, or of this job of a sweep."""
    if HydraConfig.initialized() and HydraConfig.get().mode is hydra.types.RunMode.MULTIRUN:
        return os.path.relpath(HydraConfig.get().runtime.output_dir)
    return run


def _compose(command: str, overrides: list[str], config_dir: str | None, hydra_too: bool = False) -> DictConfig:
    searched = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    for item in OverridesParser.create().parse_overrides(overrides):
        key, value = item.key_or_group, item.value()
        if (value is None or isinstance(value, int | float)) and not item.is_delete() and is_dir(CONF / key):
            choices = ", ".join(sorted(file.stem for file in (CONF / key).glob("*.yaml")))
            shown = "null" if value is None else quoted(value)  # on which Hydra ends with a traceback
            raise UserError(f"{key}: is {shown}; allowed: {choices}.")
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            cfg = hydra.compose(command, [*overrides, *searched], return_hydra_config=hydra_too)
            if hydra_too:
                _ = (cfg.run, cfg.hydra.sweep.dir)  # resolve their interpolations, such as ${now:}, here
            return cfg
    except (HydraException, OmegaConfBaseException) as error:
        without = functools.partial(_compose, command, config_dir=config_dir)
        raise explain(error, overrides, without) from None


def _split_arguments(argv: list[str]) -> tuple[list[str], list[str], str | None]:
    """Flags (with their values), overrides, and the value of ``--config-dir``."""
    from hydra._internal.utils import get_args_parser

    parsed = get_args_parser().parse_intermixed_args(argv)  # flags and overrides in any order
    check_letters(parsed.overrides)
    rest = list(parsed.overrides)
    flags = []
    for argument in argv:
        if argument in rest:
            rest.remove(argument)
        else:
            flags.append(argument)
    return flags, list(parsed.overrides), parsed.config_dir


def _interrupted() -> NoReturn:
    if not is_first():
        sys.exit(130)
    program = sys.argv[0] if os.access(sys.argv[0], os.X_OK) else f"python {sys.argv[0]}"
    print(f"\nInterrupted. To go on: {program} {shlex.join(sys.argv[1:])}".rstrip(), file=sys.stderr, flush=True)
    sys.exit(130)
