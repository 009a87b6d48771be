"""PSNR and SSIM, with scikit-image as oracle."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kineograph.metrics.image import psnr, ssim


def images(seed, shape, noise=20):
    """A picture of bytes and a disturbed copy, both (... C H W)."""
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, 256, shape).astype(np.float64)
    reference = (reference + np.roll(reference, 1, -1) + np.roll(reference, 1, -2)) / 3
    image = np.clip(reference + rng.normal(0, noise, shape), 0, 255)
    return torch.from_numpy(image.astype(np.uint8)), torch.from_numpy(reference.astype(np.uint8))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 99), st.integers(11, 40), st.integers(11, 40))
def test_one_image_as_scikit_image_has_it(seed, height, width):
    image, reference = images(seed, (3, height, width))
    theirs = structural_similarity(
        image.numpy(),
        reference.numpy(),
        data_range=255,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert float(ssim(image, reference, 255)) == pytest.approx(theirs, abs=1e-9)
    theirs = peak_signal_noise_ratio(reference.numpy(), image.numpy(), data_range=255)
    assert float(psnr(image, reference, 255)) == pytest.approx(theirs, abs=1e-9)


def test_images_of_a_video_are_judged_one_by_one():
    image, reference = images(0, (2, 4, 3, 16, 12))
    assert psnr(image, reference, 255).shape == ssim(image, reference, 255).shape == (2, 4)
    assert float(psnr(image, reference, 255)[1, 2]) == float(psnr(image[1, 2], reference[1, 2], 255))
    assert float(ssim(image, reference, 255)[1, 2]) == pytest.approx(float(ssim(image[1, 2], reference[1, 2], 255)))


def test_the_psnr_of_a_video_is_that_of_its_mean_error():
    image, reference = images(1, (2, 3, 4, 16, 12))
    per_frame = psnr(image.transpose(1, 2), reference.transpose(1, 2), 255)
    error = (255**2 / 10 ** (per_frame / 10)).mean(1)
    torch.testing.assert_close(psnr(image, reference, 255, dims=4), 10 * torch.log10(255**2 / error))


def test_the_range_of_the_values_does_not_matter():
    image, reference = images(2, (3, 16, 16))
    unit = [t.double() / 127.5 - 1 for t in (image, reference)]
    assert float(psnr(*unit, 2)) == pytest.approx(float(psnr(image, reference, 255)))
    assert float(ssim(image, reference, 255)) == pytest.approx(float(ssim(image / 255, reference / 255, 1)), abs=1e-6)


def test_equal_pictures():
    image, _ = images(3, (3, 16, 16))
    assert float(psnr(image, image, 255)) == math.inf
    assert float(ssim(image, image, 255)) == pytest.approx(1)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        psnr(torch.zeros(3, 16, 16), torch.zeros(3, 16, 12), 1)
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(torch.zeros(3, 10, 16), torch.zeros(3, 10, 16), 1)
