"""Spacetime patches: a video as a sequence of tubes, and back."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

Patch = tuple[int, int, int]
"""Frames, rows and columns of one patch."""


def padded_size(size: tuple[int, int, int], patch: Patch) -> tuple[int, int, int]:
    """``size`` (frames, height, width) rounded up to whole patches."""
    t, h, w = (-(-n // p) * p for n, p in zip(size, patch, strict=True))
    return t, h, w


def patchify(video: Tensor, patch: Patch) -> Tensor:
    """(B C T H W) to (B T' S patch-volume·C), T' and S in patches, zero-padded at the far ends to whole patches."""
    t, h, w = video.shape[2:]
    pt, ph, pw = patch
    full_t, full_h, full_w = padded_size((t, h, w), patch)
    if (full_t, full_h, full_w) != (t, h, w):
        video = F.pad(video, (0, full_w - w, 0, full_h - h, 0, full_t - t))
    b, c = video.shape[:2]
    x = video.reshape(b, c, full_t // pt, pt, full_h // ph, ph, full_w // pw, pw)
    x = x.permute(0, 2, 4, 6, 3, 5, 7, 1)  # B T' H' W' pt ph pw C
    return x.reshape(b, full_t // pt, (full_h // ph) * (full_w // pw), pt * ph * pw * c)


def unpatchify(patches: Tensor, patch: Patch, size: tuple[int, int, int]) -> Tensor:
    """The inverse of :func:`patchify`: (B T' S patch-volume·C) to (B C T H W) of ``size`` (T, H, W)."""
    pt, ph, pw = patch
    t, h, w = padded_size(size, patch)
    b = patches.shape[0]
    x = patches.reshape(b, t // pt, h // ph, w // pw, pt, ph, pw, -1)
    video = x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(b, -1, t, h, w)
    return video[:, :, : size[0], : size[1], : size[2]]
