"""conf/: every choice composes, and says exactly what the classes take."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra.utils import get_object
from omegaconf import OmegaConf

import nelf
from nelf.arguments import parameters
from nelf.cli.command import CONF
from nelf.cli.remembered import still_meant
from nelf.cli.sweeps import EXTRAS, first_job, launcher_line, slug, swept_keys
from nelf.errors import UserError
from nelf.systems.teacher import REGULARIZERS

FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


#: Models that state other numbers than the signature.
VARIANTS = ("_small", "_unbounded")
#: What a datamodule is told by the system that is trained with it.
BATCHES = ("batch", "batch_size", "ray_shift", "part")


def plain(command: str, *overrides: str) -> dict[str, Any]:
    return OmegaConf.to_container(nelf.config(command, list(overrides)), resolve=True)  # type: ignore[return-value]


def targets(node: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All nodes of a composed configuration that name a class."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for key, value in node.items():
            yield from targets(value, f"{where}.{key}".lstrip("."))


def choices() -> list[str]:
    groups = ("data", "model", "system", "teacher", "trainer", "callbacks", "logger")
    return [f"{path.parent}={path.stem}" for path in FILES if path.parts[0] in groups]


@pytest.mark.parametrize("choice", choices())
def test_every_choice_composes_with_exactly_its_class_s_parameters(choice: str) -> None:
    group = choice.split("=")[0]
    command = "distill" if group == "teacher" else "train"
    for where, node in targets(plain(command, "data.root=/x", choice)):
        target = get_object(node["_target_"])
        given = {key for key in node if key not in ("_target_", "_partial_")}
        takes = set(parameters(target)) - {"network", "run", *(BATCHES if where == "data" else ())}
        if node["_target_"].startswith("nelf."):
            assert given == takes, f"{where} of {choice}"
        elif takes:
            assert given <= takes, f"{where} of {choice}"


def stated(path: Path) -> set[str]:
    """The keys of a file, and of those that it builds on, up to what stands for the signature."""
    content = yaml.safe_load((CONF / path).read_text())
    before = [name for name in content.pop("defaults", []) if name not in ("_self_", "teacher", "student")]
    before = [name for name in before if path.parts[0] == "system" or name.endswith(VARIANTS)]
    return set(content).union(*(stated(path.with_name(f"{name}.yaml")) for name in before))


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] in ("model", "system", "stage")], ids=str)
def test_defaults_are_those_of_the_signature(path: Path) -> None:
    """A number lives twice, in the signature and in the file: they are the same number.

    The recipe of one model (``system/MODEL.yaml``), and a small model or one of a scene without bounds, may state
    others; what they do not state is the signature's.
    """
    group, name = path.parts[0], path.stem
    own = set()
    if (group == "system" and name not in ("teacher", "student")) or name.endswith(VARIANTS):
        own = stated(path)
    if (group, name) in (("system", "teacher"), ("system", "student")):
        node = yaml.safe_load((CONF / path).read_text())
    elif group == "stage":
        node = plain("distill")["stage"][name]
    else:
        node = plain("train", f"{group}={name}")[group]
    for key, parameter in parameters(get_object(node["_target_"])).items():
        if parameter.default is inspect.Parameter.empty or key in own:
            continue
        if key == "regularizers":
            assert node[key] == REGULARIZERS  # what None stands for
            continue
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        value = node[key]
        assert (float(value) if isinstance(default, float) else value) == default, key


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_preset_wins_over_the_main_file(name: str) -> None:
    """Trap: with _self_ last, the main file's own run and stages silently win."""
    preset = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    composed = plain("distill", f"experiment={name}", "data.root=/x")
    assert composed["run"] == preset["run"] == f"runs/{name}"
    for stage, options in preset["stage"].items():
        for key, value in options.items():
            assert composed["stage"][stage][key] == (None if value == "???" else value)
    for command in ("train", "distill"):
        assert yaml.safe_load((CONF / f"{command}.yaml").read_text())["defaults"][0] == "_self_"


def test_a_preset_s_student_can_be_replaced_and_its_recipe_follows() -> None:
    composed = plain("distill", "experiment=lego", "data.root=/x", "model=grid_r2l")
    assert composed["model"]["_target_"] == "nelf.lightfields.GridR2L"
    assert composed["system"] == plain("train", "model=grid_r2l")["system"]
    assert composed["run"] == "runs/lego"


