"""Prepare batches in a thread while the caller computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
B = TypeVar("B")


def ahead(items: Iterator[T], prepare: Callable[[T], B], depth: int = 2) -> Iterator[tuple[T, B]]:
    """Prepare up to ``depth`` batches in a thread while the caller computes. An error is raised where it is due."""
    ready: queue.Queue[tuple[T, B] | BaseException | None] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: tuple[T, B] | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, prepare(item))):
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001  handed to the caller, whatever it is
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (got := ready.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            yield got
    finally:
        stopped.set()
        thread.join()
