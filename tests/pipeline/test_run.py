"""The run directory: what is skipped, what is redone, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nelf.errors import UserError
from nelf.pipeline.documents import read_artifacts, read_json, write_json, write_yaml
from nelf.pipeline.recipe import Recipe
from nelf.pipeline.run import Run

ROOT = Path(__file__).parents[2]
SCENE = SimpleNamespace(name="sphere", digest="abc")
ALL = ["teacher", "pseudo", "student", "report"]


def config(**changes: Any) -> dict[str, Any]:
    plain = {
        "data": {"root": "/scene", "width": 16, "num_workers": 0},
        "teacher": {"model": {"levels": 8}, "system": {"lr": 0.01}},
        "model": {"width": 32},
        "system": {"lr": 1e-3},
        "trainer": {"max_steps": 5, "accelerator": "cpu"},
        "stage": {name: {} for name in ALL},
        "stages": ["teacher", "pseudo", "student", "report"],
        "seed": 0,
    }
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (plain[section] if section else plain)[name] = value
    plain["stage"] = {
        name: {"_target_": f"nelf.pipeline.stages.{name}.{name}", **options} for name, options in plain["stage"].items()
    }
    return plain


class Chain:
    """Stages that note that they ran, in one directory."""

    def __init__(self, root: Path, shared: Path | None = None) -> None:
        self.root, self.shared = root, shared

    def __call__(self, stages: str = "teacher pseudo student report", **changes: Any) -> list[str]:
        recipe = Recipe(config(**changes), lambda node: SimpleNamespace(root="/scene", scene=SCENE))
        run = Run(self.root, recipe, [self.shared] if self.shared else [])
        ran: list[str] = []
        for name in stages.split():

            def stage(run: Run, name: str = name) -> dict[str, Any]:
                ran.append(name)
                (run.folder(name) / "model.safetensors").write_text(name)
                return {"psnr": 1.0}

            run.do(name, stage)
        return ran


@pytest.fixture
def chain(tmp_path) -> Chain:
    return Chain(tmp_path / "run")


def test_a_finished_chain_is_skipped(chain) -> None:
    assert chain() == ALL
    assert chain() == []
    assert read_json(chain.root / "teacher" / "metrics.json")["psnr"] == 1.0


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"system": {"lr": 2e-3}}, ["student", "report"]),
        ({"trainer__max_steps": 6}, ["teacher", "pseudo", "student", "report"]),
        ({"stage__pseudo": {"views": 3}}, ["pseudo", "student", "report"]),
        ({"data__width": 8}, ALL),
        ({"data__sampling": "same_image"}, ALL),
        ({"data__num_workers": 2}, []),
        ({"data__root": "/moved"}, []),
        ({"trainer__accelerator": "gpu"}, []),
    ],
)
def test_a_changed_stage_is_redone_with_those_after_it(chain, change: dict[str, Any], redone: list[str]) -> None:
    chain()
    assert chain(**change) == redone
    assert chain(**change) == []


def test_an_argument_that_a_later_version_adds_changes_nothing_at_its_default(chain) -> None:
    field = {"_target_": "nelf.fields.NGP", "levels": 8}
    chain(teacher__model=field)
    assert chain(teacher__model={**field, "contract": False, "appearance": 0}) == []
    with pytest.raises(UserError, match=r"network: teacher\.model\.appearance was None and is 4\."):
        chain(teacher__model={**field, "appearance": 4})
    (chain.root / "teacher" / "done.json").unlink()
    (chain.root / "teacher" / "kept").touch()
    assert chain("teacher", teacher__model={**field, "contract": False}) == ["teacher"]
    assert (chain.root / "teacher" / "kept").exists()


def test_an_option_that_a_later_version_adds_redoes_a_stage_at_another_value_than_its_default(chain) -> None:
    chain()
    assert chain(stage__report={"frames": 60}) == []
    assert chain(stage__report={"frames": 59}) == ["report"]


def test_a_redone_teacher_has_other_views_even_with_the_same_settings(chain) -> None:
    chain()
    (chain.root / "teacher" / "done.json").unlink()
    assert chain() == ALL


def test_a_half_done_stage_keeps_its_files_and_a_changed_one_does_not(chain) -> None:
    chain("teacher")
    (chain.root / "teacher" / "done.json").unlink()
    (chain.root / "teacher" / "kept").touch()
    chain("teacher")
    assert (chain.root / "teacher" / "kept").exists()
    chain("teacher", trainer__max_steps=7)
    assert not (chain.root / "teacher" / "kept").exists()


def test_a_run_of_an_earlier_version_is_refused_in_one_line(chain) -> None:
    chain()
    write_yaml(chain.root / "config.yaml", {"data": {"root": "/scene", "batch_rays": 8192}})
    run = Run(chain.root, Recipe(config(), lambda node: SimpleNamespace(root="/scene", scene=SCENE)))
    with pytest.raises(UserError, match=r"was made by an earlier version of nelf.*run=") as caught:
        run.check()
    assert "\n" not in str(caught.value)


def test_a_failed_stage_is_not_done(chain) -> None:
    def fail(run: Run) -> dict[str, Any]:
        raise RuntimeError("power cut")

    run = Run(chain.root, Recipe(config(), lambda node: None))
    with pytest.raises(RuntimeError, match="power cut"):
        run.do("teacher", fail)
    assert run.find("teacher") is None
    assert chain() == ALL


def test_another_architecture_is_refused_and_nothing_is_lost(chain) -> None:
    chain()
    before = {path: path.read_bytes() for path in chain.root.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"student: was trained with another network: model.width was 32 and is 64\."):
        chain(model={"width": 64})
    with pytest.raises(UserError, match=r"teacher.model.levels was 8 and is 4\."):
        chain(teacher={"model": {"levels": 4}, "system": {"lr": 0.01}})
    assert before == {path: path.read_bytes() for path in chain.root.rglob("*") if path.is_file()}


def test_a_stage_without_its_input_is_refused(chain) -> None:
    with pytest.raises(
        UserError, match=r"stage pseudo is not done, and is needed here\. Add it: stages=\[pseudo,student\]"
    ):
        chain("student")
    assert not chain.root.exists()


def test_the_report_takes_what_is_there(chain) -> None:
    assert chain("teacher report") == ["teacher", "report"]
    assert chain() == ["pseudo", "student", "report"]


def test_a_job_of_a_sweep_finds_finished_stages_in_the_shared_run(chain, tmp_path) -> None:
    chain("teacher pseudo")
    job = Chain(tmp_path / "job", shared=chain.root)
    assert job(model={"width": 64}) == ["student", "report"]
    assert sorted(path.name for path in job.root.iterdir()) == ["report", "student"]


def test_results_of_earlier_inputs_are_not_current(chain, tmp_path, capsys) -> None:
    options = {"stage": {name: {} for name in (*ALL, "prune", "export")}}
    chain(" ".join([*ALL, "prune", "export"]), **options)
    run = Run(chain.root, Recipe(config(**options), lambda node: None))
    stages = ("teacher", "student", "prune", "export")
    assert all(run.current(name) == run.folder(name) for name in stages)
    # A job that prunes otherwise: the shared run's export is of other pruned students.
    pruned = {**options["stage"], "prune": {"amount": 0.5}}
    job = Chain(tmp_path / "job", shared=chain.root)
    assert job("prune", stage=pruned) == ["prune"]
    other = Run(job.root, Recipe(config(stage=pruned), lambda node: None), [chain.root])
    assert [name for name in stages if other.current(name)] == ["teacher", "student", "prune"]
    assert "export: left out, because it was made from an earlier prune" in capsys.readouterr().out
    # Far back counts too; what has been deleted does not.
    chain("teacher", trainer__max_steps=9, **options)
    assert [name for name in stages if run.current(name)] == ["teacher"]
    (chain.root / "pseudo" / "done.json").unlink()
    assert [name for name in stages if run.current(name)] == list(stages)


def test_a_torn_done_json_counts_as_not_done(chain) -> None:
    chain("teacher")
    path = chain.root / "teacher" / "done.json"
    path.write_text(path.read_text()[:10])
    assert chain("teacher") == ["teacher"]


@pytest.mark.parametrize("content", ["{", "[]", '{"root": 3}'])
def test_a_damaged_scene_json_is_named(chain, content: str) -> None:
    chain("teacher")
    (chain.root / "scene.json").write_text(content)
    run = Run(chain.root, Recipe(config(), lambda node: SimpleNamespace(root="/scene", scene=SCENE)))
    with pytest.raises(UserError, match=r"scene\.json: "):
        run.check()


@pytest.mark.parametrize("content", ["[", "- a", "model: 3", "a: 2001-01-01"])
def test_a_damaged_config_is_named(chain, content: str) -> None:
    chain("teacher")
    for path in (chain.root / "config.yaml", chain.root / "teacher" / "config.yaml"):
        path.write_text(content)
    run = Run(chain.root, Recipe(config(), lambda node: SimpleNamespace(root="/scene", scene=SCENE)))
    with pytest.raises(UserError, match=f"{chain.root}"):
        run.check()


def test_a_directory_belongs_to_one_scene(tmp_path) -> None:
    def build(digest: str) -> Any:
        return lambda node: SimpleNamespace(root="/scene", scene=SimpleNamespace(name="s", digest=digest))

    Run(tmp_path, Recipe(config(), build("one"))).open()
    with pytest.raises(UserError, match="holds work on another scene"):
        Run(tmp_path, Recipe(config(), build("two"))).check()
    assert json.loads((tmp_path / "scene.json").read_text())["digest"] == "one"


@pytest.mark.parametrize("file", ["../a", "/etc/hostname", "link", "", None, 3])
def test_a_stage_s_files_lie_beside_its_list(tmp_path, file: Any) -> None:
    write_json(tmp_path / "artifacts.json", [{"name": "a", "file": "a"}])
    assert read_artifacts(tmp_path) == [{"name": "a", "file": "a"}]
    assert read_artifacts(tmp_path / "no") == []
    (tmp_path / "link").symlink_to("/etc/hostname")
    write_json(tmp_path / "artifacts.json", [{"name": "a", "file": file}])
    with pytest.raises(UserError, match=r"artifacts.json: lists .*; allowed: artifacts with a name, and a file beside"):
        read_artifacts(tmp_path)


def test_peak_memory_is_of_the_stage() -> None:
    """In a process of its own: here, other tests' memory comes and goes."""
    code = """
from nelf.pipeline.memory import peak_memory, reset_peak_memory
reset_peak_memory()
before = peak_memory()
block = b"x" * 2**26
del block
grown = peak_memory() - before
reset_peak_memory()
print(grown, peak_memory() - before)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    grown, left = map(int, shown.stdout.split())
    assert grown == pytest.approx(2**26, rel=0.2)
    assert left < 0.2 * 2**26
