"""Kill whole chains at random moments, start them again until they end, and compare what they end with.

    python benchmarks/kills.py [static dynamic] [--count 200] [--minutes M] [--seed 0] [--fresh] [--folder runs/kills]
        [--out PATH]

The chains are small, and have all stages. Each is run once undisturbed; then, in turns, into new directories, with
SIGKILL to the process group at moments that are drawn anew for each start: half of what a start takes by itself, and an
exponentially distributed time. A start that is not killed ends the chain. Then

- it has to have ended with code 0, and none of the starts with a traceback, or with any other code;
- the run directory has to hold the files of the undisturbed one, nothing hidden, and no more checkpoints;
- the figures have to be those of the undisturbed one: trainings are deterministic, up to the rounding of sums.

Time is that of the processor, which other programs do not disturb. Starts are forked from a process that has loaded
PyTorch and other libraries, but nothing of nelf, so that they are not spent on imports; ``--fresh`` starts a new
interpreter each time, which is five times as long. What was wrong is listed, its directory kept, and the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _machine import RESULTS, write
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
#: What a start need not load again.
LIBRARIES = (
    *("torch", "pytorch_lightning", "torchmetrics", "hydra", "numba", "kornia", "safetensors.torch", "torch_pruning"),
    *("onnx", "onnxscript", "onnxruntime", "torch.onnx", "tensorboard"),
    *("imageio.v3", "matplotlib.pyplot", "rich.progress"),
)
TEACHER = ("levels=2", "log2_table=10", "finest_resolution=32", "hidden=16", "grid_resolution=16", "max_samples=32")
WORDS = [
    *("data.width=32", "model.width=16", "model.depth=2", "model.resolution=16", "stage.pseudo.views=8", "seed=0"),
    *("stages=[teacher,pseudo,student,finetune,prune,narrow,quantize,export,report]", "stage.report.frames=2"),
    *(f"teacher.model.{each}" for each in TEACHER),
    *(f"stage.{stage}.max_steps={steps}" for stage, steps in {"teacher": 40, "student": 20, "finetune": 10}.items()),
    *(f"stage.{stage}.max_steps=10" for stage in ("prune", "narrow")),
    *(f"stage.{stage}.max_time=null" for stage in ("teacher", "student", "finetune", "prune", "narrow")),
    *("stage.prune.rounds=1", "stage.quantize.qat_time=null", "stage.quantize.qat_steps=10", "stage.quantize.views=4"),
    *("stage.export.calibration_views=4", "stage.export.precisions=[fp32,int8 static,int8 QAT]"),
    *("teacher.system.samples_per_step=2048", "callbacks.previews.every_n_steps=15"),
    "callbacks.checkpoint.train_time_interval.seconds=0",  # a checkpoint after each step
]
CHAINS = {
    "static": ["experiment=demo", *WORDS],
    "dynamic": [
        *("experiment=demo_dynamic", *WORDS, "model.motion_cells=4", "model.motion_times=4"),
        *("teacher.model.motion_cells=4", "teacher.model.motion_times=4"),
    ],
}
PIECES = 12  # in how many kills cut a chain, on average, if nothing had to be done twice
LOG, TEMPORARY = "log.txt", "tmp"  # beside the run directory
MOST_STARTS = 200
PATIENCE = 3600.0  # seconds by the clock until a start must be stuck
TOLERANCE = 0.01  # dB


@dataclass
class Start:
    """How one start of a command ended.

    Attributes:
        code: exit code, negative for a signal.
        seconds: of the processor.
        printed: what it has written to its standard output and error.
    """

    code: int
    seconds: float
    printed: str

    @property
    def stage(self) -> str:
        """The stage in which it ended; ``start`` before the first."""
        begun = re.findall(r"^(\w+): \S*/\1$", self.printed, re.MULTILINE)
        return begun[-1] if begun else "start"


@dataclass
class Outcome:
    """What a chain that was killed has come to.

    Attributes:
        chain: which.
        killed: the stages that kills fell into.
        starts: how many.
        seconds: of the processor, of all of them.
        difference: the largest one of a model's PSNR from the undisturbed chain's, dB; None if it has none.
        equal: share of the models whose PSNR is the same, bit by bit.
        temporary: files that are left in the folder for temporary files.
        wrong: what was, in words.
    """

    chain: str
    killed: list[str] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    difference: float | None = None
    equal: float = 0.0
    temporary: int = 0
    wrong: list[str] = field(default_factory=list)


class Command:
    """A script with its words, as it is started again and again in one folder.

    Args:
        script: what is run.
        words: of its command line; ``run=out`` follows them.
        folder: where; emptied first.
        fresh: start new interpreters.
    """

    def __init__(self, script: Path, words: list[str], folder: Path, fresh: bool = False) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.script, self.words, self.folder = script, [*words, "run=out"], folder
        self.temporary = folder / TEMPORARY
        self.temporary.mkdir(parents=True)
        self.context = multiprocessing.get_context("spawn" if fresh else "forkserver")

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "out"

    def start(self, moment: float | None = None) -> Start:
        """Start it, and kill it once it has computed for so many seconds."""
        process: Any = self.context.Process(target=_begin, args=(self.script, self.words, self.folder))
        process.start()
        used, end = 0.0, time.monotonic() + PATIENCE
        while process.is_alive():
            used = max(used, _computed(process.pid))
            if time.monotonic() > end or (moment is not None and used >= moment):
                with suppress(ProcessLookupError):  # it has no group yet
                    os.killpg(process.pid, signal.SIGKILL)
            process.join(0.01)
        log = self.folder / LOG
        return Start(process.exitcode, used, log.read_text(encoding="utf-8") if log.is_file() else "")

    def files(self) -> set[str]:
        """The files of its run, but for logs, of which each start has its own, and checkpoints."""
        paths = (path.relative_to(self.run) for path in self.run.rglob("*") if path.is_file())
        return {path.as_posix() for path in paths if not {"logs", "checkpoints"} & set(path.parts)}

    def checkpoints(self) -> int:
        """How many there are."""
        return len(list(self.run.rglob("checkpoints/*")))

    def figures(self) -> dict[str, float]:
        """The PSNR of each model in the report."""
        report = json.loads((self.run / "report.json").read_text(encoding="utf-8"))
        return {row["name"]: row["psnr"] for row in report["rows"]}


class Undisturbed:
    """A command that has been run without kills, for comparison.

    Args:
        command: is run now.

    Raises:
        SystemExit: it fails.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        whole, idle = command.start(), command.start()
        for each in (whole, idle):
            if each.code or "Traceback" in each.printed:
                raise SystemExit(f"{each.printed[-4000:]}\n{command.script}: ends with {each.code} undisturbed.")
        self.seconds, self.idle = whole.seconds, idle.seconds
        self.files, self.checkpoints, self.figures = command.files(), command.checkpoints(), command.figures()

    def moment(self, rng: random.Random) -> float:
        """When to kill a start."""
        return self.idle / 2 + rng.expovariate(PIECES / (self.seconds - self.idle))

    def difference(self, figures: dict[str, float]) -> tuple[float, float]:
        """The largest difference of a figure, and the share of equal ones."""
        apart = [abs(figures.get(name, float("inf")) - value) for name, value in self.figures.items()]
        return max(apart), sum(each == 0.0 for each in apart) / len(apart)


