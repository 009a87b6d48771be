"""Who hangs, from what ranks last said."""

import pytest

from pipelines.train.watch.judge import Sign, judge, table

NAMES = [f"rank {rank} (host, pid {100 + rank})" for rank in range(4)]


def at(phase, still_s, step=7, allowed_s=60, **rest):
    return Sign(step, phase, still_s, allowed_s, **rest)


def verdict(*signs):
    return judge(dict(enumerate(signs)), NAMES, silence_s=54)


def test_the_one_that_stopped_first_hangs():
    found = verdict(at("update", 61), at("loading", 75), at("update", 62))
    assert found.culprits == (1,)
    assert found.text == "rank 1 (host, pid 101) hangs: 1m15s in step 7, loading"


def test_one_that_waits_for_others_does_not():
    assert verdict(at("forward", 63, waits=True), at("forward", 62)).culprits == (1,)


def test_a_silent_one_does_whatever_it_was_allowed():
    found = verdict(at("update", 70), at("looking", 2, allowed_s=3600, silent_s=65))
    assert found.culprits == (1,)
    assert found.text.startswith(
        "rank 1 (host, pid 101) has not been heard for 1m05s, last in step 7, looking: stopped"
    )


def test_all_silent_ones_are_named():
    assert verdict(at("update", 70), at("x", 70, silent_s=65), at("x", 70, silent_s=66)).culprits == (1, 2)


def test_where_all_are_at_one_place_nobody_is_blamed():
    found = verdict(at("update", 61), at("update", 62))
    assert (found.culprits, found.text) == ((), "all 2 ranks hang: 1m02s in step 7, update, nobody is behind")


def test_a_rank_alone_is_blamed():
    assert verdict(at("loading", 61)).culprits == (0,)


@pytest.mark.parametrize(
    "signs",
    [
        [at("update", 59), at("loading", 59)],
        [at("update", 500), at("loading", 10)],  # slow, and it moves
        [at("looking", 500, allowed_s=3600), at("update", 500)],  # the others wait for it
        [at("update", 5, step=9), at("update", 90, silent_s=90, passed=2)],  # its signs are lost: the others go on
        [],
    ],
)
def test_nobody_hangs(signs):
    assert verdict(*signs) is None


def test_one_whose_signs_are_lost_is_not_blamed_for_another():
    found = verdict(at("update", 70, step=9), at("loading", 80, step=9), at("x", 900, silent_s=900, passed=2))
    assert found.culprits == (1,)


def test_the_table_tells_of_each():
    signs = {0: at("update", 61.04, waits=True), 1: at("starting", 70, step=-1, silent_s=65)}
    assert table(signs, NAMES).splitlines() == [
        "rank 0 (host, pid 100): step 7, update for 61.0s of 60s, waits for others",
        "rank 1 (host, pid 101): starting for 70.0s of 60s, not heard for 65.0s",
    ]
