"""The distance between two palettes: the least work it takes to repaint one picture's colours into the other's.

Colours live in CIELAB (CIE 1976, white point D65), where Euclidean distance is the colour difference Delta E*ab of
1976: about 2.3 is just noticeable, black to white is 100. A picture, or a whole set of pictures, becomes at most 24
weighted colours, and two such palettes are compared by the **earth mover's distance** (Rubner et al. 2000): the mean
Delta E of the cheapest way to move one distribution of colours onto the other. It knows nothing about where in the
picture a colour is, which is the point.
"""

import functools
import itertools
import os
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import sparse
from scipy.optimize import linprog

from ..checks import check_count, normalized_weights
from ..signatures import check_fields, checked
from .estimates import Estimate, estimate_mean
from .inputs import pictures

COLORS, MOST_COLORS = 24, 256
_BITS = 5  # R, G and B are each sorted into 32 bins before clustering, so memory does not grow with the pictures
_LLOYD_STEPS = 12
_LINEAR_TO_XYZ = np.array(  # IEC 61966-2-1, sRGB primaries; rows X, Y, Z
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_CODES = np.arange(256) / 255
_LINEAR = np.where(_CODES <= 0.04045, _CODES / 12.92, ((_CODES + 0.055) / 1.055) ** 2.4)


@dataclass(frozen=True)
class Palette:
    """Weighted colours: ``lab`` (k, 3), CIELAB; ``weights`` (k,), summing to 1; ``spread``, in Delta E.

    ``spread`` is the root mean square distance from a pixel to the colour that stands for it. The distance between two
    palettes differs from that between all their pixels by at most the sum of the two spreads (triangle inequality).
    """

    lab: Float[np.ndarray, "colors 3"]
    weights: Float[np.ndarray, " colors"]
    spread: float

    def __post_init__(self) -> None:
        check_fields(self)
        if not len(self.lab) or len(self.lab) != len(self.weights) or not np.isfinite(self.lab).all():
            raise ValueError(
                f"A palette has a weight for each finite colour; got {self.lab.shape} and {self.weights.shape}."
            )
        normalized_weights(self.weights, len(self.weights), "colour")


Targets = Palette | Image.Image | str | os.PathLike | Iterable[object]


@checked
def srgb_to_lab(pixels: UInt8[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
    """Convert 8-bit sRGB to CIELAB, white point D65: L* in [0, 100], a* and b* within about 110 of 0.

    >>> srgb_to_lab(np.array([255, 255, 255], dtype=np.uint8)).round(6).tolist()
    [100.0, 0.0, 0.0]
    """
    # The white point is what (1, 1, 1) maps to, so greys have a* = b* = 0 up to rounding.
    relative = _LINEAR[pixels] @ (_LINEAR_TO_XYZ / _LINEAR_TO_XYZ.sum(axis=1, keepdims=True)).T
    f = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative * (29 / 6) ** 2 / 3 + 4 / 29)
    fx, fy, fz = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)


@checked
def palette_of(images: object, colors: int = COLORS) -> Palette:
    """Boil the pixels of a picture, or of all pictures of a set together, down to at most ``colors`` weighted colours.

    Pixels are sorted into 32^3 bins of RGB, and the bins' mean colours are clustered by weighted k-means in CIELAB. The
    first centre is the heaviest bin; each further one is the bin that adds most to the squared error. Nothing is
    random, and neither the order of the pixels nor that of the pictures matters beyond rounding. Every picture counts
    the same, whatever its size.
    """
    if colors < 1:
        raise ValueError(f"A palette has at least one colour; got {colors}.")
    check_count("colors", colors, MOST_COLORS)
    weight, total, square, count = np.zeros(8**_BITS), np.zeros((8**_BITS, 3)), 0.0, 0
    for image in pictures(images):
        count += 1
        pixels = rearrange(np.asarray(image), "height width rgb -> (height width) rgb")
        lab = srgb_to_lab(pixels)
        high = (pixels >> (8 - _BITS)).astype(np.int64)
        bins = (high[:, 0] << 2 * _BITS) | (high[:, 1] << _BITS) | high[:, 2]
        weight += np.bincount(bins, minlength=len(weight)) / len(pixels)
        for axis in range(3):
            total[:, axis] += np.bincount(bins, lab[:, axis], len(weight)) / len(pixels)
        square += (lab * lab).sum() / len(pixels)
    if not count:
        raise ValueError("A palette needs at least one picture; the list is empty.")
    used = weight > 0
    share, mean = weight[used] / count, total[used] / weight[used, None]
    lab, weights = _cluster(mean, share, colors)
    # sum |x - c|^2 = sum |x|^2 - |c|^2, because each c is the mean of its pixels
    error = max(0.0, square / count - float(weights @ (lab * lab).sum(axis=1)))
    return Palette(lab, weights, error**0.5)


def _cluster(
    points: Float[np.ndarray, "bins 3"], weights: Float[np.ndarray, " bins"], colors: int
) -> tuple[Float[np.ndarray, "colors 3"], Float[np.ndarray, " colors"]]:
    """Weighted k-means from a farthest-first start; the heaviest cluster comes first."""
    centres = points[[int(weights.argmax())]]
    error = ((points - centres) ** 2).sum(axis=1)
    while len(centres) < colors and (error * weights).max() > 1e-9:
        centres = np.vstack([centres, points[int((error * weights).argmax())]])
        error = np.minimum(error, ((points - centres[-1]) ** 2).sum(axis=1))
    for _ in range(_LLOYD_STEPS):
        nearest = (np.square(centres).sum(axis=1) - 2 * points @ centres.T).argmin(axis=1)
        mass = np.bincount(nearest, weights, len(centres))
        sums = np.stack([np.bincount(nearest, weights * points[:, i], len(centres)) for i in range(3)], axis=1)
        centres, mass = sums[mass > 0] / mass[mass > 0, None], mass[mass > 0]
    order = np.argsort(-mass, kind="stable")
    return centres[order], mass[order] / mass.sum()


@checked
def earth_movers_distance(first: Palette, second: Palette) -> float:
    """The exact earth mover's distance between two palettes in Delta E*ab (1976).

    min over flows f_ij >= 0 with sum_j f_ij = p_i, sum_i f_ij = q_j of sum_ij f_ij |x_i - y_j|: a transport problem,
    solved as the linear programme it is. Zero for equal palettes, symmetric, and never longer than a detour.
    """
    cost = np.sqrt(((first.lab[:, None] - second.lab[None]) ** 2).sum(axis=-1))
    if 1 in cost.shape:  # one colour: everything goes there
        return float((cost * first.weights[:, None] * second.weights[None]).sum())
    supplies = np.concatenate([first.weights, second.weights])[:-1]  # the last one follows from the others
    solved = linprog(cost.ravel(), A_eq=_transport(*cost.shape), b_eq=supplies, method="highs-ds")
    if not solved.success:
        raise RuntimeError(f"The transport problem of two palettes was not solved: {solved.message}")
    return max(0.0, float(solved.fun))


@functools.cache
def _transport(rows: int, columns: int) -> sparse.csr_array:
    """The constraints of a transport problem: what leaves each row, then what reaches each column but the last."""
    leaves = sparse.kron(sparse.eye_array(rows), np.ones((1, columns)))
    reaches = sparse.kron(np.ones((1, rows)), sparse.eye_array(columns))
    return sparse.csr_array(sparse.vstack([leaves, reaches]))[:-1]


@checked
def palette_distances(images: Iterable[object], targets: Targets, *, colors: int = COLORS) -> Float[np.ndarray, " n"]:
    """The earth mover's distance from each entry's palette to its target's, in Delta E*ab (1976).

    An entry on either side is a picture, a set of pictures (a list, or a tensor (m, 3, h, w)), or a :class:`Palette`. A
    single picture or :class:`Palette` as ``targets`` serves every entry.
    """
    if isinstance(targets, (Palette, Image.Image, str, os.PathLike)):
        targets = itertools.repeat(_as_palette(targets, colors))
    distances: list[float] = []
    missing = object()
    endless = isinstance(targets, itertools.repeat)
    pairs: Iterable[tuple[object, object]]
    pairs = zip(images, targets) if endless else itertools.zip_longest(images, targets, fillvalue=missing)  # noqa: B905
    for entry, target in pairs:
        if entry is missing or target is missing:
            raise ValueError(f"Each entry needs its target; one of the two runs out after {len(distances)}.")
        distances.append(earth_movers_distance(_as_palette(entry, colors), _as_palette(target, colors)))
    return np.array(distances)


@checked
def palette_distance(
    images: Iterable[object],
    targets: Targets,
    *,
    sets: Iterable[Hashable] | None = None,
    colors: int = COLORS,
) -> Estimate:
    """Estimate the mean of :func:`palette_distances`."""
    return estimate_mean(palette_distances(images, targets, colors=colors), sets).within(0)


def _as_palette(entry: object, colors: int) -> Palette:
    return entry if isinstance(entry, Palette) else palette_of(entry, colors)
