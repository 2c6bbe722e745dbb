"""A sweep: one table at the end, one teacher for all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def table(path) -> list[dict[str, str]]:
    head, _, *rows = [
        [cell.strip() for cell in line.strip("| \n").split("|")] for line in path.read_text().splitlines()
    ]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_two_by_two_students_share_a_teacher(scripts) -> None:
    sweep = ["run=out", "trainer.max_steps=3", "model.width=8,16", "model.depth=2,4"]
    command = [
        word for word in scripts.distill("--multirun", *sweep) if word not in ("model.width=16", "model.depth=4")
    ]
    printed = scripts.run(command)
    folder = scripts.folder / "out_sweep"
    rows = table(folder / "table.md")
    sizes = {(row["model.width"], row["model.depth"]) for row in rows}
    assert sizes == {("8", "2"), ("8", "4"), ("16", "2"), ("16", "4")}
    assert all(float(row["PSNR, dB"]) > 0 for row in rows)
    assert len({row["parameters"] for row in rows}) == 4
    assert (folder / "table.md").read_text() in printed
    # The teacher was trained once, in the run itself.
    assert len(list(scripts.folder.rglob("teacher/model.safetensors"))) == 1
    assert (scripts.folder / "out" / "teacher" / "done.json").is_file()
    assert all("data.root" not in row["folder"] for row in rows)

    # A wider sweep finds the finished jobs again.
    wider = [word.replace("model.width=8,16", "model.width=8,16,24") for word in command]
    printed = scripts.run(wider)
    assert printed.count("student: done, ") == 4
    assert len(table(folder / "table.md")) == 6


def test_one_value_is_a_job_and_another_run_s_teacher_serves(scripts) -> None:
    """A run begins with what another has finished; a sweep over a single value does not touch the run itself."""
    scripts.run(scripts.distill("run=out", "trainer.max_steps=3", "stages=[teacher,pseudo,student]"))
    before = (scripts.folder / "out" / "student" / "model.safetensors").stat().st_mtime_ns
    printed = scripts.run(["distill", "run=other", "base=out", "model.width=8", "stages=[student,report]"])
    assert "out: begun with" in printed
    assert sorted(path.name for path in (scripts.folder / "other").glob("*/done.json")) == ["done.json"] * 2
    assert not (scripts.folder / "other" / "teacher").exists()
    scripts.run(["distill", "--multirun", "run=out", "model.depth=2", "stages=[student,report]"])
    (row,) = table(scripts.folder / "out_sweep" / "table.md")
    assert row["folder"] == "model.depth=2"
    assert (scripts.folder / "out" / "student" / "model.safetensors").stat().st_mtime_ns == before


def test_jobs_that_fail_do_not_stop_the_others(scripts) -> None:
    command = [
        *(word for word in scripts.train("--multirun", "trainer.max_steps=2", "run=out") if "sr_factor" not in word),
        "model.sr_factor=4,3,2",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    ]
    printed = scripts.run(command, code=2)
    assert "`sr_factor` to be 1, 2, 4, 6, 8 or 12, but got 3" in printed
    assert "1 of the jobs failed" in printed.strip().splitlines()[-1]
    rows = table(scripts.folder / "out_sweep" / "table.md")
    assert {row["model.sr_factor"] for row in rows} == {"4", "2"}
    assert "Traceback" not in printed


LAUNCHERS = {"joblib": "hydra_joblib_launcher", "submitit": "hydra_submitit_launcher", "ray": "hydra_ray_launcher"}


@pytest.fixture(params=LAUNCHERS)
def launcher(request) -> str:
    reason = f"{LAUNCHERS[request.param]} is not installed: pip install 'nelf[{request.param}]'"
    pytest.importorskip(f"hydra_plugins.{LAUNCHERS[request.param]}", reason=reason)
    return request.param


def test_jobs_in_other_processes_have_their_directories_and_one_table(scripts, launcher: str) -> None:
    """One of three fails, in a process of its own; why stands in the end, and the others' figures in the table."""
    words = [word for word in scripts.train("--multirun", "trainer.max_steps=2", "run=out") if "sr_factor" not in word]
    printed = scripts.run([*words, "model.sr_factor=4,3,2", f"launcher={launcher}"], code=2)
    folder = scripts.folder / "out_sweep"
    jobs = {path.name: path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert len(jobs) == 3
    of = {factor: jobs[next(name for name in jobs if f"model.sr_factor={factor}" in name)] for factor in (2, 3, 4)}
    for factor in (2, 4):
        assert {"config.yaml", "metrics.json", "model.safetensors", "overrides.yaml"} <= set(os.listdir(of[factor]))
        assert not (of[factor] / "lock.json").exists()
    assert {row["folder"] for row in table(folder / "table.md") if row["PSNR, dB"]} == {of[2].name, of[4].name}
    assert "`sr_factor` to be 1, 2, 4, 6, 8 or 12, but got 3" in (of[3] / "failure.txt").read_text()
    # Ray prints what its workers said between our lines, and behind them.
    ending = [line for line in printed.strip().splitlines() if "(_run_job pid=" not in line]
    assert ending[-2].startswith(f"{of[3].name}: ")
    assert "1 of the jobs failed" in ending[-1]
    if launcher == "submitit":
        assert len([path for path in (folder / ".submitit").iterdir() if path.name.split("_")[0].isdigit()]) == 3


def test_what_all_jobs_share_runs_where_they_run(scripts) -> None:
    """A teacher that every job needs is not trained by the command itself, which may be on a cluster's front end."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'nelf[submitit]'")
    words = ["run=out", "trainer.max_steps=2", "stages=[teacher,pseudo,student]", "stage.pseudo.views=2"]
    command = [*(word for word in scripts.distill("-m", *words) if word != "model.width=16"), "launcher=submitit"]
    scripts.run([*command, "model.width=8,16"])
    assert [str(path.relative_to(scripts.folder).parent) for path in scripts.folder.rglob("teacher/done.json")] == [
        "out/teacher"
    ]
    students = {str(path.relative_to(scripts.folder).parts[0]) for path in scripts.folder.rglob("student/done.json")}
    assert students == {"out_sweep"}
    # A later command without a launcher finds all of it.
    printed = scripts.run([*command[:-1], "model.width=8,16"])
    assert printed.count("student: done, ") == 2
    broken = [*command, "teacher.model.levels=0", "model.width=8,16", "run=broken"]
    printed = scripts.run([word for word in broken if word not in ("teacher.model.levels=2", "run=out")], code=2)
    last = printed.strip().splitlines()[-1]
    assert last.startswith("broken: stage teacher, which all jobs need, failed. teacher.model.levels: is 0")


def test_a_sweep_over_all_presets_composes_each(scripts) -> None:
    """Trap: plain overrides of a sweep over a group are checked against the default choice first."""
    shared = ["data.root=/nowhere", "stages=[report]", "run=all"]
    printed = scripts.run(["distill", "experiment=glob(*)", *shared, "--multirun"], code=2)
    presets = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
    for name in presets:
        assert f"experiment={name}" in printed
    assert "Traceback" not in printed


def test_a_search_ends_in_its_front_and_goes_on(scripts) -> None:
    """Two trials of a real chain, then one more; what they share is trained once, and the third begins nothing anew."""
    pytest.importorskip("optuna", reason="optuna is not installed: pip install 'nelf[search]'")
    words = ["trainer.max_steps=2", "stage.narrow.max_steps=1", "stage.report.frames=0", "run=out"]
    space = ["model.width=8,16", "stage.narrow.ratio=interval(0.2,0.6)", "model.depth=2"]
    base = [word for word in scripts.distill("sweep=pareto") if not word.startswith(("model.", "stage."))]
    command = [*base, "model.sr_factor=4", "stage.pseudo.views=2", *words, *space]
    printed = scripts.run([*command, "hydra.sweeper.trials=2"])
    folder = scripts.folder / "out_sweep"
    assert "2 trials, " in printed
    assert {"study.db", "pareto.svg", "pareto.md", "table.md"} <= set(os.listdir(folder))
    assert len(list(scripts.folder.rglob("teacher/done.json"))) == 1
    first = table(folder / "pareto.md")
    assert all(float(row["val/psnr"]) > 0 and float(row["latency_ms"]) > 0 for row in first)
    assert {row["model.width"] for row in first} <= {"8", "16"}
    assert all(0.2 <= float(row["stage.narrow.ratio"]) <= 0.6 for row in first)
    printed = scripts.run([*command, "hydra.sweeper.trials=3"])
    assert "3 trials, " in printed
    assert len(table(folder / "table.md")) == 3
