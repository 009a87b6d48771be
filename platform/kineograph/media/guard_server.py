"""The process behind :mod:`kineograph.media.guard`: forks a limited child for each request that comes on
stdin."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import Any

from kineograph.media.faults import MediaFault
from kineograph.media.guard import Ended, header, read_message, write_message
from kineograph.store.schema import Reason

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
# Machine -> its audit number (linux/audit.h) and the system calls that a child is refused: socket, execve,
# execveat, ptrace, process_vm_writev and io_uring_setup, which can open sockets too.
FORBIDDEN_CALLS = {
    "x86_64": (0xC000003E, (41, 59, 322, 101, 311, 425)),
    "aarch64": (0xC00000B7, (198, 221, 281, 117, 271, 425)),
}
# A child's answer may hold thumbnails or encoded clips, and no more than this.
MAX_ANSWER_BYTES = 1 << 30
# The server opens few files, and Popen handed it none but the pipes.
MAX_DESCRIPTORS = 1024


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
        # A decoder that is taken over must not reach the pipe on which this server answers.
        os.closerange(3, send)
        os.closerange(send + 1, MAX_DESCRIPTORS)
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
    known = {int(n): n.name for n in signal.Signals}  # real-time signals have no name
    how = f"signal {known.get(number, number)}" if number else f"exit code {os.WEXITSTATUS(status)}"
    return Ended(b"", Reason.CRASHED.value, f"the decoding process died with {how}", number == signal.SIGKILL)


def _be_child(function: Any, kwargs: dict[str, Any], limits: dict[str, Any], send: int, server: int) -> None:
    """Run in the forked child; never returns."""
    code = 1
    try:
        confine(limits, server)
        with os.fdopen(send, "wb") as pipe:
            pipe.write(_answer(function, kwargs, limits))
        code = 0
    finally:
        os._exit(code)


def confine(limits: dict[str, Any], server: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits["wall_s"] + 5)  # outlives no one, whatever happens to the server
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if os.getppid() != server:
            os._exit(1)
        # Where the machine runs out of memory, the kernel shall end this process and not a worker.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
        _forbid_calls(libc)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    cpu = max(1, round(limits["cpu_s"]))
    _limit(resource.RLIMIT_CPU, cpu, cpu + 1)
    _limit(resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"])
    _limit(resource.RLIMIT_FSIZE, 0, 0)
    _limit(resource.RLIMIT_CORE, 0, 0)


def _limit(kind: int, soft: int, hard: int) -> None:
    """Set a resource limit; one that this machine has set lower already stays."""
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(kind, (soft, hard))


def _forbid_calls(libc: Any) -> None:
    """Make sockets and other programs impossible for this process, by a seccomp filter (man 2 seccomp), which
    needs no rights. A kernel without it, or another machine, leaves the process as it is.
    """
    audit, calls = FORBIDDEN_CALLS.get(os.uname().machine, (0, ()))
    if not calls or struct.calcsize("P") != 8:
        return
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
    refuse, allow = 0x00050000 | errno.EPERM, 0x7FFF0000  # SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW
    # seccomp_data holds the call's number at 0 and the machine at 4. Calls of another machine's kind (32-bit
    # ones, and x32 from 0x40000000 on) would go by other numbers, so they are refused too.
    # A jump's count is of the instructions that it leaps over; the last instruction is the one that refuses.
    count = len(calls)
    program = [(load, 0, 0, 4), (equal, 0, count + 3, audit), (load, 0, 0, 0), (at_least, count + 1, 0, 0x40000000)]
    program += [(equal, count - i, 0, call) for i, call in enumerate(calls)]
    program += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    pointer = struct.pack("@HP", len(program), ctypes.addressof(filters))  # struct sock_fprog
    libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(pointer), 0, 0)


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
