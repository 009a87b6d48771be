"""Entries for a service that may be gone: sent in order by one thread, kept in a file while they cannot be.

The caller never waits. The file, a JSON object a line, outlives the process: the next outbox on it sends it.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from kineograph.errors import Failure
from kineograph.progress import say
from kineograph.store.commit import write_text

Entry = dict[str, Any]
"""One thing to send: ``op`` says what it is."""

_GATHER_S = 0.5  # entries of so long go together
_LONGEST_PAUSE_S = 30.0  # between attempts to reach a service that is gone
_FINAL_PAUSE_S = 0.2  # between attempts when the end waits for them


class Receiver(Protocol):
    """The service. Its methods are called by the outbox's thread alone and raise what goes wrong."""

    name: str
    """What messages call it, e.g. ``MLflow at http://…``."""

    def reach(self) -> None:
        """Return when the service answers."""
        ...

    def together(self, entries: Sequence[Entry]) -> int:
        """How many of ``entries``, from the first on, go in one :meth:`send`."""
        ...

    def send(self, entries: Sequence[Entry]) -> None: ...

    def is_refusal(self, error: Exception) -> bool:
        """Whether the entry itself is at fault, so that sending it again would not help."""
        ...

    def to_json(self, entry: Entry) -> Entry:
        """The entry as it is kept in the file."""
        ...


