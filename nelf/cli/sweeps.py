"""Sweeps: the stages that their jobs share, where the jobs run, and the table of results."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import DictConfig, OmegaConf

from nelf.cli import remembered
from nelf.errors import UserError, atomic_path
from nelf.pipeline.documents import hash_of, read_artifacts, read_record
from nelf.pipeline.stage import Declaration

__all__ = [
    "EXTRAS",
    "FAILURE",
    "check_launcher",
    "first_job",
    "is_elsewhere",
    "is_search",
    "launcher_line",
    "note_failure",
    "refuse_unfinished",
    "results",
    "shared_stages",
    "slug",
    "swept_keys",
    "write_table",
]

#: Hydra's launchers that are separate packages: the package, and the extra of nelf that installs it.
EXTRAS = {
    "joblib": ("hydra-joblib-launcher", "joblib"),
    "submitit_local": ("hydra-submitit-launcher", "submitit"),
    "submitit_slurm": ("hydra-submitit-launcher", "submitit"),
    "ray": ("hydra-ray-launcher", "ray"),
}
_LAUNCHERS_ERRORS = (
    *("UncompletedJobError", "FailedJobError", "FailedSubmissionError"),  # submitit
    "TerminatedWorkerError",  # joblib
    "WorkerCrashedError",  # Ray
)
#: In a job's directory: the reason why it failed.
FAILURE = "failure.txt"

_METRICS = {
    "name": ("artifact", "s"),
    "sparsity": ("sparsity", ".1%"),
    "val/psnr": ("validation PSNR, dB", ".2f"),
    "psnr": ("PSNR, dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
    "parameters": ("parameters", ",d"),
    "bytes": ("bytes", ",d"),
    "latency_ms": ("ms per view", ".1f"),
}


def slug(overrides: str) -> str:
    """The name of a job's folder: its overrides, shortened if they are too long for a file name."""
    name = overrides.replace("/", "_").replace("\\", "") or "default"  # Hydra escapes colons
    return name if len(name) <= 160 else f"{name[:150]}-{hash_of(name)[:8]}"


OmegaConf.register_new_resolver("slug", lambda text: slug(str(text)), replace=True)


def is_elsewhere(cfg: DictConfig) -> bool:
    """Whether a sweep's jobs run outside the process that starts them.

    Args:
        cfg: the configuration of its first job, with the section ``hydra``.
    """
    return str(cfg.hydra.runtime.choices["hydra/launcher"]) != "basic"


def is_search(cfg: DictConfig) -> bool:
    """Whether a sweep's jobs are chosen by nelf's search, see ``nelf.cli.search``.

    Args:
        cfg: the configuration of its first job, with the section ``hydra``.
    """
    return "nelf" in str(cfg.hydra.sweeper._target_)


def check_launcher(cfg: DictConfig, single: bool, devices: int) -> None:
    """Refuse a launcher without a sweep, or with jobs that use several devices.

    Args:
        cfg: the configuration of the first job, with the section ``hydra``.
        single: the command is not a sweep.
        devices: how many devices a job uses on this machine.

    Raises:
        UserError: says what is allowed.
    """
    if not is_elsewhere(cfg):
        return
    name = cfg.hydra.runtime.choices.get("launcher") or cfg.hydra.runtime.choices["hydra/launcher"]
    if single:
        raise UserError(f"launcher={name}: is for sweeps. Give a key several values, or add --multirun for one job.")
    if cfg.hydra.runtime.choices["hydra/launcher"] == "submitit_slurm" and shutil.which("sbatch") is None:
        raise UserError(f"launcher={name}: this machine has no sbatch; allowed: launcher=submitit, or one with SLURM.")
    if devices > 1:
        raise UserError(f"launcher={name}: a job trains on one device; allowed: trainer.devices=1, not {devices}.")


def launcher_line(error: BaseException) -> str | None:
    """What a launcher says of jobs that it could not submit, or that have been ended from outside.

    Args:
        error: whatever has been raised; the launchers' own errors are known by their names, not imported for them.

    Returns:
        The line; None for any other error, and where a job's own code has failed.
    """
    text = str(error).strip()
    if type(error).__name__ not in _LAUNCHERS_ERRORS or "failed during processing" in text.partition("\n")[0]:
        return None
    return " ".join(re.split(r"\n\n|\n(?:Error|No error|No output/error) stream", text)[0].split())


def note_failure(job: Path, line: str) -> None:
    """Write the reason of a failure into a job's directory, since its process may run on another machine.

    Args:
        job: the directory.
        line: what to print at the end of the sweep.
    """
    with atomic_path(job / FAILURE) as partial:
        partial.write_text(line + "\n", encoding="utf-8")


def refuse_unfinished(run: Path, stages: list[str]) -> None:
    """Raise an error if stages that all jobs need are not done.

    Args:
        run: the directory of the shared run.
        stages: their names.

    Raises:
        UserError: a stage is not done; the message gives the reason if it is known.
    """
    for name in stages:
        if not (run / name / "done.json").is_file():
            why = (run / FAILURE).read_text(encoding="utf-8") if (run / FAILURE).is_file() else "The lines are above."
            raise UserError(f"{run}: stage {name}, which all jobs need, failed. {why.strip()}")


def first_job(overrides: list[str]) -> list[str]:
    """The overrides of a sweep's first job: the first of several values; patterns, ranges and intervals are left out.

    Example:
        >>> first_job(["model.width=64,128", "seed=1", "experiment=glob(*)"])
        ['model.width=64', 'seed=1']
    """
    first = []
    for item, text in zip(OverridesParser.create().parse_overrides(overrides), overrides, strict=True):
        if not item.is_sweep_override():
            first.append(text)
        elif item.is_discrete_sweep() and not isinstance(item.value(), Glob):
            first.append(f"{item.get_key_element()}={next(item.sweep_string_iterator())}")
    return first


