"""Run a function on a hostile file in a child process with limits, and get JSON or a reason back.

Each call of :func:`run_guarded` has a small server process to itself, one that an earlier call has left or a new one,
which has imported the function's module and forks a child: milliseconds a call, and nothing of the caller (Ray, torch,
open files) is in the child. Requests and results are JSON over pipes; nothing that comes from a child is ever
unpickled.

The server ends when its caller does (its input ends), and a child when its server does (parent-death signal,
and an alarm where the system has none), so a killed run leaves no orphan.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kineograph.config import Config
from kineograph.errors import Failure
from kineograph.media.faults import MediaFault
from kineograph.store.schema import Reason

# One thread per library: parallelism is one source per core, and threads do not survive a fork.
SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# glibc gives a large frame's memory back to the system and asks for it again at the next one, page by page. A child ends
# with its file, so it may keep it.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


class GuardLimits(Config):
    """What one call in a child process may use."""

    memory_bytes: int = 3 * 2**30
    """Address space in bytes (RLIMIT_AS), libraries included; decoding 8K takes about 2 GiB of it."""
    cpu_s: float = 1800.0
    """CPU seconds (RLIMIT_CPU); decodes about ten hours of 720p."""
    wall_s: float = 3600.0
    """Wall seconds; twice the CPU limit, for cores that are shared."""


@dataclass(frozen=True)
class Ended:
    """How a child ended: its answer, or why there is none."""

    answer: bytes
    fault: str = ""
    detail: str = ""
    killed: bool = False
    """By a SIGKILL from outside, such as the kernel's where memory runs out: it says nothing about the file."""


_KILLED = Ended(b"", Reason.CRASHED.value, "the guard process was killed twice")


def run_guarded(function: str, kwargs: Mapping[str, Any], limits: GuardLimits) -> Any:
    """Call ``function`` ("package.module:name") with JSON-able ``kwargs`` in a child process; return its JSON
    result.

    Raises MediaFault: the one that the function raised; unreadable (OSError), timeout (past a time limit),
    crashed (a signal, out of memory, any other exception). Raises Failure when no child can be started at
    all.
    """
    request = json.dumps({"function": function, "kwargs": dict(kwargs), "limits": limits.model_dump()}).encode()
    stops = _stops
    ended = _call(request)
    if ended is None or ended.killed:  # server or child, from outside: ask again, once
        if stops != _stops:
            raise Failure("the work on media files was stopped")
        ended = _call(request) or _KILLED
    if ended.fault:
        raise MediaFault(Reason(ended.fault), ended.detail)
    try:  # a decoder that was taken over may write anything
        reply = json.loads(ended.answer)
        if "fault" not in reply:
            return reply["result"]
        fault = MediaFault(Reason(reply["fault"]), str(reply["detail"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MediaFault(Reason.CRASHED, "its answer makes no sense") from error
    raise fault


class _Server:
    """The caller's end of a server process, for one call at a time."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        # Whatever can be imported here can be imported there.
        path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        environment = {**os.environ, **SINGLE_THREAD, **KEEP_MEMORY, **path}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kineograph.media.guard_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            # Control-C is the caller's to handle.
            start_new_session=True,
        )
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        return self.pid == os.getpid() and self._process.poll() is None

    def call(self, request: bytes) -> Ended | None:
        """How the child ended; None when this server was killed meanwhile."""
        try:
            write_message(self._process.stdin, request)
            header = json.loads(read_message(self._process.stdout))
            answer = read_message(self._process.stdout)
        except (OSError, EOFError) as error:
            self._process.kill()
            code = self._process.wait()
            if code in (-signal.SIGKILL, -signal.SIGTERM):
                return None
            raise Failure(f"the guard process for media files ended with exit code {code}") from error
        return Ended(answer, **header)

    def close(self) -> None:
        if self.pid == os.getpid() and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


# As many servers as threads have called at a time; those that no call uses wait here.
_idle: list[_Server] = []
_busy: set[_Server] = set()
_lock = threading.Lock()
_stops = 0


def _call(request: bytes) -> Ended | None:
    """Ask a server that no other thread is asking."""
    with _lock:
        server = _idle.pop() if _idle else None
    if server is None or not server.alive:
        server = _Server()
    with _lock:
        _busy.add(server)
    try:
        return server.call(request)
    finally:
        with _lock:
            _busy.discard(server)
            _idle.append(server)


def stop_guarded() -> None:
    """End the calls that other threads of this process have made; each raises Failure there."""
    global _stops
    with _lock:
        _stops += 1
        servers = list(_busy)
    for server in servers:
        server.close()


def write_message(pipe: Any, message: bytes) -> None:
    """Write ``message`` after its length in 8 bytes."""
    pipe.write(len(message).to_bytes(8, "big"))
    pipe.write(message)
    pipe.flush()


def read_message(pipe: Any) -> bytes:
    """The next message of :func:`write_message`. Raises EOFError when the other end is gone."""
    length = int.from_bytes(_read_exactly(pipe, 8), "big")
    return _read_exactly(pipe, length)


def _read_exactly(pipe: Any, count: int) -> bytes:
    data = pipe.read(count)
    if data is None or len(data) < count:
        raise EOFError("the other end of the pipe is gone")
    return bytes(data)


def header(ended: Ended) -> bytes:
    """The line about an ended call that goes before its answer."""
    return json.dumps({key: value for key, value in asdict(ended).items() if key != "answer"}).encode()
