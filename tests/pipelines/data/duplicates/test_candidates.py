"""The search finds near hashes without comparing all with all."""

import numpy as np

from pipelines.data.duplicates.candidates import NEIGHBOURS, candidates
from pipelines.data.duplicates.fingerprint import LAYOUT_SIZE, FingerprintArrays

LAYOUT = np.tile(np.linspace(40, 200, LAYOUT_SIZE // 3), 3).astype(np.uint8)


def prints(hashes, step=0.125, first=0.0):
    """Samples of one and the same layout, so that the hashes alone decide."""
    number = len(hashes)
    return FingerprintArrays(
        frame=np.arange(number, dtype=np.int32),
        seconds=first + np.arange(number) * step,
        hash=np.array(hashes, np.uint64),
        layout=np.tile(LAYOUT, (number, 1)),
        flat=np.zeros(number, bool),
    )


def random_hashes(rng, number):
    return rng.integers(0, 2**64, number, dtype=np.uint64)


def test_hashes_that_differ_in_three_bits_meet():
    rng = np.random.default_rng(0)
    one = random_hashes(rng, 200)
    flips = np.array([np.bitwise_or.reduce(np.uint64(1) << rng.choice(64, 3, False).astype(np.uint64)) for _ in one])
    for value, flip in zip(one, flips, strict=True):
        assert [(c.a, c.b) for c in candidates([prints([value]), prints([value ^ flip])])] == [(0, 1)]


def test_the_votes_tell_the_offset():
    hashes = random_hashes(np.random.default_rng(1), 60)
    (found,) = candidates([prints(hashes), prints(hashes[20:])])
    assert abs(found.offsets[0] + 20 * 0.125) < 1e-9


def test_unlike_and_flat_samples_are_no_candidates():
    rng = np.random.default_rng(2)
    assert candidates([prints(random_hashes(rng, 40)) for _ in range(50)]) == []
    same = prints(random_hashes(rng, 4))
    flat = FingerprintArrays(same.frame, same.seconds, same.hash, same.layout, np.ones(4, bool))
    assert candidates([same, flat]) == []
    assert candidates([]) == []


def test_boiler_plate_does_not_pair_all_with_all():
    sources = [prints([7]) for _ in range(400)]
    assert len(candidates(sources)) <= 400 * NEIGHBOURS


def test_a_source_meets_itself_only_when_asked():
    hashes = random_hashes(np.random.default_rng(3), 24)
    loop = prints(np.concatenate([hashes, hashes]))
    assert candidates([loop]) == []
    (found,) = candidates([loop], same_source=2.0)
    assert (found.a, found.b) == (0, 0)
    assert abs(found.offsets[0] - 3.0) < 1e-9
