"""What coding and decoding a clip takes."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from kineograph.models.flops import TRAINING_FACTOR
from kineograph.models.vae import KLAutoencoder, KLAutoencoderConfig, build_autoencoder
from pipelines.train.kinds.vae.crop import Size


def training_flops(config: KLAutoencoderConfig, size: Size) -> float:
    """Floating-point operations of training on a clip of ``size``, the losses' own not among them, counted by torch while a
    clip without numbers goes through."""
    with torch.device("meta"):
        vae = build_autoencoder(config)
        assert isinstance(vae, KLAutoencoder)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            mean, _ = vae.posterior(torch.empty(1, 3, *size))
            vae.reconstruct(mean)
    return float(TRAINING_FACTOR * counter.get_total_flops())
