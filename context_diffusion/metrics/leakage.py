"""Content leakage: when the reference lends more than its style.

Sharing attention raises style similarity in two ways: the picture takes on the reference's palette and strokes, or it
takes on the reference itself. Only the second is a fault, and style scores reward it. An object classifier tells the
two apart.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import SupportsInt

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from ..signatures import checked
from .estimates import Estimate, estimate_rate
from .inputs import BATCH_SIZE, batched, embed, pictures

Classifier = Callable[[list[Image.Image]], Tensor]


@checked
def classified(images: object, classify: Classifier, *, batch_size: int = BATCH_SIZE) -> Int[np.ndarray, " n"]:
    """The class of each picture: the largest of ``classify``'s (n, classes) logits or probabilities."""
    winners = [embed(batch, classify).argmax(dim=1) for batch in batched(pictures(images), batch_size)]
    return torch.cat(winners).numpy() if winners else np.zeros(0, dtype=np.int64)


@checked
def content_leakage(
    images: object,
    prompt_classes: Iterable[SupportsInt],
    reference_classes: Iterable[SupportsInt],
    classify: Classifier,
    *,
    sets: Iterable[Hashable] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Estimate:
    """Estimate how often the classifier sees the reference's object in a picture that should show the prompt's.

    The mean of [argmax classify(x_i) = reference_i], with a Wilson interval. A guessing classifier makes this mistake
    too, so compare the number with the same rate for plain, unaligned pictures of the same prompts and seeds, and read
    it together with :func:`object_accuracy` (a picture of neither object is no leakage, but no success either).

    Raises ``ValueError`` if the two classes of a pair are the same: leakage could not be told from obedience.
    """
    prompted, lent = _classes(prompt_classes), _classes(reference_classes)
    if len(prompted) != len(lent):
        raise ValueError(f"Each picture needs a prompt and a reference; got {len(prompted)} and {len(lent)} classes.")
    if (prompted == lent).any():
        where = int(np.flatnonzero(prompted == lent)[0])
        raise ValueError(
            f"Leakage shows only if reference and prompt name different objects; picture {where} has class "
            f"{prompted[where]} for both: leave it out."
        )
    seen = classified(images, classify, batch_size=batch_size)
    return estimate_rate(_matches(seen, lent), sets)


@checked
def object_accuracy(
    images: object,
    prompt_classes: Iterable[SupportsInt],
    classify: Classifier,
    *,
    sets: Iterable[Hashable] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Estimate:
    """Estimate how often the classifier sees the object the prompt asked for, with a Wilson interval."""
    prompted = _classes(prompt_classes)
    seen = classified(images, classify, batch_size=batch_size)
    return estimate_rate(_matches(seen, prompted), sets)


def _classes(classes: Iterable[SupportsInt]) -> Int[np.ndarray, " n"]:
    array = np.array([int(label) for label in classes], dtype=np.int64)
    if (array < 0).any():
        raise ValueError(f"Classes are columns of the classifier, counted from 0; got {array.min()}.")
    return array


def _matches(seen: Int[np.ndarray, " n"], wanted: Int[np.ndarray, " m"]) -> list[bool]:
    if len(seen) != len(wanted):
        raise ValueError(f"Each picture needs its class; there are {len(seen)} pictures and {len(wanted)} classes.")
    return (seen == wanted).tolist()
