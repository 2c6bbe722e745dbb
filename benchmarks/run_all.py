"""Run all benchmarks that this machine can run, one after the other, and collect their results in one folder.

    python benchmarks/run_all.py [--quick] [--only kernels tails ...] [--data FOLDER] [--out runs/benchmarks] [--list]

Each writes OUT/NAME.json, with machine, versions and commit, and prints into OUT/NAME.log; ``summary.json`` lists them
all. A benchmark that is done with this commit and these arguments is not run again, a failure does not stop the
others, and skipped ones are listed with the reason. ``--quick`` uses sizes that only show that a script runs; its
figures mean nothing. FOLDER (default: $NELF_DATA) holds real scenes, such as nerf_synthetic/lego. Full sizes take many
hours.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _machine import facts, versions, without_place
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
#: Placeholders for scenes in the arguments of a script, and their paths in the data folder.
SCENES = {
    "LEGO": "nerf_synthetic/lego",
    "CHAIR": "nerf_synthetic/chair",
    "FERN": "nerf_llff_data/fern",
    "CAKE": "hypernerf/cake",
    "JUMPINGJACKS": "dnerf/jumpingjacks",
    "PEER": "checkpoints/rziga_nelf_lego100.onnx",
}


@dataclass(frozen=True)
class Benchmark:
    """A script with its arguments.

    Attributes:
        name: of its JSON file.
        full: its arguments; keys of ``SCENES`` stand for scenes, RUN for the run of ``chain``, OUT for ``--out``.
        quick: its arguments with ``--quick``; None: the same.
        needs: ``cuda``, ``chromium`` or ``npm``, in addition to the scenes and runs in the arguments.
        script: name of the script, if not ``name``.
    """

    name: str
    full: str = ""
    quick: str | None = None
    needs: tuple[str, ...] = ()
    script: str = ""

    @property
    def file(self) -> Path:
        """The script."""
        return HERE / f"{self.script or self.name}.py"


_TINY = "teacher.model.levels=4 teacher.model.log2_table=12 teacher.system.samples_per_step=4096"
_STEPS = "stage.teacher.max_time=null stage.teacher.max_steps=20 stage.student.max_time=null stage.student.max_steps=10"
_BUILT_IN = "blocks chess bicycle metals porcelain village"
_SHORT = (
    f"data.width=32 stages=[teacher,pseudo,student,export,report] stage.pseudo.views=4 trainer.log_every_n_steps=2 "
    f"{_STEPS} {_TINY}"
)
_FULL = "experiment=grid_lego data.root=LEGO"
_STUDENT = "base=OUT/grid_cuda stages=[student,report]"
_FIVE = "stage.teacher.max_time=0:0:5:0 stage.student.max_time=0:0:5:0 stage.student.max_steps=1000000"
_TEN = _FIVE.replace("student.max_time=0:0:5:0", "student.max_time=0:0:10:0")
BENCHMARKS = [
    Benchmark("kernels", quick="--repeats 1"),
    Benchmark("limits", quick="--megabytes 64 --size 512 --rounds 1 --pixels 64"),
    Benchmark("tails", quick="--networks shuffle --pixels 32 --rounds 1"),
    Benchmark("students", quick="--networks GridR2L --pixels 64 --rounds 1 --ways eager optimized"),
    Benchmark("int8", quick="--pixels 64 --rounds 1 --views 1"),
    Benchmark("loader", quick="--views 4 --pixels 64 --batch 8192 --batches 1 --repeats 1"),
    Benchmark("ddp", quick="--steps 2 --width 16"),
    Benchmark("ddp_cuda", "--set trainer=ddp model=ngp", needs=("cuda",), script="ddp"),
    Benchmark("splats", quick="--splats 2000 --pixels 64 --frames 2", needs=("chromium", "npm")),
    Benchmark("lenses", quick="--width 16 --steps 2"),
    Benchmark("unbounded", "--width 96", "--width 16 --steps 2 --student-steps 2 --teachers BOX --students BOX"),
    Benchmark(
        "captures",
        "demo --image-scale 2 --steps 3000 --seeds 0 1 2",
        "demo --image-scale 2 --steps 2 --models ngp_small",
    ),
    Benchmark(
        "captures_cake",
        "CAKE --image-scale 8 --seeds 0 1 2 --pinhole",
        "CAKE --image-scale 8 --steps 2 --models ngp_small",
        script="captures",
    ),
    Benchmark(
        "captures_cake_4x",
        "CAKE --image-scale 4 --seeds 0 1 2",
        "CAKE --image-scale 4 --steps 2 --models ngp_small",
        script="captures",
    ),
    Benchmark(
        "forward", "FERN --factor 16 --steps 1000 --set model.max_samples=128", "FERN --factor 16 --width 32 --steps 2"
    ),
    Benchmark(
        "online",
        "LEGO CHAIR --width 64 --teacher-steps 300 --seconds 20 --views 60 --pools 20:8",
        "LEGO --width 16 --teacher-steps 2 --seconds 2 --views 2 --pools 2:2",
    ),
    Benchmark("kills", "--count 200 --folder OUT/kills", "dynamic --count 1 --minutes 1 --folder OUT/kills"),
    Benchmark("chain", "experiment=demo run=OUT/run", f"experiment=demo run=OUT/run {_SHORT}"),
    Benchmark("memory", "RUN"),
    Benchmark("curve", "RUN"),
    Benchmark("latency", "RUN", "RUN --rounds 1"),
    Benchmark("viewer", "RUN", "RUN --frames 2 --models fp32", needs=("chromium",)),
    Benchmark("peers", "PEER LEGO RUN/export --width 100", "PEER LEGO RUN/export --width 100 --rounds 1"),
    Benchmark(
        "scenes",
        f"LEGO CHAIR {_BUILT_IN} --sizes 200 --teacher-steps 2000 --student-steps 1250",
        f"blocks --sizes 16 --teacher-steps 2 --student-steps 2 --set stage.pseudo.views=2 {_TINY}",
    ),
    Benchmark(
        "lego_cpu",
        "experiment=lego_cpu data.root=LEGO run=OUT/lego_cpu",
        f"experiment=lego_cpu data.root=LEGO run=OUT/lego_cpu {_SHORT}",
        script="chain",
    ),
    Benchmark(
        "throughput",
        "experiment=lego_cpu data.root=LEGO run=OUT/lego_cpu",
        f"experiment=lego_cpu data.root=LEGO run=OUT/lego_cpu {_SHORT} --views 2 --steps 2",
    ),
    # Full sizes, by time.
    Benchmark(
        "teacher_cuda",
        f"{_FULL} run=OUT/teacher_cuda stages=[teacher,report] stage.teacher.max_time=0:0:0:20,0:0:0:30,0:0:5:0",
        f"{_FULL} run=OUT/teacher_cuda stages=[teacher,report] {_STEPS}",
        needs=("cuda",),
        script="chain",
    ),
    Benchmark(
        "grid_cuda",
        f"{_FULL} run=OUT/grid_cuda stages=[teacher,pseudo,student,report] {_FIVE}",
        f"{_FULL} run=OUT/grid_cuda stages=[teacher,pseudo,student,report] {_STEPS}",
        needs=("cuda",),
        script="chain",
    ),
    Benchmark(
        "grid_cuda_10",
        f"{_FULL} {_STUDENT} run=OUT/grid_cuda_10 {_TEN}",
        f"{_FULL} {_STUDENT} run=OUT/grid_cuda_10 {_STEPS}",
        needs=("cuda",),
        script="chain",
    ),
    Benchmark(
        "mobile_cuda",
        f"{_FULL} {_STUDENT} model=mobile_r2l run=OUT/mobile_cuda {_FIVE}",
        f"{_FULL} {_STUDENT} model=mobile_r2l run=OUT/mobile_cuda {_STEPS}",
        needs=("cuda",),
        script="chain",
    ),
    Benchmark(
        "mobile_cuda_10",
        f"{_FULL} {_STUDENT} model=mobile_r2l run=OUT/mobile_cuda_10 {_TEN}",
        f"{_FULL} {_STUDENT} model=mobile_r2l run=OUT/mobile_cuda_10 {_STEPS}",
        needs=("cuda",),
        script="chain",
    ),
    Benchmark(
        "students_cuda",
        "--device cuda --pixels 800",
        "--device cuda --networks GridR2L --pixels 64 --rounds 1",
        needs=("cuda",),
        script="students",
    ),
    Benchmark(
        "throughput_cuda",
        f"{_FULL} run=OUT/grid_cuda --views 100",
        f"{_FULL} run=OUT/grid_cuda --views 2 --steps 2",
        needs=("cuda",),
        script="throughput",
    ),
]
#: Arguments that contain spaces.
_NAMES = {"BOX": "the box alone"}


def arguments(benchmark: Benchmark, quick: bool, out: Path, data: Path | None) -> list[str]:
    """The arguments of a script, with scenes and folders filled in."""
    text = benchmark.full if not quick or benchmark.quick is None else benchmark.quick
    words = []
    for word in text.split():
        key, equals, value = word.rpartition("=")
        head, slash, rest = value.partition("/")
        places = {
            "OUT": out,
            "RUN": out / "run",
            **({name: data / path for name, path in SCENES.items()} if data else {}),
        }
        value = f"{places[head]}{slash}{rest}" if head in places else _NAMES.get(value, value)
        words.append(f"{key}{equals}{value}")
    if benchmark.script == "scenes" or benchmark.name == "scenes":
        return [*words, "--out", str(out / "scenes"), "--results", str(out)]
    return [*words, "--out", str(out / f"{benchmark.name}.json")]


def lacking(benchmark: Benchmark, quick: bool, out: Path, data: Path | None) -> str | None:
    """Why a script cannot run here; None if it can."""
    text = (benchmark.full if not quick or benchmark.quick is None else benchmark.quick).replace("=", " ").split()
    for name in {word.split("/")[0] for word in text} & SCENES.keys():
        if data is None or not (data / SCENES[name]).exists():
            return f"no {SCENES[name]} in {'--data or $NELF_DATA' if data is None else 'the data folder'}"
    if any(word.split("/")[0] == "RUN" for word in text) and not (out / "run" / "report.json").is_file():
        return "no run; chain makes it"
    if "cuda" in benchmark.needs and not _has_cuda():
        return "no CUDA device"
    if "chromium" in benchmark.needs and not (shutil.which("chromium") or shutil.which("google-chrome")):
        return "no Chromium"
    if "npm" in benchmark.needs and shutil.which("npm") is None:
        return "no npm"
    return None


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def perform(benchmark: Benchmark, words: Sequence[str], out: Path) -> dict[str, Any]:
    """Run a script; return its status, minutes and, after a failure, the reason."""
    command = [sys.executable, str(benchmark.file), *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    start = time.perf_counter()
    last = ""
    with (
        (out / f"{benchmark.name}.log").open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        for line in process.stdout or ():
            log.write(line)
            last = line.strip() or last
            print(line, end="", flush=True)
    code = process.returncode
    told = {"status": "done" if code == 0 else "failed", "minutes": round((time.perf_counter() - start) / 60, 2)}
    return told if code == 0 else {**told, "reason": last[:200] or f"ended with {code}"}


def settings(benchmark: Benchmark, words: Sequence[str]) -> dict[str, Any]:
    """What figures depend on besides the machine: script, arguments and commit."""
    shown = " ".join(without_place(word) for word in words)
    return {"script": benchmark.file.name, "arguments": shown, "commit": versions()["nelf"]}


def main() -> None:
    """Run what can be run and is not done yet; print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes that only show that a script runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[each.name for each in BENCHMARKS])
    parser.add_argument("--data", type=Path, default=os.environ.get("NELF_DATA"))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--list", action="store_true", help="list what would be run, and why others would not")
    options = parser.parse_args()
    data = Path(options.data).resolve() if options.data else None
    out = options.out.resolve()

    summary = out / "summary.json"
    earlier = json.loads(summary.read_text(encoding="utf-8"))["benchmarks"] if summary.is_file() else {}
    found: dict[str, dict[str, Any]] = dict(earlier)
    chosen = [each for each in BENCHMARKS if options.only is None or each.name in options.only]
    for each in chosen:
        words = arguments(each, options.quick, out, data)
        about = settings(each, words)
        if reason := lacking(each, options.quick, out, data):
            found[each.name] = {**about, "status": "skipped", "reason": reason}
        elif earlier.get(each.name, {}).get("status") == "done" and about.items() <= earlier[each.name].items():
            print(f"{each.name}: done, {out / each.name}.json")
        elif options.list:
            print(f"{each.name}: python benchmarks/{about['script']} {about['arguments']}")
            continue
        else:
            print(f"\n{each.name}: python benchmarks/{about['script']} {about['arguments']}", flush=True)
            out.mkdir(parents=True, exist_ok=True)
            if each.script == "chain" or each.name == "chain":  # finished stages there would take no time
                shutil.rmtree(out / ("run" if each.name == "chain" else each.name), ignore_errors=True)
            found[each.name] = {**about, **perform(each, words, out)}
        if not options.list:
            _keep(summary, found, options.quick)
    for file in sorted({path.stem for path in HERE.glob("[!_]*.py")} - {each.file.stem for each in BENCHMARKS}):
        if options.only is None and file != "run_all":
            found[file] = {"script": f"{file}.py", "status": "skipped", "reason": "not listed in run_all.py"}
    show(found)


def _keep(summary: Path, found: dict[str, dict[str, Any]], quick: bool) -> None:
    """Write the state so far, so that finished benchmarks are not repeated after an interruption."""
    summary.parent.mkdir(parents=True, exist_ok=True)
    content = {**facts(), "quick": quick, "benchmarks": found}
    summary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def show(found: dict[str, dict[str, Any]]) -> None:
    """Print a table of the results of all benchmarks."""
    table = Table("benchmark", "", "minutes", "reason")
    for name, told in found.items():
        minutes = told.get("minutes")
        table.add_row(name, told["status"], "" if minutes is None else f"{minutes:.1f}", told.get("reason", ""))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
