"""Error bars: closed forms, symmetry, and intervals that cover the truth as often as they say."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from context_diffusion.metrics import Estimate, estimate_difference, estimate_mean, estimate_rate
from context_diffusion.metrics.estimates import estimate_from_influence, jackknife_influence


def coverage(draw, truth: float, trials: int = 300) -> float:
    found = [draw() for _ in range(trials)]
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in found]))


def test_mean_and_standard_error_are_the_textbooks():
    values = [0.2, 0.5, 0.9, 0.4]
    estimate = estimate_mean(values)
    assert estimate.value == pytest.approx(0.5)
    assert estimate.standard_error == pytest.approx(stats.sem(values))
    assert estimate.n == 4
    assert estimate.low < 0.5 < estimate.high


def test_a_large_sample_gets_the_interval_of_the_normal_law():
    values = np.random.default_rng(0).normal(size=1500)
    estimate = estimate_mean(values)
    half = 1.96 * stats.sem(values)
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("n", [3, 9, 40])
def test_intervals_of_independent_pictures_cover_at_their_rate(n):
    rng = np.random.default_rng(n)
    # 300 trials of a 95 % interval: 0.95 +- 0.04 at three standard deviations
    assert coverage(lambda: estimate_mean(rng.normal(size=n)), 0.0) == pytest.approx(0.95, abs=0.04)


def test_intervals_cover_only_when_pictures_of_a_set_are_resampled_together():
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(12), 4)

    def draw(sets):
        style, picture = rng.normal(size=(12, 1)), rng.normal(size=(12, 4))
        return estimate_mean((style + 0.5 * picture).ravel(), sets)

    assert coverage(lambda: draw(labels), 0.0) == pytest.approx(0.95, abs=0.04)
    assert coverage(lambda: draw(None), 0.0) < 0.8


def test_sets_of_equal_size_are_worth_their_means():
    rng = np.random.default_rng(1)
    values, labels = rng.random((6, 3)), np.repeat(list("abcdef"), 3)
    grouped, means = estimate_mean(values.ravel(), labels), estimate_mean(values.mean(axis=1))
    assert grouped.n == 6
    for name in ("value", "standard_error", "low", "high"):
        assert getattr(grouped, name) == pytest.approx(getattr(means, name))


def test_sets_of_unequal_size_weigh_by_pictures_and_match_the_plain_cluster_bootstrap():
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 9, 60)
    groups = [rng.normal(loc=rng.normal(), size=size) for size in sizes]
    values, labels = np.concatenate(groups), np.repeat(np.arange(60), sizes)
    estimate = estimate_mean(values, labels)
    assert estimate.value == pytest.approx(values.mean())
    redraws = []
    for _ in range(3000):  # resample whole sets and recompute the ratio, no linearization
        chosen = [groups[i] for i in rng.integers(0, 60, 60)]
        redraws.append(np.concatenate(chosen).mean())
    assert estimate.standard_error == pytest.approx(np.std(redraws), rel=0.1)


def test_order_does_not_matter_to_the_last_bit():
    rng = np.random.default_rng(3)
    values, labels = rng.normal(size=37), rng.integers(0, 9, 37)
    order = rng.permutation(37)
    assert estimate_mean(values) == estimate_mean(values[order])
    assert estimate_mean(values, labels) == estimate_mean(values[order], labels[order])


def test_scaling_and_shifting_scores_scales_and_shifts_the_estimate():
    values = np.random.default_rng(4).exponential(size=25)
    plain, moved = estimate_mean(values), estimate_mean(10 * values + 3)
    for name in ("value", "low", "high"):
        assert getattr(moved, name) == pytest.approx(10 * getattr(plain, name) + 3)
    assert moved.standard_error == pytest.approx(10 * plain.standard_error)


def test_pairing_removes_what_two_methods_share():
    rng = np.random.default_rng(6)
    prompt = rng.normal(size=40)
    better, worse = prompt + 0.2 + 0.05 * rng.normal(size=40), prompt + 0.05 * rng.normal(size=40)
    paired = estimate_difference(better, worse)
    assert paired.low > 0
    assert estimate_mean(better).low < estimate_mean(worse).high  # the separate intervals say nothing


def test_one_picture_has_a_value_and_no_spread():
    estimate = estimate_mean([0.7])
    assert estimate.value == 0.7
    assert estimate.n == 1
    assert all(math.isnan(x) for x in (estimate.standard_error, estimate.low, estimate.high))
    assert math.isnan(estimate_mean([0.6, 0.8], sets="aa").low)  # one set, too


def test_wilson_interval_covers_by_exact_summation_and_does_not_vanish_at_zero():
    none = estimate_rate([False] * 20)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1.96**2 / (20 + 1.96**2), abs=1e-4)  # z^2 / (n + z^2)
    n, rates = 25, np.linspace(0.02, 0.98, 49)
    intervals = [estimate_rate([True] * k + [False] * (n - k)) for k in range(n + 1)]
    covered = [
        sum(stats.binom.pmf(k, n, p) for k in range(n + 1) if intervals[k].low <= p <= intervals[k].high) for p in rates
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_rate_over_sets_counts_copies_once():
    events = [True, False, False, True, False, False, False, True, False, False]
    copies, labels = np.repeat(events, 4), np.repeat(np.arange(10), 4)
    once, four = estimate_rate(events), estimate_rate(copies, labels)
    assert four.n == once.n == 10
    assert four.standard_error == pytest.approx(once.standard_error)
    # Effective size p(1-p)/SE^2 is n - 1, which the number of sets bounds from below: the same interval.
    assert (four.low, four.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert estimate_rate(copies).high < four.high


def test_jackknife_influence_of_a_mean_is_the_deviation_from_it():
    values = np.array([1.0, 4.0, 7.0, 9.0])
    without = np.array([np.delete(values, i).mean() for i in range(4)])
    np.testing.assert_allclose(jackknife_influence(without), values - values.mean(), atol=1e-12)


def test_two_samples_add_their_variances_and_the_bootstrap_is_the_exact_one():
    first, second = np.array([-1.0, 0.0, 1.0]), np.array([-2.0, 1.0, 1.0])
    estimate = estimate_from_influence(5.0, [first, second], n=3, resamples=200_000)
    variance = first.var(ddof=1) / 3 + second.var(ddof=1) / 3
    assert estimate.standard_error == pytest.approx(math.sqrt(variance))
    means = [np.mean(first[list(a)]) + np.mean(second[list(b)])
             for a in product(range(3), repeat=3) for b in product(range(3), repeat=3)]  # fmt: skip
    low, high = np.quantile(np.repeat(means, 50), [0.025, 0.975])
    stretch = math.sqrt(3 / 2) * stats.t.ppf(0.975, 2) / stats.norm.ppf(0.975)
    assert (estimate.low, estimate.high) == (pytest.approx(5 + stretch * low), pytest.approx(5 + stretch * high))


def test_estimates_are_frozen_and_print_themselves():
    estimate = Estimate(0.512, 0.014, 0.484, 0.541, 100)
    assert str(estimate) == "0.512 ± 0.014 [0.484, 0.541] (n=100)"
    with pytest.raises(AttributeError):
        estimate.value = 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate_mean([]), "at least one number"),
        (lambda: estimate_mean([0.1, math.nan]), "number 1 is nan: find the picture"),
        (lambda: estimate_mean([0.1, 0.2], sets=["a"]), "2 scores and 1 labels"),
        (lambda: estimate_difference([0.1, 0.2], [0.1]), "there are 2 and 1"),
    ],
)
def test_bad_scores_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_unit_says_its_value_and_no_spread():
    assert str(estimate_mean([0.25])) == "0.250 (n=1)"
    assert "nan" not in str(estimate_mean([0.25]).within(0, 1))


def test_an_interval_ends_where_the_quantity_does():
    few = estimate_mean([0.01, 0.02, 0.9])
    assert few.low < 0 and few.high > 1
    cut = few.within(0, 1)
    assert (cut.low, cut.high, cut.value, cut.n) == (0, 1, few.value, few.n)
    assert few.within() == few and cut.within(0, 1) == cut
