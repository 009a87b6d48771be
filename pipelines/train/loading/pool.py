"""Who decodes: a thread of the rank, or processes beside it.

Processes are started by exec and not by fork: a rank runs threads of Ray, torch, gloo and CUDA, whose locks a forked child
would inherit in whatever state they are in. And not by multiprocessing or torch's DataLoader: those import the program's
main module again in every child; and a DataLoader has each worker read the shards for itself, puts batches into /dev/shm,
and when a worker dies tells neither which clips it had nor goes on without it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from kineograph.errors import Failure
from kineograph.media.guard import KEEP_MEMORY, SINGLE_THREAD
from kineograph.store.loader import ClipDecoder
from pipelines.train.loading.decoding import Collate, Done, Job, work
from pipelines.train.loading.messages import PROGRESS, Answer, Setup, Task
from pipelines.train.loading.parcels import Parcel, anonymous_file, receive

_AT_ONCE = 2
"""Jobs that a process has: the next one waits there while it does one."""
_START_SECONDS = 300.0
_STARTS = 3
"""A process that ends this often before it is ready will not start."""
_ANSWER_SECONDS = 60.0
"""For the rest of a message of which the first part is here."""


class WorkerDied(Exception):
    """A decoding process ended in the middle of a job; the text says how."""

    def __init__(self, how: str, clip: int | None) -> None:
        super().__init__(how)
        self.how = how
        self.clip = clip
        """Number in the job of the clip that was being decoded; None when it was none."""


class Stopped(Exception):
    """A job that was not done since the pool was closed."""


class Pool(Protocol):
    """Does jobs. Their order does not matter."""

    def submit(self, job: Job) -> Future[Done]:
        """The result to be. It raises WorkerDied, Stopped, Failure where no process can be started, or what collate
        raised."""

    def close(self) -> None:
        """Stop; nothing is left running."""

    @property
    def pids(self) -> list[int]:
        """The processes that it has."""


class InThread:
    """A pool of one thread of this process."""

    def __init__(self, decoder: ClipDecoder, collate: Collate) -> None:
        self._thread = ThreadPoolExecutor(1, "decode")
        self._decoder, self._collate = decoder, collate
        self.pids: list[int] = []

    def submit(self, job: Job) -> Future[Done]:
        return self._thread.submit(work, job, self._decoder, self._collate, lambda clip: None)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


@dataclass
class _Order:
    """A job that is not done yet."""

    number: int
    parcel: Parcel
    future: Future[Done] = field(default_factory=Future)


class _Worker:
    """The rank's end of a process."""

    def __init__(self, setup: Parcel) -> None:
        self.connection, theirs = socket.socketpair()
        with theirs, open(anonymous_file(), "rb+") as file:
            file.truncate(PROGRESS.size)
            self.progress = mmap.mmap(file.fileno(), PROGRESS.size)
            path = {
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)
            }  # whatever can be imported here can be there
            ends = [str(theirs.fileno()), str(file.fileno())]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.train.loading.worker", *ends],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **SINGLE_THREAD, **KEEP_MEMORY, **path},
                pass_fds=(theirs.fileno(), file.fileno()),
                start_new_session=True,  # Control-C is the rank's to handle
            )
        self.connection.settimeout(_ANSWER_SECONDS)
        self.orders: deque[_Order] = deque()
        self.is_ready = False
        self._seen: object = None
        self._since = time.monotonic()
        setup.send(self.connection)

    def clip(self) -> int | None:
        """The clip that it decodes of its first order."""
        number, clip = PROGRESS.unpack(self.progress[:])
        return clip if self.orders and number == self.orders[0].number and clip >= 0 else None

    def seconds(self) -> float:
        """Since it was last seen to get on, while there is something to do."""
        state = (self.progress[:], self.orders[0].number if self.orders else None, self.is_ready)
        if state != self._seen or (self.is_ready and not self.orders):
            self._seen, self._since = state, time.monotonic()
        return time.monotonic() - self._since

    def end(self) -> str:
        """Make sure that it has ended; how it did."""
        self.connection.close()
        code: int | None
        try:
            code = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return "was not to be reached"
        if code == -signal.SIGKILL:
            return "was killed by SIGKILL, as the kernel does where memory runs out,"
        if code < 0:
            return f"died of {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


