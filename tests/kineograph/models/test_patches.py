"""Patches: cutting a video up and putting it together again loses nothing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kineograph.models.patches import padded_size, patchify, unpatchify

sizes = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))
patches = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
quick = settings(deadline=None, max_examples=80)


@quick
@given(size=sizes, patch=patches, channels=st.integers(1, 3))
def test_unpatchify_undoes_patchify_for_any_size_and_patch(size, patch, channels):
    video = torch.randn(2, channels, *size)
    assert torch.equal(unpatchify(patchify(video, patch), patch, size), video)


@quick
@given(size=sizes, patch=patches, channels=st.integers(1, 3))
def test_patchify_undoes_unpatchify_where_patches_are_whole(size, patch, channels):
    size = padded_size(size, patch)
    cut = patchify(torch.randn(2, channels, *size), patch)
    assert torch.equal(patchify(unpatchify(cut, patch, size), patch), cut)


@quick
@given(size=sizes, patch=patches)
def test_a_sequence_holds_whole_patches_only(size, patch):
    cut = patchify(torch.zeros(1, 3, *size), patch)
    frames, height, width = padded_size(size, patch)
    volume = patch[0] * patch[1] * patch[2]
    assert cut.shape == (1, frames // patch[0], height // patch[1] * (width // patch[2]), 3 * volume)


@quick
@given(size=sizes, patch=patches, channels=st.integers(1, 3))
def test_patches_are_what_a_strided_convolution_sees(size, patch, channels):
    """The kernel that copies value i of its window to channel i, over the video with zeros behind its far ends."""
    volume = patch[0] * patch[1] * patch[2]
    kernel = torch.eye(volume * channels).view(-1, *patch, channels).permute(0, 4, 1, 2, 3)  # pt ph pw C, C fastest
    video = torch.randn(2, channels, *size)
    (t, h, w), (full_t, full_h, full_w) = size, padded_size(size, patch)
    padded = F.pad(video, (0, full_w - w, 0, full_h - h, 0, full_t - t))
    seen = F.conv3d(padded, kernel, stride=patch).flatten(3)  # B pt·ph·pw·C T' S
    torch.testing.assert_close(patchify(video, patch), seen.permute(0, 2, 3, 1), atol=1e-6, rtol=0)


@quick
@given(size=sizes, patch=patches)
def test_gradients_come_back_to_their_places(size, patch):
    video = torch.randn(1, 2, *size, requires_grad=True)
    weight = torch.randn_like(video)
    (unpatchify(patchify(video, patch), patch, size) * weight).sum().backward()
    assert torch.equal(video.grad, weight)


def test_what_is_padded_is_zero():
    cut = patchify(torch.ones(1, 1, 1, 3, 3), (1, 2, 2))
    assert cut[0, 0].tolist() == [[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]


def test_frames_are_padded_at_the_end():
    cut = patchify(torch.ones(1, 1, 3, 1, 1), (2, 1, 1))
    assert cut[0, :, 0].tolist() == [[1, 1], [1, 0]]


def test_places_are_in_reading_order():
    video = torch.arange(4.0).reshape(1, 1, 1, 2, 2)
    assert patchify(video, (1, 1, 1)).flatten().tolist() == [0, 1, 2, 3]


def test_channels_are_last_in_a_patch():
    video = torch.tensor([[1.0, 2.0], [10.0, 20.0]]).view(1, 2, 1, 1, 2)  # two channels, a row of two
    assert patchify(video, (1, 1, 2)).flatten().tolist() == [1, 10, 2, 20]
