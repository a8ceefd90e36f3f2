"""How far apart two crowds of pictures are, as distributions of features: Frechet (FID's formula) and kernel (KID's).

Both take features of your own choice, so report the name of the network with the number. Published FIDs use
Inception's 2048 numbers and at least 5,000 pictures; numbers from other features or counts are not comparable.

The Frechet distance of finite crowds is **biased upwards**, by about a constant over n: two halves of one crowd are
not 0 apart. Compare only at equal n; the interval covers the noise at this n, not the bias. The kernel distance has no
bias (it can fall below 0), and is the one to use for a few hundred pictures.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import check_count
from ..signatures import checked
from .estimates import Estimate, estimate_from_influence, jackknife_influence
from .inputs import BATCH_SIZE, Encoder, embeddings

MOST_AT_ONCE = 10_000  # rows of a kernel matrix, which takes 8 bytes times their square
BLOCKS = 20  # groups for the jackknife of the Frechet distance


class FeatureMoments:
    """Count, mean and covariance of any number of features, in constant memory: 20 (d^2 + d) float64.

    Row i counts towards block i mod 20, so that the distance can be recomputed without each block. Sums are taken about
    the first row, to avoid cancellation.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BLOCKS)
        self.origin: Tensor | None = None

    def update(self, features: Float[Tensor, "batch dim"]) -> "FeatureMoments":
        """Add a batch and return itself."""
        features = next(embeddings(features), torch.zeros(0, 1))
        if not len(features):
            return self
        if self.origin is None:
            width = features.shape[1]
            self.origin = features[0].clone()
            self.sums = torch.zeros(BLOCKS, width, dtype=torch.float64)
            self.squares = torch.zeros(BLOCKS, width, width, dtype=torch.float64)
        if features.shape[1:] != self.origin.shape:
            raise ValueError(f"All features have one width; {features.shape[1]} came after {len(self.origin)}.")
        shifted = features - self.origin
        blocks = (int(self.counts.sum()) + np.arange(len(features))) % BLOCKS
        for block in np.unique(blocks):
            rows = shifted[torch.from_numpy(blocks == block)]
            self.counts[block] += len(rows)
            self.sums[block] += rows.sum(dim=0)
            self.squares[block] += rows.T @ rows
        return self

    def __len__(self) -> int:
        return int(self.counts.sum())

    @checked
    def gaussian(self, without: int | None = None) -> tuple[Float[Tensor, " dim"], Float[Tensor, "dim dim"]]:
        """Mean and unbiased covariance of everything, or of everything ``without`` one block."""
        if self.origin is None or len(self) < 3:
            raise ValueError(f"A covariance needs at least 3 features; there are {len(self)}: update() adds some.")
        if without is not None:
            check_count("without, the number of a block,", without, BLOCKS - 1, low=0)
        count, total, squares = self.counts.sum(), self.sums.sum(dim=0), self.squares.sum(dim=0)
        if without is not None:
            count = count - self.counts[without]
            total, squares = total - self.sums[without], squares - self.squares[without]
        mean = total / count
        return mean + self.origin, (squares - count * torch.outer(mean, mean)) / (count - 1)


@checked
def frechet_distance(
    generated: object,
    real: object,
    encode: Encoder | None = None,
    *,
    batch_size: int = BATCH_SIZE,
) -> Estimate:
    """Frechet distance between the two Gaussians with the features' moments (Heusel et al. 2017, equation 6).

    |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), in squared units of the features. Each side is pictures (with
    ``encode``), features, or :class:`FeatureMoments` collected before. The trace of the root is the sum of the singular
    values of C_1^(1/2) C_2^(1/2): real, at least 0, and exact for covariances of any rank. The interval is a bootstrap
    of the jackknife over 20 blocks of each side; ``n`` counts the generated pictures.
    """
    first, second = (_moments(side, encode, batch_size) for side in (generated, real))
    (_, width), (_, other_width) = first.sums.shape, second.sums.shape
    if width != other_width:
        raise ValueError(f"Both sides need features of the same width; they have {width} and {other_width}.")
    whole = [_mean_and_root(*side.gaussian()) for side in (first, second)]
    influences = []
    for side, other in ((first, whole[1]), (second, whole[0])):
        used = np.flatnonzero(side.counts)
        without = [_frechet(_mean_and_root(*side.gaussian(without=int(block))), other) for block in used]
        influences.append(jackknife_influence(np.array(without)))
    return estimate_from_influence(_frechet(*whole), influences, n=len(first)).within(0)


def _moments(side: object, encode: Encoder | None, batch_size: int) -> FeatureMoments:
    if isinstance(side, FeatureMoments):
        moments = side
    else:
        moments = FeatureMoments()
        for batch in embeddings(side, encode, batch_size=batch_size):
            moments.update(batch)
    if len(moments) < 3:
        raise ValueError(
            f"A covariance with error bars needs at least 3 pictures; one side has {len(moments)}: pass more."
        )
    return moments


