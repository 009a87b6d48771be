"""What is done to the rows of a micro-batch, in a thread or in a decoding process: they are decoded and collated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from kineograph.store.loader import ClipDecoder, LoadedClip
from pipelines.train.plan.plan import Slot

Collate = Callable[[Sequence[LoadedClip], Sequence[Slot]], Any]
"""Clips of one bucket, with the slots that they stand in, to a batch: tensors, alone or in dataclasses, tuples, lists and
dicts. Where it runs in decoding processes it is pickled."""


@dataclass(frozen=True)
class Job:
    """A micro-batch to be made. Its clips are numbered; a clip may stand in several slots, and some in none: they are
    spare, for when all others are damaged."""

    slots: tuple[Slot, ...]
    """With ids."""
    clips: tuple[int, ...]
    """Which clip stands in each slot."""
    rows: pa.Table
    """Of the clips that are to be decoded."""
    of_rows: tuple[int, ...]
    """Which clip each row is."""
    known: dict[int, LoadedClip] = field(default_factory=dict)
    """Clips that are decoded already."""
    damaged: frozenset[int] = frozenset()
    """Clips that are not to be tried."""
    keep: bool = False
    """Whether the decoded clips are wanted too."""

    def part(self, clip: int) -> Job:
        """The job of one clip of this one, which has a row."""
        row = self.of_rows.index(clip)
        slots = [slot for slot, number in zip(self.slots, self.clips, strict=True) if number == clip]
        return Job(tuple(slots[:1]), (clip,) * len(slots[:1]), self.rows.take([row]), (clip,))


@dataclass(frozen=True)
class Done:
    """What became of a job."""

    batch: Any
    """What collate made; None when no clip of it can be decoded."""
    damaged: dict[int, str]
    """Clips that were tried and cannot be decoded, with what is wrong."""
    decoded: dict[int, LoadedClip]
    """The decoded clips, where they are wanted."""


def work(job: Job, decoder: ClipDecoder, collate: Collate, tell: Callable[[int], None]) -> Done:
    """Do a job. ``tell`` is told each clip before it is decoded. Raises what ``collate`` raises."""
    fresh: dict[int, LoadedClip] = {}
    damaged: dict[int, str] = {}

    def decode(position: int) -> None:
        clip = job.of_rows[position]
        tell(clip)
        try:
            fresh[clip] = decoder.decode(job.rows.slice(position, 1).to_pylist()[0])
        except Exception as error:  # noqa: BLE001 - a decoder can raise anything; the clip is named with it
            damaged[clip] = " ".join(str(error).split()) or type(error).__name__

    in_slots = set(job.clips)
    tried = [position for position, clip in enumerate(job.of_rows) if clip not in job.damaged]
    for position in tried:
        if job.of_rows[position] in in_slots:
            decode(position)
    for position in tried:
        if job.of_rows[position] not in in_slots and not fresh and not job.known:
            decode(position)
    tell(-1)
    clips = _stand_in(job.clips, {**job.known, **fresh})
    batch = collate(clips, job.slots) if clips else None
    return Done(batch, damaged, fresh if job.keep else {})


def _stand_in(numbers: Sequence[int], good: dict[int, LoadedClip]) -> list[LoadedClip]:
    """A clip for each slot: its own, else that of the next slot which has one, else a spare. None when there is none."""
    spare = next((clip for number, clip in good.items() if number not in numbers), None)
    clips = []
    for place, number in enumerate(numbers):
        found = good.get(number)
        if found is None:
            others = (*numbers[place + 1 :], *numbers[:place])
            found = next((good[other] for other in others if other in good), spare)
        if found is None:
            return []
        clips.append(found)
    return clips
