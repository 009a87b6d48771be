"""Long videos: windows over the latent frames that overlap. Of what a window shares with the one before it, the first
frames are given, and the last latent is made once more and cross-faded: what meets at a boundary was made together.

A video has 1 + k·stride frames: latent frame 0 is its first frame, latent j ≥ 1 the frames 1 + (j - 1)·stride .. j·stride.
A window that starts at latent s has its first frame, number s·stride, as a latent of its own, and from there its latents
are those of the video. So what is carried over is decoded and encoded again from that frame on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kineograph.diffusion.request import Known
from kineograph.models.vae import Autoencoder, to_unit_range


@dataclass(frozen=True)
class Window:
    """Latent frames ``start`` .. ``start + length`` of a video; the first ``given`` come from the window before, and the
    next ``blended`` are cross-faded from it."""

    start: int
    given: int
    length: int
    blended: int = 0


def plan_windows(latents: int, window: int, overlap: int, ending: int = 0) -> Iterator[Window]:
    """Windows of at most ``window`` that cover ``latents`` latent frames, sharing ``overlap`` (the last one: more). Where
    they share several, the last of those is cross-faded and the others are given.

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
        shared = min(overlap, window - ending - 1)
        yield from plan_windows(latents - window + shared, window, overlap)
        yield _following(latents - window, shared, window)
        return
    yield Window(0, 0, window)
    end = window
    while end < latents:
        start = min(end - overlap, latents - window)
        yield _following(start, end - start, window)
        end = start + window


def _following(start: int, shared: int, length: int) -> Window:
    blended = 1 if shared > 1 else 0
    return Window(start, shared - blended, length, blended)


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

    ``carried`` (B 3 frames H W) in [-1, 1] are the last settled frames of the window before, as many as the
    given latents hold.
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


class Joiner:
    """Joins the frames of windows to one video, in order."""

    def __init__(self, stride: int) -> None:
        self._stride = stride
        self._tail: Tensor | None = None
        """The frames from number ``_done`` on that the window before made and the next one cross-fades."""
        self._done = 0
        self.carried: Tensor | None = None
        """The last frames (B 3 frames H W) before the tail, as many as the next window is given."""

    def join(self, pieces: Iterable[Tensor], window: Window, following: Window | None) -> Iterator[Tensor]:
        """The frames of ``window``, which come in pieces (B 3 t H W), that are new and that the ``following`` window, if
        any, does not change."""
        first, stride = window.start * self._stride, self._stride
        last, wanted = first + frames_of(window.length, stride), 0
        if following is not None:
            last, wanted = last - stride * following.blended, frames_of(following.given, stride)
        tail, start = self._tail, self._done
        self._tail = self.carried = None
        for frames in pieces:
            if tail is not None:
                frames = _cross_faded(tail, frames, start - first)
            settled, open_end = frames.tensor_split([max(last - first, 0)], dim=2)
            self._tail = _joined(self._tail, open_end)
            self.carried = _joined(self.carried, settled)[:, :, -wanted:] if wanted else None
            fresh = settled[:, :, max(self._done - first, 0) :]
            first += frames.shape[2]
            self._done += fresh.shape[2]
            if fresh.shape[2]:
                yield fresh


def _cross_faded(tail: Tensor, frames: Tensor, at: int) -> Tensor:
    """``frames`` (B 3 t H W), led over to linearly from ``tail``, which begins at frame ``at`` of them, be it outside."""
    length = tail.shape[2]
    low, high = max(at, 0), min(at + length, frames.shape[2])
    if low >= high:
        return frames
    weight = torch.arange(low - at + 1, high - at + 1).to(frames) / (length + 1)
    faded = torch.lerp(tail[:, :, low - at : high - at], frames[:, :, low:high], weight[:, None, None])
    return torch.cat([frames[:, :, :low], faded, frames[:, :, high:]], dim=2)


def _joined(before: Tensor | None, frames: Tensor) -> Tensor:
    return frames if before is None else torch.cat([before, frames], dim=2)


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
