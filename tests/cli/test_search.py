"""A search: which trials it runs, what it takes from them, and how it goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from nelf.cli.sweeps import FAILURE, write_table
from nelf.errors import UserError
from nelf.pipeline.lock import Lock

optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install 'nelf[search]'")
search = pytest.importorskip("nelf.cli.search")

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACE = {"model.width": "8,16,32", "model.depth": "2,4"}


def figures(width: int, depth: int) -> tuple[float, float]:
    """Depth 4 costs twice as much as depth 2, and is worth it for width 32 alone."""
    return 20.0 + width / 8 + (depth == 4) * (0.1 if width == 32 else -0.1), 0.5 * width * depth


class Jobs:
    """Stands for a launcher: writes what a job's report would say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run: list[tuple[int, int]] = []
        self.batches: list[int] = []
        self.instead: dict[tuple[int, int], Callable[[Path], None]] = {}

    def launch(self, jobs: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.batches.append(len(jobs))
        return [self._one(list(job)) for job in jobs]

    def _one(self, overrides: list[str]) -> JobReturn:
        told = dict(text.split("=") for text in overrides)
        size = int(told["model.width"]), int(told["model.depth"])
        job = self.folder / ",".join(overrides)
        (job / "student").mkdir(parents=True, exist_ok=True)
        (job / "overrides.yaml").write_text(yaml.safe_dump(overrides))
        self.run.append(size)
        if size in self.instead:
            self.instead[size](job)
        else:
            quality, cost = figures(*size)
            row = {"name": "student", "psnr": 99.0 - quality, "latency_ms": cost}
            (job / "report.json").write_text(json.dumps({"rows": [row]}))
            (job / "student" / "metrics.json").write_text(json.dumps({"val/psnr": quality, "seconds": 1.0}))
        place = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(job)}}})
        return JobReturn(overrides, hydra_cfg=place, status=JobStatus.COMPLETED)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "sweep")


def searching(jobs: Jobs, trials: int, parallel: int = 1, params: dict[str, str] | None = None, **options: Any) -> Any:
    defaults: dict[str, Any] = {"quality": "val/psnr", "cost": "latency_ms", "seed": 0}
    made = search.Search(trials, parallel, params=SPACE if params is None else params, **{**defaults, **options})
    made.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(jobs.folder)}}})
    made.hydra_context = SimpleNamespace(config_loader=SimpleNamespace(load_sweep_config=lambda **_: None))
    made.launch = jobs.launch
    return made


def study(jobs: Jobs) -> Any:
    return optuna.load_study(study_name="pareto", storage=f"sqlite:///{jobs.folder / 'study.db'}")


def front(jobs: Jobs) -> list[list[str]]:
    _, _, *rows = (jobs.folder / "pareto.md").read_text().splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_it_finds_what_no_other_beats(jobs, capsys) -> None:
    searching(jobs, trials=30).sweep(["seed=1"])
    assert sorted(jobs.run) == [(width, depth) for width in (8, 16, 32) for depth in (2, 4)]  # each once
    assert [(float(row[0]), float(row[1]), *row[2:4]) for row in front(jobs)] == [
        (21.0, 8.0, "8", "2"),
        (22.0, 16.0, "16", "2"),
        (24.0, 32.0, "32", "2"),
        (24.1, 64.0, "32", "4"),
    ]
    assert len(study(jobs).trials) == 30
    assert "30 trials, 6 models" in capsys.readouterr().out
    drawn = (jobs.folder / "pareto.svg").read_text()
    assert "latency_ms" in drawn
    assert not (jobs.folder / "lock.json").exists()
    assert write_table(jobs.folder) == 0
    assert "validation PSNR" in (jobs.folder / "table.md").read_text().splitlines()[0]


def test_a_trial_that_fails_is_noted_and_the_others_go_on(jobs) -> None:
    jobs.instead[16, 2] = lambda job: (job / FAILURE).write_text("model.width: is too much\n")  # type: ignore[assignment]
    jobs.instead[8, 4] = lambda job: None

    def killed(job: Path) -> None:
        raise MemoryError("killed")

    jobs.instead[32, 4] = killed
    searching(jobs, trials=30).sweep([])
    assert {tuple(row[2:4]) for row in front(jobs)} == {("8", "2"), ("32", "2")}
    noted = {each.user_attrs.get("failure") for each in study(jobs).trials if each.values is None}
    assert {"model.width: is too much", "no figures", "MemoryError: killed"} <= noted
    assert len(jobs.run) == 6  # what has failed is not run again
    assert write_table(jobs.folder) == 3


