"""Means say how sure they are, and as scipy says it."""

import numpy as np
import pytest
from scipy import stats

from kineograph.metrics.bootstrap import bootstrap_mean, bootstrap_share


def scipy_interval(data, confidence=0.95):
    return stats.bootstrap(
        (data,), np.mean, confidence_level=confidence, n_resamples=10_000, method="percentile", rng=3
    ).confidence_interval


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_of_a_mean_is_scipys(confidence):
    data = np.random.default_rng(0).exponential(size=60)
    ours, theirs = bootstrap_mean(data, confidence=confidence), scipy_interval(data, confidence)
    # A quantile of 10,000 resampled means is known to about 1/25 of their spread.
    tolerance = 0.06 * data.std() / np.sqrt(len(data))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=2 * tolerance)
    assert (ours.value, ours.n) == (data.mean(), 60)


def test_the_interval_of_a_share_is_scipys():
    hits = np.arange(64) < 45
    ours, theirs = bootstrap_share(hits), scipy_interval(hits.astype(float))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1.01 / 64)
    assert ours.value == 45 / 64


@pytest.mark.parametrize("function", [bootstrap_mean, bootstrap_share])
def test_the_same_seed_gives_the_same_interval(function):
    hits = np.arange(40) % 3 == 0
    assert function(hits, seed=7) == function(hits, seed=7)


def test_hits_without_a_miss_are_not_certain():
    every, none = bootstrap_share([True] * 64), bootstrap_share([False] * 64)
    assert (every.low, every.high) == (pytest.approx(stats.binomtest(64, 64).proportion_ci().low), 1.0)
    assert (none.low, none.high) == (0.0, pytest.approx(stats.binomtest(0, 64).proportion_ci().high))


def test_many_values_are_resampled_in_parts():
    data = np.random.default_rng(1).normal(size=100_000)
    estimate = bootstrap_mean(data, resamples=400)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 / np.sqrt(100_000), rel=0.15)


@pytest.mark.parametrize("values", [[], [0.0, float("nan")], [[1.0]]])
def test_what_is_no_list_of_numbers_is_refused(values):
    with pytest.raises(ValueError, match="value"):
        bootstrap_mean(values)


def test_a_share_of_other_than_yes_and_no_is_refused():
    with pytest.raises(ValueError, match="True or False"):
        bootstrap_share([0.5, 1.0])
