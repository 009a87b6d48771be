"""Fingerprints do not see bars, scale or dark moments, and stay small."""

import json

import cv2
import numpy as np
import pytest

from pipelines.data.duplicates import fingerprint
from pipelines.data.duplicates.fingerprint import LAYOUT_SIZE, FingerprintArrays, Fingerprints, layout_hash


def picture(seed=0, height=90, width=160):
    """Planes (3, height, width) of a soft random picture without dark edges."""
    coarse = np.random.default_rng(seed).integers(60, 220, (5, 8, 3), np.uint8)
    return np.ascontiguousarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1))


def barred(planes, rows, columns):
    dark = [
        np.pad(p, ((rows, rows), (columns, columns)), constant_values=v)
        for p, v in zip(planes, (0, 128, 128), strict=True)
    ]
    return np.stack(dark)


def fingerprint_of(frames, fps=8):
    prints = Fingerprints()
    for index, planes in enumerate(frames):
        prints.add(index, index / fps, planes)
    return prints.finish()


def difference(a, b):
    return np.abs(a.layout.astype(int) - b.layout).max()


@pytest.mark.parametrize("bars", [(12, 0), (0, 20), (10, 10)])
def test_bars_and_scale_do_not_change_it(bars):
    copy = barred(picture(height=68, width=120), *bars)
    assert difference(fingerprint_of([picture()]), fingerprint_of([copy])) <= 4


def test_a_dark_moment_does_not_move_the_borders():
    dark_edge = picture()
    dark_edge[0, :30] = 5
    frames = [picture()] * 16 + [dark_edge] + [picture()] * 16
    prints = fingerprint_of(frames)
    assert difference(prints, fingerprint_of([barred(f, 12, 0) for f in frames])) <= 4
    assert prints.layout[16, :8].max() <= 6  # the dark edge is in the picture, not trimmed


def test_edges_that_are_always_dark_are_trimmed_with_bars_and_without():
    dark_edge = picture()
    dark_edge[0, :20] = 5
    dark_edge[1:, :20] = 128
    assert difference(fingerprint_of([dark_edge]), fingerprint_of([barred(dark_edge, 12, 6)])) <= 4


def test_a_colour_of_its_own_is_another_fingerprint():
    other = picture()[[0, 2, 1]]
    assert difference(fingerprint_of([picture()]), fingerprint_of([other])) > 20


def test_at_most_eight_samples_a_second_whatever_the_rate():
    assert fingerprint_of([picture()] * 8, fps=8).frame.tolist() == list(range(8))
    fast = fingerprint_of([picture()] * 60, fps=30)
    assert len(fast.frame) == 16
    assert np.diff(fast.seconds).max() < 0.17
    np.testing.assert_allclose(fast.seconds, fast.frame / 30)


def test_a_long_source_is_thinned_out_evenly(monkeypatch):
    monkeypatch.setattr(fingerprint, "MAX_SAMPLES", 20)
    prints = fingerprint_of([picture()] * 400)
    assert 10 <= len(prints.frame) <= 20
    steps = np.diff(prints.frame)
    assert set(steps.tolist()) == {int(steps[0])}
    assert prints.frame[0] == 0
    assert prints.frame[-1] >= 400 - steps[0]


def test_what_shows_nothing_is_flat():
    black, plain = np.zeros((3, 36, 64), np.uint8), np.full((3, 36, 64), 128, np.uint8)
    black[1:] = 128
    assert fingerprint_of([black, plain, picture()]).flat.tolist() == [True, True, False]


def test_noise_sets_few_bits_of_a_smooth_picture():
    layout = np.rint(np.tile(np.linspace(60, 200, 8), 24)).astype(np.uint8)[None].repeat(50, axis=0)
    noisy = layout + np.random.default_rng(0).integers(-1, 2, layout.shape)
    changed = np.unpackbits((layout_hash(layout) ^ layout_hash(noisy.astype(np.uint8))).view(np.uint8))
    assert changed.mean() * 64 < 3


def test_json_brings_it_back_and_nothing_decoded_is_no_sample():
    prints = fingerprint_of([picture(seed) for seed in range(5)])
    back = FingerprintArrays.from_json(json.loads(json.dumps(prints.to_json())))
    for name in ("frame", "seconds", "hash", "layout", "flat"):
        assert getattr(back, name).dtype == getattr(prints, name).dtype
        np.testing.assert_array_equal(getattr(back, name), getattr(prints, name))
    assert fingerprint_of([]).layout.shape == (0, LAYOUT_SIZE)
