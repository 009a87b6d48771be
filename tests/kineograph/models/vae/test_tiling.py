"""Tiles cover a frame, blend without seams, and come close to the whole frame."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.config import parse_config
from kineograph.errors import RecipeError, UserError
from kineograph.models.vae import Tiling
from kineograph.models.vae.seams import seams
from kineograph.models.vae.tiling import spans, tiled


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(2, 20), st.data())
def test_tiles_cover_all_of_an_axis_and_overlap(total, size, data):
    overlap = data.draw(st.integers(1, size - 1))
    cuts = spans(total, size, overlap)
    assert cuts[0][0] == 0
    assert cuts[-1][1] == total
    assert all(end - start == min(size, total) for start, end in cuts)
    assert all(before[1] - after[0] >= overlap for before, after in pairwise(cuts))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 6), st.data(), st.booleans())
def test_a_coder_that_looks_at_no_neighbours_has_no_seams(rows, columns, size, data, encode):
    overlap = data.draw(st.integers(1, size - 1))
    stride = 4

    def code(pieces):
        for piece in pieces:
            if encode:
                yield torch.nn.functional.avg_pool3d(piece, (1, stride, stride))
            else:
                yield piece.repeat_interleave(stride, dim=3).repeat_interleave(stride, dim=4)

    scale = stride if encode else 1
    pieces = [torch.randn(1, 2, n, rows * scale, columns * scale) for n in (1, 3)]
    run = tiled(code, Tiling(size=size * stride, overlap=overlap * stride), (stride, stride), encode)
    for part, whole in zip(run(pieces), code(pieces), strict=True):
        torch.testing.assert_close(part, whole)


def test_tiles_of_one_frame_that_all_say_something_else_are_blended_smoothly():
    """Each tile is a constant; across the seam the picture goes from one to the next in equal steps."""
    values = iter([0.0, 1.0])

    def code(pieces):
        value = next(values)
        for piece in pieces:
            yield torch.full_like(piece, value)

    run = tiled(code, Tiling(size=8, overlap=4), (1, 1), encode=True)
    (row,) = (out[0, 0, 0, 0] for out in run([torch.zeros(1, 1, 1, 8, 12)]))
    torch.testing.assert_close(row[:4], torch.zeros(4))
    torch.testing.assert_close(row[8:], torch.ones(4))
    torch.testing.assert_close(row[4:8], torch.tensor([0.125, 0.375, 0.625, 0.875]))


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan"])
def test_tiles_come_close_to_the_whole_on_a_smooth_video(name, make_vae, make_video):
    """Random weights and norms and attention over the whole frame are the hard case; 16 pixels of overlap hold 20 dB."""
    vae, video = make_vae(name), make_video(5, 48, 64)
    tiles = seams(vae, video, Tiling(size=32, overlap=16))
    assert min(tiles) >= 20
    wide = seams(vae, video, Tiling(size=32, overlap=24))
    assert wide.decoded > tiles.decoded
    assert seams(vae, video, Tiling(size=64, overlap=16)) == (float("inf"),) * 3  # no frame is larger


def test_patches_that_are_coded_alone_have_no_seams(make_vae, make_video):
    assert min(seams(make_vae("patch_pca"), make_video(9, 48, 40), Tiling(size=24, overlap=8), chunked=True)) > 120


def test_tiles_of_a_stream_are_those_of_the_whole_video(make_vae, make_video):
    vae, video, tiling = make_vae("AutoencoderKLWan"), make_video(21, 32, 48), Tiling(size=24, overlap=8)
    with torch.no_grad():
        latents = vae.encode(video, tiling)
        frames = vae.decode(latents, tiling)
    same = partial(torch.testing.assert_close, atol=1e-5, rtol=0)
    same(torch.cat(list(vae.encode_stream(video.split(2, dim=2), tiling)), dim=2), latents)
    same(torch.cat(list(vae.decode_stream(latents.split(1, dim=2), tiling)), dim=2), frames)


def test_the_tiling_of_the_config_is_used_where_a_call_does_not_say(make_vae, make_video):
    video, tiling = make_video(1, 48, 48), Tiling(size=24, overlap=8)
    by_config, by_call = make_vae("AutoencoderKL", tiling=tiling), make_vae("AutoencoderKL")
    with torch.no_grad():
        assert torch.equal(by_config.encode(video), by_call.encode(video, tiling))
        assert not torch.equal(by_config.encode(video), by_call.encode(video))


def test_tiles_that_cannot_be_are_refused(make_vae, make_video):
    with pytest.raises(RecipeError, match="overlap 64 must be less than size 32"):
        parse_config({"size": 32}, Tiling)
    with pytest.raises(UserError, match="multiples of the autoencoder's 4 pixels"):
        make_vae("AutoencoderKLWan").encode(make_video(1, 48, 48), Tiling(size=24, overlap=10))