def disturbed(
    name: str, command: Command, expected: Undisturbed, rng: random.Random, kills: int, end: float
) -> Outcome:
    """Kill a command until it ends by itself.

    Args:
        name: of the chain.
        command: what to start.
        expected: what it should come to.
        rng: of the moments.
        kills: how many at most; then it is left to its end.
        end: time by the clock, ``time.monotonic``, after which it is left to its end, too.
    """
    found = Outcome(name)
    while found.starts < MOST_STARTS:
        last = len(found.killed) >= kills or time.monotonic() > end
        start = command.start(None if last else expected.moment(rng))
        found.starts += 1
        found.seconds += start.seconds
        if "Traceback" in start.printed:
            found.wrong.append(f"start {found.starts} has a traceback:\n{start.printed[-4000:]}")
        if start.code != -signal.SIGKILL or last:
            break
        found.killed.append(start.stage)
    if start.code:
        found.wrong.append(f"start {found.starts} ended with {start.code}:\n{start.printed[-4000:]}")
        return found
    _compare(found, command, expected)
    return found


def _compare(found: Outcome, command: Command, expected: Undisturbed) -> None:
    """Note what differs in a run that has come to its end."""
    files = command.files()
    found.difference, found.equal = expected.difference(command.figures())
    found.temporary = sum(path.is_file() for path in command.temporary.rglob("*"))
    hidden = [path for path in command.run.rglob("*") if path.name.startswith(".")]
    found.wrong += [f"left over: {path.relative_to(command.run)}" for path in hidden]
    found.wrong += [f"too much: {path}" for path in sorted(files - expected.files)]
    found.wrong += [f"missing: {path}" for path in sorted(expected.files - files)]
    if command.checkpoints() > expected.checkpoints:
        found.wrong.append(f"{command.checkpoints()} checkpoints in place of {expected.checkpoints}")
    if not found.difference <= TOLERANCE:
        found.wrong.append(f"figures differ by {found.difference:.4f} dB: {command.figures()}")


