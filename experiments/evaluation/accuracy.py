"""How often a classifier is right."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from context_diffusion.metrics import Estimate, estimate_rate


def accuracy(
    seen: Int[np.ndarray, " n"],
    wanted: Sequence[int],
    sets: Sequence[object] | None = None,
    among: Bool[np.ndarray, " n"] | None = None,
) -> Estimate:
    """The share of right answers, with Wilson's interval: of all pictures, or of those that ``among`` marks."""
    right = seen == np.asarray(wanted)
    labels = None if sets is None else np.asarray(sets)
    if among is not None:
        right, labels = right[among], None if labels is None else labels[among]
    return estimate_rate(right, None if labels is None else labels.tolist())
