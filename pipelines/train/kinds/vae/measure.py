"""How well an autoencoder gives clips back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kineograph.media.encode import contact_sheet
from kineograph.media.geometry import Bucket
from kineograph.metrics.image import psnr, ssim
from kineograph.models.vae import Autoencoder, to_uint8
from kineograph.store.loader import ClipLoader
from kineograph.store.shards import ClipEntry
from pipelines.train.kinds.base import Findings
from pipelines.train.kinds.vae.crop import cut_centre, whole_size

SSIM_SIDE = 11
"""Pixels that SSIM's window needs."""


@torch.no_grad()
def measure(
    vae: Autoencoder,
    loader: ClipLoader,
    clips: Sequence[Sequence[ClipEntry]],
    pictures: int,
    device: torch.device,
) -> Findings:
    """PSNR (dB, of a clip's mean squared error) and SSIM (mean over its frames), means over ``clips``, a list for each
    bucket, through encode and decode as generation uses them; and ``pictures`` clips of each bucket above their
    reconstructions."""
    scores: dict[str, list[float]] = {}
    shown: list[np.ndarray] = []
    labels: list[str] = []
    for entries in clips:
        bucket = Bucket.parse(entries[0].bucket)
        size, media = whole_size(bucket, vae.strides), "image" if bucket.is_image else "video"
        for place, entry in enumerate(entries):
            video = cut_centre(loader.load([entry])[0].picture, size)[None].to(device)  # 1 3 T H W
            made = vae.decode(vae.encode(video)).clamp(-1, 1)
            found = {"psnr": float(psnr(made, video, peak=2.0, dims=4)[0].clamp_max(100))}
            if min(size.height, size.width) >= SSIM_SIDE:
                made_frames, frames = made[0].transpose(0, 1), video[0].transpose(0, 1)  # T 3 H W
                found["ssim"] = float(ssim(made_frames, frames, peak=2.0).mean())
            for name, value in found.items():
                scores.setdefault(f"validation_{name}", []).append(value)
                scores.setdefault(f"validation_{name}_{media}", []).append(value)
            if place < pictures:
                shown += [to_uint8(v[0]).cpu().numpy() for v in (video, made)]
                labels += ["original", f"reconstruction, {found['psnr']:.1f} dB"]
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    return Findings(means, {"reconstructions": contact_sheet(shown, labels)} if shown else {})