def test_teacher_is_the_same_model_and_recipe_under_its_own_key() -> None:
    composed = plain("distill", "teacher=ngp", "teacher.model.levels=5", "teacher.system.lr=0.5")
    alone = plain("train", "model=ngp")
    assert composed["teacher"]["model"] == {**alone["model"], "levels": 5}
    assert composed["teacher"]["system"] == {**alone["system"], "lr": 0.5}


def test_the_trainer_says_where_a_model_is_trained_not_what_it_is() -> None:
    for model in ("ngp", "ngp_small", "nerf", "nerf_small", "grid_r2l", "mobile_r2l"):
        anywhere = plain("train", f"model={model}")
        for trainer in ("cpu", "gpu", "ddp"):
            composed = plain("train", f"model={model}", f"trainer={trainer}")
            assert (composed["model"], composed["system"]) == (anywhere["model"], anywhere["system"])


def test_presets_for_a_processor_have_a_small_teacher() -> None:
    names = sorted(path.stem for path in (CONF / "teacher").glob("*_small.yaml"))
    small = [plain("train", f"model={name}") for name in names]
    large = [plain("train", f"model={name.removesuffix('_small')}")["model"] for name in names]
    assert not any(each["model"] in large for each in small)
    known = [({**each["model"], "max_samples": None}, each["system"]) for each in small]
    for name in EXPERIMENTS:
        composed = plain("distill", f"experiment={name}", "data.root=/x")
        # How finely rays are sampled is the scene's to say; the networks are the same.
        teacher = ({**composed["teacher"]["model"], "max_samples": None}, composed["teacher"]["system"])
        assert (teacher in known) == (composed["trainer"]["accelerator"] == "cpu")


#: Recipes of full size by what they train: as the original's authors do, and as nelf does.
FULL_SIZE = {
    "nelf.lightfields.MobileR2L": ({"lego", "llff"}, {"lego_nelf", "llff_nelf"}),
    "nelf.lightfields.R2L": ({"r2l_lego"}, {"r2l_nelf"}),
    "nelf.lightfields.DyLiN": ({"dylin_jumpingjacks"}, {"dylin_nelf"}),
    "nelf.lightfields.GridR2L": (set(), {"grid_lego", "nerf_lego"}),
    "nelf.lightfields.GridDyLiN": (set(), {"grid_jumpingjacks"}),
}


def test_presets_of_full_size() -> None:
    """Originals never show a student the photographs; nelf does. What nobody has measured is said to be so."""
    files = {name: (CONF / "experiment" / f"{name}.yaml").read_text() for name in EXPERIMENTS}
    large = {
        name: plain("distill", f"experiment={name}", "data.root=/x")
        for name, text in files.items()
        if "/trainer: cpu" not in text
    }
    found: dict[str, tuple[set[str], set[str]]] = {}
    for name, each in large.items():
        own = each["stage"]["student"]["real_views"]
        found.setdefault(each["model"]["_target_"], (set(), set()))[own].add(name)
        assert (each["trainer"]["accelerator"], each["trainer"]["max_time"]) == ("auto", None)
        assert each["stages"][-1] == "report"
        assert "\n# Time and memory: " in files[name].partition("\ndefaults:")[0]
    assert found == FULL_SIZE


def test_the_other_scenes_of_a_data_set_are_an_override() -> None:
    composed = plain("distill", "experiment=lego", "data.root=/data/drums", "run=runs/drums")
    assert (composed["data"]["root"], composed["run"]) == ("/data/drums", "runs/drums")
    assert composed["model"] == plain("train", "model=mobile_r2l")["model"]


LAUNCHERS = {
    "joblib": ("hydra_joblib_launcher", {"n_jobs": 2}),
    "submitit": ("hydra_submitit_launcher", {"timeout_min": 1440, "gpus_per_node": None}),
    "slurm": ("hydra_submitit_launcher", {"timeout_min": 1440, "gpus_per_node": 1, "array_parallelism": 16}),
    "ray": (
        "hydra_ray_launcher",
        {
            "ray": {
                "init": {"address": None, "include_dashboard": False, "object_store_memory": None},
                "remote": {"num_cpus": 1, "num_gpus": 0},
            }
        },
    ),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "launcher").glob("*.yaml")))
def test_a_launcher_composes_or_says_what_to_install(name: str) -> None:
    package, about = LAUNCHERS[name]
    words = [f"launcher={name}", "seed=0"]
    if importlib.util.find_spec(f"hydra_plugins.{package}") is None:
        with pytest.raises(
            UserError, match=rf"^launcher: .* is not installed, and .* needs it: pip install 'nelf\[{extra(name)}\]'\.$"
        ):
            nelf.config("train", words)
        pytest.skip(f"{package} is not installed")
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose("train", words, return_hydra_config=True)
    assert package in cfg.hydra.launcher._target_
    assert {key: cfg.hydra.launcher[key] for key in about} == about