def test_it_goes_on_with_what_was_interrupted(jobs) -> None:
    def interrupt(job: Path) -> None:
        raise KeyboardInterrupt

    whole = searching(jobs, trials=30)
    jobs.instead = dict.fromkeys([(32, 2)], interrupt)
    with pytest.raises(KeyboardInterrupt):
        whole.sweep([])
    before = list(jobs.run)
    jobs.instead = {}
    searching(jobs, trials=30).sweep([])
    after = jobs.run[len(before) :]
    assert before[-1] == (32, 2) in after
    assert not set(after) & set(before[:-1])
    assert len(study(jobs).trials) == 31  # of which one was interrupted
    count = len(jobs.run)
    searching(jobs, trials=30).sweep([])
    assert len(jobs.run) == count
    searching(jobs, trials=33).sweep([])
    assert len(study(jobs).trials) == 34


def test_trials_run_side_by_side(jobs) -> None:
    searching(jobs, trials=7, parallel=3, params={"model.width": "range(8,800,8)", "model.depth": "2"}).sweep([])
    assert len(study(jobs).trials) == 7
    assert max(jobs.batches) == 3
    assert all(each <= 3 for each in jobs.batches)
    assert all(width % 8 == 0 and 8 <= width < 800 for width, _ in jobs.run)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"params": {"model.width": "8,16"}}, r"study\.db: model\.depth was .* and is None\. Choose another directory"),
        ({"cost": "bytes"}, r"study\.db: cost was latency_ms and is bytes"),
        ({"arguments": ["trainer.max_steps=5"]}, r"the settings was \[\] and is \['trainer\.max_steps=5'\]"),
        ({"trials": 0}, r"^hydra\.sweeper\.trials: is 0; allowed: a whole number of 1 or more\.$"),
        ({"params": {}}, r"^sweep: nothing varies"),
        ({"params": {"model.width": "range(8,8)"}}, r"^model\.width=range\(8,8\): is an empty range\.$"),
        ({"params": {"model.width": "tag(log,interval(0,1))"}}, r"^model\.width=tag\(log,interval\(0,1\)\): "),
    ],
)
def test_it_refuses_in_a_line(jobs, change, line) -> None:
    searching(jobs, trials=1).sweep([])
    arguments = change.get("arguments", [])
    with pytest.raises(UserError, match=line):
        searching(jobs, **{"trials": 2, **{k: v for k, v in change.items() if k != "arguments"}}).sweep(arguments)
    assert len(study(jobs).trials) == 1


def test_without_optuna_there_is_a_line(jobs, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"^sweep: optuna is not installed, .*: pip install 'nelf\[search\]'\.$"):
        searching(jobs, trials=1).sweep([])


def test_one_process_searches_at_a_time(jobs, monkeypatch) -> None:
    def taken(self: Lock) -> None:
        raise UserError("sweep: process 1 is writing there.")

    monkeypatch.setattr(Lock, "acquire", taken)
    with pytest.raises(UserError, match="process 1"):
        searching(jobs, trials=1).sweep([])
    assert jobs.run == []


def test_hydra_makes_it_from_its_configuration() -> None:
    node = {"trials": 3, "parallel": 1, "quality": "psnr", "cost": "bytes", "seed": 0, "params": {"a": "1,2"}}
    made = Plugins.instance()._instantiate(OmegaConf.create({"_target_": "hydra_plugins.nelf.Search", **node}))
    assert isinstance(made, search.Search)
    assert (made.trials, made.params) == (3, {"a": "1,2"})


@pytest.mark.parametrize(
    ("word", "kind", "about"),
    [
        ("a.b=range(8,33,8)", "IntDistribution", {"low": 8, "high": 32, "step": 8, "log": False}),
        ("a.b=range(9,1,-3)", "IntDistribution", {"low": 3, "high": 9, "step": 3}),
        ("a.b=interval(0.1,0.7)", "FloatDistribution", {"low": 0.1, "high": 0.7, "log": False}),
        ("a.b=tag(log,interval(1e-4,1e-2))", "FloatDistribution", {"low": 1e-4, "high": 1e-2, "log": True}),
        ("a.b=int(interval(4,9))", "IntDistribution", {"low": 4, "high": 9, "step": 1}),
        ("a.b=gelu,relu", "CategoricalDistribution", {"choices": ("gelu", "relu")}),
        ("a.b=[1,2],null", "CategoricalDistribution", {"choices": ("[1,2]", "null")}),
        ("a.b=range(0.5,2,0.5)", "CategoricalDistribution", {"choices": ("0.5", "1", "1.5")}),
    ],
)
def test_the_words_of_a_sweep_say_what_is_drawn(word: str, kind: str, about: dict[str, Any]) -> None:
    made = search.distribution(OverridesParser.create().parse_override(word))
    assert type(made).__name__ == kind
    assert {key: getattr(made, key) for key in about} == about
