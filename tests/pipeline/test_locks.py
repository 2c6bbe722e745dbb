"""Two processes on one run directory: one writes, the other says who does; what a killed one left is taken over."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nelf.errors import UserError
from nelf.pipeline import lock as locks
from nelf.pipeline.lock import Lock

ROOT = Path(__file__).parents[2]
HOLD = "import sys; from pathlib import Path; from nelf.pipeline.lock import Lock; Lock(Path(sys.argv[1])).acquire(); "


@pytest.fixture
def lock(tmp_path) -> Iterator[Lock]:
    lock = Lock(tmp_path / "run")
    yield lock
    lock.release()


def other(folder: Path, then: str = "print(1, flush=True); sys.stdin.read()") -> subprocess.Popen[str]:
    """A process that takes the lock, says so, and then does something."""
    code = [sys.executable, "-c", HOLD + then, str(folder)]
    process = subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if "print(1" in then:
        assert process.stdout is not None
        process.stdout.readline()
    return process


def forge(lock: Lock, **changes: Any) -> None:
    """A lock that somebody else left."""
    lock.folder.mkdir(exist_ok=True)
    about = {**locks._identity(), "since": "2020-02-02 02:02:02", "mark": "theirs", **changes}
    lock.path.write_text(json.dumps(about))


def test_one_writer_at_a_time(lock, tmp_path) -> None:
    process = other(lock.folder)
    for attempt in (lock.refuse, lock.acquire):
        with pytest.raises(UserError) as caught:
            attempt()
        line = str(caught.value)
        assert line.startswith(f"{lock.folder}: process {process.pid} on {locks.socket.gethostname()}, since 20")
        assert line.endswith(f"if it is gone, delete {lock.path}.")
        assert "\n" not in line
    process.communicate()
    assert not lock.path.exists()
    lock.acquire()
    assert [path.name for path in lock.folder.iterdir()] == ["lock.json"]
    lock.release()
    assert list(lock.folder.iterdir()) == []


@pytest.mark.parametrize("then", ["", "raise ValueError", "raise KeyboardInterrupt", "sys.exit(3)"])
def test_it_is_given_back_however_a_process_ends(lock, then: str) -> None:
    process = subprocess.run([sys.executable, "-c", HOLD + then, str(lock.folder)], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert (process.returncode == 0) == (then == "")
    assert list(lock.folder.iterdir()) == []


def test_what_a_killed_process_left_is_taken_over(lock, capsys) -> None:
    process = other(lock.folder)
    process.kill()
    if Path("/proc/self/stat").exists():
        while locks._start_of(process.pid) is not None:  # not yet waited for, it is still in the list of processes
            pass
        lock.refuse()
    process.communicate()
    assert lock.path.exists()
    lock.acquire()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{lock.folder}: process {process.pid} on ")
    assert line.endswith(" is gone; its lock is taken over")
    lock.check()


def test_another_process_of_the_same_number_is_not_the_writer(lock) -> None:
    forge(lock, pid=os.getpid(), started="1")
    lock.acquire()
    forge(lock, pid=os.getppid(), started=locks._start_of(os.getppid()))
    with pytest.raises(UserError, match="is writing there"):
        lock.refuse()


@pytest.mark.parametrize("where", [{"host": "elsewhere"}, {"system": ["another boot", None]}, {"system": None}])
def test_a_writer_elsewhere_is_known_by_its_heart(lock, monkeypatch, where: dict[str, Any]) -> None:
    """Its process number means nothing here."""
    monkeypatch.setattr(locks, "_up", lambda: float("inf"))
    forge(lock, pid=1, **where)
    with pytest.raises(UserError, match=r"process 1 on .* is writing there"):
        lock.acquire()
    beaten = lock.path.stat().st_mtime - 2 * locks._SILENCE
    os.utime(lock.path, (beaten, beaten))
    lock.acquire()


def test_a_machine_that_was_restarted_has_no_writer_of_before(lock, monkeypatch) -> None:
    forge(lock, system=["the boot before", None])
    beaten = lock.path.stat().st_mtime - 60
    os.utime(lock.path, (beaten, beaten))
    monkeypatch.setattr(locks, "_up", lambda: 90.0)
    with pytest.raises(UserError):
        lock.refuse()
    monkeypatch.setattr(locks, "_up", lambda: 30.0)
    lock.refuse()


def test_the_heart_beats_until_the_lock_is_given_back(lock, monkeypatch) -> None:
    monkeypatch.setattr(locks, "_BEAT", 0.001)
    lock.acquire()
    os.utime(lock.path, (0, 0))
    while lock.path.stat().st_mtime == 0:
        pass
    lock.release()
    for thread in threading.enumerate():
        if thread.name == "lock":
            thread.join(60)
    assert not lock.path.exists()


def test_a_lock_that_was_taken_over_is_noticed_and_left_alone(lock) -> None:
    lock.acquire()
    forge(lock, pid=1, started="0")
    with pytest.raises(UserError, match=r"process 1 on .* has taken over; this process stops"):
        lock.check()
    lock.release()
    assert lock.path.exists()


def test_one_process_may_open_a_directory_twice(lock) -> None:
    lock.acquire()
    again = Lock(lock.folder)
    again.acquire()
    lock.check()
    lock.release()
    assert lock.path.exists()
    again.release()
    assert not lock.path.exists()


def test_a_run_that_is_over_can_be_sent_between_processes(lock) -> None:
    """A sweep's jobs give theirs back."""
    lock.acquire()
    lock.release()
    assert pickle.loads(pickle.dumps(lock)).path == lock.path


def test_a_forked_process_gives_nothing_back(lock) -> None:
    lock.acquire()
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert lock.path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "1"}', '{"host": 3}', "\x00"])
def test_a_file_that_is_no_lock_is_nobody_s(lock, content: str) -> None:
    lock.folder.mkdir()
    lock.path.write_text(content)
    lock.acquire()
    lock.check()


@pytest.mark.parametrize("script", ["train", "distill"])
def test_commands_lock_their_directory(command, script: str) -> None:
    process = other(Path("out").absolute())
    line = f"{script} data=blender data.root=SCENE trainer=cpu run=out"
    outcome = command(line)
    assert outcome.code == 2
    assert outcome.line.startswith(f"out: process {process.pid} on ")
    assert [path.name for path in Path("out").iterdir()] == ["lock.json"]
    process.communicate()


@pytest.mark.parametrize(("script", "error"), [("train", KeyboardInterrupt), ("distill", UserError)])
def test_commands_give_it_back(command, monkeypatch, script: str, error: type[BaseException]) -> None:
    seen = []

    def fail(*rest: object, **options: object) -> None:
        seen.append(Path("out/lock.json").exists())
        raise error

    monkeypatch.setattr("nelf.pipeline.fit.fit", fail)
    monkeypatch.setattr("nelf.pipeline.stages.teacher.fit", fail)
    assert command(f"{script} data=blender data.root=SCENE trainer=cpu run=out").code in (2, 130)
    assert seen == [True]
    assert not Path("out/lock.json").exists()