def extra(launcher: str) -> str:
    return "submitit" if launcher == "slurm" else launcher


def test_extras_name_what_is_to_be_installed() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for package, name in EXTRAS.values():
        assert re.search(rf'^{name} = \["{package}==[\d.]+"\]$', text, flags=re.MULTILINE)


@pytest.mark.parametrize("words", ["launcher=ray", "hydra/launcher=ray"])
def test_a_launcher_that_is_not_installed_is_a_line(command, words: str) -> None:
    if importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is not None:
        pytest.skip("it is installed")
    outcome = command(f"train {words} seed=0,1")
    assert (outcome.code, outcome.line) == (
        2,
        "launcher: hydra-ray-launcher is not installed, and ray needs it: pip install 'nelf[ray]'.",
    )


def test_a_launcher_is_for_jobs_of_one_device_in_a_sweep(command) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert command("train launcher=joblib").line == (
        "launcher=joblib: is for sweeps. Give a key several values, or add --multirun for one job."
    )
    outcome = command("train trainer=cpu trainer.devices=2 seed=0,1 launcher=joblib")
    assert outcome.line == "launcher=joblib: a job trains on one device; allowed: trainer.devices=1, not 2."


def test_slurm_s_queue_needs_its_commands(command, monkeypatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", "")
    line = "launcher=slurm: this machine has no sbatch; allowed: launcher=submitit, or one with SLURM."
    assert command("train launcher=slurm seed=0,1 trainer=cpu").line == line


def test_a_job_that_is_ended_from_outside_is_a_line(tmp_path) -> None:
    """What submitit raises for it, unlike for a job whose code fails, which is a bug and keeps its traceback."""
    submitit = pytest.importorskip("submitit")
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="local")
    for function, argument, pattern in [
        (os._exit, 9, r"Job \d+ \(task: 0\) with path \S+ has not produced any output \(state: \w+\)"),
        (int, "one", None),
    ]:
        with pytest.raises(submitit.core.utils.UncompletedJobError) as raised:
            executor.submit(function, argument).result()
        line = launcher_line(raised.value)
        assert line is None if pattern is None else re.fullmatch(pattern, line)
    # Of SLURM: sbatch's own words.
    refused = submitit.core.utils.FailedJobError("sbatch: error: invalid partition specified: p\nsbatch: error: No\n")
    assert launcher_line(refused) == "sbatch: error: invalid partition specified: p sbatch: error: No"


def test_a_sweep_that_has_lost_a_job_still_ends_in_its_table(command, monkeypatch) -> None:
    submitit = pytest.importorskip("submitit")

    def lose(*_: object) -> None:
        Path("out_sweep").mkdir()
        raise submitit.core.utils.UncompletedJobError("Job 7 has not produced any output\nError stream produced:\n--")

    monkeypatch.setattr("nelf.cli.command._run_hydra", lose)
    outcome = command("train data.root=SCENE data=blender trainer=cpu seed=0,1 run=out")
    assert (outcome.code, outcome.line) == (
        2,
        "Job 7 has not produced any output. The same command goes on, once no other job runs.",
    )
    assert Path("out_sweep/table.md").is_file()


def test_the_search_composes_with_its_space() -> None:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose(
            "distill", ["sweep=pareto", "experiment=mobile_cpu", "data.root=/x"], return_hydra_config=True
        )
    sweeper = OmegaConf.to_container(cfg.hydra.sweeper)
    assert sweeper["_target_"] == "hydra_plugins.nelf.Search"
    taken = set(inspect.signature(pytest.importorskip("nelf.cli.search").Search).parameters)
    assert set(sweeper) == {"_target_", *taken}
    assert list(sweeper["params"]) == ["model.width", "model.depth", "stage.narrow.ratio"]
    assert {"narrow", "report"} <= set(cfg.stages)


def test_the_preset_of_a_classic_nerf_is_nerf_pls_command() -> None:
    """100 views of 400 x 400 pixels, 16 times, 1024 at a step; half the rate after 2, 4 and 8 of the 16 passes."""
    composed = plain("distill", "experiment=nerf_lego", "data.root=/x")
    system, stage = composed["teacher"]["system"], composed["stage"]["teacher"]
    assert stage["max_steps"] == 16 * 100 * composed["data"]["width"] ** 2 / system["batch_size"]
    assert system["milestones"] == [2 / 16, 4 / 16, 8 / 16]
    assert (system["optimizer"], system["lr"], system["schedule"], system["gamma"]) == ("adam", 5e-4, "steplr", 0.5)
    model = composed["teacher"]["model"]
    assert (model["samples"], model["fine_samples"], model["noise_std"]) == (64, 64, 0.0)


