"""Patches: cutting a video up and putting it together again loses nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kineograph.models.patches import padded_size, patchify, unpatchify

sizes = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
patches = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


@given(size=sizes, patch=patches, channels=st.integers(1, 3))
def test_unpatchify_undoes_patchify_for_any_size_and_patch(size, patch, channels):
    video = torch.randn(2, channels, *size)
    assert torch.equal(unpatchify(patchify(video, patch), patch, size), video)


@given(size=sizes, patch=patches)
def test_a_sequence_holds_whole_patches_only(size, patch):
    cut = patchify(torch.zeros(1, 3, *size), patch)
    frames, height, width = padded_size(size, patch)
    volume = patch[0] * patch[1] * patch[2]
    assert cut.shape == (1, frames // patch[0], height // patch[1] * (width // patch[2]), 3 * volume)


def test_what_is_padded_is_zero():
    cut = patchify(torch.ones(1, 1, 1, 3, 3), (1, 2, 2))
    assert cut[0, 0].tolist() == [[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]


def test_places_are_in_reading_order():
    video = torch.arange(4.0).reshape(1, 1, 1, 2, 2)
    assert patchify(video, (1, 1, 1)).flatten().tolist() == [0, 1, 2, 3]
