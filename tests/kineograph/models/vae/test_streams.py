"""Streams are cut by the number of frames alone, and cost no more memory when they are long."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from kineograph.models.vae.streams import Window, in_windows, regroup

EXACT = ["patch_pca", "AutoencoderKL", "AutoencoderKLWan", "AutoencoderKLWan 2.2", "AutoencoderKLQwenImage"]
EXACT += ["AutoencoderKLMagvit"]


def cut(video, lengths):
    """``video`` in pieces of ``lengths`` frames, over and over."""
    start = 0
    for length in itertools.cycle(lengths):
        if start >= video.shape[2]:
            return
        yield video[:, :, start : start + length]
        start += length


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 20), lengths, st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
def test_chunks_hold_every_frame_once_and_depend_on_their_number_alone(more, pieces, first, groups, unit):
    video = torch.arange(first + more * unit).view(1, 1, -1, 1, 1)
    chunks = list(regroup(cut(video, pieces), first, groups * unit, unit))
    assert torch.equal(torch.cat(chunks, dim=2), video)
    whole = list(regroup([video], first, groups * unit, unit))
    assert [chunk.shape for chunk in chunks] == [chunk.shape for chunk in whole]
    assert chunks[0].shape[2] == first
    assert all(chunk.shape[2] == groups * unit for chunk in chunks[1:-1])


@pytest.mark.parametrize("frames", [0, 3, 6])
def test_frames_that_do_not_divide_are_refused(frames):
    pieces = [torch.zeros(1, 1, 1, 1, 1)] * frames
    with pytest.raises(ValueError, match=f"{frames} frames do not divide"):
        list(regroup(pieces, 1, 4, 4))
    with pytest.raises(ValueError, match=f"{frames} frames do not divide"):
        list(in_windows(lambda x: x, pieces, Window(4, 2), 4, 1))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 25), lengths, st.integers(2, 6), st.data(), st.sampled_from([(1, 1), (1, 4), (4, 1)]))
def test_windows_of_a_coder_without_memory_give_the_whole(more, pieces, latents, data, units):
    """A coder that repeats or skips frames has no seams, so blended windows must show none."""
    window = Window(latents, data.draw(st.integers(1, latents - 1)))
    unit_in, unit_out = units

    def code(frames):
        first, rest = frames[:, :, :1], frames[:, :, unit_in::unit_in]
        return torch.cat([first, rest.repeat_interleave(unit_out, dim=2)], dim=2)

    video = torch.randn(1, 2, 1 + more * unit_in, 3, 1)
    coded = torch.cat(list(in_windows(code, cut(video, pieces), window, unit_in, unit_out)), dim=2)
    torch.testing.assert_close(coded, code(video))


@pytest.mark.parametrize("name", EXACT)
def test_a_stream_is_what_the_whole_video_gives(name, make_vae, make_video):
    vae = make_vae(name)
    stride, side = vae.strides[0], vae.strides[1]
    assert vae.streams_exactly or name == "patch_pca"

    @settings(deadline=None, max_examples=6)
    @given(st.integers(0, 11), st.integers(1, 4), st.integers(1, 4), lengths)
    def check(latents, rows, columns, pieces):
        video = make_video(1 + stride * latents, side * rows, side * columns)
        with torch.no_grad():
            whole = vae.encode(video)
            frames = vae.decode(whole)
        assert whole.shape == (1, vae.channels, 1 + latents, rows, columns)
        assert frames.shape == video.shape
        # Chunks have other shapes than the whole, so a processor's kernels may round otherwise.
        same = partial(torch.testing.assert_close, atol=1e-5, rtol=0)
        same(torch.cat(list(vae.encode_stream(cut(video, pieces))), dim=2), whole)
        same(torch.cat(list(vae.decode_stream(cut(whole, pieces))), dim=2), frames)

    check()


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors that were alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: value for key, value in self.alive.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


@pytest.mark.parametrize("name", ["patch_pca", "AutoencoderKL", "AutoencoderKLWan", "AutoencoderKLHunyuanVideo"])
def test_memory_does_not_grow_with_duration(name, make_vae):
    vae = make_vae(name)
    (stride, side, _), size = vae.strides, 2 * vae.strides[1]

    def peak(stream, shape, pieces):
        with PeakBytes() as measured:
            for _ in stream(torch.zeros(shape) for _ in range(pieces)):
                pass
        return measured.peak

    for latents in (32, 96):
        encoding = peak(vae.encode_stream, (1, 3, 1, size, size), 1 + stride * latents)
        decoding = peak(vae.decode_stream, (1, vae.channels, 1, size // side, size // side), 1 + latents)
        if latents == 32:
            short = encoding, decoding
    assert (encoding, decoding) == pytest.approx(short, rel=0.02)
