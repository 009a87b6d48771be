"""Autoencoders behind one interface: patch-PCA, image autoencoders frame by frame, causal video autoencoders."""

from __future__ import annotations

from kineograph.models.vae.architectures import PRESETS, Architecture
from kineograph.models.vae.base import Autoencoder, AutoencoderConfig
from kineograph.models.vae.causal import CausalVAE, CausalVAEConfig
from kineograph.models.vae.folder import (
    CONFIG,
    KINDS,
    WEIGHTS,
    AnyAutoencoderConfig,
    build_autoencoder,
    fingerprint,
    load_autoencoder,
    parse_autoencoder_config,
    save_autoencoder,
)
from kineograph.models.vae.image import ImageVAE, ImageVAEConfig
from kineograph.models.vae.kl import KLAutoencoder, KLAutoencoderConfig, Reconstruction
from kineograph.models.vae.patch_pca import PCA, PatchPCA, PatchPCAConfig
from kineograph.models.vae.pixels import to_uint8, to_unit_range
from kineograph.models.vae.tiling import Tiling

__all__ = [
    "CONFIG",
    "KINDS",
    "PCA",
    "PRESETS",
    "WEIGHTS",
    "AnyAutoencoderConfig",
    "Architecture",
    "Autoencoder",
    "AutoencoderConfig",
    "CausalVAE",
    "CausalVAEConfig",
    "ImageVAE",
    "ImageVAEConfig",
    "KLAutoencoder",
    "KLAutoencoderConfig",
    "PatchPCA",
    "PatchPCAConfig",
    "Reconstruction",
    "Tiling",
    "build_autoencoder",
    "fingerprint",
    "load_autoencoder",
    "parse_autoencoder_config",
    "save_autoencoder",
    "to_uint8",
    "to_unit_range",
]
