"""Which frames of a video are given, which are made, and which of the given ones the model sees.

In the order of the output:

    head     given frames that the model does not see
    context  given frames before the new ones that it sees: 1 + k·stride
    new      what is made
    ending   given frames after the new ones that it sees: e·stride, the last of them perhaps repeated
    tail     given frames that it does not see

Context, new and ending are the video that is sampled. A latent frame is given only when all its frames are, and latent 0
is one frame, latent j the frames 1 + (j - 1)·stride .. j·stride. So between given frames on both sides there is room for
whole latents alone, and the new frames are rounded to a multiple of the stride.
"""

from __future__ import annotations

from dataclasses import dataclass

from kineograph.diffusion.windows import frames_of, latents_of
from kineograph.errors import UserError


@dataclass(frozen=True)
class Timeline:
    """Counts of frames."""

    front: int
    """Given before the new ones: head and context."""
    new: int
    back: int
    """Given after the new ones: ending and tail; of a loop none."""
    context: int
    ending: int
    """Frames at the end of the sampled video that are known; the output has the first ``shown`` of them."""
    skipped: int = 0
    """Frames at the beginning of the sampled video that the output does not have."""

    @property
    def total(self) -> int:
        """Of the output."""
        return self.front + self.new + self.back

    @property
    def head(self) -> int:
        return self.front - self.context

    @property
    def shown(self) -> int:
        return min(self.back, self.ending)

    @property
    def sampled(self) -> int:
        """Frames of the video that is sampled."""
        return self.context + self.skipped + self.new + self.ending

    @property
    def kept(self) -> range:
        """The frames of the sampled video that the output has."""
        return range(self.skipped, self.sampled - self.ending + self.shown)


def plan_timeline(
    total: int, stride: int, window: int, overlap: int, *, front: int = 0, back: int = 0, loop: bool = False
) -> Timeline:
    """The timeline of a video of ``total`` frames, of which the first ``front`` and the last ``back`` are given.

    ``window`` and ``overlap`` are latent frames made at once, and shared by windows that follow each other. A ``loop`` is
    led back to its first frame, so ``front`` is 1 at least, be it that this frame is made first. Raises UserError when
    nothing is left to make, or a window is too small for what is given at both its ends.
    """
    new = total - front - back
    if new < 1:
        raise UserError(f"nothing is left to make: {front + back} of {total} frames are given; ask for more --seconds")
    skipped = 0
    if front and (back or loop):
        new = max(1, (new + stride // 2) // stride) * stride
    elif back:
        skipped = (1 - new) % stride
    latents = latents_of(new + skipped, stride) if not front else -(-new // stride)
    before = 1 + (front - 1) // stride if front else 0
    after = 1 if loop else max(1, back // stride) if back else 0
    context, ending = _shares(before, after, latents, window, overlap)
    return Timeline(front, new, back, frames_of(context, stride) if context else 0, ending * stride, skipped)


def _shares(before: int, after: int, new: int, window: int, overlap: int) -> tuple[int, int]:
    """Latent frames of context and ending, out of those that there are.

    As many as fill the window beside the ``new`` ones, about as many on each side. Where the new ones fill more than a
    window: as many before as a window is given of the one before it, and so few after that the last window can lead there.
    """
    room = window - new
    if room >= min(before, 1) + min(after, 1):
        ending = min(after, max(room - before, room // 2))
        return min(before, room - ending), ending
    ending = min(after, max(1, (window - overlap) // 2))
    if after and window < ending + 2:
        raise UserError(
            f"a window of {window} latent frames has no room between what is given at its ends: give a larger --window"
        )
    return min(before, overlap), ending
