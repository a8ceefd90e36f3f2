"""Cosines of embeddings: does a picture show its text, do the pictures of a set look alike, do they match a reference.

All cosines lie in [-1, 1] and have no unit; what counts as high depends on the network, so compare only within one.
Every ``*_scores`` function returns the individual numbers, to be recorded; its sister returns their
:class:`~context_diffusion.metrics.estimates.Estimate`. Memory holds one batch of pictures and eight bytes per score.
"""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..signatures import checked
from .estimates import Estimate, estimate_from_influence, estimate_mean, jackknife_influence
from .inputs import BATCH_SIZE, Encoder, all_embeddings, batched, embed, embeddings, pictures, same_width, unit_rows

AGAINST = "are compared with references of"
PAIRWISE_BLOCKS = 200  # partial sums kept for the jackknife of one large set


@checked
def text_image_scores(
    images: object,
    texts: Iterable[str],
    *,
    encode_images: Encoder,
    encode_text: Callable[[list[str]], Tensor],
    batch_size: int = BATCH_SIZE,
) -> Float[np.ndarray, " n"]:
    """The cosine of each picture with its own text, in one joint space (CLIP): cos(E_I(x_i), E_T(y_i)).

    ``texts`` holds one text per picture: the whole prompt, or only its object ("a boat"), which is what StyleAligned
    (section 4) scores, since style is the business of the other score. A text that repeats within a batch is encoded
    once. The published CLIP scores are these cosines, not multiplied by 100 or 2.5, and not clipped at 0.
    """
    texts = list(texts)
    counts = [len(given) for given in (images, texts) if isinstance(given, Sequence)]
    if len(counts) == 2 and counts[0] != counts[1]:
        raise ValueError(f"Each picture needs its own text; there are {counts[0]} pictures and {counts[1]} texts.")
    scores, missing = [], object()
    pairs = itertools.zip_longest(pictures(images), texts, fillvalue=missing)
    for batch in batched(pairs, batch_size):
        chosen, words = [p for p, _ in batch], [t for _, t in batch]
        if any(item is missing for item in (*chosen, *words)):
            raise ValueError("Each picture needs its own text; here one of the two runs out first.")
        distinct = list(dict.fromkeys(words))
        encoded = dict(zip(distinct, unit_rows(embed(distinct, encode_text)), strict=True))
        shown = unit_rows(embed(chosen, encode_images))
        said = torch.stack([encoded[text] for text in words])
        if shown.shape != said.shape:
            raise ValueError(
                f"Pictures and texts must be embedded in one space; the pictures have {shown.shape[1]} numbers, the "
                f"texts {said.shape[1]}: use the projected embeddings of one CLIP."
            )
        scores.append((shown * said).sum(dim=1))
    return torch.cat(scores).numpy() if scores else np.zeros(0)


@checked
def text_image_similarity(
    images: object, texts: Iterable[str], *, sets: Iterable[Hashable] | None = None, **encoders
) -> Estimate:
    """Estimate the mean of :func:`text_image_scores`; ``sets`` labels pictures that belong together."""
    return estimate_mean(text_image_scores(images, texts, **encoders), sets)


@checked
def pairwise_scores(
    sets: Iterable[object], encode: Encoder | None = None, *, batch_size: int = BATCH_SIZE
) -> Float[np.ndarray, " sets"]:
    """The mean cosine over all pairs of pictures within each set: the "DINO" score of StyleAligned (section 4).

    ``sets`` is an iterable of sets of at least two pictures (or, without ``encode``, of embeddings (m, d)); for the
    published score, ``encode`` returns the class token of a DINO ViT. Over unit vectors u_1..u_m the mean over pairs is
    (|u_1 + ... + u_m|^2 - m) / (m (m - 1)), so only a running sum is kept. Batches run across sets: sets of four still
    fill a batch of 32.
    """
    totals: list[float] = []
    running, count, seen = None, 0, 0

    def numbered() -> Iterator[tuple[int, object]]:
        nonlocal seen
        for seen, members in enumerate(sets, start=1):
            yield seen - 1, members

    def close() -> None:
        nonlocal running, count
        if running is None or count < 2:
            raise ValueError(f"Set {len(totals)} has {count} picture(s); a pair needs at least two.")
        totals.append(float(running @ running - count) / (count * (count - 1)))
        running, count = None, 0

    for owner, row in _rows_with_owner(numbered(), encode, batch_size):
        while owner > len(totals):
            close()
        same_width(row[None], None if running is None else len(running))
        running, count = (row, 1) if running is None else (running + row, count + 1)
    while seen > len(totals):
        close()
    return np.array(totals)


