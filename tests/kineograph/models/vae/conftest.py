"""Small random autoencoders of every kind, and smooth videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kineograph.models.vae import (
    Architecture,
    Autoencoder,
    CausalVAEConfig,
    ImageVAEConfig,
    PatchPCA,
    PatchPCAConfig,
    build_autoencoder,
)

_WAN = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, True]}
_FOUR = [8, 8, 8, 8]
SETTINGS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
    },
    "AutoencoderKLWan": _WAN,
    "AutoencoderKLWan 2.2": {**_WAN, "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12},
    "AutoencoderKLQwenImage": _WAN,
    "AutoencoderKLMagvit": {
        "latent_channels": 4,
        "block_out_channels": _FOUR,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "AutoencoderKLHunyuanVideo": {
        "latent_channels": 4,
        "block_out_channels": _FOUR,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "AutoencoderKLHunyuanVideo15": {
        "latent_channels": 4,
        "block_out_channels": [16, 16, 16],
        "layers_per_block": 1,
        "spatial_compression_ratio": 4,
        "temporal_compression_ratio": 4,
    },
    "AutoencoderKLLTXVideo": {
        "latent_channels": 8,
        "block_out_channels": _FOUR,
        "decoder_block_out_channels": _FOUR,
        "layers_per_block": [1] * 5,
        "decoder_layers_per_block": [1] * 5,
        "spatio_temporal_scaling": [True, True, False, False],
        "decoder_spatio_temporal_scaling": [True, True, False, False],
        "patch_size": 1,
    },
    "AutoencoderKLMochi": {
        "latent_channels": 4,
        "encoder_block_out_channels": [32] * 4,
        "decoder_block_out_channels": [32] * 4,
        "layers_per_block": [1] * 5,
        "latents_mean": [0.5, 0.0, 0.0, -0.5],
        "latents_std": [1.0, 2.0, 1.0, 0.5],
    },
    "AutoencoderKLCosmos": {
        "latent_channels": 4,
        "encoder_block_out_channels": _FOUR,
        "decode_block_out_channels": _FOUR,
        "attention_resolutions": [8],
        "resolution": 64,
        "num_layers": 1,
        "patch_size": 4,
        "spatial_compression_ratio": 4,
        "temporal_compression_ratio": 4,
        "latents_mean": None,
        "latents_std": None,
    },
}
"""Settings of a tiny model of each class; what stands behind a blank tells two of one class apart."""


def smooth(frames: int, height: int, width: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    """Videos (B 3 T H W) in [-1, 1] without edges."""
    coarse = torch.randn(batch, 3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    size = (frames, height, width)
    return torch.nn.functional.interpolate(coarse, size=size, mode="trilinear", align_corners=True).clamp(-2, 2) / 2


@pytest.fixture(scope="session")
def make_vae() -> Callable[..., Autoencoder]:
    """``make_vae(name, **config)``: a tiny autoencoder with the same random weights each time."""

    def make(name: str, **config: Any) -> Autoencoder:
        torch.manual_seed(0)
        if name == "patch_pca":
            vae = PatchPCA(PatchPCAConfig(**{"channels": 4, **config}))
            vae.fit(list(smooth(9, 16, 24, batch=4)))
            return vae
        architecture = Architecture(class_name=name.split()[0], settings=SETTINGS[name])
        kind = ImageVAEConfig if name == "AutoencoderKL" else CausalVAEConfig
        return build_autoencoder(kind(architecture=architecture, **config)).eval()

    return make


@pytest.fixture(scope="session")
def make_video() -> Callable[..., torch.Tensor]:
    return smooth
