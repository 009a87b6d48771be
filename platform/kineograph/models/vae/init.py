"""Weights that an autoencoder begins its training with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

INITIAL_LOGVAR = -6.0
"""Of the posterior: with σ = 1 the decoder would first have to learn to hear anything through the noise."""


@torch.no_grad()
def initialise(model: Any) -> None:
    """Begin as a chain of near-linear layers that passes a picture on, which learns faster.

    In Wan and its kin every convolution keeps the variance of its input (LeCun et al. 1998), and what a residual block adds
    begins at zero (Zhang et al. 2019, Fixup), so that a block is its shortcut. In any model with a :func:`moments_layer`
    the posterior begins narrow. Other models keep the weights they were built with.
    """
    if type(model).__name__ in ("AutoencoderKLWan", "AutoencoderKLQwenImage"):
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in model.modules():
            for last in _last_of_branch(module):
                nn.init.zeros_(last.weight)
    moments = moments_layer(model)
    if moments is not None:
        _narrow(moments)


@torch.no_grad()
def silence(model: Any) -> None:
    """Let the network say nothing at first: means, and the frames that it decodes, are zero and the posterior narrow."""
    moments = moments_layer(model)
    assert moments is not None
    for layer in (moments, last_layer(model)):
        for parameter in layer.parameters():
            parameter.zero_()
    _narrow(moments)


def moments_layer(model: Any) -> Any:
    """The convolution that gives the posterior's means and then its log-variances; None where a model has none such."""
    layer = model.quant_conv if hasattr(model, "quant_conv") else None
    if layer is None and type(model).__name__ == "AutoencoderKL":
        layer = model.encoder.conv_out
    config = model.config
    channels = config["latent_channels"] if "latent_channels" in config else config["z_dim"]
    return layer if layer is not None and layer.out_channels == 2 * channels else None


def last_layer(model: Any) -> nn.Module:
    """The decoder's last layer."""
    decoder = model.decoder
    layer: nn.Module = decoder.proj_out if hasattr(decoder, "proj_out") else decoder.conv_out
    return layer


def _narrow(moments: Any) -> None:
    _, logvars = moments.bias.chunk(2)
    logvars.fill_(INITIAL_LOGVAR)


def _last_of_branch(module: Any) -> list[Any]:
    """The last convolution of what ``module`` adds to its input, where it is a residual or an attention block."""
    name = type(module).__name__
    if name.endswith("ResidualBlock"):
        return [module.conv2]
    return [module.proj] if name.endswith("AttentionBlock") else []
