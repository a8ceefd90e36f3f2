"""Weighted mixtures of styles: the published score, and one that a collapse to a single style cannot win.

With c_ik the cosine of picture i with reference k (class tokens of DINO) and w the weights, the published
**weighted multi-style DINO** is sum_k w_k mean_i c_ik. It is linear in the c_ik and in w. A method that gives a share
p_k of its pictures wholly to style k gets a score linear in p, and a linear function is largest at a corner: put every
picture into the heaviest style. At w = (1/2, 1/2) that total collapse scores as high as any mixture, and at (0.85,
0.15) of two unrelated references it scores 0.85 where a perfect blend in every picture scores 0.863. The score cannot
tell success from the failure it was meant to find.

**The blend score** measures how much of each style a picture carries and compares that with what was asked for.

1. Shares. Write the unit embedding as a sum of the references, u = sum_k a_k r_k + rest with a_k >= 0, by least
   squares, and let s = a / sum(a). Unlike the cosines, this does not count twice what the references have in common: a
   copy of reference 1 has c = (1, g) with g = cos(r_1, r_2), perhaps 0.4, but s = (1, 0).
2. Fidelity f = |sum_k a_k r_k|: the cosine of u with the nearest mixture of references. It is 0 for a picture with none
   of the styles.
3. Agreement g = max(0, 1 - TV(s, w) / (1 - max_k w_k)), TV(s, w) = sum_k |s_k - w_k| / 2. The denominator is the
   distance from w to the nearest corner, so that **every single-style picture gets exactly 0**, whichever style it has
   and however similar the references are, and shares equal to the weights get 1.

The score is mean_i f_i g_i, in [0, 1]. The agreement is taken per picture on purpose: a set with half its pictures in
each style has the right shares on average but not one blended picture, and scores 0. A weighted geometric mean
prod_k max(c_k, 0)^w_k was considered: it keeps the order right for unrelated references, but a collapse still earns
g^w_2 of full marks (0.87 at g = 0.4, w_2 = 0.15), so the numbers again look alike.

It has two limits. With weights near a corner the question itself is delicate (at 0.95/0.05 a share off by 0.05 is a
collapse), and the intervals grow accordingly. And networks whose embeddings all point the same way make every picture
look blended; pass ``center``, the mean embedding of pictures in none of the styles, to subtract the common part.
"""

from collections.abc import Hashable, Iterable

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor

from ..checks import normalized_weights
from ..signatures import checked
from .estimates import Estimate, estimate_mean
from .inputs import BATCH_SIZE, Encoder, all_embeddings, embeddings, same_width, unit_rows
from .similarity import AGAINST, reference_scores

MIN_SEPARATION = 1e-6  # below this smallest eigenvalue of the references' cosines, shares are undefined


@checked
def weighted_multi_style_scores(
    images: object,
    references: object,
    weights: Iterable[float],
    encode: Encoder | None = None,
    *,
    batch_size: int = BATCH_SIZE,
) -> Float[np.ndarray, " n"]:
    """The published score of each picture: sum_k w_k cos(u_i, r_k), with the weights scaled to sum to 1."""
    cosines = reference_scores(images, references, encode, batch_size=batch_size)
    return cosines @ np.array(normalized_weights(weights, cosines.shape[1]))


@checked
def weighted_multi_style(
    images: object,
    references: object,
    weights: Iterable[float],
    encode: Encoder | None = None,
    *,
    sets: Iterable[Hashable] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Estimate:
    """Estimate the published weighted multi-style DINO, sum_k w_k mean_i cos(u_i, r_k).

    It is here for comparison with published tables. Since it is highest at a corner (see the head of this file), never
    report it without :func:`blend_score`.
    """
    scores = weighted_multi_style_scores(images, references, weights, encode, batch_size=batch_size)
    return estimate_mean(scores, sets)


@checked
def style_shares(
    images: object,
    references: object,
    encode: Encoder | None = None,
    *,
    center: Float[Tensor, " dim"] | None = None,
    batch_size: int = BATCH_SIZE,
) -> tuple[Float[np.ndarray, "n references"], Float[np.ndarray, " n"]]:
    """Measure how much of each reference every picture carries: shares s (rows sum to 1) and fidelity f in [0, 1].

    s and f are defined at the head of this file. A picture with nothing of any reference has f = 0 and equal shares.
    Raises ``ValueError`` if two references have the same embedding, because then shares are undefined.
    """
    gathered = all_embeddings(references, encode, batch_size=batch_size)
    shift = torch.zeros(gathered.shape[1], dtype=torch.float64) if center is None else center.to(gathered)
    if shift.shape != gathered.shape[1:]:
        raise ValueError(f"center is one embedding of {gathered.shape[1]} numbers; got shape {tuple(shift.shape)}.")
    units = unit_rows(gathered - shift)
    gram = units @ units.T
    if torch.linalg.eigvalsh(gram)[0] < MIN_SEPARATION:
        raise ValueError(
            "Style shares need references that differ; the embeddings of these repeat or are sums of each other: "
            "give each style once."
        )
    # |u - R a|^2 = |L^T a - L^-1 c|^2 + const with gram = L L^T: a problem in k unknowns, whatever the width of u.
    factor = torch.linalg.cholesky(gram)
    amounts = []
    for rows in embeddings(images, encode, batch_size=batch_size):
        same_width(rows, gathered.shape[1], AGAINST)
        cosines = unit_rows(rows - shift) @ units.T  # (batch, references)
        targets = torch.linalg.solve_triangular(factor, cosines.T, upper=False).T
        amounts += [nnls(factor.T.numpy(), target)[0] for target in targets.numpy()]
    if not amounts:
        raise ValueError("There is no picture to score: pass at least one.")
    found = np.stack(amounts)
    squares = einsum(found, gram.numpy(), found, "picture a, a b, picture b -> picture")  # |sum_k a_k r_k|^2
    fidelity = np.sqrt(squares).clip(0, 1)
    total = found.sum(axis=1, keepdims=True)
    equal = np.full_like(found, 1 / found.shape[1])
    return np.divide(found, total, out=equal, where=total > 0), fidelity


@checked
def blend_scores(
    images: object,
    references: object,
    weights: Iterable[float],
    encode: Encoder | None = None,
    *,
    center: Float[Tensor, " dim"] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Float[np.ndarray, " n"]:
    """The blend score of each picture, f_i g_i (see the head of this file): 0 for any single style, 1 for a match.

    With only one positive weight there is no blend to ask for, and a copy of that style is a match: g is its share.
    """
    shares, fidelity = style_shares(images, references, encode, center=center, batch_size=batch_size)
    asked = np.array(normalized_weights(weights, shares.shape[1]))
    variation = np.abs(shares - asked).sum(axis=1) / 2
    to_corner = 1 - asked.max() if (asked > 0).sum() > 1 else 1.0
    return fidelity * np.clip(1 - variation / to_corner, 0, 1)


@checked
def blend_score(
    images: object,
    references: object,
    weights: Iterable[float],
    encode: Encoder | None = None,
    *,
    sets: Iterable[Hashable] | None = None,
    center: Float[Tensor, " dim"] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Estimate:
    """Estimate the mean of :func:`blend_scores`, the multi-style score that a collapse to one style cannot win."""
    scores = blend_scores(images, references, weights, encode, center=center, batch_size=batch_size)
    return estimate_mean(scores, sets)
