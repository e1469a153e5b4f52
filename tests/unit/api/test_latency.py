"""Latency histograms: exact counts, quantiles within their bucket."""

import numpy as np
import pytest

from experiment_service.api.latency import BUCKETS_MS, LatencyHistogram


def test_empty_histogram_has_no_quantile():
    document = LatencyHistogram().document()
    assert (document["count"], document["p50_ms"], document["mean_ms"]) == (
        0,
        None,
        None,
    )


def test_bounds_belong_to_the_bucket_below():
    histogram = LatencyHistogram()
    for bound in BUCKETS_MS:
        histogram.add(bound / 1000)
    histogram.add(60)
    assert histogram.document()["bucket_counts"] == [1] * (len(BUCKETS_MS) + 1)
    assert histogram.quantile(1.0) == BUCKETS_MS[-1]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_quantiles_lie_in_the_bucket_of_the_true_ones(share):
    milliseconds = np.random.default_rng(1).lognormal(1, 1, 10_000)
    histogram = LatencyHistogram()
    for each in milliseconds:
        histogram.add(each / 1000)
    true = np.quantile(milliseconds, share)
    bucket = np.searchsorted(BUCKETS_MS, true)
    low = BUCKETS_MS[bucket - 1] if bucket else 0
    assert low <= histogram.quantile(share) <= BUCKETS_MS[bucket]
    assert histogram.document()["mean_ms"] == pytest.approx(milliseconds.mean())
