"""Long videos: windows over the latent frames that overlap, each sampled with the end of the one before it given.

A video has 1 + k·stride frames: latent frame 0 is its first frame, latent j ≥ 1 the frames 1 + (j - 1)·stride .. j·stride.
A window that starts at latent s has its first frame, number s·stride, as a latent of its own, and from there its latents
are those of the video. So what is carried over is decoded and encoded again from that frame on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kineograph.diffusion.request import Known
from kineograph.models.vae import Autoencoder, to_unit_range


@dataclass(frozen=True)
class Window:
    """Latent frames ``start`` .. ``start + length`` of a video; the first ``given`` come from the window before."""

    start: int
    given: int
    length: int


def plan_windows(latents: int, window: int, overlap: int, ending: int = 0) -> Iterator[Window]:
    """Windows of at most ``window`` that cover ``latents`` latent frames, sharing ``overlap`` (the last one: more).

    The last ``ending`` latent frames are known: all of them are in the last window, which then shares so few that at least
    one is left to lead there. Raises ValueError unless 1 <= overlap < window, and where the ending does not fit.
    """
    if latents <= window:
        yield Window(0, 0, latents)
        return
    if not 1 <= overlap < window:
        raise ValueError(f"windows of {window} latent frames overlap by 1 to {window - 1}, not {overlap}")
    if ending:
        if window < ending + 2:
            raise ValueError(f"before {ending} known latent frames at its end a window needs at least 2 more")
        given = min(overlap, window - ending - 1)
        yield from plan_windows(latents - window + given, window, overlap)
        yield Window(latents - window, given, window)
        return
    yield Window(0, 0, window)
    end = window
    while end < latents:
        start = min(end - overlap, latents - window)
        yield Window(start, end - start, window)
        end = start + window


def frames_of(latents: int, stride: int) -> int:
    """Frames of a video of so many latent frames."""
    return 1 + (latents - 1) * stride


def latents_of(frames: int, stride: int) -> int:
    """Latent frames that hold ``frames`` frames, the last one perhaps in part."""
    return 1 - (1 - frames) // stride


def block(latent: int, window: Window, stride: int) -> range:
    """The frames, by number in the video, of latent frame ``latent`` of a window."""
    first = window.start * stride
    return (
        range(first, first + 1)
        if latent == 0
        else range(first + 1 + (latent - 1) * stride, first + 1 + latent * stride)
    )


def known_latents(window: Window, known: Known, stride: int) -> list[int]:
    """Latent frames of ``window`` whose frames are all known; those carried over from the window before are not asked."""
    return [j for j in range(window.given, window.length) if all(f in known for f in block(j, window, stride))]


def known_ending(latents: int, known: Known, stride: int) -> int:
    """How many of the last of ``latents`` latent frames are known; 0 where all are."""
    whole = known_latents(Window(0, 0, latents), known, stride)
    unknown = set(range(latents)).difference(whole)
    return latents - 1 - max(unknown) if unknown else 0


def encode_given(
    vae: Autoencoder, window: Window, carried: Tensor | None, known: Known, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Latents of ``shape`` (B C T H W) with what is given in its places, and the mask (B T) of it.

    ``carried`` (B 3 frames H W) in [-1, 1] are the last frames of the window before, as many as its latents hold.
    """
    stride = vae.strides[0]
    latents = torch.zeros(shape)
    mask = torch.zeros(shape[0], shape[2], dtype=torch.bool)
    if window.given:
        assert carried is not None
        held = encoded(vae, carried[:, :, -frames_of(window.given, stride) :])
        latents[:, :, : window.given], mask[:, : window.given] = held, True
    for run in _runs(known_latents(window, known, stride)):
        frames = [known[f] for j in run for f in block(j, window, stride)]
        if run[0] > 0:  # a run in the middle is encoded behind a still of its first frame
            frames.insert(0, frames[0])
        video = to_unit_range(torch.from_numpy(np.stack(frames, axis=-4))).to(_device(vae, carried))  # (B) 3 T H W
        video = video.expand(shape[0], *video.shape[-4:])
        latents[:, :, run[0] : run[-1] + 1] = encoded(vae, video)[:, :, 0 if run[0] == 0 else 1 :]
        mask[:, run[0] : run[-1] + 1] = True
    return latents, mask


def encoded(vae: Autoencoder, video: Tensor) -> Tensor:
    """Latents (B C T' H' W'), on the CPU, of a video (B 3 T H W); see :func:`decoded`."""
    pieces = vae.encode_stream([video]) if _goes_in_pieces(vae) else [vae.encode(video)]
    return torch.cat([piece.cpu() for piece in pieces], dim=2)


def decoded(vae: Autoencoder, latents: Tensor) -> Iterator[Tensor]:
    """The video of latents (B C T' H' W'), (B 3 t H W) at a time.

    In chunks where that changes nothing, and in chunks and tiles where the autoencoder has a tiling; else whole.
    """
    yield from vae.decode_stream([latents]) if _goes_in_pieces(vae) else [vae.decode(latents)]


def _goes_in_pieces(vae: Autoencoder) -> bool:
    return vae.tiling is not None or vae.streams_exactly


def _device(vae: Autoencoder, carried: Tensor | None) -> torch.device:
    if carried is not None:
        return carried.device
    return next((t.device for t in vae.state_dict().values()), torch.device("cpu"))


def _runs(numbers: list[int]) -> list[list[int]]:
    """Stretches of consecutive numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
