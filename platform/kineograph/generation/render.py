"""The frames of a video in their order: given ones as they are, and between them what the model makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from kineograph.diffusion.request import Request
from kineograph.diffusion.text_to_video import OnStep, TextToVideo
from kineograph.diffusion.windows import frames_of, known_latents
from kineograph.generation.given import Scene
from kineograph.media.geometry import Bucket


def render(model: TextToVideo, request: Request, scene: Scene, on_step: OnStep | None = None) -> Iterator[np.ndarray]:
    """The videos of ``request``, uint8 (B t H W 3), a stretch of frames at a time, with the frames of ``scene`` in their
    places. A loop without a first frame is made one at a time."""
    videos, kept = len(request.prompts), scene.timeline.kept
    for frame in scene.head():
        yield _for_all(frame, videos)
    request = replace(request, known=scene.known(_first_frame(model, request, scene, on_step)))
    start = 0
    for frames in model.stream(request, on_step):
        stop = start + frames.shape[1]
        part = frames[:, max(kept.start - start, 0) : max(min(kept.stop, stop) - start, 0)]
        start = stop
        if part.shape[1]:
            yield part
    for frame in scene.tail():
        yield _for_all(frame, videos)


def request_for(scene: Scene, request: Request) -> Request:
    """``request`` with the length of what is sampled, and with frames known where they will be: to be planned by."""
    bucket = Bucket(request.bucket.height, request.bucket.width, scene.timeline.sampled)
    empty = np.zeros((0, 0, 3), np.uint8)
    timeline = scene.timeline
    known = [*range(timeline.context), *range(timeline.sampled - timeline.ending, timeline.sampled)]
    return replace(request, bucket=bucket, known=dict.fromkeys(known, empty))


def windows_to_sample(model: TextToVideo, planned: Request, makes_first: bool) -> int:
    """How many windows of a :func:`request_for` have something to sample."""
    stride = model.vae.strides[0]
    windows = model.windows(planned)
    asked = [w for w in windows if w.given + len(known_latents(w, planned.known, stride)) < w.length]
    return len(asked) + makes_first


def makes_first(scene: Scene) -> bool:
    """Whether the first frame of a loop is to be made before the rest."""
    return bool(scene.timeline.context) and scene.strips.front is None


def _first_frame(model: TextToVideo, request: Request, scene: Scene, on_step: OnStep | None) -> np.ndarray | None:
    """The first frame, uint8 (H W 3), of a loop where none is given: that of the first window without its end."""
    if not makes_first(scene):
        return None
    window, _ = model.window_latents(request.window, request.overlap)
    frames = min(frames_of(window, model.vae.strides[0]), scene.timeline.sampled)
    alone = replace(request, bucket=replace(request.bucket, frames=frames), known={})
    first: np.ndarray = next(iter(model.stream(alone, on_step)))[0, 0]
    return first


def _for_all(frame: np.ndarray, videos: int) -> np.ndarray:
    return np.broadcast_to(frame, (videos, 1, *frame.shape))


class MixedPrecision(nn.Module):
    """A model whose products of matrices are made in bfloat16; what goes in and comes out stays as it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, *conditions: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            output: Tensor = self.model(x, *conditions)
        return output.to(x.dtype)
