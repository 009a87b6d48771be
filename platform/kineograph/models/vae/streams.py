"""Videos as streams of pieces: cut into the chunks that an autoencoder takes, coded one after another, joined again.

A *piece* is (B C T H W) with any T >= 1; a *coder* takes an iterator of pieces and gives one. Nothing here holds more than
a few chunks, so what a stream costs does not depend on how long it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Coder = Callable[[Iterable[Tensor]], Iterator[Tensor]]
"""Pieces of pixels to pieces of latents, or back."""


def regroup(pieces: Iterable[Tensor], first: int, group: int, unit: int = 1) -> Iterator[Tensor]:
    """``pieces`` cut anew: ``first`` frames, then ``group`` at a time; the last chunk is what remains, k·``unit`` frames.

    The cuts depend on the number of frames alone, so a coder's bits do not depend on how its input came in pieces.
    Raises ValueError when the frames do not divide so, or there are none.
    """
    waiting: list[Tensor] = []
    count, total, wanted = 0, 0, first
    for piece in pieces:
        waiting.append(piece)
        count += piece.shape[2]
        total += piece.shape[2]
        while count >= wanted:
            joined = waiting[0] if len(waiting) == 1 else torch.cat(waiting, dim=2)
            yield joined[:, :, :wanted].contiguous()  # kernels may round otherwise on another layout
            waiting = [joined[:, :, wanted:]]
            count -= wanted
            wanted = group
    if total == 0 or count % unit:
        raise ValueError(f"{total} frames do not divide into {first} and then groups of {unit}")
    if count:
        yield torch.cat(waiting, dim=2).contiguous()


def in_steps(
    step: Callable[[Tensor, bool], Tensor], pieces: Iterable[Tensor], group: int, unit: int = 1
) -> Iterator[Tensor]:
    """Code the first frame alone, then ``group`` at a time; ``step(chunk, is_first)`` remembers what it must."""
    for index, chunk in enumerate(regroup(pieces, 1, group, unit)):
        yield step(chunk, index == 0)


@dataclass(frozen=True)
class Window:
    """Chunks of an autoencoder that takes a video whole: each begins anew and is blended with the one before it."""

    latents: int
    """Latent frames of a window, after the one it begins with."""
    overlap: int
    """Latent frames that two windows share and are blended over, 1 <= overlap < latents."""


def in_windows(
    code: Callable[[Tensor], Tensor], pieces: Iterable[Tensor], window: Window, unit_in: int, unit_out: int
) -> Iterator[Tensor]:
    """Code 1 + k·``unit_in`` frames to 1 + k·``unit_out``, window by window; a video of one window is coded whole.

    A window's first frame is coded as if a video began there, which is right for the first window alone; later windows
    drop it. What two windows share is cross-faded linearly.
    """
    length = 1 + unit_in * window.latents
    shared_in, shared_out = unit_in * window.overlap, unit_out * window.overlap
    waiting: list[Tensor] = []
    count = total = 0
    tail: Tensor | None = None
    for piece in pieces:
        waiting.append(piece)
        count += piece.shape[2]
        total += piece.shape[2]
        while count > length:  # more than a window: this one is not the last
            joined = waiting[0] if len(waiting) == 1 else torch.cat(waiting, dim=2)
            coded = _joined(tail, code(joined[:, :, :length].contiguous()))
            yield coded[:, :, :-shared_out]
            tail = coded[:, :, -shared_out:]
            waiting = [joined[:, :, length - 1 - shared_in :]]
            count = waiting[0].shape[2]
    if total == 0 or (total - 1) % unit_in:
        raise ValueError(f"{total} frames do not divide into 1 and then groups of {unit_in}")
    yield _joined(tail, code(torch.cat(waiting, dim=2).contiguous()))


def _joined(tail: Tensor | None, coded: Tensor) -> Tensor:
    """``coded`` without its lone first frame, its beginning cross-faded from ``tail``; as it is without a tail."""
    if tail is None:
        return coded
    n, coded = tail.shape[2], coded[:, :, 1:]
    ramp = torch.arange(1, n + 1, device=coded.device, dtype=coded.dtype).div(n + 1)[:, None, None]
    return torch.cat([torch.lerp(tail, coded[:, :, :n], ramp), coded[:, :, n:]], dim=2)
