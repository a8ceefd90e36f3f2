"""The judge: a classifier of object, background and style, trained apart on real scenes, as the one who scores."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..checkpoints import DEFAULT, find_model, find_part, load_part
from ..images import ImageLike, resize
from .scene import SIZE
from .vocabulary import BACKGROUNDS, OBJECTS, STYLES

HEADS = {"object": OBJECTS, "background": BACKGROUNDS, "style": STYLES}
SIDE = 64  # pixels that the network sees
BATCH_SIZE = 64


class Judge:
    """Says what it sees: ``judge(images)["object"]`` holds an index into ``scenes.OBJECTS`` for each picture.

    >>> judge = Judge.from_pretrained()  # doctest: +SKIP
    >>> OBJECTS[judge([picture])["object"][0]]  # doctest: +SKIP
    'boat'
    """

    def __init__(self, network: torch.nn.Module):
        self.network = network.eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> "Judge":
        """Load the judge of ``tiny-scenes``, or one that was saved in ``folder``.

        Raises ``FileNotFoundError`` where there is none.
        """
        from transformers import ResNetForImageClassification

        location = find_part(find_model(DEFAULT), "judge") if folder is None else str(folder)
        if location is None or not Path(location).is_dir():
            raise FileNotFoundError("There is no judge here; `python -m experiments.training.judge` trains it.")
        return cls(load_part(ResNetForImageClassification, location))

    @torch.inference_mode()
    def __call__(self, images: Sequence[ImageLike]) -> dict[str, Int[np.ndarray, " n"]]:
        """The likeliest object, background and style of each picture, as indices into ``HEADS``."""
        found: dict[str, list[int]] = {head: [] for head in HEADS}
        for first in range(0, len(images), BATCH_SIZE):
            pixels = np.stack([np.asarray(resize(image, SIZE)) for image in images[first : first + BATCH_SIZE]])
            values = torch.from_numpy(shrink(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
            for head, logits in split(self.network(values).logits).items():
                found[head].extend(logits.argmax(dim=1).tolist())
        return {head: np.array(indices, dtype=np.int64) for head, indices in found.items()}


def split(logits: Float[Tensor, "n classes"]) -> dict[str, Float[Tensor, "n names"]]:
    """The logits of each head."""
    return dict(zip(HEADS, logits.split([len(names) for names in HEADS.values()], dim=-1), strict=True))


def shrink(pixels: UInt8[np.ndarray, "n height width 3"], side: int = SIDE) -> UInt8[np.ndarray, "n side side 3"]:
    """Shrink pictures by averaging."""
    return np.stack([cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) for picture in pixels])
