"""What somebody's files may do to a reader: nothing but end it in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from nelf.errors import UserError
from nelf.files import (
    LARGEST,
    array,
    exists,
    finite,
    is_dir,
    is_file,
    number,
    numbers,
    open_array,
    own_temporary_folder,
    quoted,
    read_json,
    read_object,
)


def test_a_name_that_nothing_may_have_is_nothing() -> None:
    for name in ("a" * 300, "a\0b", "\udcff" * 300):
        assert not any(there(Path(name)) for there in (exists, is_dir, is_file))


def test_a_message_is_one_printable_line_and_not_very_long() -> None:
    assert str(UserError("a\nb\x1b[2J\ud800.png: is\tnone")) == "a\\nb\\x1b[2J\\ud800.png: is\\tnone"
    long = str(UserError(f"begin {'x' * 10_000} end"))
    assert len(long) < 1300
    assert long.startswith("begin xxx")
    assert long.endswith("xxx end")
    assert str(UserError("Größe: 3 µm")) == "Größe: 3 µm"


LONG = {
    "digits": 10**5000,
    "negative": -(10**5000),
    "list": [10**5000],
    "text": "x" * 10**6,
    "nested": [[[[[[1]]]]]] * 1000,
    "object": {"a": "b" * 1000},
    "lines": ["\n"] * 100,
}


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
def test_whatever_is_quoted_is_short(value: object) -> None:
    text = quoted(value)
    assert len(text) <= 60
    assert text.isprintable()


def test_short_values_are_quoted_as_they_are() -> None:
    assert [quoted(value) for value in (3, 1.5, "a", None, [1, [2]], {"a": 1})] == [
        *("3", "1.5", "'a'", "None", "[1, [2]]", "{'a': 1}")
    ]


NESTED = "[" * 100_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (NESTED.encode(), "lists or objects lie too deep"),
        (b"1" * 5000, "not JSON (Exceeds the limit"),
        (b"\xff\xfe", "not JSON ('utf-8' codec"),
        (b"[]", "holds a list; allowed: a thing."),
        (b"{", "not JSON"),
    ],
)
def test_what_is_no_json_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_object(path, "a thing")
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_files_that_are_none_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "device.json").symlink_to("/dev/zero")
    (tmp_path / "large.json").touch()
    os.truncate(tmp_path / "large.json", 2**26 + 1)
    for name in ("pipe", "folder", "device"):
        with pytest.raises(UserError, match=f"{name}.json: is no file"):
            read_json(tmp_path / f"{name}.json")
    with pytest.raises(UserError, match="has more than 67108864 bytes"):
        read_json(tmp_path / "large.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / ("a" * 300))
    for name in ("a" * 300, "a\0b", "\ud800"):
        assert not is_file(tmp_path / name)
        assert not is_dir(tmp_path / name)


NO_NUMBERS = [None, True, "1", [1], float("nan"), float("inf"), 1e39, 10**400, -(10**5000)]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=map(quoted, NO_NUMBERS))
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"^file: key is .*; allowed: a finite number, up to 1e\+15"):
        number("file", "key", value)
    with pytest.raises(UserError, match=r"^file: key "):
        numbers("file", "key", [1, value], 2)
    if not isinstance(value, bool | str):  # which NumPy takes for numbers
        with pytest.raises(UserError, match=r"^file: key "):
            array("file", "key", [1, value], ((2,),))


def test_numbers_are_taken_as_they_are() -> None:
    assert number("file", "key", 3) == 3.0
    assert number("file", "key", LARGEST) == LARGEST
    with pytest.raises(UserError, match=r"key is 3; allowed: 0 to 2"):
        number("file", "key", 3, 0, 2)
    assert array("file", "key", [[1, 2], [3, 4]], ((2, 2), (3,))).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(UserError, match=r"key is \[\[1\], \[2, 3\]\]; allowed: 2x2 or 3 numbers"):
        array("file", "key", [[1], [2, 3]], ((2, 2), (3,)))


def test_arrays_are_mapped_and_nothing_else_is(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.ones((3, 2)))
    assert open_array(tmp_path / "good.npy", (None, 2)).tolist() == [[1, 1]] * 3
    np.savez(tmp_path / "zip", np.ones((3, 2)))
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "whole.npy", np.ones((3, 2), int))
    content = (tmp_path / "good.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[:-1])
    (tmp_path / "lies.npy").write_bytes(content.replace(b"(3, 2), }          ", b"(3000000000000, 2)}"))
    (tmp_path / "open.npy").write_bytes(content.replace(b"(3, 2), }", b"((((((, }"))
    for name, words in {
        **dict.fromkeys(("zip", "objects", "cut", "lies", "open"), "is not whole, or no array"),
        "whole": r"holds int64 of shape \(3, 2\); allowed: \(N, 2\) floating-point numbers",
        "none": "no such file",
    }.items():
        with pytest.raises(UserError, match=f"{name}.npy: {words}"):
            open_array(tmp_path / f"{name}.npy", (None, 2))
    with pytest.raises(UserError, match="not finite, or beyond"):
        finite(tmp_path, np.array([1e39]))
    half = np.array([1.5, -65504], np.float16)
    assert finite(tmp_path, half).tolist() == [1.5, -65504]


def test_a_temporary_folder_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = own_temporary_folder("cache")
    assert own_temporary_folder("cache") == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(UserError, match="is not a folder that only you can write into"):
        own_temporary_folder("cache")
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is not a folder that only you can write into"):
        own_temporary_folder("cache")
    folder.unlink()
    own_temporary_folder("cache")
    other = os.getuid() + 1
    monkeypatch.setattr("os.getuid", lambda: other)
    folder.rename(tmp_path / f"cache_{other}")
    with pytest.raises(UserError, match="is not a folder that only you can write into"):
        own_temporary_folder("cache")


def test_json_is_json(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, "ü"]}
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    assert read_object(tmp_path / "a.json") == content
