"""Pictures and videos that a user hands over, read as frames of one size and rate.

Nobody vouches for such a file, so it is decoded in a child process with limits and allow-lists, as sources of a dataset
are. It is looked at once, whole, for its size and the times of its frames; after that any stretch of it can be read, a
frame at a time, whatever its length: the child waits where its frames are not taken.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kineograph.media.faults import MediaFault
from kineograph.media.geometry import Bucket, cover_crop, nearest_frames, sample_times
from kineograph.media.guard import SINGLE_THREAD, GuardLimits, run_guarded, write_message
from kineograph.media.probe import MediaLimits
from kineograph.store.schema import Reason

CHILD = "kineograph.media.footage_child"
FRAME, END = b"\x00", b"\x01"
"""What stands before each answer of the child: a frame's bytes, or the length (4 bytes) of a JSON object and that."""
MAX_END_BYTES = 1 << 16


@dataclass(frozen=True)
class Footage:
    """A picture or a video that can be read."""

    path: Path
    width: int
    """Of its first frame as shown, in pixels; frames of another size are made like it."""
    height: int
    times: np.ndarray
    """Seconds at which its frames begin, from 0, and the end of the last: (frames + 1,)."""
    deinterlace: bool
    limits: MediaLimits
    guard: GuardLimits

    @classmethod
    def open(cls, path: str | Path, limits: MediaLimits | None = None, guard: GuardLimits | None = None) -> Footage:
        """Look at the whole file. Raises MediaFault when it gives no frames or passes a limit."""
        limits, guard = limits or MediaLimits(), guard or GuardLimits()
        path = Path(path).absolute()  # a child that has been running has a current folder of its own
        found = run_guarded(f"{CHILD}:survey", {"path": str(path), "limits": limits.model_dump()}, guard)
        times = np.array(found["times"], np.float64)
        return cls(path, found["width"], found["height"], times, found["interlaced"], limits, guard)

    @property
    def is_still(self) -> bool:
        """Whether it is one picture."""
        return len(self.times) == 2

    @property
    def seconds(self) -> float:
        """How long it is shown; 0 for a picture."""
        return 0.0 if self.is_still else float(self.times[-1])

    def count(self, fps: float) -> int:
        """Its frames at ``fps``; at least one."""
        return max(1, round(self.seconds * fps))

    def frames(self, height: int, width: int, fps: float, start: int, stop: int) -> Iterator[np.ndarray]:
        """Frames ``start`` .. ``stop`` of those at ``fps``: uint8 (height, width, 3), its centre cut to that aspect.

        The same file gives the same frames, whichever stretch is read. Raises MediaFault when it has changed since.
        """
        if stop <= start:
            return
        shown = nearest_frames(self.times[:-1], sample_times(0.0, stop, fps)[start:])
        request = {
            "path": str(self.path),
            "limits": self.limits.model_dump(),
            "indices": shown.tolist(),
            "source": [self.width, self.height],
            "crop": cover_crop(self.width, self.height, Bucket(height, width, 1)),
            "size": [width, height],
            "deinterlace": self.deinterlace,
        }
        yield from _stream(request, self.guard, (height, width, 3), len(shown))


def read_comment(path: str | Path) -> str:
    """What stands in the comment tag of a video file, "" where there is none. Raises MediaFault for what is no video."""
    arguments = {"path": str(Path(path).absolute()), "limits": MediaLimits().model_dump()}
    return str(run_guarded(f"{CHILD}:comment", arguments, GuardLimits()))


def _stream(
    request: Mapping[str, Any], guard: GuardLimits, shape: tuple[int, int, int], count: int
) -> Iterator[np.ndarray]:
    """``count`` frames of ``shape`` from a child of their own, which ends when this generator is closed."""
    path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}  # whatever can be imported here can be there
    child = subprocess.Popen(
        [sys.executable, "-m", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **SINGLE_THREAD, **path},
        start_new_session=True,  # Control-C is the caller's to handle
    )
    # The child has an alarm of its own; this is for one that was taken over.
    watch = threading.Timer(guard.wall_s + 10, child.kill)
    watch.daemon = True
    watch.start()
    try:
        asked = {**request, "guard": guard.model_dump(), "caller": os.getpid()}
        try:
            write_message(child.stdin, json.dumps(asked).encode())
        except OSError:
            raise _ended(child, guard) from None
        for _ in range(count):
            yield _frame(child, guard, shape)
    finally:
        watch.cancel()
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _frame(child: subprocess.Popen[bytes], guard: GuardLimits, shape: tuple[int, int, int]) -> np.ndarray:
    assert child.stdout is not None
    kind = child.stdout.read(1)
    if kind == FRAME:
        size = shape[0] * shape[1] * shape[2]
        data = child.stdout.read(size)
        if len(data) == size:
            return np.frombuffer(data, np.uint8).reshape(shape)
    elif kind == END:
        data = child.stdout.read(min(int.from_bytes(child.stdout.read(4), "big"), MAX_END_BYTES))
        try:  # a decoder that was taken over may write anything
            fault = json.loads(data)
            raise MediaFault(Reason(fault["fault"]), str(fault["detail"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise MediaFault(Reason.CRASHED, "its answer makes no sense") from error
    raise _ended(child, guard)


def _ended(child: subprocess.Popen[bytes], guard: GuardLimits) -> MediaFault:
    """Why a child is gone that should have answered."""
    child.kill()  # which changes nothing where it has ended
    code = child.wait()
    if code == -signal.SIGXCPU:
        return MediaFault(Reason.TIMEOUT, f"it took more than {guard.cpu_s:g} s of CPU time")
    if code in (-signal.SIGALRM, -signal.SIGKILL):
        return MediaFault(Reason.TIMEOUT, f"it took more than {guard.wall_s:g} s, or was killed")
    return MediaFault(Reason.CRASHED, f"the decoding process ended with exit code {code}")
