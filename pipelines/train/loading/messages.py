"""What a rank and its decoding processes say to each other."""

from __future__ import annotations

import struct
from typing import NamedTuple

from kineograph.store.loader import ClipDecoder
from pipelines.train.loading.decoding import Collate, Done, Job

PROGRESS = struct.Struct("qq")
"""In memory that both see: number of the job that a process works on, and of the clip that it decodes, -1 for none."""


class Setup(NamedTuple):
    """The first thing that a process is told."""

    decoder: ClipDecoder
    collate: Collate


class Task(NamedTuple):
    """What it is told then, again and again."""

    number: int
    job: Job


class Answer(NamedTuple):
    """What it says: it is ready (number -1), a job is done, or there was an error."""

    number: int
    done: Done | None = None
    error: Exception | None = None
    trace: str = ""
    """Of the error."""
