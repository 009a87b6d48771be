"""Files that are given: opened, placed in the timeline, and read as frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from kineograph.errors import UserError
from kineograph.generation.settings import GivenFile, GivenFiles
from kineograph.generation.timeline import Timeline
from kineograph.media.faults import MediaFault
from kineograph.media.footage import Footage
from kineograph.store.commit import sha256_file

SLOTS = ("image", "last_image", "video", "video_end", "fill")
STILLS = ("image", "last_image")


@dataclass(frozen=True)
class Strip:
    """Frames ``first`` .. ``first + count`` of a file, at one size and rate."""

    option: str
    footage: Footage
    first: int
    count: int

    def read(self, height: int, width: int, fps: float, start: int, stop: int) -> Iterator[np.ndarray]:
        """Its frames ``start`` .. ``stop``: uint8 (H W 3). Raises UserError where the file gives them no more."""
        try:
            yield from self.footage.frames(height, width, fps, self.first + start, self.first + stop)
        except MediaFault as fault:
            raise _unreadable(self.option, self.footage.path, fault) from fault


@dataclass(frozen=True)
class Strips:
    """What is given at the beginning and at the end of a video."""

    front: Strip | None
    back: Strip | None
    gap: int = 0
    """Frames between them that are to be made again, where both are of one file."""

    @property
    def counts(self) -> tuple[int, int]:
        """Frames in front and at the back."""
        return (self.front.count if self.front else 0), (self.back.count if self.back else 0)


def record_given(paths: Mapping[str, Path], fill_seconds: tuple[float, float] | None, loop: bool) -> GivenFiles:
    """What a video's settings say of the files in its slots."""
    files = {}
    for slot, path in paths.items():
        try:
            files[slot] = GivenFile(name=path.name, sha256=sha256_file(path) if path.is_file() else "")
        except OSError as error:
            raise UserError(f"{_option(slot)} {path} cannot be read: {error.strerror}") from error
    return GivenFiles(**files, fill_seconds=fill_seconds, loop=loop)


def find_given(given: GivenFiles, folders: list[Path]) -> dict[str, Path]:
    """The files of a video's settings, where they lie in ``folders`` under their names. Raises UserError for one that is
    not there, or is another file by now."""
    found = {}
    for slot in SLOTS:
        file: GivenFile | None = getattr(given, slot)
        if file is None:
            continue
        name = Path(file.name).name  # a file that tells its settings must not lead elsewhere
        places = [folder / name for folder in folders if (folder / name).is_file()]
        same = [place for place in places if sha256_file(place) == file.sha256]
        if not same:
            what = "is another file by now" if places else "is not here"
            raise UserError(f"{name}, which was given as {_option(slot)}, {what}: give {_option(slot)} FILE")
        found[slot] = same[0]
    return found


def open_strips(paths: Mapping[str, Path], fill_seconds: tuple[float, float] | None, fps: float, stride: int) -> Strips:
    """Look at the files in the slots. Raises UserError for one that shows nothing, or not what its slot takes."""
    opened = {slot: _open(slot, path) for slot, path in paths.items()}
    if "fill" in opened:
        assert fill_seconds is not None
        return _around(opened["fill"], fill_seconds, fps, stride)

    def strip(*slots: str) -> Strip | None:
        slot = next((s for s in slots if s in opened), None)
        return None if slot is None else Strip(_option(slot), opened[slot], 0, opened[slot].count(fps))

    return Strips(strip("image", "video"), strip("last_image", "video_end"))


def _open(slot: str, path: Path) -> Footage:
    try:
        footage = Footage.open(path)
    except MediaFault as fault:
        raise _unreadable(_option(slot), path, fault) from fault
    if slot in STILLS and not footage.is_still:
        other = {"image": "--video", "last_image": "--video-end"}[slot]
        raise UserError(f"{_option(slot)} {path} is a video: give a picture, or use {other}")
    return footage


def _around(footage: Footage, seconds: tuple[float, float], fps: float, stride: int) -> Strips:
    """What stands before and after a stretch of a video. A stretch within it is made longer to whole latents."""
    count = footage.count(fps)
    start, stop = round(seconds[0] * fps), min(round(seconds[1] * fps), count)
    if start >= count or stop <= start:
        raise UserError(f"--fill {footage.path}: the stretch must lie in its {footage.seconds:g} s and last a frame")
    if start == 0 and stop == count:
        raise UserError(f"--fill {footage.path}: the stretch is all of it, so nothing is given; leave some of it out")
    if start > 0 and stop < count:
        missing = (start - stop) % stride
        after = min(missing, count - 1 - stop)
        start, stop = start - (missing - after), stop + after
        if start < 1:
            raise UserError(f"--fill {footage.path}: it is too short to keep a frame before and after the stretch")
    front = Strip("--fill", footage, 0, start) if start else None
    back = Strip("--fill", footage, stop, count - stop) if stop < count else None
    return Strips(front, back, gap=stop - start)


class Scene:
    """The given frames of a timeline, at one size and rate."""

    def __init__(self, timeline: Timeline, strips: Strips, height: int, width: int, fps: float) -> None:
        self.timeline, self.strips = timeline, strips
        self._how = (height, width, fps)

    def head(self) -> Iterator[np.ndarray]:
        """The frames before the context, one at a time. Once they are through, the context is known as well."""
        if not self.timeline.head:
            return
        context = []
        for number, frame in enumerate(self._read(self.strips.front, 0, self.timeline.front)):
            if number == 0:
                self.first = frame
            if number < self.timeline.head:
                yield frame
            else:
                context.append(frame)
        self.context = context

    def tail(self) -> Iterator[np.ndarray]:
        """The frames after the ending, one at a time."""
        return self._read(self.strips.back, self.timeline.shown, self.timeline.back)

    @cached_property
    def context(self) -> list[np.ndarray]:
        return list(self._read(self.strips.front, self.timeline.head, self.timeline.front))

    @cached_property
    def ending(self) -> list[np.ndarray]:
        """The last frame is repeated where there are fewer than a latent holds."""
        frames = list(self._read(self.strips.back, 0, self.timeline.shown))
        return frames + frames[-1:] * (self.timeline.ending - len(frames))

    @cached_property
    def first(self) -> np.ndarray:
        """The first frame of the video; there must be one."""
        return self.context[0] if not self.timeline.head else next(self._read(self.strips.front, 0, 1))

    def known(self, made_first: np.ndarray | None = None) -> dict[int, np.ndarray]:
        """Frames of the sampled video that are known, by number. ``made_first`` is the first frame of a loop where none is
        given."""
        timeline = self.timeline
        context = self.context if made_first is None else [made_first]
        ending = self.ending
        if timeline.ending and self.strips.back is None:  # a loop leads to a still of its first frame
            ending = [self.first if made_first is None else made_first] * timeline.ending
        start = timeline.sampled - timeline.ending
        return {**dict(enumerate(context)), **dict(enumerate(ending, start))}

    def _read(self, strip: Strip | None, start: int, stop: int) -> Iterator[np.ndarray]:
        return iter(()) if strip is None else strip.read(*self._how, start, stop)


def _unreadable(option: str, path: Path, fault: MediaFault) -> UserError:
    return UserError(f"{option} {path} gives no frames ({fault}): give another file")


def _option(slot: str) -> str:
    return "--" + slot.replace("_", "-")
