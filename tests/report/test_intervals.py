"""Intervals of means, against scipy and by how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from fresco_dist.report.intervals import bootstrap_interval, half_width, t_quantile


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_t_quantile_is_that_of_scipy(level):
    degrees = np.arange(1, 400)
    expected = stats.t.ppf((1 + level) / 2, degrees)
    np.testing.assert_allclose([t_quantile(int(each), level) for each in degrees], expected, rtol=1e-10)


def test_half_width_is_that_of_scipys_t_test():
    values = np.random.default_rng(0).normal(5, 3, (7, 2))
    for k in range(2):
        low, high = stats.ttest_1samp(values[:, k], 0).confidence_interval(0.95)
        assert half_width(values)[k] == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("num", [6, 30])
def test_bootstrap_interval_is_scipys_bca_within_its_noise(num):
    rng = np.random.default_rng(3)
    values = np.stack([rng.exponential(1, num), -rng.exponential(1, num), rng.normal(1e4, 10, num)], axis=1)
    found = bootstrap_interval(values)
    for k in range(3):
        reference = stats.bootstrap((values[:, k],), np.mean, n_resamples=40_000, rng=1).confidence_interval
        width = reference.high - reference.low
        assert np.abs(found[:, k] - reference).max() < 0.03 * width
        plain = np.quantile(rng.choice(values[:, k], (40_000, num)).mean(axis=1), [0.025, 0.975])
        if k < 2:  # the correction for skewness is more than that noise
            assert np.abs(found[:, k] - plain).max() > 0.04 * width


def test_bootstrap_interval_is_the_same_each_time_whatever_stands_beside():
    values = np.random.default_rng(0).normal(size=(12, 3))
    np.testing.assert_allclose(bootstrap_interval(values)[:, 1:2], bootstrap_interval(values[:, 1:2]), rtol=1e-12)


def test_bootstrap_interval_of_equal_values_is_that_value():
    for value in (0.0, 0.1, -3.5):
        np.testing.assert_array_equal(bootstrap_interval(np.full((9, 1), value)).ravel(), np.full(9, value).mean())
    low, high = bootstrap_interval(np.array([[0.0], [1.0]])).ravel()
    assert 0 <= low < high <= 1


@pytest.mark.parametrize("num, expected", [(5, 0.85), (10, 0.91), (20, 0.93)])
def test_bootstrap_interval_of_few_holds_the_truth_as_often_as_the_docstring_says(num, expected):
    values = np.random.default_rng(5).normal(size=(num, 800))
    low, high = bootstrap_interval(values)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(expected, abs=0.025)
    inside = np.abs(values.mean(axis=0)) < half_width(values)
    assert inside.mean() == pytest.approx(0.95, abs=0.025)
