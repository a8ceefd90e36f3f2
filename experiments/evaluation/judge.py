"""The judge: a classifier of object, background and style, trained apart on real scenes, as the one who scores."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from PIL import Image

from context_diffusion.checkpoints import load_part
from context_diffusion.images import resize
from context_diffusion.metrics import Estimate, estimate_rate
from context_diffusion.metrics.inputs import batched
from context_diffusion.scenes import SIZE

from ..training.clip import shrink
from ..training.judge import split

BATCH_SIZE = 64


class Judge:
    """Says what it sees: ``judge(images)["object"]`` holds an index into ``scenes.OBJECTS`` for each picture."""

    def __init__(self, network: torch.nn.Module):
        self.network = network.eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Judge":
        """Load the classifier that ``python -m context_diffusion.training.judge`` saved."""
        from transformers import ResNetForImageClassification

        return cls(load_part(ResNetForImageClassification, str(folder)))

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Int[np.ndarray, " n"]]:
        """Index of the likeliest object, background and style of each picture."""
        found: dict[str, list[int]] = {}
        for batch in batched(images, BATCH_SIZE):
            pixels = np.stack([np.asarray(resize(image, SIZE)) for image in batch])
            values = torch.from_numpy(shrink(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
            for head, logits in split(self.network(values).logits).items():
                found.setdefault(head, []).extend(logits.argmax(dim=1).tolist())
        return {head: np.array(indices) for head, indices in found.items()}


def accuracy(
    seen: Int[np.ndarray, " n"],
    wanted: Sequence[int],
    sets: Sequence[object] | None = None,
    among: Bool[np.ndarray, " n"] | None = None,
) -> Estimate:
    """Share of right answers with Wilson's interval, of all pictures or of those ``among`` which it is asked."""
    right = seen == np.asarray(wanted)
    labels = None if sets is None else np.asarray(sets)
    if among is not None:
        right, labels = right[among], None if labels is None else labels[among]
    return estimate_rate(right, None if labels is None else labels.tolist())
