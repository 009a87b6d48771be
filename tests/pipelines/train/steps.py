"""Steps of a kind, in this process: what a rank gets of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kineograph.store.loader import ClipDecoder
from pipelines.train.kinds.base import Kind, Losses
from pipelines.train.plan.deal import deal
from pipelines.train.plan.plan import Slot, StepPlan


def part(kind: Kind[Any], step: int = 0, rank: int = 0, world: int = 1) -> tuple[Any, tuple[Slot, ...], StepPlan]:
    """Batch and slots of a rank in a step of one bucket, and the step's plan."""
    plan = kind.plan.step(step)
    ((micro_batch,), *_) = [deal(plan, kind.costs.model, world, {}, even=True).rounds[rank]]
    slots = named(kind, kind.plan.slots(micro_batch.stretch))
    return batch(kind, slots), slots, plan


def named(kind: Kind[Any], slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
    """The slots with the ids of their clips."""
    rows = kind.reader.read([slot.address for slot in slots], ["clip_id"])
    return tuple(replace(slot, clip_id=row["clip_id"]) for slot, row in zip(slots, rows, strict=True))


def batch(kind: Kind[Any], slots: tuple[Slot, ...]) -> Any:
    """What the loader makes of named slots."""
    decoder = ClipDecoder.of(kind.reader, kind.reads_latents)
    rows = kind.reader.read([slot.address for slot in slots], decoder.columns)
    return kind.collate()([decoder.decode(row) for row in rows], slots)


def losses(kind: Kind[Any], model: Any, step: int = 0, rank: int = 0, world: int = 1) -> Losses:
    """Of a rank's part of a step of one bucket."""
    return kind.losses(model, *part(kind, step, rank, world))


def epoch(kind: Kind[Any]) -> range:
    """Steps in which all clips come."""
    return range(round(kind.plan.steps_per_epoch))
