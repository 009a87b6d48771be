"""Which sources the plan never sees: by their names alone."""

from hypothesis import given
from hypothesis import strategies as st

from kineograph.store.shards import ClipEntry, RowAddress
from kineograph.store.split import split_validation

shares = st.floats(0, 0.99)


def entries(bucket, count):
    return [ClipEntry(f"{bucket}-{n}", f"s{n}", bucket, RowAddress(0, 0, n)) for n in range(count)]


@given(share=shares, count=st.integers(0, 60))
def test_all_clips_of_a_source_are_on_one_side(share, count):
    clips = [entry for bucket in ("32x32x1", "32x32x9") for entry in entries(bucket, count)]
    training, held_out = split_validation(clips, share)
    assert {c.source_id for c in training}.isdisjoint(c.source_id for c in held_out)
    assert len(training) + len(held_out) == len(clips)


@given(share=shares)
def test_more_data_moves_no_source_to_the_other_side(share):
    few, many = (split_validation(entries("32x32x9", count), share) for count in (20, 60))
    assert set(few[1]) <= set(many[1])


def test_about_the_share_asked_for_is_held_out():
    _, held_out = split_validation(entries("32x32x9", 4000), 0.25)
    assert abs(len(held_out) / 4000 - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_a_share_of_zero_holds_nothing_out():
    assert split_validation(entries("32x32x9", 50), 0.0)[1] == []
