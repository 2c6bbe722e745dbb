"""The small files of a run directory: what is damaged is named, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nelf.errors import UserError
from nelf.pipeline.documents import read_artifacts, read_done, read_json, read_record, read_settings, read_yaml
from nelf.pipeline.stages.journal import Journal
from nelf.report.plots import curves_svg

DAMAGED = [b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_json_is_named(content: bytes, tmp_path: Path, capsys: Any) -> None:
    for name in ("scene.json", "done.json", "artifacts.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"^.*/scene\.json: not JSON .*; allowed: a whole file as nelf writes it"):
        read_json(tmp_path / "scene.json")
    with pytest.raises(UserError, match=r"^.*/artifacts\.json: not JSON"):
        read_artifacts(tmp_path)
    assert read_done(tmp_path) == {}
    assert read_done(tmp_path) == {}
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 1
    assert shown[0].startswith(f"{tmp_path}/done.json: not JSON")
    assert shown[0].endswith("The stage counts as not done.")
    assert Journal(tmp_path / "done.json", "print").recall("a") is None


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert (read_json(path), read_record(path), read_yaml(path), read_settings(path)) == (None,) * 4
    assert (read_done(path), read_artifacts(path)) == ({}, [])


@pytest.mark.parametrize("content", [[], 3, "x", {"inputs": 3}, {"mark": []}])
def test_a_done_json_of_something_else_counts_for_nothing(content: Any, tmp_path: Path) -> None:
    (tmp_path / "done.json").write_text(json.dumps(content))
    assert read_done(tmp_path) == {}


@pytest.mark.parametrize(
    "content", [3, {"a": 1}, [3], [{"name": 1, "file": "a"}], [{"name": "a", "file": "a", "bytes": "b"}]]
)
def test_artifacts_of_something_else_are_refused(content: Any, tmp_path: Path) -> None:
    (tmp_path / "artifacts.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"artifacts\.json: lists .*; allowed: artifacts with a name"):
        read_artifacts(tmp_path)
    (tmp_path / "artifacts.json").write_text(json.dumps([{"name": "a", "file": "a"}] * 2))
    with pytest.raises(UserError, match="two artifacts of one name"):
        read_artifacts(tmp_path)


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "is not a YAML file"),
        ("a: 2001-13-45", "is not a YAML file"),
        ("a: 2001-01-02", "holds datetime.date"),
        ("a: !!python/object:os.system {}", "is not a YAML file"),
        ("a: &a [*a]", "stands for more than 131072 values"),
        (BOMB, "stands for more than 131072 values"),
        ("[" * 5000, "is not a YAML file"),
        (f"a: {'1' * 5000}", "is not a YAML file"),
        ("[]", "holds a list; allowed: keys and values"),
    ],
)
def test_yaml_that_is_none_is_named(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError) as caught:
        read_settings(tmp_path / "config.yaml")
    assert str(caught.value).startswith(f"{tmp_path}/config.yaml: {words}")


def test_a_link_to_nowhere_is_no_missing_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").symlink_to("nowhere")
    (tmp_path / "scene.json").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"config\.yaml: is no file"):
        read_yaml(tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"scene\.json: no such file"):
        read_json(tmp_path / "scene.json")


@pytest.mark.parametrize(
    "content", [b"step,train/psnr\n1,x\n", b"step,train/psnr\n\xff,1\n", b"step,train/psnr\nx,1\n"]
)
def test_a_damaged_csv_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv: is damaged"):
        curves_svg(tmp_path / "metrics.csv")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_csv_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"metrics\.csv: is damaged"):
        curves_svg(tmp_path / "metrics.csv")
