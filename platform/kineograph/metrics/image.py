"""How close one picture is to another: PSNR and SSIM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PSNR_VERSION = "psnr-1"
SSIM_VERSION = "ssim-wang2004-gaussian11-1"

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def psnr(image: Tensor, reference: Tensor, peak: float, dims: int = 3) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10·log10(peak² / mean squared error): inf where they are equal.

    Args:
        image, reference: of one shape, of any dtype.
        peak: distance from the darkest to the brightest value, 255 for bytes, 2 for [-1, 1].
        dims: the mean is over so many last dimensions: 3 for images (... C H W), 4 for whole videos (... C T H W).

    Returns float64 of the shape that is left. Raises ValueError when the shapes differ.
    """
    _check(image, reference, dims)
    error = (image.double() - reference.double()).square().flatten(-dims).mean(-1)
    return 10 * torch.log10(peak**2 / error)


def ssim(image: Tensor, reference: Tensor, peak: float) -> Tensor:
    """Structural similarity (Wang et al. 2004), -1..1, 1 where they are equal: (... C H W) to float64 (...).

    A Gaussian window of 11 pixels and σ 1.5, K 0.01 and 0.03, each channel alone, mean over the places where the window
    lies within the image, as scikit-image has it with ``gaussian_weights=True, use_sample_covariance=False``.
    Raises ValueError when the shapes differ or a side is under 11 pixels.
    """
    _check(image, reference, 3)
    height, width = image.shape[-2:]
    if min(height, width) < _WINDOW:
        raise ValueError(f"SSIM needs sides of {_WINDOW} pixels, not {height}x{width}")
    x, y = (t.double().reshape(-1, 1, height, width) for t in (image, reference))
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x = _blurred(x * x) - mean_x**2
    var_y = _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean(dim=(1, 2, 3)).reshape(image.shape[:-2]).mean(-1)


def _blurred(x: Tensor) -> Tensor:
    """The Gaussian mean at each place where the window fits: rows, then columns."""
    place = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    window = torch.exp(-place.square() / (2 * _SIGMA**2))
    window = window / window.sum()
    return F.conv2d(F.conv2d(x, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def _check(image: Tensor, reference: Tensor, dims: int) -> None:
    if image.shape != reference.shape or image.dim() < dims:
        raise ValueError(
            f"two pictures of one shape are compared, not {list(image.shape)} with {list(reference.shape)}"
        )
