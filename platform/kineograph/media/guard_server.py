"""The process behind :mod:`kineograph.media.guard`: forks a limited child for each request that comes on
stdin."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any

from kineograph.media.faults import MediaFault
from kineograph.media.guard import Ended, header, read_message, write_message
from kineograph.store.schema import Reason

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
# A child's answer may hold thumbnails or encoded clips, and no more than this.
MAX_ANSWER_BYTES = 1 << 30


def serve() -> None:
    """Answer requests until the caller's end of the pipe closes."""
    # Unbuffered, so that select sees what is there.
    stdin, stdout = os.fdopen(0, "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    while True:
        try:
            request = json.loads(read_message(_Whole(stdin)))
            ended = run_child(request, stdin.fileno())
            write_message(stdout, header(ended))
            write_message(stdout, ended.answer)
        except (EOFError, BrokenPipeError):
            return


def run_child(request: dict[str, Any], caller: int) -> Ended:
    """Fork, run, and wait for the answer or the wall limit. Ends the child and this process when ``caller``
    closes."""
    module, _, name = request["function"].partition(":")
    function = getattr(importlib.import_module(module), name)  # once per server, before the fork
    limits = request["limits"]
    server = os.getpid()
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        _be_child(function, request["kwargs"], limits, send, server)
    os.close(send)
    try:
        answer, why = _collect(receive, caller, time.monotonic() + limits["wall_s"])
    finally:
        os.close(receive)
    if why:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if why == "caller":
        raise EOFError("the caller is gone")
    if why == "wall":
        return Ended(b"", Reason.TIMEOUT.value, f"it took more than {limits['wall_s']:g} s of wall time")
    if why == "size":
        return Ended(b"", Reason.CRASHED.value, f"its result is larger than {MAX_ANSWER_BYTES} bytes")
    return _judge(answer, status, limits)


def _collect(receive: int, caller: int, deadline: float) -> tuple[bytes, str]:
    """What the child writes until it ends, and why it must be killed: "", "wall", "size" or "caller"."""
    pieces: list[bytes] = []
    size = 0
    poller = select.poll()  # and not select.select, which knows no descriptor above 1023
    poller.register(receive, select.POLLIN)
    poller.register(caller, select.POLLHUP)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return b"", "wall"
        for descriptor, event in poller.poll(left * 1000):
            if descriptor == caller and event & (select.POLLHUP | select.POLLERR):
                return b"", "caller"
            if descriptor == receive:
                piece = os.read(receive, 1 << 20)
                if not piece:
                    return b"".join(pieces), ""
                pieces.append(piece)
                size += len(piece)
                if size > MAX_ANSWER_BYTES:
                    return b"", "size"


def _judge(answer: bytes, status: int, limits: dict[str, Any]) -> Ended:
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        return Ended(answer)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGXCPU:
        return Ended(b"", Reason.TIMEOUT.value, f"it took more than {limits['cpu_s']:g} s of CPU time")
    if number == signal.SIGALRM:
        return Ended(b"", Reason.TIMEOUT.value, f"it took more than {limits['wall_s']:g} s of wall time")
    how = f"signal {signal.Signals(number).name}" if number else f"exit code {os.WEXITSTATUS(status)}"
    return Ended(b"", Reason.CRASHED.value, f"the decoding process died with {how}")


def _be_child(function: Any, kwargs: dict[str, Any], limits: dict[str, Any], send: int, server: int) -> None:
    """Run in the forked child; never returns."""
    code = 1
    try:
        _confine(limits, server)
        with os.fdopen(send, "wb") as pipe:
            pipe.write(_answer(function, kwargs, limits))
        code = 0
    finally:
        os._exit(code)


def _confine(limits: dict[str, Any], server: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits["wall_s"] + 5)  # outlives no one, whatever happens to the server
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if os.getppid() != server:
            os._exit(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    cpu = max(1, round(limits["cpu_s"]))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"], limits["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(function: Any, kwargs: dict[str, Any], limits: dict[str, Any]) -> bytes:
    """The function's result or fault as JSON."""
    try:
        return json.dumps({"result": function(**kwargs)}).encode()
    except MediaFault as fault:
        reason, detail = fault.reason, fault.detail
    except MemoryError:
        reason, detail = (
            Reason.CRASHED,
            f"it needs more than {limits['memory_bytes'] / 2**20:.0f} MiB of memory",
        )
    except OSError as error:
        reason, detail = Reason.UNREADABLE, error.strerror or type(error).__name__
    except Exception as error:  # noqa: BLE001 - a decoder can raise anything; it is a ledger row
        reason, detail = Reason.CRASHED, f"{type(error).__name__}: {error}"
    return json.dumps({"fault": reason.value, "detail": " ".join(detail.split())[:300]}).encode()


class _Whole:
    """A raw pipe whose read returns all the bytes that were asked for, or fewer at its end."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def read(self, count: int) -> bytes:
        pieces = []
        while count and (piece := self._raw.read(count)):
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


if __name__ == "__main__":
    serve()
