"""Videos made a few at once, with progress and previews on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kineograph.diffusion.request import Request
from kineograph.diffusion.text_to_video import TextToVideo
from kineograph.diffusion.windows import decoded
from kineograph.generation.files import KeptFrames, VideoFile, small
from kineograph.generation.given import Scene
from kineograph.generation.render import makes_first, render, request_for, windows_to_sample
from kineograph.generation.settings import Settings
from kineograph.media.encode import contact_sheet, write_png
from kineograph.models.vae import to_uint8
from kineograph.progress import Progress


class Order(NamedTuple):
    """A video to be made."""

    settings: Settings
    path: Path


def batches(orders: Sequence[Order], size: int) -> list[list[Order]]:
    """Orders in groups of at most ``size`` that can be made at once: only prompts and seeds differ."""
    groups = [list(group) for _, group in groupby(orders, key=lambda order: order.settings.shared)]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


@dataclass
class Making:
    """What all the videos have in common."""

    model: TextToVideo
    request: Request
    """Without prompts, seeds and given frames."""
    scene: Scene
    preview: int | None
    """Steps between previews; none: no previews."""
    preview_path: Path

    def make(self, batched: Sequence[Sequence[Order]]) -> Iterator[np.ndarray]:
        """Make the files, and yield of each video a few frames, small: uint8 (n H W 3), a batch's when it is done."""
        if not batched:
            return
        planned = request_for(self.scene, self.request)
        windows = windows_to_sample(self.model, planned, makes_first(self.scene))
        timesteps = self.request.sampling.sampler.timesteps
        steps = self.request.sampling.steps if timesteps is None else len(timesteps)
        with Progress("sampling", len(batched) * windows * steps, "steps") as progress:
            for number, batch in enumerate(batched):
                name = f"batch {number + 1}/{len(batched)}, " if len(batched) > 1 else ""
                watch = _Watch(self, batch, progress, name, windows, steps)
                yield from self._make_batch(batch, planned, watch)

    def _make_batch(self, batch: Sequence[Order], planned: Request, watch: _Watch) -> Iterator[np.ndarray]:
        request = replace(
            planned,
            prompts=[order.settings.prompt for order in batch],
            seeds=[order.settings.seed for order in batch],
            negative_prompt=batch[0].settings.negative_prompt,
        )
        kept = [KeptFrames(self.scene.timeline.total) for _ in batch]
        with ExitStack() as stack:
            files = []
            for order in batch:
                file = VideoFile(order.path, order.settings.fps, {"comment": order.settings.comment})
                files.append(stack.enter_context(file))
            for frames in render(self.model, request, self.scene, watch.on_step):
                for file, some, video in zip(files, kept, frames, strict=True):
                    file.write(video)
                    some.add(video)
        for some in kept:
            yield some.frames


class _Watch:
    """Tells of the steps of a batch, and shows what they are at."""

    def __init__(
        self, making: Making, batch: Sequence[Order], progress: Progress, name: str, windows: int, steps: int
    ) -> None:
        self.making, self.batch, self.progress, self.name = making, batch, progress, name
        self.windows, self.steps = windows, steps
        self.done = 0

    def on_step(self, _: int, step: int, clean: Tensor) -> None:
        """Hear of a step that begins with the estimate ``clean`` (B C T H W) of the latents."""
        window = self.done // self.steps + 1
        self.done += 1
        self.progress.update(note=f"{self.name}window {window}/{self.windows}, step {step + 1}/{self.steps}")
        if self.making.preview is not None and self.done % self.making.preview == 0:
            self._show(clean)

    def _show(self, clean: Tensor) -> None:
        bucket = self.making.request.bucket
        pieces = decoded(self.making.model.vae, clean)
        videos = torch.cat([to_uint8(p[..., : bucket.height, : bucket.width]).cpu() for p in pieces], dim=1).numpy()
        labels = [order.settings.prompt for order in self.batch]
        write_png(self.making.preview_path, contact_sheet([small(video) for video in videos], labels))