class Outbox:
    """Takes entries at once, sends them when it can, keeps them in ``spool`` while it cannot."""

    def __init__(self, receiver: Receiver, spool: Path, skip: Callable[[Entry], bool]) -> None:
        """``skip`` says which entries that an earlier process left are void now."""
        self._receiver, self._spool, self._skip = receiver, spool, skip
        self._behind = spool.is_file()
        self._reached = False
        self._changed = threading.Condition()  # guards the next two lines; never held during input or output
        self._queue: deque[Entry] = deque()
        self._closing = self._abandoned = False
        self._files = threading.Lock()  # guards the spool and _batch
        self._batch: list[Entry] = []
        self._tried, self._done = threading.Event(), threading.Event()
        self._retry_at, self._pause_s = 0.0, 1.0
        self._said: set[str] = set()
        threading.Thread(target=self._work, name="outbox", daemon=True).start()

    def wait_for_first_try(self, timeout_s: float) -> None:
        """Return when the service has answered or failed once."""
        self._tried.wait(timeout_s)

    def put(self, entry: Entry) -> None:
        """Take an entry. What comes after :meth:`close` is lost."""
        with self._changed:
            self._queue.append(entry)
            self._changed.notify()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is sent; False when it is not, after ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with self._files, self._changed:
                if not (self._queue or self._batch or self._behind):
                    return True
            time.sleep(0.02)
        return False

    def close(self, last: Entry, timeout_s: float) -> None:
        """Take ``last`` and wait until all is sent; what is not in ``timeout_s`` stays in the spool."""
        with self._changed:
            if self._closing:
                return
            self._queue.append(last)
            self._closing = True
            self._changed.notify()
        if self._done.wait(timeout_s):
            return
        with self._files:
            if self._done.is_set():
                return
            with self._changed:
                left = self._batch + list(self._queue)
                self._queue.clear()
            self._append(left)
            kept = f"what is missing is kept in {self._spool} and is sent when the run is started again"
            say(f"{self._receiver.name} was not reached; {kept}")
            self._abandoned = True

    # Below: the thread.

    def _work(self) -> None:
        self._send_or_keep()
        while not self._abandoned:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing, timeout=_GATHER_S)
                self._changed.wait_for(lambda: self._closing, timeout=_GATHER_S)
            with self._files, self._changed:
                if self._abandoned:
                    return
                self._batch = list(self._queue)
                self._queue.clear()
            self._send_or_keep()
            with self._files, self._changed:
                if self._closing and not (self._queue or self._behind):
                    self._done.set()
                    return
            if self._closing:
                time.sleep(_FINAL_PAUSE_S)

    def _send_or_keep(self) -> None:
        """Send what is in the spool, then the batch; what is left goes to the spool."""
        if (self._behind or not self._reached) and not self._reach():
            return self._settle(None)
        if not self._batch and not self._behind:
            return None
        try:
            entries = self._read() + self._batch
        except OSError as error:
            self._failed(error)
            return self._settle(None)
        return self._settle(self._send(entries))

    def _reach(self) -> bool:
        """Whether the service answers; asked again only after a pause that grows."""
        if time.monotonic() < self._retry_at:
            return False
        try:
            self._receiver.reach()
        except Exception as error:  # noqa: BLE001  whatever is wrong with the service, the caller goes on
            self._failed(error)
            return False
        finally:
            self._tried.set()
        self._reached, self._pause_s = True, 1.0
        return True

    def _send(self, entries: list[Entry]) -> list[Entry]:
        """Send entries in order; return those from the first that did not get through."""
        done = one_by_one = 0
        while done < len(entries) and not self._abandoned:
            count = 1 if done < one_by_one else self._receiver.together(entries[done:])
            try:
                self._receiver.send(entries[done : done + count])
            except Exception as error:  # noqa: BLE001  whatever is wrong with the service, the caller goes on
                if not self._receiver.is_refusal(error):
                    self._failed(error)
                    return entries[done:]
                if count > 1:  # one of them is at fault, the others shall not go down with it
                    one_by_one = done + count
                    continue
                kind = entries[done]["op"]
                self._say_once(kind, f"{self._receiver.name} refused {kind}: {reason(error)}")
            done += count
        return entries[done:]

    def _failed(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + (1.0 if self._closing else self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        silent = f"{self._receiver.name} does not answer ({reason(error)})"
        self._say_once("dead", f"{silent}; work goes on, what it misses is sent later")

    def _settle(self, left: list[Entry] | None) -> None:
        """The batch is done with: ``left`` of spool and batch is the new spool; None adds the batch to it."""
        with self._files:
            if self._abandoned:
                return
            batch, self._batch = self._batch, []
            if left is None:
                self._append(batch)
            elif left:
                self._rewrite(left)
            elif self._behind:
                self._spool.unlink(missing_ok=True)
                self._behind = False

    def _append(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        try:
            self._spool.parent.mkdir(parents=True, exist_ok=True)
            with open(self._spool, "a", encoding="utf-8") as file:
                file.write("\n")  # ends what a killed process may have left half written
                file.writelines(map(self._line, entries))
            self._behind = True
        except OSError as error:
            self._lost(error)

    def _rewrite(self, entries: Sequence[Entry]) -> None:
        try:
            write_text(self._spool, "".join(map(self._line, entries)))
            self._behind = True
        except (OSError, Failure) as error:
            self._lost(error)

    def _read(self) -> list[Entry]:
        """The spooled entries, without torn lines and without those that are void until the end."""
        if not self._behind:
            return []
        entries = []
        for line in self._spool.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "op" in entry and (self._closing or not self._skip(entry)):
                entries.append(entry)
        return entries

    def _line(self, entry: Entry) -> str:
        return json.dumps(self._receiver.to_json(entry), ensure_ascii=False) + "\n"

    def _lost(self, error: Exception) -> None:
        missed = f"what {self._receiver.name} misses cannot be kept in {self._spool}"
        self._say_once("spool", f"{missed}: {reason(error)}")

    def _say_once(self, kind: str, message: str) -> None:
        if kind not in self._said and not self._abandoned:
            self._said.add(kind)
            say(message)


def reason(error: BaseException) -> str:
    """What went wrong, on one line, without passwords: the system's error where a library wraps one."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror.lower()
        inner = inner.__cause__ or inner.__context__
    text = re.sub(r"//[^/@\s]*@", "//", " ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"
