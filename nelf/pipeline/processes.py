"""Several processes of one command, one per device: how they start, agree and stop together.

Each runs the whole command. RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set in the same way whether
nelf (``launch``), torchrun or srun has started the processes; Lightning launches none itself. Only the first process
decides, writes marks and locks, and prints; the others follow its decisions (``agree``).
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pytorch_lightning.plugins.environments import ClusterEnvironment

__all__ = [
    "adopt_launcher",
    "agree",
    "change_alike",
    "environment",
    "is_first",
    "launch",
    "leaving_with_others",
    "rank",
    "wait_for_all",
    "world",
]

T = TypeVar("T")

_PATIENCE = timedelta(days=7)  # one process may render or export for hours while the others wait
_TICK = 0.1  # seconds between two polls of the processes
_GRACE = 30.0  # seconds from terminating processes to killing them
_ELSEWHERE = 70  # exit code of a process that stops because another one has failed


def rank() -> int:
    """The rank of this process."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the process that decides, writes marks and locks, and prints."""
    return rank() == 0


def world() -> int:
    """The number of processes."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()  # type: ignore[no-any-return]
    return int(os.environ.get("WORLD_SIZE", "1"))


def adopt_launcher() -> None:
    """Under srun, set the environment variables that torchrun would set; does nothing elsewhere."""
    numbers = {
        "RANK": "SLURM_PROCID",
        "LOCAL_RANK": "SLURM_LOCALID",
        "GROUP_RANK": "SLURM_NODEID",
        "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",
    }
    if "RANK" in os.environ or not all(each in os.environ for each in numbers.values()):
        return
    if os.environ[numbers["WORLD_SIZE"]] == "1":
        return
    from pytorch_lightning.plugins.environments import SLURMEnvironment

    os.environ.update({name: os.environ[theirs] for name, theirs in numbers.items()})
    first = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])
    step = 7 * int(os.environ["SLURM_JOB_ID"]) + int(os.environ["SLURM_STEP_ID"])  # several may share a machine
    os.environ.setdefault("MASTER_ADDR", first)
    os.environ.setdefault("MASTER_PORT", str(12_000 + step % 20_000))  # below those that systems hand out


def environment() -> ClusterEnvironment:
    """What Lightning is to take for the launcher, whatever else it would recognize, such as SLURM around ``launch``."""
    from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    return TorchElasticEnvironment() if world() > 1 else LightningEnvironment()


def agree(decide: Callable[[], T]) -> T:
    """Call a function in the first process, and broadcast its result to all.

    Args:
        decide: the function; with several processes its result must be picklable.

    Returns:
        The result. If ``decide`` fails, the first process raises its error, and the others exit silently.
    """
    if world() == 1:
        return decide()
    import torch
    from torch.distributed import broadcast_object_list

    _connect()
    said: list[Any] = [None]
    failed: BaseException | None = None
    if is_first():
        try:
            said = [(decide(),)]
        except BaseException as error:  # the others must not wait forever
            failed = error
    with leaving_with_others():
        try:
            broadcast_object_list(said, src=0, device=torch.device("cpu"))
        except RuntimeError:
            if failed is None:
                raise
    if failed is not None:
        raise failed
    if said[0] is None:
        sys.exit(_ELSEWHERE)
    return said[0][0]  # type: ignore[no-any-return]


def change_alike(network: Any, change: Callable[[], Any]) -> None:
    """Change a network in the first process and give all the same: by themselves they would draw other numbers.

    Args:
        network: whose state the others load.
        change: what changes its state, and nothing else.
    """

    def changed() -> dict[str, Any]:
        change()
        return {name: value.cpu() for name, value in network.state_dict().items()}

    if world() == 1:
        change()
        return
    state = agree(changed)
    if not is_first():
        network.load_state_dict(state)


def wait_for_all() -> None:
    """A barrier: wait until all processes have called it."""
    if world() > 1:
        from torch.distributed import barrier

        _connect()
        with leaving_with_others():
            barrier()


@contextmanager
def leaving_with_others() -> Iterator[None]:
    """Exit silently if communication fails because another process has ended; the launcher reports which one."""
    try:
        yield
    except RuntimeError as error:
        distributed: Any = sys.modules.get("torch.distributed")
        is_lost = distributed is not None and (isinstance(error, distributed.DistError) or "gloo" in str(error))
        if world() > 1 and is_lost:
            sys.exit(_ELSEWHERE)
        raise


def _connect() -> None:
    """Initialize the process group; Lightning uses the one that exists."""
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=_PATIENCE)
        atexit.register(_disconnect)


def _disconnect() -> None:
    """Destroy the process group: connections that are open while the interpreter exits can abort the process."""
    from torch import distributed

    with suppress(RuntimeError):
        if distributed.is_initialized():
            distributed.destroy_process_group()


def launch(count: int, command: Sequence[str]) -> int:
    """Run a command in several processes on this machine, as torchrun does, until all have ended.

    Ctrl-C is passed on to them. If one is killed or fails, the others are stopped; of a killed one a line says which it
    was. On Linux they do not outlive this process.

    Args:
        count: the number of processes.
        command: the program and its arguments.

    Returns:
        The exit code: 0, or that of a process that failed by itself; 1 if it was killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = {"WORLD_SIZE": str(count), "OMP_NUM_THREADS": str(max(1, cores // count)), **os.environ, **address}
    processes: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def interrupt(number: int, _: Any) -> None:
        if asked:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        asked.append(number)
        _signal(processes, signal.SIGINT)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        for index in range(count):
            own = {**shared, "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(count)}
            processes.append(_start(command, own))
        patience = _GRACE  # processes that stop because of another's failure often end before that one
        while None in (codes := [each.poll() for each in processes]):
            failed = {code for code in codes if code}
            if failed and not asked:
                patience -= _TICK
                if failed != {_ELSEWHERE} or patience < 0:
                    break
            time.sleep(_TICK)
        return _outcome(codes)
    finally:
        _stop(processes)
        signal.signal(signal.SIGINT, before)


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in its own session: the terminal's Ctrl-C reaches only its parent, which passes it on."""
    return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_follow_parent)


def _follow_parent() -> None:
    """React to Ctrl-C, which a shell's background jobs ignore; and, on Linux, terminate when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _outcome(codes: Sequence[int | None]) -> int:
    """The exit code of a process that failed by itself; prints a line about it if it was killed by a signal."""
    failed = {index: code for index, code in enumerate(codes) if code}
    if not failed:
        return 0
    index, code = next((each for each in failed.items() if each[1] != _ELSEWHERE), next(iter(failed.items())))
    if code > 0:
        return code
    name = signal.Signals(-code).name
    words = f"process {index} of {len(codes)} was ended by {name}, so the others are stopped. The same command goes on."
    print(words, file=sys.stderr, flush=True)
    return 1


def _signal(processes: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for each in processes:
        if each.poll() is None:
            each.send_signal(number)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Terminate those that still run; kill those that do not end."""
    _signal(processes, signal.SIGTERM)
    end = time.monotonic() + _GRACE
    for each in processes:
        with suppress(subprocess.TimeoutExpired):
            each.wait(max(0.0, end - time.monotonic()))
        if each.poll() is None:
            each.kill()
            each.wait()
