"""The command that runs all benchmarks, and what small ones count."""

from __future__ import annotations

import csv
import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import nelf
from nelf.cli.sweeps import first_job
from nelf.kernels import HashGrid, composite, march

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture
def run_all(script, monkeypatch, tmp_path):
    """The command, with scripts that write, fail, or must not be run."""
    module = script("run_all")
    scripts = {
        "good": "import json, sys; json.dump(sys.argv[1:], open(sys.argv[-1], 'w')); print('a table')",
        "bad": "print('something'); raise SystemExit('no, not so')",
        "never": "raise AssertionError",
    }
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.delenv("NELF_DATA", raising=False)
    made = [
        module.Benchmark("bad"),
        module.Benchmark("good", "--steps 3000 --name BOX", "--steps 2"),
        module.Benchmark("never_here", "LEGO", script="never"),
        module.Benchmark("never_run", "RUN", script="never"),
        module.Benchmark("never_cuda", needs=("cuda",), script="never"),
    ]
    monkeypatch.setattr(module, "BENCHMARKS", made)

    def run(*words: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["run_all.py", "--out", str(tmp_path / "out"), *words])
        module.main()
        return json.loads((tmp_path / "out" / "summary.json").read_text())

    return run


def test_one_that_fails_or_cannot_be_run_does_not_end_the_others(run_all, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    summary = run_all("--quick")
    told = {name: (each["status"], each.get("reason")) for name, each in summary["benchmarks"].items()}
    assert told == {
        "bad": ("failed", "no, not so"),
        "good": ("done", None),
        "never_here": ("skipped", "no nerf_synthetic/lego in --data or $NELF_DATA"),
        "never_run": ("skipped", "no run; chain makes it"),
        "never_cuda": ("skipped", "no CUDA device"),
    }
    assert {"machine", "versions", "date", "command"} <= set(summary)
    assert summary["quick"] is True
    assert json.loads((tmp_path / "out" / "good.json").read_text())[:2] == ["--steps", "2"]
    assert "a table" in capsys.readouterr().out
    assert (tmp_path / "out" / "bad.log").read_text() == "something\nno, not so\n"


def test_what_is_done_with_these_arguments_is_not_done_again(run_all, tmp_path, capsys) -> None:
    run_all("--only", "good")
    words = json.loads((tmp_path / "out" / "good.json").read_text())
    assert words[:4] == ["--steps", "3000", "--name", "the box alone"]
    (tmp_path / "out" / "good.json").write_text("kept")
    run_all("--only", "good", "bad")
    assert (tmp_path / "out" / "good.json").read_text() == "kept"
    assert "good: done, " in capsys.readouterr().out
    run_all("--only", "good", "--quick")
    assert (tmp_path / "out" / "good.json").read_text() != "kept"


def test_a_list_runs_nothing(run_all, tmp_path, capsys) -> None:
    with pytest.raises(FileNotFoundError):
        run_all("--list")
    assert "good: python benchmarks/good.py --steps 3000" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_every_benchmark_is_a_script_whose_words_it_takes(script, tmp_path) -> None:
    module = script("run_all")
    assert len({each.name for each in module.BENCHMARKS}) == len(module.BENCHMARKS)
    for each in module.BENCHMARKS:
        assert each.file.is_file()
        text = each.file.read_text()
        for quick in (True, False):
            words = module.arguments(each, quick, tmp_path / "out", tmp_path / "data")
            assert all(f'"{word}"' in text for word in words if word.startswith("--"))
            if each.file.stem == "chain":
                assert nelf.config("distill", first_job(words[:-2]))


def test_a_curve_tells_when_it_is_so_high(script, tmp_path) -> None:
    """The median of five: one batch that is easy is not yet a training that has come so far."""
    curve = script("curve")
    logs = tmp_path / "teacher" / "logs"
    for version, steps in ((0, range(0, 6)), (1, range(5, 9)), (10, range(9, 12))):
        (logs / f"version_{version}").mkdir(parents=True)
        with (logs / f"version_{version}" / "metrics.csv").open("w", newline="") as file:
            rows = csv.DictWriter(file, ["epoch", "step", "train/psnr", "val/psnr"])
            rows.writeheader()
            for step in steps:
                value = 40.0 if step == 3 else 10.0 + 2 * step
                rows.writerow({"epoch": 0, "step": step, "train/psnr": value, "val/psnr": ""})
            rows.writerow({"epoch": 0, "step": steps[-1], "train/psnr": "", "val/psnr": 11.0 + 2 * steps[-1]})
    points = curve.curve(tmp_path / "teacher")
    assert [step for step, _ in points["train"]] == list(range(12))
    assert points["val"] == [(5, 21.0), (8, 27.0), (11, 33.0)]
    assert curve.reached(points["train"], 18.0) == 3
    smooth = curve.smoothed(points["train"])
    assert smooth[:4] == [(0, 10.0), (1, 11.0), (2, 12.0), (3, 13.0)]
    assert smooth[7] == (7, 22.0)  # of 40, 18, 20, 22, 24
    assert curve.reached(smooth, 18.0) == 5
    assert curve.reached(smooth, 99.0) is None


def test_memory_is_what_stages_have_noted(script, tmp_path) -> None:
    memory = script("memory")
    for index, (name, metrics) in enumerate(
        {"teacher": {"seconds": 2.04, "peak_memory_bytes": 3_500_000}, "pseudo": {}}.items()
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
        (tmp_path / name / "done.json").write_text("{}")
        os.utime(tmp_path / name / "done.json", (index, index))
    (tmp_path / "report.json").write_text(
        json.dumps({"rows": [{"name": "student", "memory_mb": 12.34}, {"name": "x"}]})
    )
    assert memory.stages(tmp_path) == [
        {"stage": "teacher", "seconds": 2.0, "peak MB": 3.5},
        {"stage": "pseudo", "seconds": None, "peak MB": None},
    ]
    assert memory.models(tmp_path) == [{"model": "student", "MB": 12.3}]


def test_bytes_of_a_composite_are_those_of_its_tensors(script) -> None:
    limits = script("limits")
    rays, each = 7, 5
    sigma, rgb = torch.rand(rays * each, requires_grad=True), torch.rand(rays * each, 3, requires_grad=True)
    starts = torch.arange(each).repeat(rays) * 0.1
    index = torch.arange(rays).repeat_interleave(each)
    out = composite(sigma, rgb, starts, starts + 0.1, index, rays)
    per_ray = [out.rgb, out.opacity, out.depth]
    (out.rgb.sum() + out.opacity.sum()).backward()
    assert sigma.grad is not None
    assert rgb.grad is not None
    forward = [sigma, rgb, starts, starts, index, out.weights, *per_ray]
    backward = [sigma, rgb, starts, starts, index, out.weights, sigma.grad, rgb.grad, *per_ray]
    moved = sum(tensor.numel() * tensor.element_size() for tensor in [*forward, *backward])
    assert limits.of_composite(rays * each, rays).bytes == moved


def test_operations_of_a_network_in_closed_form(script) -> None:
    limits = script("limits")
    layer = nn.Conv2d(3, 8, 3, padding=1)
    x = torch.rand(1, 3, 10, 10)
    work = limits.of_network(lambda: layer(x), layer, 10)
    assert work.operations == 2 * 100 * 8 * 3 * 9
    assert work.bytes == 4 * (300 + 800 + 8 * 3 * 9 + 8)


def test_a_hash_grid_reads_eight_corners_at_each_level(script) -> None:
    limits = script("limits")
    grid = HashGrid(levels=3, features=2, log2_table=8, base_resolution=4, per_level_scale=1.5)
    cleared = 4 * 2 * grid.entries
    one, two = (limits.of_hash_grid(points, grid) for points in (1, 2))
    # Forward: position, 3 levels of 8 corners, 3 x 2 out; backward: position, gradient, each corner read and written.
    assert two.bytes - one.bytes == 4 * (3 + 3 * 16 + 6) + 4 * (3 + 6 + 2 * 3 * 16)
    assert one.bytes - (two.bytes - one.bytes) == cleared


def test_the_shell_s_samples_are_those_of_the_kernel(script) -> None:
    """What is looked at holds what is kept, and is less than the whole lattice."""
    limits = script("limits")
    step = 3**0.5 / 256
    looked_at, kept = limits.shell(step, 0.6, 2.4)
    assert 0 < kept < looked_at < limits.RAYS * (2.4 - 0.6) / step
    assert march.__doc__