def _begin(script: Path, words: list[str], folder: Path) -> None:
    """In a process of its own: what a shell does for ``TMPDIR=tmp python SCRIPT WORDS > log.txt 2>&1``."""
    os.setsid()
    os.chdir(folder)
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder / TEMPORARY)
    file = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")


def _computed(pid: int) -> float:
    """Seconds of the processor that a process has had; 0 for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _summary(outcomes: list[Outcome], expected: dict[str, Undisturbed]) -> list[dict[str, Any]]:
    """A row for each kind of chain."""
    rows = []
    for name, undisturbed in expected.items():
        own = [each for each in outcomes if each.chain == name]
        killed = Counter(stage for each in own for stage in each.killed)
        rows.append(
            {
                "chain": name,
                "runs": len(own),
                "kills": sum(killed.values()),
                "wrong": sum(bool(each.wrong) for each in own),
                "seconds_undisturbed": round(undisturbed.seconds, 2),
                "seconds_of_a_start": round(undisturbed.idle, 2),
                "models": len(undisturbed.figures),
                "student_psnr": round(undisturbed.figures.get("student", float("nan")), 4),
                "largest_difference_db": max(
                    (each.difference for each in own if each.difference is not None), default=None
                ),
                "runs_equal_bit_by_bit": sum(each.equal == 1.0 for each in own),
                "temporary_files": sum(each.temporary for each in own),
                "kills_by_stage": dict(killed.most_common()),
            }
        )
    return rows


def main() -> None:
    """Run undisturbed, kill, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chains", nargs="*", metavar="CHAIN", help=f"of {', '.join(CHAINS)}; all, if none is named")
    parser.add_argument("--count", type=int, default=200, help="kills, of all chains together")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which nothing more is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--fresh", action="store_true", help="start a new interpreter each time")
    parser.add_argument("--folder", type=Path, default=Path("runs/kills"))
    parser.add_argument("--out", type=Path, default=RESULTS / "kills.json")
    options = parser.parse_args()
    names = options.chains or [*CHAINS]
    for name in names:
        if name not in CHAINS:
            parser.error(f"there is no chain {name!r}; allowed: {', '.join(CHAINS)}")

    folder, end = options.folder.resolve(), time.monotonic() + 60 * options.minutes
    multiprocessing.set_forkserver_preload([*LIBRARIES])
    script, rng, outcomes = ROOT / "distill.py", random.Random(options.seed), []
    expected = {name: Undisturbed(Command(script, CHAINS[name], folder / name, options.fresh)) for name in names}
    settings = {key: getattr(options, key) for key in ("count", "seed", "fresh")}
    while (left := options.count - sum(len(each.killed) for each in outcomes)) > 0 and time.monotonic() < end:
        name = names[len(outcomes) % len(names)]
        place = folder / f"{name}_{len(outcomes)}"
        command = Command(script, CHAINS[name], place, options.fresh)
        outcomes.append(disturbed(name, command, expected[name], rng, left, end))
        found = outcomes[-1]
        print(f"{place.name}: {len(found.killed)} kills, difference {found.difference} dB", *found.wrong, sep="\n  ")
        if not found.wrong:
            shutil.rmtree(place)
        rows = _summary(outcomes, expected)
        wrong = [{"run": index, "wrong": each.wrong} for index, each in enumerate(outcomes) if each.wrong]
        write(options.out, settings=settings, rows=rows, wrong=wrong)
    table = Table("chain", "runs", "kills", "wrong", "equal", "largest difference, dB", "kills by stage")
    for row in rows:
        stages = ", ".join(f"{stage} {count}" for stage, count in row["kills_by_stage"].items())
        keys = ("chain", "runs", "kills", "wrong", "runs_equal_bit_by_bit", "largest_difference_db")
        table.add_row(*(str(row[key]) for key in keys), stages)
    Console(width=140).print(table)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