def _rows_with_owner(
    numbered: Iterable[tuple[int, object]], encode: Encoder | None, batch_size: int
) -> Iterator[tuple[int, Float[Tensor, " dim"]]]:
    """Yield each unit embedding with the number of its set; a batch may run across sets."""
    if encode is None:
        for owner, members in numbered:
            for rows in embeddings(members):
                yield from ((owner, row) for row in unit_rows(rows))
        return
    flat = ((owner, image) for owner, members in numbered for image in pictures(members))
    for batch in batched(flat, batch_size):
        rows = unit_rows(embed([image for _, image in batch], encode))
        yield from zip((owner for owner, _ in batch), rows, strict=True)


@checked
def set_consistency(sets: Iterable[object], encode: Encoder | None = None, *, batch_size: int = BATCH_SIZE) -> Estimate:
    """Estimate the mean of :func:`pairwise_scores` over sets; sets are what is resampled."""
    return estimate_mean(pairwise_scores(sets, encode, batch_size=batch_size))


@checked
def pairwise_similarity(images: object, encode: Encoder | None = None, *, batch_size: int = BATCH_SIZE) -> Estimate:
    """Estimate the mean cosine over all pairs of *one* set of any size, with an error from the pictures in it.

    The pairs share pictures and are not independent: n (n - 1) / 2 cosines are worth n pictures. The error is the
    jackknife's, over pictures, or over 200 blocks if there are more pictures. The interval answers "other pictures of
    this set", not "another set"; for the latter use :func:`set_consistency`.
    """
    sums, counts = None, np.zeros(PAIRWISE_BLOCKS)
    for rows in embeddings(images, encode, batch_size=batch_size):
        units = unit_rows(rows)
        blocks = (int(counts.sum()) + np.arange(len(units))) % PAIRWISE_BLOCKS
        sums = torch.zeros(PAIRWISE_BLOCKS, units.shape[1], dtype=torch.float64) if sums is None else sums
        sums.index_add_(0, torch.from_numpy(blocks), units)
        np.add.at(counts, blocks, 1)
    n = int(counts.sum())
    if sums is None or n < 2:
        raise ValueError(f"A pair needs at least two pictures; there are {n}.")

    total = sums.sum(dim=0)
    value = float(total @ total - n) / (n * (n - 1))
    if n == 2:  # one pair: no spread to see
        return estimate_from_influence(value, [np.zeros(1)], n=n)
    used = counts > 0
    left, kept = total - sums[torch.from_numpy(used)], n - counts[used]
    without = ((left * left).sum(dim=1).numpy() - kept) / (kept * (kept - 1))
    return estimate_from_influence(value, [jackknife_influence(without)], n=n)


@checked
def reference_scores(
    images: object, references: object, encode: Encoder | None = None, *, batch_size: int = BATCH_SIZE
) -> Float[np.ndarray, "n references"]:
    """The cosine of each picture (row) with each reference (column)."""
    units = unit_rows(all_embeddings(references, encode, batch_size=batch_size))
    batches = embeddings(images, encode, batch_size=batch_size)
    rows = [unit_rows(batch) @ units.T for batch in batches if same_width(batch, units.shape[1], AGAINST)]
    if not rows:
        raise ValueError("There is no picture to score: pass at least one.")
    return torch.cat(rows).clamp(-1, 1).numpy()


@checked
def reference_similarity(
    images: object,
    references: object,
    encode: Encoder | None = None,
    *,
    sets: Iterable[Hashable] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Estimate:
    """Estimate the mean cosine of the pictures with the references; all references count the same."""
    return estimate_mean(reference_scores(images, references, encode, batch_size=batch_size).mean(axis=1), sets)
