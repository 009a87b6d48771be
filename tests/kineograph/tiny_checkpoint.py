"""A checkpoint of a model that was never trained but whose output is not zero: made in a moment, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kineograph.diffusion.flow import FlowConfig
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.models.vae import PatchPCA, PatchPCAConfig, save_autoencoder
from kineograph.store.checkpoints import CONFIG, checkpoint_folder, seal
from kineograph.store.commit import write_json

STRIDE = 4
"""Frames per latent after the first."""
FRAMES = 17
"""Of its videos: windows of 5 latent frames."""
FPS = 8.0


def make_checkpoint(run: Path, step: int = 7, size: str = "16x24", **config: Any) -> Path:
    """A whole checkpoint in a training run at ``run``; ``config`` replaces keys of its config.json."""
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model_config = STDiTConfig(in_channels=4, text_width=384, width=32, depth=1, heads=2)
    vae, model = PatchPCA(PatchPCAConfig(channels=4, temporal_stride=STRIDE)), STDiT(model_config)
    vae.fit([torch.rand(3, 9, 16, 16) * 2 - 1 for _ in range(4)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    save_file(model.state_dict(), folder / "model.safetensors")
    save_file({name: tensor * 0.5 for name, tensor in model.state_dict().items()}, folder / "ema.safetensors")
    save_autoencoder(vae, folder / "vae")
    facts = {
        "kind": "diffusion",
        "step": step,
        "model": model_config.model_dump(mode="json"),
        "diffusion": FlowConfig(shift=2.0).model_dump(mode="json"),
        "text_encoder": {"name": "minilm", "width": 384, "max_tokens": 64},
        "buckets": [f"{size}x{FRAMES}", f"{size}x1"],
        "fps": FPS,
        "sampling": {"steps": 3, "guidance": {"scale": 3.0}, "first_frame_first": True},
    }
    write_json(folder / CONFIG, facts | config)
    seal(folder)
    return folder