class Processes:
    """A pool of processes. One thread talks with all of them; a process that dies is replaced."""

    def __init__(self, workers: int, decoder: ClipDecoder, collate: Collate, clip_seconds: float) -> None:
        """Raises what pickling ``collate`` raises."""
        self._count, self._clip_seconds = workers, clip_seconds
        self._setup = Parcel(Setup(decoder, collate))
        self._waiting: deque[_Order] = deque()
        self._numbers = count()
        self._lock = threading.Lock()
        self._broken: Exception | None = None
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()
        self._bell, self._rope = socket.socketpair()
        self._rope.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._workers: list[_Worker] = []
        for _ in range(workers):
            self._start()
        self._thread = threading.Thread(target=self._serve, name="decoders", daemon=True)
        self._thread.start()

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in list(self._workers)]

    def submit(self, job: Job) -> Future[Done]:
        number = next(self._numbers)
        order = _Order(number, Parcel(Task(number, job)))
        with self._lock:
            if self._broken is not None:
                order.future.set_exception(self._broken)
            else:
                self._waiting.append(order)
        self._ring()
        return order.future

    def close(self) -> None:
        self._break(Stopped())
        self._ring()
        self._thread.join()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # it has been rung often enough, or nobody listens any more
            self._rope.send(b"!")

    def _break(self, error: Exception) -> None:
        """Do no more jobs."""
        with self._lock:
            self._broken = self._broken or error

    def _start(self) -> None:
        worker = _Worker(self._setup)
        self._workers.append(worker)
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def _serve(self) -> None:
        """The life of the thread."""
        try:
            while self._broken is None:
                self._hand_out()
                for key, _ in self._selector.select(1.0):
                    if key.data is None:
                        self._bell.recv(4096)
                    else:
                        self._hear(key.data)
                self._check_times()
        except Exception as error:  # noqa: BLE001 - raised by the jobs that wait
            self._break(error)
        finally:
            self._end_all()

    def _hand_out(self) -> None:
        while self._waiting:
            if len(self._workers) < self._count:
                self._start()
            worker = min(self._workers, key=lambda w: len(w.orders))
            if len(worker.orders) >= _AT_ONCE:
                return
            with self._lock:
                order = self._waiting.popleft()
            worker.orders.append(order)
            try:
                order.parcel.send(worker.connection)
            except OSError:
                self._bury(worker)

    def _hear(self, worker: _Worker) -> None:
        try:
            answer: Answer = receive(worker.connection)
        except (EOFError, OSError):
            self._bury(worker)
            return
        if answer.number < 0 and answer.error is None:
            worker.is_ready, self._failed_starts = True, 0
        elif answer.number < 0:
            self._break(_with_trace(answer))
        else:
            order = worker.orders.popleft()
            order.parcel.close()
            if answer.error is not None:
                order.future.set_exception(_with_trace(answer))
            else:
                assert answer.done is not None
                order.future.set_result(answer.done)

    def _check_times(self) -> None:
        for worker in list(self._workers):
            limit = self._clip_seconds if worker.is_ready else _START_SECONDS
            if worker.seconds() > limit:
                worker.process.kill()
                self._bury(worker, f"took more than {limit:g} s")

    def _bury(self, worker: _Worker, how: str = "") -> None:
        """Give the order that a dead process worked on its error, and the others back."""
        self._selector.unregister(worker.connection)
        self._workers.remove(worker)
        clip, orders = worker.clip(), worker.orders
        ended = worker.end()
        how = how or ended
        if worker.is_ready and orders:
            order = orders.popleft()
            order.future.set_exception(WorkerDied(how, clip))
        elif not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                self._break(Failure(f"a decoding process {how} before it could begin: what it wrote is in the log"))
        with self._lock:
            self._waiting.extendleft(reversed(orders))

    def _end_all(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        with self._lock:
            left = [order for worker in self._workers for order in worker.orders] + list(self._waiting)
            self._waiting.clear()
        for worker in self._workers:
            worker.end()
        for order in left:
            order.parcel.close()
            order.future.set_exception(self._broken)
        self._workers.clear()
        self._selector.close()
        for end in (self._bell, self._rope):
            end.close()


def _with_trace(answer: Answer) -> Exception:
    """The error of an answer, raised from one that shows where in the process it was raised."""
    assert answer.error is not None
    answer.error.__cause__ = RuntimeError(f"in a decoding process\n{answer.trace}")
    return answer.error
