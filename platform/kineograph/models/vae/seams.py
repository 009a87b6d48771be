"""What tiles and chunks cost: how far they are from the whole, in dB."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kineograph.metrics.image import psnr
from kineograph.models.vae.base import Autoencoder
from kineograph.models.vae.tiling import Tiling

_PIXEL_RANGE = 2.0


class Seams(NamedTuple):
    """PSNR in dB over a whole video, inf where nothing differs."""

    encoded: float
    """Of what the tiled or chunked latents decode to, against what the latents of the whole decode to."""
    decoded: float
    """Of latents decoded in tiles or chunks, against the same latents decoded whole."""
    worst_frame: float
    """The least of ``decoded`` over single frames."""


@torch.no_grad()
def seams(vae: Autoencoder, video: Tensor, tiling: Tiling | None = None, chunked: bool = False) -> Seams:
    """Compare ``vae`` on ``video`` (B 3 T H W) in [-1, 1], in tiles or chunks or both, with itself on the whole.

    The whole must fit in memory. ``vae.tiling`` is set aside for it.
    """
    aside, vae.tiling = vae.tiling, None
    try:
        latents = vae.encode(video)
        whole = vae.decode(latents)
        if chunked:
            pieces_in = torch.cat(list(vae.encode_stream([video], tiling)), dim=2)
            pieces_out = torch.cat(list(vae.decode_stream([latents], tiling)), dim=2)
        else:
            pieces_in, pieces_out = vae.encode(video, tiling), vae.decode(latents, tiling)
        encoded = psnr(vae.decode(pieces_in), whole, _PIXEL_RANGE, dims=5)
        frames = psnr(pieces_out.transpose(1, 2), whole.transpose(1, 2), _PIXEL_RANGE)  # B T
        return Seams(float(encoded), float(psnr(pieces_out, whole, _PIXEL_RANGE, dims=5)), float(frames.min()))
    finally:
        vae.tiling = aside
