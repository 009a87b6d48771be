"""Long videos: windows that cover everything once, and what is known of each."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kineograph.diffusion.windows import (
    Joiner,
    Window,
    block,
    encode_given,
    frames_of,
    known_latents,
    latents_of,
    plan_windows,
)
from kineograph.models.vae import PatchPCA, PatchPCAConfig, to_unit_range

quick = settings(deadline=None, max_examples=80)
strides = st.integers(1, 5)
windows = st.builds(
    lambda start, length, share: Window(start, int(share * length) if start else 0, length),
    st.integers(0, 4),
    st.integers(1, 6),
    st.floats(0, 1, exclude_max=True),
)


@st.composite
def plans(draw):
    """Latent frames, window and overlap."""
    window = draw(st.integers(2, 12))
    return draw(st.integers(1, 60)), window, draw(st.integers(1, window - 1))


class TestPlan:
    @quick
    @given(plan=plans())
    def test_covers_every_latent_once(self, plan):
        made = [w.start + j for w in plan_windows(*plan) for j in range(w.given + w.blended, w.length)]
        assert made == list(range(plan[0]))

    @quick
    @given(plan=plans())
    def test_shares_the_overlap_and_the_last_window_perhaps_more(self, plan):
        latents, length, overlap = plan
        first, *others = plan_windows(*plan)
        assert (first.start, first.given, first.length) == (0, 0, min(length, latents))
        before = first
        for window in others:
            assert window.length == length
            shared = before.start + before.length - window.start
            assert shared == overlap if window is not others[-1] else overlap <= shared < length
            assert (window.given, window.blended) == ((shared - 1, 1) if shared > 1 else (1, 0))
            before = window

    def test_of_a_minute_is_long_and_even(self):
        plan = list(plan_windows(361, 5, 2))
        assert len(plan) == 120
        assert {(w.given, w.blended) for w in plan[1:-1]} == {(1, 1)}

    @pytest.mark.parametrize("overlap", [0, 5, 6, -1])
    def test_with_an_overlap_that_does_not_fit_is_refused(self, overlap):
        with pytest.raises(ValueError, match="overlap by 1 to 4"):
            list(plan_windows(9, 5, overlap))

    def test_of_one_window_needs_no_overlap(self):
        assert list(plan_windows(5, 5, 0)) == [Window(0, 0, 5)]


class TestJoining:
    @quick
    @given(plan=plans(), stride=strides, data=st.data())
    def test_windows_cut_from_a_video_give_the_video(self, plan, stride, data):
        windows = list(plan_windows(*plan))
        video = torch.arange(frames_of(plan[0], stride)).view(1, 1, -1, 1, 1).double()
        joiner, joined = Joiner(stride), []
        for window, following in zip(windows, [*windows[1:], None], strict=True):
            start = window.start * stride
            if window.given:
                given = video[:, :, start : start + frames_of(window.given, stride)]
                assert torch.equal(joiner.carried, given)
            made = video[:, :, start : start + frames_of(window.length, stride)]
            pieces = made.split(data.draw(st.integers(1, made.shape[2])), dim=2)
            joined += joiner.join(pieces, window, following)
        assert torch.equal(torch.cat(joined, dim=2), video)

    @quick
    @given(size=st.integers(1, 17))
    def test_two_windows_are_led_over_into_one_another(self, size):
        """Each of three latents of four frames; the last of the first is the next's second."""
        windows, joiner, joined = list(plan_windows(4, 3, 2)), Joiner(4), []
        for value, (window, following) in enumerate(zip(windows, [windows[1], None], strict=True)):
            joined += joiner.join(torch.full((1, 1, 9, 1, 1), float(value)).split(size, dim=2), window, following)
        expected = torch.tensor([0.0] * 5 + [0.2, 0.4, 0.6, 0.8] + [1.0] * 4)
        torch.testing.assert_close(torch.cat(joined, dim=2).flatten(), expected)


