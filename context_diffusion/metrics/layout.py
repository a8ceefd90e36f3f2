"""Whether a picture keeps the layout it was given: its edges, within a tolerance, and the order of its depths.

Both compare picture i with target i, one pair in memory at a time. Maps are arrays or tensors (h, w), (n, h, w) or
(n, 1, h, w), PIL images, or any iterable of those.
"""

import itertools
from collections.abc import Hashable, Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy import stats
from torch import Tensor

from ..signatures import checked
from .estimates import Estimate, estimate_mean
from .inputs import pictures

EDGE_TOLERANCE = 2.0  # pixels


@checked
def edge_f1_scores(
    images: object,
    targets: object,
    *,
    thresholds: tuple[float, float] | None = None,
    tolerance: float = EDGE_TOLERANCE,
) -> Float[np.ndarray, " n"]:
    """F1 of the edge pixels of each pair, with a tolerance: 2 P R / (P + R).

    Precision P is the share of the picture's edge pixels that have an edge of the target within ``tolerance`` pixels
    (Euclidean); recall R is the share of the target's edge pixels that have one of the picture's. Each pixel is judged
    by the distance transform of the other map; there is no one-to-one matching, so all pixels of a thick edge count.
    Two maps without edges agree (1); a map without edges and one with edges do not (0).

    Without ``thresholds``, both sides are binary edge maps (0 and one other value). With ``thresholds=(low, high)``
    both are pictures, and Canny finds their edges at those hysteresis thresholds on 8-bit grey; (100, 200) is usual.
    """
    if not tolerance >= 0:
        raise ValueError(f"The tolerance is a distance in pixels, 0 or more; got {tolerance}.")
    if thresholds is not None and not 0 <= thresholds[0] <= thresholds[1]:
        raise ValueError(f"Canny's thresholds need 0 <= low <= high, as in (100, 200); got {thresholds}.")
    sides = (_edge_maps(side, thresholds) for side in (images, targets))
    return np.array([_edge_f1(found, wanted, tolerance) for found, wanted in _pairs(*sides)])


@checked
def edge_f1(
    images: object,
    targets: object,
    *,
    thresholds: tuple[float, float] | None = None,
    tolerance: float = EDGE_TOLERANCE,
    sets: Iterable[Hashable] | None = None,
) -> Estimate:
    """Estimate the mean of :func:`edge_f1_scores`."""
    scores = edge_f1_scores(images, targets, thresholds=thresholds, tolerance=tolerance)
    return estimate_mean(scores, sets).within(0, 1)


@checked
def depth_rank_correlations(depths: object, targets: object) -> Float[np.ndarray, " n"]:
    """Spearman's correlation between the two depth maps of each pair, over pixels, in [-1, 1].

    rho = Pearson(rank(a), rank(b)), where ties get their mean rank. Ranks, because depth from a single picture is known
    only up to an increasing function. Mind the sign: the inverse depth of DPT or MiDaS agrees with depth at -1. An
    estimate that is the same everywhere orders nothing and scores 0; a constant *target* raises ``ValueError``.
    """
    return np.array([_spearman(*pair, i) for i, pair in enumerate(_pairs(_maps(depths), _maps(targets)))])


@checked
def depth_rank_correlation(depths: object, targets: object, *, sets: Iterable[Hashable] | None = None) -> Estimate:
    """Estimate the mean of :func:`depth_rank_correlations`."""
    return estimate_mean(depth_rank_correlations(depths, targets), sets).within(-1, 1)


def _edge_f1(found: Bool[np.ndarray, "h w"], wanted: Bool[np.ndarray, "h w"], tolerance: float) -> float:
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    precision = (_distance_to(wanted)[found] <= tolerance).mean()
    recall = (_distance_to(found)[wanted] <= tolerance).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _distance_to(edges: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Euclidean distance from every pixel to the nearest edge pixel."""
    import cv2

    return cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _edge_maps(side: object, thresholds: tuple[float, float] | None) -> Iterator[Bool[np.ndarray, "h w"]]:
    if thresholds is not None:
        import cv2

        for image in pictures(side):
            yield cv2.Canny(np.asarray(image.convert("L")), *thresholds) > 0
        return
    for edges in _maps(side):
        if not np.isin(edges, (0, edges.max())).all():
            raise ValueError(
                "A binary edge map holds 0 and one other value; this one holds more: pass thresholds=(100, 200) to "
                "find the edges of pictures, or threshold the map first."
            )
        yield edges != 0


def _maps(side: object) -> Iterator[Float[np.ndarray, "h w"]]:
    """Yield maps one by one as float64 (h, w)."""
    if isinstance(side, Image.Image):
        if len(side.getbands()) > 1:
            raise ValueError(f"A map has one channel; this image is {side.mode}: convert it to one channel first.")
        side = np.asarray(side)
    if isinstance(side, Tensor):
        side = side.detach().cpu().double().numpy()
    if not isinstance(side, np.ndarray):
        if isinstance(side, str) or not isinstance(side, Iterable):
            raise TypeError(f"Maps are arrays, tensors or PIL images; got a {type(side).__name__}.")
        for item in side:
            yield from _maps(item)
        return
    if side.dtype.kind not in "biuf":
        raise TypeError(f"A map holds real numbers; this one holds {side.dtype}.")
    if side.ndim == 4 and side.shape[1] == 1:
        side = side[:, 0]
    if side.ndim not in (2, 3):
        raise ValueError(f"Maps have the shape (h, w), (n, h, w) or (n, 1, h, w); this one has {side.shape}.")
    for values in side[None] if side.ndim == 2 else side:
        values = values.astype(np.float64)
        if not values.size or not np.isfinite(values).all():
            raise ValueError("A map holds finite numbers, at least one; this one is empty or holds NaN or infinity.")
        yield values


def _pairs(first: Iterable[np.ndarray], second: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Walk through two streams of maps in step; both must end together and agree in size."""
    for index, (a, b) in enumerate(itertools.zip_longest(first, second)):
        if a is None or b is None:
            raise ValueError(f"Each picture needs its target; one of the two runs out after {index}.")
        if a.shape != b.shape:
            raise ValueError(
                f"The maps of pair {index} differ in size, {a.shape} and {b.shape} (height, width): resize one first."
            )
        yield a, b


def _spearman(depth: Float[np.ndarray, "h w"], target: Float[np.ndarray, "h w"], index: int) -> float:
    if target.min() == target.max():
        raise ValueError(
            f"Target {index} has one depth everywhere, so there is no order to compare with: leave it out."
        )
    if depth.min() == depth.max():
        return 0.0
    ranks = [stats.rankdata(values, axis=None) for values in (depth, target)]
    a, b = (rank - rank.mean() for rank in ranks)
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))