def test_data_sets_share_their_core_keys() -> None:
    """Trap: a sweep over a group is first checked against the default choice."""
    core = {"root", "width", "num_workers"}
    for path in (CONF / "data").glob("*.yaml"):
        assert core <= set(plain("train", f"data={path.stem}", "data.root=/x")["data"])


def test_composing_needs_no_hydra_run() -> None:
    """Trap: ``${hydra:...}`` in the application's part breaks notebooks."""
    for command in ("train", "distill"):
        OmegaConf.resolve(nelf.config(command))
    for path in FILES:
        if path.parts[0] != "hydra":
            assert "${hydra:" not in (CONF / path).read_text()


def test_config_composes_the_lego_preset_in_one_call() -> None:
    cfg = nelf.config("distill", ["experiment=lego", "data.root=/x"])
    assert cfg.data.root == "/x"
    assert cfg.stage.pseudo.views == 10_000


def test_config_refuses_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^experiment=leg: there is no such choice; allowed: demo, demo_dynamic, "):
        nelf.config("distill", ["experiment=leg"])


def test_somebody_s_own_model_needs_no_registry(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mynet.yaml").write_text("_target_: torch.nn.Linear\nin_features: 1\n")
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "mynet.yaml").write_text("defaults: [student, _self_]\n")
    cfg = nelf.config("train", ["model=mynet", "model.in_features=9"], config_dir=str(tmp_path))
    assert cfg.model.in_features == 9
    signature = parameters(get_object("nelf.systems.Student"))
    assert all(signature[key].default == value for key, value in cfg.system.items() if key != "_target_")


STORED = ["data=blender", "data.root=/lego", "model=mobile_r2l", "model.width=64", "trainer=cpu"]


@pytest.mark.parametrize(
    ("stored", "new", "kept"),
    [
        (STORED, ["stages=[student,report]"], STORED),
        (STORED, ["model.width=128"], [*STORED[:3], STORED[4]]),
        (STORED, ["model=mobile_r2l"], [STORED[0], STORED[1], *STORED[3:]]),
        (STORED, ["model=grid_r2l"], [STORED[0], STORED[1], STORED[4]]),
        (STORED, ["data=demo"], STORED[2:]),
        (STORED, ["experiment=demo"], []),
        (["experiment=lego", "data.root=/x"], ["experiment=lego"], ["data.root=/x"]),
        (["experiment=lego", "run=a", "stages=[teacher]", "hydra.verbose=true"], [], ["experiment=lego"]),
    ],
)
def test_a_short_command_means_the_run_that_it_names(stored: list[str], new: list[str], kept: list[str]) -> None:
    """Trap: ``run=runs/lego stages=[student]`` composes the demo scene, unless the overrides are kept."""
    assert still_meant(stored, new) == kept


def test_the_first_job_of_a_sweep_and_its_keys() -> None:
    overrides = ["model=mobile_r2l", "model.width=64,128", "data.root=/x", "stages=[report]"]
    assert first_job(overrides) == ["model=mobile_r2l", "model.width=64", "data.root=/x", "stages=[report]"]
    cfg = OmegaConf.create({"hydra": {"sweeper": {"params": {"seed": "1,2"}}}})
    assert swept_keys(overrides, cfg) == ["model.width", "seed"]


def test_a_job_s_folder_is_named_by_its_overrides_within_what_a_name_may_be() -> None:
    assert slug("data.root=/x/lego,model.width=64") == "data.root=_x_lego,model.width=64"
    assert slug(r"trainer.max_time=00\:00\:05") == "trainer.max_time=00:00:05"
    long = [slug(f"{'key=value,' * 40}model.width={width}") for width in (64, 128)]
    assert len(set(long)) == 2
    assert all(len(name) <= 160 for name in long)


@pytest.mark.parametrize("script", ["train", "distill"])
def test_cfg_prints_the_configuration(script: str, tmp_path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / f"{script}.py"), "--cfg", "job", "trainer=cpu"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert yaml.safe_load(shown.stdout)["trainer"]["accelerator"] == "cpu"
    assert list(tmp_path.iterdir()) == []
