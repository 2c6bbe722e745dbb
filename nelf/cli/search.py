"""Search for the Pareto front of quality and cost: a sweep whose jobs Optuna chooses one after the other.

The search space is written in Hydra's sweep syntax: ``a,b,c``, ``range(from,to,step)``, ``interval(from,to)``. Each
trial is a job with its own run directory, started by the launcher that the command names; its figures are those of its
row in ``table.md``. The study is stored in the sweep's directory, so the same command resumes it.

Hydra's own Optuna plugin requires a version below 3, hence this one.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from nelf.cli.remembered import memorable
from nelf.cli.sweeps import FAILURE, results
from nelf.errors import UserError, atomic_path
from nelf.pipeline.lock import Lock

__all__ = ["Search", "distribution"]

_STUDY = "study.db"
_INTERRUPTED = "interrupted"


class Search(Sweeper):
    """Ask Optuna for trials, run them as jobs, and report their quality and cost to it.

    A failed trial is recorded, and the search continues. A resumed search first resumes the trials that were
    interrupted, in their run directories. Values that have been tried are not run again.

    Args:
        trials: total number of trials.
        parallel: trials that are started together.
        quality: the figure of a job to maximize.
        cost: the figure to minimize.
        seed: of the sampler.
        params: the search space, sweep syntax by key; sweeps on the command line are added.
    """

    def __init__(
        self, trials: int, parallel: int, quality: str, cost: str, seed: int, params: dict[str, str] | None
    ) -> None:
        self.trials, self.parallel, self.quality, self.cost, self.seed = trials, parallel, quality, cost, seed
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra with what jobs are started with."""
        self.config, self.hydra_context = config, hydra_context
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.launch: Callable[..., Sequence[JobReturn]] = launcher.launch

    def sweep(self, arguments: list[str]) -> None:
        """Search until ``trials`` have finished; then write ``pareto.svg`` and ``pareto.md``.

        Args:
            arguments: the overrides of the command line; those with several values extend the search space.

        Raises:
            UserError: nothing varies, a key does not exist, the study has other settings, or another process works on
                it.
        """
        assert self.config is not None
        optuna = _optuna()
        for name, number in (("trials", self.trials), ("parallel", self.parallel)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise UserError(f"hydra.sweeper.{name}: is {number!r}; allowed: a whole number of 1 or more.")
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parsed = {item.get_key_element(): item for item in OverridesParser.create().parse_overrides(words)}
        space = {key: distribution(item) for key, item in parsed.items() if item.is_sweep_override()}
        fixed = [str(item.input_line) for key, item in parsed.items() if key not in space]
        if not space:
            raise UserError("sweep: nothing varies; allowed: KEY=a,b,c, KEY=range(1,9,2) or KEY=interval(0,1).")
        self.validate_batch_is_legal([_job(fixed, optuna.create_study().ask(space).params)])
        folder = Path(self.config.hydra.sweep.dir)
        lock = Lock(folder)
        lock.acquire()
        try:
            study = self._study(folder, space, sorted(memorable(fixed)))
            while wanted := min(self.parallel, self.trials - len(_finished(study))):
                self._batch(study, [study.ask(space) for _ in range(wanted)], fixed)
            self._conclude(study, folder)
        finally:
            lock.release()

    def _study(self, folder: Path, space: dict[str, Any], fixed: list[str]) -> Any:
        """Open the directory's study, or create it."""
        optuna = _optuna()
        settings = {
            **{"quality": self.quality, "cost": self.cost, "the settings": fixed},
            **{key: str(each) for key, each in space.items()},
        }
        study = optuna.create_study(
            storage=f"sqlite:///{folder / _STUDY}",
            study_name="pareto",
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
        stored = study.user_attrs.get("settings", settings)
        for key in sorted(settings.keys() | stored.keys()):
            if settings.get(key) != stored.get(key):
                raise UserError(
                    f"{folder / _STUDY}: {key} was {stored.get(key)} and is {settings.get(key)}. Choose another "
                    "directory with run=, or delete the study."
                )
        study.set_user_attr("settings", settings)
        begun = study.get_trials(states=[optuna.trial.TrialState.RUNNING])
        numbers = [*study.user_attrs.get(_INTERRUPTED, []), *(trial.number for trial in begun)]
        study.set_user_attr(_INTERRUPTED, numbers)
        for trial in begun:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
        for params in _every(space, self.trials):  # a small space is searched exhaustively
            study.enqueue_trial(params, skip_if_exists=True)
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
        return study

    def _batch(self, study: Any, asked: list[Any], fixed: list[str]) -> None:
        """Run trials in parallel; a trial whose values have been tried takes the figures of that trial."""
        failed = _optuna().trial.TrialState.FAIL
        known = {json.dumps(each.params, sort_keys=True): each for each in _finished(study)}
        new = {}
        for trial in asked:
            same = known.get(key := json.dumps(trial.params, sort_keys=True))
            if same is not None and same.values is not None:
                _note(trial, same.user_attrs)
                study.tell(trial, same.values)
            elif same is not None or key in new:
                study.tell(trial, state=failed)
            else:
                new[key] = trial
        if not new:
            return
        jobs = [_job(fixed, each.params) for each in new.values()]
        self.validate_batch_is_legal(jobs)
        try:
            ended: Sequence[JobReturn] = self.launch(jobs, initial_job_idx=asked[0].number)
        except Exception as error:  # a process that was killed, a queue that is full
            for trial in new.values():
                _note(trial, {"failure": f"{type(error).__name__}: {error}"})
                study.tell(trial, state=failed)
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return
        for trial, job in zip(new.values(), ended, strict=True):
            folder = Path(job.hydra_cfg.hydra.runtime.output_dir)  # type: ignore[union-attr]
            figures = self._figures(folder, list(trial.params)) if job.status is JobStatus.COMPLETED else None
            if figures is None:
                why = (folder / FAILURE).read_text(encoding="utf-8") if (folder / FAILURE).is_file() else "no figures"
                _note(trial, {"folder": folder.name, "failure": why.strip()})
                study.tell(trial, state=failed)
            else:
                _note(trial, {"folder": folder.name})
                study.tell(trial, figures)

    def _figures(self, job: Path, keys: list[str]) -> tuple[float, float] | None:
        """Quality and cost of a job's last model; None if the job has failed or lacks one of them."""
        rows = [] if (job / FAILURE).is_file() else results(job, keys)
        figures = [rows[-1].get(name) for name in (self.quality, self.cost)] if rows else [None]
        return None if None in figures else (float(figures[0]), float(figures[1]))  # type: ignore[arg-type]

    def _conclude(self, study: Any, folder: Path) -> None:
        """Plot all trials, and list those on the Pareto front."""
        from nelf.report.plots import trade_off_svg

        front = sorted(study.best_trials, key=lambda trial: trial.values[1])
        front = list({json.dumps(each.params, sort_keys=True): each for each in front}.values())
        keys = list(front[0].params) if front else []
        rows = [[self.quality, self.cost, *keys, "folder"], ["---"] * (len(keys) + 3)]
        rows += [
            [*(f"{value:.6g}" for value in each.values), *map(_word, each.params.values()), each.user_attrs["folder"]]
            for each in front
        ]
        text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
        with atomic_path(folder / "pareto.md") as partial:
            partial.write_text(text, encoding="utf-8")
        told = {each.user_attrs["folder"]: each for each in _finished(study) if each.values is not None}
        points = [(_short(each.params), each.values[1], each.values[0]) for each in told.values()]
        if points:
            with atomic_path(folder / "pareto.svg") as partial:
                partial.write_text(trade_off_svg(points, self.cost), encoding="utf-8")
        count = len(_finished(study))
        print(
            f"{text}\n{count} trials, {len(told)} models: {folder / 'pareto.svg'}, {folder / 'pareto.md'}", flush=True
        )


def distribution(item: Override) -> Any:
    """Optuna's distribution for the values of a key.

    Args:
        item: an override with several values.

    Returns:
        For ``range`` with whole numbers and for ``interval``, numbers between two limits (an interval with the tag
        ``log`` is sampled on a logarithmic scale); else a categorical distribution.

    Raises:
        UserError: an empty range.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = item.value()
    if isinstance(value, RangeSweep):
        steps = list(value.range())
        if not steps:
            raise UserError(f"{item.input_line}: is an empty range.")
        if all(isinstance(each, int) for each in steps):
            return IntDistribution(min(steps), max(steps), step=abs(int(value.step)))
        return CategoricalDistribution([f"{float(each):.6g}" for each in steps])
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None
        assert high is not None
        kind: Any = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
        try:
            return kind(low, high, log="log" in value.tags)
        except ValueError as error:
            raise UserError(f"{item.input_line}: {error}") from None
    return CategoricalDistribution([word for word in item.sweep_string_iterator()])


def _every(space: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """All points of a search space; an empty list if there are more than ``most``, or it is continuous."""
    axes = []
    for each in space.values():
        values = getattr(each, "choices", None)
        if values is None and isinstance(each.low, int) and len(range(each.low, each.high + 1, each.step)) <= most:
            values = range(each.low, each.high + 1, each.step)
        axes.append(values or ())
    if not 0 < math.prod(map(len, axes)) <= most:
        return []
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*axes)]


def _optuna() -> Any:
    """Import Optuna, without its log messages about each trial.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("sweep: optuna is not installed, and a search needs it: pip install 'nelf[search]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _finished(study: Any) -> list[Any]:
    """The trials that have ended, with figures or without, except those that were interrupted."""
    interrupted = study.user_attrs.get(_INTERRUPTED, [])
    return [each for each in study.trials if each.state.is_finished() and each.number not in interrupted]


def _job(fixed: list[str], params: dict[str, Any]) -> list[str]:
    """The overrides of a trial."""
    return [*fixed, *(f"{key}={_word(value)}" for key, value in params.items())]


def _note(trial: Any, facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        trial.set_user_attr(key, value)


def _word(value: Any) -> str:
    """A value as it is written in an override."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _short(params: dict[str, Any]) -> str:
    """The label of a trial in the plot."""
    return ", ".join(f"{key.rpartition('.')[2]} {_word(value)}" for key, value in params.items())


# Hydra accepts plugins only from a package of this name, which exists only if another plugin is installed.
try:
    _package = import_module("hydra_plugins")
except ModuleNotFoundError:
    _package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    _package.__path__ = []
setattr(_package, "nelf", sys.modules[__name__])  # noqa: B010
Search.__module__ = "hydra_plugins.nelf"
Plugins.instance().register(Search)
