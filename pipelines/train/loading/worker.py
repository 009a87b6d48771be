"""A decoding process: python -m pipelines.train.loading.worker SOCKET PROGRESS, two descriptors, started by pool.py.

It ends when the rank does, however that ends: a thread of its own waits at the socket, and looks whether the rank is still
its parent, while clips are decoded.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import queue
import select
import socket
import sys
import threading
import traceback
from typing import Any

import torch

from kineograph.errors import KineographError
from pipelines.train.loading.decoding import work
from pipelines.train.loading.messages import PROGRESS, Answer, Setup, Task
from pipelines.train.loading.parcels import Parcel, receive

_OOM_SCORE = "500"


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    progress = mmap.mmap(int(sys.argv[2]), PROGRESS.size)
    os.dup2(2, 1)  # whatever a library prints is no answer of the rank's program
    torch.set_num_threads(1)  # parallelism is one batch per process
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(_OOM_SCORE)  # where memory runs out, the kernel shall end this process and not the rank
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, received, os.getppid()), daemon=True).start()
    with contextlib.suppress(ConnectionError):  # the rank is gone
        _serve(connection, received, progress)


def _serve(connection: socket.socket, received: queue.SimpleQueue[Any], progress: mmap.mmap) -> None:
    setup = received.get()
    if isinstance(setup, Exception):
        _send(connection, _failed(-1, setup))
        return
    _send(connection, Answer(-1))
    while not isinstance(task := received.get(), Exception):
        _send(connection, _answer(task, setup, progress))
    _send(connection, _failed(-1, task))


def _answer(task: Task, setup: Setup, progress: mmap.mmap) -> Answer:
    def tell(clip: int) -> None:
        progress[:] = PROGRESS.pack(task.number, clip)

    tell(-1)
    try:
        return Answer(task.number, work(task.job, setup.decoder, setup.collate, tell))
    except Exception as error:  # noqa: BLE001 - raised again in the rank
        return _failed(task.number, error)


def _failed(number: int, error: Exception) -> Answer:
    trace = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - not every error survives it, and one that does not hides all
    except Exception:  # noqa: BLE001
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error = error if isinstance(error, KineographError) else RuntimeError(f"{type(error).__name__}: {error}")
    return Answer(number, error=error, trace=trace)


def _send(connection: socket.socket, answer: Answer) -> None:
    parcel = Parcel(answer)
    try:
        parcel.send(connection)
    finally:
        parcel.close()


def _listen(connection: socket.socket, received: queue.SimpleQueue[Any], rank: int) -> None:
    """Put what arrives, or the error that it cannot be unpacked with, into ``received``; end the process with the rank."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    while True:
        if not poller.poll(1000):
            if os.getppid() != rank:
                os._exit(0)
            continue
        try:
            received.put(receive(connection))
        except (EOFError, ConnectionError):
            os._exit(0)
        except Exception as error:  # noqa: BLE001 - such as a module that cannot be imported here
            received.put(error)


if __name__ == "__main__":
    main()
