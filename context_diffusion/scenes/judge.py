"""The judge: a classifier of object, background and style that scores pictures, trained on real scenes alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..checkpoints import DEFAULT, find_model, find_part, load_part
from ..checks import LIMITS, check_list
from ..images import ImageLike, resize
from ..signatures import checked
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

    @checked
    def __init__(self, network: torch.nn.Module):
        self.network = network.eval()

    @classmethod
    @checked
    def from_pretrained(cls, folder: str | Path | None = None) -> "Judge":
        """Load the judge of ``tiny-scenes``, or one saved in ``folder``.

        Raises ``FileNotFoundError`` if there is no such folder, ``ValueError`` if it holds no judge.
        """
        from transformers import ResNetForImageClassification

        location = folder_of("judge", "judge", folder)
        network, classes = load_part(ResNetForImageClassification, location), sum(map(len, HEADS.values()))
        if network.config.num_labels != classes:
            raise ValueError(
                f"A judge tells {classes} classes apart ({', '.join(HEADS)}); the network in {location} knows "
                f"{network.config.num_labels}."
            )
        return cls(network)

    @torch.inference_mode()
    def __call__(self, images: Sequence[ImageLike]) -> dict[str, Int[np.ndarray, " n"]]:
        """Give the likeliest object, background and style of each picture, as indices into ``HEADS``."""
        found: dict[str, list[int]] = {head: [] for head in HEADS}
        for pixels in batches(images, SIDE):
            for head, logits in split(self.network(pixels).logits).items():
                found[head].extend(logits.argmax(dim=1).tolist())
        return {head: np.array(indices, dtype=np.int64) for head, indices in found.items()}

    @torch.inference_mode()
    def encode_images(self, images: Sequence[ImageLike]) -> Float[Tensor, "images dim"]:
        """Encode pictures: the averaged features that the three answers are read from."""
        rows = [self.network.base_model(pixels).pooler_output.flatten(1) for pixels in batches(images, SIDE)]
        return torch.cat(rows) if rows else torch.zeros(0, self.network.config.hidden_sizes[-1])


def folder_of(part: str, called: str, folder: str | Path | None) -> str:
    """Where a network that judges pictures is: the given folder, or that part of ``tiny-scenes``.

    Raises ``FileNotFoundError`` if there is no such folder.
    """
    location = find_part(find_model(DEFAULT), part) if folder is None else str(folder)
    if location is None or not Path(location).is_dir():
        where = DEFAULT if folder is None else folder
        raise FileNotFoundError(f"There is no {called} in {where}; `python -m experiments.training.{part}` trains one.")
    return location


def batches(images: Sequence[ImageLike], side: int) -> Iterator[Float[Tensor, "n 3 side side"]]:
    """Pictures of any size, some at a time, at the world's size and then shrunk to ``side``, in [-1, 1]."""
    images = check_list("images", images, LIMITS["images"])
    for first in range(0, len(images), BATCH_SIZE):
        pixels = np.stack([np.asarray(resize(image, SIZE)) for image in images[first : first + BATCH_SIZE]])
        yield rearrange(torch.from_numpy(shrink(pixels, side)), "n height width rgb -> n rgb height width") / 127.5 - 1


def split(logits: Float[Tensor, "n classes"]) -> dict[str, Float[Tensor, "n names"]]:
    """Split the network's logits into those of each head."""
    return dict(zip(HEADS, logits.split([len(names) for names in HEADS.values()], dim=-1), strict=True))


def shrink(pixels: UInt8[np.ndarray, "n height width 3"], side: int = SIDE) -> UInt8[np.ndarray, "n side side 3"]:
    """Shrink pictures by averaging."""
    return np.stack([cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) for picture in pixels])
