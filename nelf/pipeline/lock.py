"""One writer per run directory: ``lock.json`` in it names the process, and a heartbeat shows that it is alive.

Reading takes no lock. A writer that was killed leaves its lock behind; the next one recognizes that and takes it over:
on the same machine because that process has ended, on another because the heartbeat has stopped.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from nelf.errors import UserError, alone_in, atomic_path, unwritable
from nelf.files import parse_json

__all__ = ["Lock"]

NAME = "lock.json"
_BEAT, _SILENCE = 15.0, 300.0  # seconds: between heartbeats; without one, until another machine's lock is stale


class Lock:
    """A run directory's lock.

    Args:
        folder: the run directory; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self._mark: str | None = None
        self._process = 0
        self._stopped: threading.Event | None = None  # None once released, so that a sweep's job can pickle its run

    def refuse(self) -> None:
        """Raise an error if another process holds the lock, without taking it.

        Raises:
            UserError: another process holds it; the message says which, and since when.
        """
        holder = self._holder()
        if holder is not None and not _is_own(holder) and not _is_gone(holder, self.path):
            raise UserError(
                f"{self.folder}: {_words(holder)} is writing there. Wait for it, or choose another directory with "
                f"run=; if it is gone, delete {self.path}."
            )

    def acquire(self) -> None:
        """Take the lock, even one whose holder has ended.

        Raises:
            UserError: another process holds it, or the directory cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            refused = unwritable(error, self.folder)
            if refused is None:
                raise
            raise refused from error
        with alone_in(self.folder):
            self.refuse()
            holder = self._holder()
            if holder is not None and not _is_own(holder):
                print(f"{self.folder}: {_words(holder)} is gone; its lock is taken over", flush=True)
            self._mark, self._process = secrets.token_hex(8), os.getpid()
            about = {**_identity(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "mark": self._mark}
            with atomic_path(self.path) as partial:
                partial.write_text(json.dumps(about) + "\n", encoding="utf-8")
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, args=(self._stopped,), name="lock", daemon=True).start()
        atexit.register(self.release)

    def check(self) -> None:
        """Refuse to continue if the lock has been taken over, for example while this machine was suspended.

        Raises:
            UserError: another process has taken it over; the message says which.
        """
        holder = self._holder() if self._is_held_here() else None
        if holder is not None and not _is_own(holder):
            raise UserError(f"{self.folder}: {_words(holder)} has taken over; this process stops.")

    def release(self) -> None:
        """Release the lock; does nothing if it is not held, and in processes forked from the holder."""
        if self._stopped is None or not self._is_held_here():
            return
        self._stopped.set()
        self._stopped = None
        atexit.unregister(self.release)
        with suppress(OSError), alone_in(self.folder):
            if self._is_mine():
                self.path.unlink()
        self._mark = None

    def _is_held_here(self) -> bool:
        return self._mark is not None and self._process == os.getpid()

    def _is_mine(self) -> bool:
        return (self._holder() or {}).get("mark") == self._mark

    def _holder(self) -> dict[str, Any] | None:
        """Who holds the lock; None if there is no lock file, or an incomplete one."""
        try:
            holder = parse_json(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        known = {"host": str, "pid": int, "since": str, "mark": str}
        good = isinstance(holder, dict) and all(isinstance(holder.get(key), kind) for key, kind in known.items())
        return holder if good and all(str(holder[key]).isprintable() for key in known) else None

    def _beat(self, stopped: threading.Event) -> None:
        while not stopped.wait(_BEAT):
            with suppress(OSError):
                if self._is_mine():
                    os.utime(self.path)


def _identity() -> dict[str, Any]:
    """This process; a process number is unique only together with the boot and the PID namespace."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "system": [_content(Path("/proc/sys/kernel/random/boot_id")), _container()],
    }


def _is_own(holder: dict[str, Any]) -> bool:
    own = _identity()
    return all(holder.get(key) == value for key, value in own.items())


def _is_gone(holder: dict[str, Any], path: Path) -> bool:
    """Whether a holder has ended without releasing its lock."""
    own = _identity()
    if holder["host"] == own["host"] and holder.get("system") == own["system"]:
        return not _is_alive(holder["pid"], holder.get("started"))
    try:
        with tempfile.TemporaryFile(dir=path.parent) as now:  # the file system's clock may be another machine's
            silent = os.fstat(now.fileno()).st_mtime - path.stat().st_mtime
    except OSError:
        return False
    # No process survives a reboot of its machine.
    return silent > _SILENCE or (holder["host"] == own["host"] and silent > _up())


def _is_alive(pid: int, started: str | None) -> bool:
    """Whether a process of this machine runs, and is not a later one with the same number."""
    if Path("/proc/self/stat").is_file():
        now = _start_of(pid)
        return now is not None and started in (now, None)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, in clock ticks since boot; None if it has ended."""
    text = _content(Path(f"/proc/{pid}/stat"))
    if text is None:
        return None
    fields = text.rpartition(")")[2].split()  # skip the program's name, which may hold any character
    return None if fields[0] in "ZX" else fields[19]


def _container() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _up() -> float:
    """Seconds since this machine booted; infinite if unknown."""
    text = _content(Path("/proc/uptime"))
    return float(text.split()[0]) if text else float("inf")


def _content(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _words(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']},"
