"""Which bucket a pack is of: even, exact, and known for any pack at once."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kineograph.errors import UserError
from kineograph.media.geometry import Bucket
from pipelines.train.plan.mixing import Mixing, clip_shares
from tests.pipelines.train.plan.made_up import IMAGES, LONG, VIDEOS, WIDE_IMAGES, WIDE_VIDEOS

NAMES = [Bucket(16 * (1 + n // 3), 16 * (1 + n % 3), frames) for n in range(20) for frames in (1, 9)]
rates = st.dictionaries(
    st.sampled_from(NAMES), st.fractions(0, 1000, max_denominator=64), min_size=1, max_size=40
).filter(lambda rates: any(rates.values()))


def sequence(mixing, packs):
    """The bucket of each of the first packs."""
    counts = [mixing.counts(k) for k in range(packs + 1)]
    return [next(b for b in after if after[b] > before[b]) for before, after in itertools.pairwise(counts)]


@given(rates=rates, packs=st.integers(0, 10**12))
def test_every_bucket_is_within_two_packs_of_its_share(rates, packs):
    mixing = Mixing(rates)
    counts = mixing.counts(packs)
    assert sum(counts.values()) == packs
    assert all(abs(counts[bucket] - packs * rate) <= 2 for bucket, rate in mixing.rates.items())


@given(rates=rates, packs=st.integers(0, 10**12))
def test_images_are_within_half_a_pack_of_their_share(rates, packs):
    mixing = Mixing(rates)
    images = sum(rate for bucket, rate in mixing.rates.items() if bucket.is_image)
    assert abs(sum(n for b, n in mixing.counts(packs).items() if b.is_image) - packs * images) <= Fraction(501, 1000)


@given(rates=rates, packs=st.integers(0, 10**12))
def test_one_pack_more_is_one_pack_of_one_bucket(rates, packs):
    mixing = Mixing(rates)
    before, after = mixing.counts(packs), mixing.counts(packs + 1)
    assert sorted(after[bucket] - before[bucket] for bucket in rates) == [0] * (len(rates) - 1) + [1]


@given(rates=rates)
def test_the_place_of_a_pack_is_where_it_is_counted(rates):
    mixing = Mixing(rates)
    seen = dict.fromkeys(rates, 0)
    for place, bucket in enumerate(sequence(mixing, 60)):
        assert mixing.place(bucket, seen[bucket]) == place
        seen[bucket] += 1


@given(rates=rates, packs=st.integers(0, 10**12))
def test_far_places_are_where_packs_are_counted(rates, packs):
    mixing = Mixing(rates)
    before, after = mixing.counts(packs), mixing.counts(packs + 1)
    (bucket,) = (bucket for bucket in rates if after[bucket] > before[bucket])
    assert mixing.place(bucket, before[bucket]) == packs


def test_equal_buckets_take_turns():
    buckets = [IMAGES, WIDE_IMAGES, VIDEOS, WIDE_VIDEOS]
    order = sequence(Mixing(dict.fromkeys(buckets, Fraction(1))), 40)
    assert all(set(order[i : i + 4]) == set(buckets) for i in range(0, 40, 4))
    assert [bucket.is_image for bucket in order[:4]] in ([True, False] * 2, [False, True] * 2)


CLIPS = {IMAGES: 60, WIDE_IMAGES: 20, VIDEOS: 90, WIDE_VIDEOS: 30}


@pytest.mark.parametrize(
    ("mix", "shares"),
    [
        ({}, {IMAGES: 0.3, WIDE_IMAGES: 0.1, VIDEOS: 0.45, WIDE_VIDEOS: 0.15}),
        ({"images": 0.2}, {IMAGES: 0.15, WIDE_IMAGES: 0.05, VIDEOS: 0.6, WIDE_VIDEOS: 0.2}),
        ({"24x40x1": 0.1, "images": 0.2}, {IMAGES: 0.2, WIDE_IMAGES: 0.1, VIDEOS: 0.525, WIDE_VIDEOS: 0.175}),
        ({"videos": 1.0}, {IMAGES: 0, WIDE_IMAGES: 0, VIDEOS: 0.75, WIDE_VIDEOS: 0.25}),
        ({"32x32x9": 0.1}, {IMAGES: 54 / 110, WIDE_IMAGES: 18 / 110, VIDEOS: 0.1, WIDE_VIDEOS: 27 / 110}),
        (
            {"images": 0.3, "32x32x9": 0.6, "24x40x9": 0.1},
            {IMAGES: 0.225, WIDE_IMAGES: 0.075, VIDEOS: 0.6, WIDE_VIDEOS: 0.1},
        ),
    ],
)
def test_shares_of_a_mix(mix, shares):
    found = clip_shares(CLIPS, mix)
    assert sum(found.values()) == 1
    assert {bucket: float(share) for bucket, share in found.items()} == pytest.approx(shares)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"image": 0.2}, r"no bucket is called 'image'; did you mean 'images'\?"),
        ({"32x32x8": 0.2}, r"no bucket is called '32x32x8'; did you mean '32x32x[19]'\?"),
        ({"images": 0.7, "videos": 0.6}, r"shares add up to 1\.3: lower them"),
        ({"images": 0.3, "videos": 0.6}, r"names all buckets, and its shares add up to 0\.9: raise them to 1"),
        ({"images": -0.1}, r"the share of 'images' is -0\.1: give one from 0 to 1"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(mix, message):
    with pytest.raises(UserError, match=message) as error:
        clip_shares(CLIPS, mix)
    assert "\n" not in str(error.value)


def test_images_where_there_are_none_are_refused():
    with pytest.raises(UserError, match="there are no images without a share of their own: leave 'images' out"):
        clip_shares({VIDEOS: 5, LONG: 5}, {"images": 0.1})
