"""Several processes of one command: who decides, and how they end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment

from nelf.pipeline import processes
from nelf.pipeline.quiet import quiet_lightning
from nelf.pipeline.recipe import Recipe, bare_trainer

ROOT = Path(__file__).parents[2]

AGREE = """
import sys
from pathlib import Path
from nelf.pipeline.processes import agree, is_first, rank, wait_for_all

folder = Path(sys.argv[1])

def decide():
    (folder / f"decided_{rank()}").touch()
    return {"by": rank()}

said = agree(decide)
wait_for_all()
(folder / f"heard_{rank()}").write_text(str(said["by"]))
def refuse():
    raise ValueError("no")
try:
    agree(refuse)
except ValueError:
    (folder / "refused").touch()
    sys.exit(2)
"""


@pytest.fixture(autouse=True)
def _own_place(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def python(text: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", text, *map(str, arguments)]


def test_alone_one_decides_for_itself() -> None:
    assert processes.is_first()
    assert processes.agree(lambda: 5) == 5
    with pytest.raises(ValueError, match="no"):
        processes.agree(lambda: int("no"))


def test_the_first_decides_for_all_and_its_failure_ends_all(tmp_path) -> None:
    assert processes.launch(2, python(AGREE, tmp_path)) == 2
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["decided_0", "heard_0", "heard_1", "refused"]
    assert [(tmp_path / f"heard_{rank}").read_text() for rank in (0, 1)] == ["0", "0"]


def test_they_know_who_they_are(tmp_path) -> None:
    text = (
        "import os, sys; from pathlib import Path; "
        "Path(sys.argv[1], os.environ['RANK']).write_text(os.environ['LOCAL_RANK'] + os.environ['WORLD_SIZE'])"
    )
    assert processes.launch(3, python(text, tmp_path)) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "03", "1": "13", "2": "23"}


def test_one_that_is_killed_ends_the_others_with_a_line(tmp_path, capfd) -> None:
    text = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(300)
"""
    assert processes.launch(2, python(text)) == 1
    line = capfd.readouterr().err.strip()
    assert line == "process 1 of 2 was ended by SIGKILL, so the others are stopped. The same command goes on."


def test_ctrl_c_reaches_all_and_their_code_is_given(tmp_path) -> None:
    text = """
import os, sys, time
from pathlib import Path
try:
    Path(sys.argv[1], os.environ["RANK"]).touch()
    time.sleep(300)
except KeyboardInterrupt:
    sys.exit(130)
"""

    def press() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    assert processes.launch(2, python(text, tmp_path)) == 130


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_they_do_not_outlive_the_one_that_started_them(tmp_path) -> None:
    waits = (
        "import os, sys, time; from pathlib import Path; "
        "Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(300)"
    )
    starts = "import sys; from nelf.pipeline.processes import launch; launch(1, sys.argv[1:])"
    note = tmp_path / "pid"
    parent = subprocess.Popen(python(starts, *python(waits, note)))
    while not note.is_file() or not note.read_text():
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while Path(f"/proc/{note.read_text()}/stat").is_file():
        if Path(f"/proc/{note.read_text()}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
            break
        assert time.monotonic() < end
        time.sleep(0.02)


DRAW = """
import sys
from pathlib import Path
import torch
from nelf.lightfields import GridR2L
from nelf.pipeline.processes import change_alike, rank

torch.manual_seed(0)
network = GridR2L(width=8, depth=2, resolution=8)
torch.manual_seed(rank())
cells = torch.rand(network.volume.cells.shape) > 0.9
change_alike(network, lambda: network.volume.keep(cells))
torch.save(network.state_dict(), Path(sys.argv[1]) / f"{rank()}.pt")
"""


def test_what_is_drawn_at_random_changes_a_network_alike(tmp_path) -> None:
    """Trap: a volume whose corners are dropped by chance has another number of rows in each process."""
    assert processes.launch(2, python(DRAW, tmp_path)) == 0
    one, two = (torch.load(tmp_path / f"{index}.pt", weights_only=True) for index in range(2))
    assert len(one["volume.density"]) < 8**3 / 2
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def srun(monkeypatch, **changes: str) -> dict[str, str]:
    """An environment as srun makes it: of 4 tasks on 2 nodes, the last."""
    theirs = {"PROCID": "3", "LOCALID": "1", "NODEID": "1", "STEP_NUM_TASKS": "4", "NTASKS": "4", "STEP_ID": "2"}
    theirs.update({"JOB_ID": "1234", "JOB_NAME": "python", "STEP_NODELIST": "node[7-8]", "NODELIST": "node[6-8]"})
    environment = {**os.environ, **{f"SLURM_{name}": value for name, value in {**theirs, **changes}.items()}}
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    monkeypatch.setattr(os, "environ", environment)
    return environment


def test_srun_s_numbers_are_taken_over(monkeypatch) -> None:
    """Also those of a plain ``srun -n4``, which Lightning refuses by itself for want of --ntasks-per-node."""
    environment = srun(monkeypatch)
    processes.adopt_launcher()
    assert [environment[name] for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE")] == ["3", "1", "1", "4"]
    assert environment["MASTER_ADDR"] == "node7"
    other = srun(monkeypatch, STEP_ID="3")
    processes.adopt_launcher()
    assert 1024 < int(environment["MASTER_PORT"]) != int(other["MASTER_PORT"]) < 32768
    lightning = processes.environment()
    assert (lightning.global_rank(), lightning.local_rank()) == (3, 1)
    assert (lightning.node_rank(), lightning.world_size()) == (1, 4)
    assert lightning.creates_processes_externally


def test_a_machine_with_slurm_gets_no_advice_to_use_it(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, *rest: f"/usr/bin/{name}")
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    with pytest.warns(UserWarning, match="srun"):
        SLURMEnvironment._validate_srun_used()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_lightning():
            SLURMEnvironment._validate_srun_used()


def test_one_task_of_srun_is_a_plain_process(monkeypatch) -> None:
    """A sweep's job in SLURM's queue is one, whatever processes its allocation has room for."""
    environment = srun(monkeypatch, STEP_NUM_TASKS="1", PROCID="0", LOCALID="0", NODEID="0")
    processes.adopt_launcher()
    assert "RANK" not in environment
    recipe = Recipe({"trainer": {}, "callbacks": {}}, lambda _, **arguments: pl.Trainer(**arguments))
    for trainer in (recipe.trainer(Path("none")), bare_trainer({}, recipe.build)):
        assert trainer.world_size == 1
        assert type(trainer._accelerator_connector.cluster_environment).__name__ == "LightningEnvironment"
