"""How sure a mean is: its percentile bootstrap confidence interval (Efron 1979), seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

VERSION = "percentile-bootstrap-1"

_MOST_DRAWS = 1 << 24  # numbers held at a time


@dataclass(frozen=True)
class Estimate:
    """A mean, the number of values it is of, and the limits of its confidence interval."""

    value: float
    n: int
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """The mean of ``values`` (N) with the interval between the quantiles of the means of ``resamples``
    resamples.

    Of one value the interval is that value: nothing is known of its spread. Raises ValueError on no values,
    one that is not finite, a ``confidence`` outside (0, 1), or no resamples.
    """
    data = np.asarray(values, np.float64)
    _check(data, confidence, resamples)
    rng = np.random.default_rng(seed)
    rows = max(1, _MOST_DRAWS // len(data))
    means = np.concatenate(
        [
            data[rng.integers(len(data), size=(min(rows, resamples - start), len(data)))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(data.mean()), len(data), float(low), float(high))


def bootstrap_share(
    hits: Sequence[bool] | np.ndarray, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """The share of ``hits`` (N booleans) that are True, 0..1, with its interval.

    The number of hits in a resample is binomial, so it is drawn at once. Where all hits are alike, every
    resample is too and would claim certainty: there the far limit is the exact one of Clopper and Pearson
    (1934), (α/2)^(1/N) from the value. Raises ValueError as :func:`bootstrap_mean`, and on values other
    than 0 and 1.
    """
    data = np.asarray(hits, np.float64)
    _check(data, confidence, resamples)
    if not np.isin(data, (0, 1)).all():
        raise ValueError("a share is of values that are True or False")
    n, value = len(data), float(data.mean())
    far = ((1 - confidence) / 2) ** (1 / n)
    if value == 1:
        return Estimate(value, n, far, 1.0)
    if value == 0:
        return Estimate(value, n, 0.0, 1 - far)
    shares = np.random.default_rng(seed).binomial(n, value, size=resamples) / n
    low, high = np.quantile(shares, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, n, float(low), float(high))


def _check(data: np.ndarray, confidence: float, resamples: int) -> None:
    if data.ndim != 1 or not len(data):
        raise ValueError(f"a mean needs a list of at least one value, not an array of shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError("a value is not finite")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence {confidence} must lie in (0, 1) and resamples {resamples} be 1 or more")