def swept_keys(overrides: list[str], cfg: DictConfig) -> list[str]:
    """The keys that a command sweeps: those with several values on the command line, and those of a ``sweep=`` preset.

    Args:
        overrides: those of the command line.
        cfg: the configuration of the first job, with the section ``hydra``.

    Raises:
        UserError: an interval, which only a search can draw from.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    endless = [item.input_line for item in parsed if item.is_sweep_override() and not item.is_discrete_sweep()]
    if endless and not is_search(cfg):
        raise UserError(f"{endless[0]}: is for a search; allowed: KEY=a,b,c, or sweep=pareto beside it.")
    own = [item.key_or_group for item in parsed if item.is_sweep_override()]
    preset = cfg.hydra.sweeper.get("params") or {}
    return [*own, *(str(key) for key in preset)]


def shared_stages(stages: list[str], swept: list[str], chain: Mapping[str, Declaration]) -> list[str]:
    """The leading stages that no swept key affects; they run once for all jobs.

    Args:
        stages: those of the command, in order.
        swept: the keys that have several values.
        chain: the declarations of the stages by name.

    Example:
        >>> chain = {
        ...     "teacher": Declaration(("data", "teacher")),
        ...     "student": Declaration(("data", "model"), inputs=("teacher",)),
        ... }
        >>> shared_stages(["teacher", "student"], ["model.width"], chain)
        ['teacher']
        >>> shared_stages(["teacher", "student"], ["experiment"], chain)
        []
    """

    def concerns(key: str, name: str) -> bool:
        section = key.replace("/", ".").split("@")[0]
        if section.startswith("stage."):
            return section.split(".")[1] == name
        return section.split(".")[0] in (*chain[name].sections, "experiment", "stage")

    return list(
        itertools.takewhile(
            lambda name: name in chain and name != "report" and not any(concerns(key, name) for key in swept),
            stages,
        )
    )


def write_table(folder: Path) -> int:
    """Write and print ``table.md``, with a row for each job of a sweep's directory; print why jobs failed.

    If the sweep varies options of a stage with artifacts (such as ``stage.prune.amount``), a job has a row for each
    artifact.

    The values of a job come from its ``overrides.yaml``, not from the name of its folder. Jobs of earlier sweeps into
    the same directory are included.

    Args:
        folder: the sweep's directory.

    Returns:
        The number of jobs without a result.
    """
    jobs = sorted(path.parent for path in folder.glob("*/overrides.yaml"))
    options = [dict(_split(text) for text in remembered.read(job / "overrides.yaml")) for job in jobs]
    # Only keys whose value differs between jobs.
    keys = [
        key
        for key in dict.fromkeys(itertools.chain.from_iterable(options))
        if len({row.get(key) for row in options}) > 1
    ]
    found = [results(job, keys) for job in jobs]
    shown = [name for name in _METRICS if any(_format(name, row) for rows in found for row in rows)]
    lines = [
        [*keys, *(_METRICS[name][0] for name in shown), "folder"],
        *(
            [*(row.get(key, "") for key in keys), *(_format(name, result) for name in shown), job.name]
            for row, rows, job in zip(options, found, jobs, strict=True)
            for result in rows or [{}]
        ),
    ]
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    text = "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]]) + "\n"
    with atomic_path(folder / "table.md") as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"{text}\n{folder / 'table.md'}", flush=True)
    failed = {job for job, result in zip(jobs, found, strict=True) if not result}
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if (path / FAILURE).is_file():
            print(f"{path.name}: {(path / FAILURE).read_text(encoding='utf-8').strip()}", file=sys.stderr, flush=True)
            failed.add(path)
        elif path not in jobs:
            failed.add(path)
    return len(failed)


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def results(job: Path, keys: list[str]) -> list[dict[str, Any]]:
    """The figures of a job; an empty list if it has failed.

    Args:
        job: the directory.
        keys: those that the sweep varies.

    Returns:
        A row for each artifact of the stages whose options vary, if there are any. Else one row: that of the student
        (or the last one) in the report, with the student's validation metrics; without a report, the metrics of the
        script ``train`` or of the student's training.

    Raises:
        UserError: a report has no rows with names.
    """
    report = read_record(job / "report.json")
    rows: list[dict[str, Any]] = [] if report is None else report.get("rows", [])
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows
    ):
        raise UserError(f"{job / 'report.json'}: has no rows, each with a name; allowed: a whole report. Delete it.")
    stages = dict.fromkeys(key.split(".")[1] for key in keys if key.startswith("stage."))
    artifacts = [each for stage in stages for each in read_artifacts(job / stage)]
    if artifacts:
        measured = {row["name"]: row for row in rows}
        return [{**artifact, **measured.get(artifact["name"], {})} for artifact in artifacts]
    if report is None:
        own = read_record(job / "metrics.json") or read_record(job / "student" / "metrics.json")
        return [own] if own else []
    student = next((row for row in rows if row["name"] == "student"), rows[-1] if rows else {})
    trained = {key: value for key, value in (read_record(job / "student" / "metrics.json") or {}).items() if "/" in key}
    return [{**trained, **{key: value for key, value in student.items() if key != "name"}}]


def _format(name: str, result: dict[str, Any]) -> str:
    value, spec = result.get(name), _METRICS[name][1]
    kinds: Any = {"s": str, ",d": int}.get(spec, int | float)
    with suppress(OverflowError):  # a whole number beyond those of a float
        return format(value, spec) if isinstance(value, kinds) else ""
    return ""