def _mean_and_root(
    mean: Float[Tensor, " dim"], covariance: Float[Tensor, "dim dim"]
) -> tuple[Float[Tensor, " dim"], Float[Tensor, "dim dim"]]:
    """The mean and the symmetric root of the covariance; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return mean, (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _frechet(
    first: tuple[Float[Tensor, " dim"], Float[Tensor, "dim dim"]],
    second: tuple[Float[Tensor, " dim"], Float[Tensor, "dim dim"]],
) -> float:
    (mean_1, root_1), (mean_2, root_2) = first, second
    overlap = torch.linalg.svdvals(root_1 @ root_2).sum()
    spread = (root_1 * root_1).sum() + (root_2 * root_2).sum() - 2 * overlap  # tr(C) = |C^(1/2)|_F^2
    return float((mean_1 - mean_2).square().sum() + spread)


@checked
def kernel_distance(
    generated: object,
    real: object,
    encode: Encoder | None = None,
    *,
    subset_size: int = 1000,
    batch_size: int = BATCH_SIZE,
) -> Estimate:
    """Squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, unbiased (Binkowski et al. 2018, section 4).

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j), computed within consecutive subsets
    of ``subset_size`` of each side (the last takes the rest, up to twice that) and averaged over subsets by their size.
    So memory does not grow, and with fewer than twice ``subset_size`` pictures the value covers all pairs. For more,
    shuffle the pictures first. The interval is a bootstrap of the exact jackknife over pictures; ``n`` counts the
    generated ones. No factor 1000 is applied.
    """
    if subset_size < 3:
        raise ValueError(f"subset_size is at least 3 (1000 is usual); got {subset_size}.")
    check_count("subset_size", subset_size, MOST_AT_ONCE)
    values, sizes = [], []
    pulls: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    sides = [_subsets(embeddings(side, encode, batch_size=batch_size), subset_size) for side in (generated, real)]
    for x, y in itertools.zip_longest(*sides):
        if x is None or y is None:
            raise ValueError(
                f"Subsets of {subset_size} are compared one by one, and one side has more of them than the other: "
                "pass about as many pictures on both sides, or a larger subset_size."
            )
        if x.shape[1] != y.shape[1]:
            raise ValueError(f"Both sides need features of the same width; they have {x.shape[1]} and {y.shape[1]}.")
        value, *influence = _discrepancy(x, y)
        values.append(value)
        sizes.append(len(x))
        for kept, found in zip(pulls, influence, strict=True):
            kept.append(found)
    share = np.array(sizes) / sum(sizes)
    # A picture pulls on the mean over its own subset; when all n are resampled at once, its pull is n / len(subset)
    # times the weight of that subset.
    influences = [
        np.concatenate(
            [pull * weight * sum(map(len, side)) / len(pull) for pull, weight in zip(side, share, strict=True)]
        )
        for side in pulls
    ]
    return estimate_from_influence(float(share @ values), influences, n=sum(sizes))


def _discrepancy(
    x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]
) -> tuple[float, Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Unbiased squared discrepancy of two subsets, and the jackknife influence of every row of each subset."""

    def kernel(a: Tensor, b: Tensor) -> Float[np.ndarray, "a b"]:
        return ((a @ b.T / a.shape[1] + 1) ** 3).numpy()

    n, m = len(x), len(y)
    within_x, within_y, across = kernel(x, x), kernel(y, y), kernel(x, y)
    np.fill_diagonal(within_x, 0)
    np.fill_diagonal(within_y, 0)
    sum_x, sum_y, sum_xy = within_x.sum(), within_y.sum(), across.sum()
    mean_x, mean_y = sum_x / (n * (n - 1)), sum_y / (m * (m - 1))
    value = mean_x + mean_y - 2 * sum_xy / (n * m)

    without_x = (sum_x - 2 * within_x.sum(axis=1)) / ((n - 1) * (n - 2)) + mean_y
    without_x -= 2 * (sum_xy - across.sum(axis=1)) / ((n - 1) * m)
    without_y = (sum_y - 2 * within_y.sum(axis=1)) / ((m - 1) * (m - 2)) + mean_x
    without_y -= 2 * (sum_xy - across.sum(axis=0)) / (n * (m - 1))
    return float(value), jackknife_influence(without_x), jackknife_influence(without_y)


def _subsets(batches: Iterator[Float[Tensor, "batch dim"]], size: int) -> Iterator[Float[Tensor, "subset dim"]]:
    """Cut a stream into consecutive subsets of ``size`` rows; the last has ``size`` to 2 ``size`` - 1."""
    held: list[Tensor] = []
    for batch in batches:
        held.append(batch)
        while sum(map(len, held)) >= 2 * size:
            rows = torch.cat(held)
            yield rows[:size]
            held = [rows[size:].clone()]
    rows = torch.cat(held) if held else torch.zeros(0, 1)
    if len(rows) < 3:
        raise ValueError(f"A kernel distance with error bars needs at least 3 pictures on each side; got {len(rows)}.")
    yield rows
