"""Frechet and kernel distances: closed forms, independent float64 references, exact jackknives, coverage."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from context_diffusion.metrics import FeatureMoments, frechet_distance, kernel_distance
from context_diffusion.metrics.estimates import jackknife_influence


def crowd(n, d, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scale + shift


def frechet_by_scipy(x, y):
    x, y = np.asarray(x), np.asarray(y)
    cx, cy = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(cx @ cy)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cx + cy - 2 * np.real(root)))


def test_frechet_of_two_lines_is_by_hand():
    # One dimension: (m1 - m2)^2 + (s1 - s2)^2, with s of n - 1
    x, y = torch.tensor([[0.0], [2], [4]]), torch.tensor([[10.0], [11], [12]])
    assert frechet_distance(x, y).value == pytest.approx(81 + 1)


def test_frechet_equals_the_matrix_square_root_of_scipy():
    mix = crowd(6, 6, 9)
    x, y = crowd(80, 6, 0) @ mix, crowd(60, 6, 1, 1.3, 0.4)
    assert frechet_distance(x, y).value == pytest.approx(frechet_by_scipy(x, y))


def test_frechet_of_a_crowd_with_itself_is_zero_also_without_full_rank():
    x = crowd(5, 12, 3, shift=100)  # rank 4 of 12, far from the origin
    assert frechet_distance(x, x).value == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 1).value == pytest.approx(12, rel=1e-9)


def test_frechet_ignores_order_rotation_and_batches_and_is_symmetric():
    x, y = crowd(50, 5, 0), crowd(40, 5, 1, 2.0, 0.5)
    value = frechet_distance(x, y).value
    turn = torch.linalg.qr(crowd(5, 5, 4))[0]
    assert frechet_distance(y, x).value == pytest.approx(value)
    assert frechet_distance(x.flip(0), y).value == pytest.approx(value)
    assert frechet_distance(x @ turn, y @ turn).value == pytest.approx(value)
    assert frechet_distance(3 * x, 3 * y).value == pytest.approx(9 * value)
    stream = frechet_distance(iter(x.split(7)), (part for part in y.split(3)))
    whole = frechet_distance(x, y)
    assert (stream.value, stream.low, stream.high) == (
        pytest.approx(whole.value), pytest.approx(whole.low), pytest.approx(whole.high))  # fmt: skip


def test_moments_kept_from_before_give_the_same_distance_at_constant_size():
    x, y = crowd(50, 4, 0), crowd(45, 4, 1, 1.5)
    kept = FeatureMoments()
    for batch in y.split(8):
        kept.update(batch)
    size = kept.squares.numel()
    assert frechet_distance(x, kept).value == pytest.approx(frechet_distance(x, y).value)
    assert len(kept) == 45
    assert kept.update(y).squares.numel() == size
    mean, covariance = FeatureMoments().update(y).gaussian()
    np.testing.assert_allclose(mean, y.mean(0))
    np.testing.assert_allclose(covariance, np.cov(y.T.numpy()))


def test_frechet_error_is_the_jackknife_over_blocks():
    x, y = crowd(20, 3, 0), crowd(15, 3, 1, 1.5)  # at most 20: every block is one picture

    def variance(delete, count):
        without = np.array([delete(i) for i in range(count)])
        return (count - 1) / count * ((without - without.mean()) ** 2).sum()

    def drop(rows, i):
        return np.delete(rows.numpy(), i, axis=0)

    wanted = variance(lambda i: frechet_by_scipy(drop(x, i), y), 20)
    wanted += variance(lambda i: frechet_by_scipy(x, drop(y, i)), 15)
    assert frechet_distance(x, y).standard_error == pytest.approx(math.sqrt(wanted))


def test_frechet_interval_covers_its_expectation_at_this_n():
    found = [frechet_distance(crowd(120, 3, 2 * i, 1.4, 0.3), crowd(100, 3, 2 * i + 1)) for i in range(100)]
    expected = np.mean([estimate.value for estimate in found])
    assert np.mean([e.low <= expected <= e.high for e in found]) == pytest.approx(0.95, abs=0.065)


def kernel_by_loops(x, y):
    def k(a, b):
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_by_hand():
    # (x y + 1)^3: within (0, 1, 0 times 1) all 1; within (1, 1, 1) all 8; across, 0 gives 1 and 1 gives 8
    x, y = torch.tensor([[0.0], [0], [1]]), torch.ones(3, 1)
    assert kernel_distance(x, y).value == pytest.approx(1 + 8 - 2 * (1 + 1 + 8) / 3)


def test_kernel_distance_and_its_error_equal_plain_loops_and_deletions():
    x, y = crowd(7, 4, 0).numpy(), crowd(6, 4, 1, 1.2, 0.3).numpy()
    estimate = kernel_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert estimate.value == pytest.approx(kernel_by_loops(x, y))
    pulls = [
        jackknife_influence(np.array([kernel_by_loops(np.delete(x, i, 0), y) for i in range(7)])),
        jackknife_influence(np.array([kernel_by_loops(x, np.delete(y, i, 0)) for i in range(6)])),
    ]
    wanted = math.sqrt(sum((pull**2).sum() / (len(pull) * (len(pull) - 1)) for pull in pulls))
    assert estimate.standard_error == pytest.approx(wanted)


def test_kernel_distance_by_subsets_is_their_mean_and_batches_do_not_matter():
    x, y = crowd(25, 3, 0), crowd(26, 3, 1, 1.2)
    parts = [(x[:10], y[:10]), (x[10:], y[10:])]  # the last takes the rest: 15 and 16
    wanted = np.average([kernel_distance(*part).value for part in parts], weights=[10, 15])
    for size in (1, 4, 25):
        found = kernel_distance(iter(x.split(size)), iter(y.split(size)), subset_size=10)
        assert found.value == pytest.approx(wanted)
        assert found.n == 25


@pytest.mark.parametrize("subset_size", [1000, 40])
def test_kernel_distance_is_unbiased_and_its_interval_covers(subset_size):
    # Uniform numbers x and x + 0.3 in one dimension: the distance is 3 dm1^2 + 3 dm2^2 + dm3^2 in raw moments.
    def moment(power, shift):
        return ((1 + shift) ** (power + 1) - shift ** (power + 1)) / (power + 1)

    weights = {1: 3, 2: 3, 3: 1}
    truth = sum(w * (moment(p, 0.3) - moment(p, 0)) ** 2 for p, w in weights.items())
    rng = np.random.default_rng(subset_size)
    found = [
        kernel_distance(
            torch.from_numpy(rng.random((90, 1))), torch.from_numpy(rng.random((95, 1)) + 0.3), subset_size=subset_size
        )
        for _ in range(120)
    ]
    values = np.array([estimate.value for estimate in found])
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / math.sqrt(120))
    assert np.mean([e.low <= truth <= e.high for e in found]) == pytest.approx(0.95, abs=0.06)


def test_kernel_distance_of_one_crowd_is_around_zero_where_frechet_is_not():
    pairs = [(crowd(40, 8, 2 * i), crowd(40, 8, 2 * i + 1)) for i in range(40)]
    kernel = np.array([kernel_distance(x, y).value for x, y in pairs])
    frechet = np.array([frechet_distance(x, y).value for x, y in pairs])
    assert abs(kernel.mean()) < 3 * kernel.std() / math.sqrt(40)
    assert frechet.min() > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(crowd(9, 3, 0), crowd(2, 3, 1)), "at least 3 pictures; one side has 2"),
        (lambda: frechet_distance(crowd(9, 3, 0), crowd(9, 4, 1)), "they have 3 and 4"),
        (lambda: FeatureMoments().update(crowd(4, 3, 0)).update(crowd(4, 2, 0)), "2 came after 3"),
        (lambda: kernel_distance(crowd(9, 3, 0), crowd(9, 4, 1)), "they have 3 and 4"),
        (lambda: kernel_distance(crowd(9, 3, 0), crowd(2, 3, 1)), "at least 3 pictures on each side; got 2"),
        (lambda: kernel_distance(crowd(40, 3, 0), crowd(10, 3, 1), subset_size=10), "more of them than the other"),
        (lambda: kernel_distance(crowd(9, 3, 0), crowd(9, 3, 1), subset_size=2), "at least 3"),
    ],
)
def test_bad_crowds_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