class TestFramesAndLatents:
    @quick
    @given(latents=st.integers(1, 50), stride=strides)
    def test_frames_of_latents_are_held_by_as_many(self, latents, stride):
        assert latents_of(frames_of(latents, stride), stride) == latents

    @quick
    @given(frames=st.integers(1, 200), stride=strides)
    def test_latents_of_frames_hold_them_with_less_than_one_to_spare(self, frames, stride):
        assert 0 <= frames_of(latents_of(frames, stride), stride) - frames < stride

    @quick
    @given(window=windows, stride=strides)
    def test_blocks_are_the_frames_of_a_window_in_order(self, window, stride):
        """Its first latent is one frame, as that of a video is."""
        frames = [f for j in range(window.length) for f in block(j, window, stride)]
        start = window.start * stride
        assert frames == list(range(start, start + frames_of(window.length, stride)))

    @quick
    @given(later=st.integers(1, 5), latent=st.integers(1, 5), stride=strides)
    def test_blocks_behind_the_first_are_those_of_the_whole_video(self, later, latent, stride):
        here = block(latent, Window(later, 1, 9), stride)
        assert here == block(later + latent, Window(0, 0, 20), stride)

    @quick
    @given(window=windows, stride=strides, data=st.data())
    def test_a_latent_is_known_where_all_of_its_frames_are(self, window, stride, data):
        numbers = data.draw(st.sets(st.integers(0, 60)))
        known = known_latents(window, dict.fromkeys(numbers, np.zeros(0)), stride)
        for latent in range(window.length):
            expected = latent >= window.given and numbers.issuperset(block(latent, window, stride))
            assert (latent in known) == expected


STRIDE, SIDE = 3, 4


@pytest.fixture(scope="module")
def vae():
    """Of tubes of three frames; each patch is coded alone, so that runs can be compared with the whole."""
    vae = PatchPCA(PatchPCAConfig(stride=2, temporal_stride=STRIDE, channels=5))
    g = torch.Generator().manual_seed(0)
    vae.fit([torch.rand(3, 10, SIDE, SIDE, generator=g) * 2 - 1 for _ in range(4)])
    return vae


def draw_video(frames, seed):
    """uint8 (T H W 3), and (1 3 T H W) in [-1, 1]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, SIDE, SIDE, 3), dtype=np.uint8)
    return pixels, to_unit_range(torch.from_numpy(pixels))[None]


class TestEncoding:
    @quick
    @given(start=st.integers(0, 3), length=st.integers(1, 5), batch=st.integers(1, 2), data=st.data())
    def test_known_frames_are_as_in_the_whole_video(self, vae, start, length, batch, data):
        """Whichever latents are known: those of the video from the window's first frame on."""
        window = Window(start, 0, length)
        pixels, video = draw_video(start * STRIDE + frames_of(length, STRIDE), seed=start)
        chosen = data.draw(st.sets(st.integers(0, length - 1)))
        known = {f: pixels[f] for latent in chosen for f in block(latent, window, STRIDE)}
        latents, mask = encode_given(vae, window, None, known, (batch, 5, length, 2, 2))
        whole = vae.encode(video[:, :, start * STRIDE :])
        assert [{j for j in range(length) if row[j]} for row in mask.tolist()] == [chosen] * batch
        for latent in range(length):
            expected = whole[0, :, latent] if latent in chosen else torch.zeros(5, 2, 2)
            torch.testing.assert_close(latents[:, :, latent], expected.expand(batch, -1, -1, -1), atol=1e-5, rtol=0)

    @quick
    @given(given=st.integers(1, 4), before=st.integers(0, 3))
    def test_what_is_carried_over_is_the_end_of_the_window_before(self, vae, given, before):
        window = Window(before + 1, given, 5)
        videos = torch.cat([draw_video(frames_of(given + before, STRIDE), seed)[1] for seed in (0, 1)])
        latents, mask = encode_given(vae, window, videos, {}, (2, 5, 5, 2, 2))
        assert mask.tolist() == [[j < given for j in range(5)]] * 2
        expected = vae.encode(videos[:, :, before * STRIDE :])
        torch.testing.assert_close(latents[:, :, :given], expected, atol=1e-6, rtol=0)
        assert not latents[:, :, given:].any()

    def test_known_frames_stand_behind_what_is_carried_over(self, vae):
        window = Window(2, 2, 5)
        pixels, video = draw_video(2 * STRIDE + frames_of(5, STRIDE), seed=3)
        known = dict(enumerate(pixels))
        carried = draw_video(frames_of(2, STRIDE), seed=4)[1]
        latents, mask = encode_given(vae, window, carried, known, (1, 5, 5, 2, 2))
        assert mask.all()
        torch.testing.assert_close(latents[:, :, :2], vae.encode(carried), atol=1e-6, rtol=0)
        expected = vae.encode(video[:, :, 2 * STRIDE :])[:, :, 2:]
        torch.testing.assert_close(latents[:, :, 2:], expected, atol=1e-5, rtol=0)

    def test_with_nothing_known_nothing_is_given(self, vae):
        latents, mask = encode_given(vae, Window(0, 0, 3), None, {}, (2, 5, 3, 2, 2))
        assert not latents.any()
        assert not mask.any()
