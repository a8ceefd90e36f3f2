"""Defects: how far pictures are from real scenes, one by one and as a crowd, and how soft their edges are."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from context_diffusion.images import resize
from context_diffusion.metrics import Estimate, kernel_distance
from context_diffusion.metrics.inputs import Encoder
from context_diffusion.scenes import SIZE, STYLES

from ..unseen import unseen

CROWD, SCENES = 97_000, 400  # unseen numbers of the real scenes


@lru_cache(maxsize=2)
def real_scenes(count: int = SCENES) -> tuple[Image.Image, ...]:
    """Unseen scenes, each in a style draw of its own, the ten styles in turn."""
    return tuple(unseen(CROWD + i, STYLES[i % len(STYLES)]).image for i in range(count))


class Crowd:
    """Real scenes in features of some networks, to which pictures are compared."""

    def __init__(self, encoders: Mapping[str, Encoder], scenes: Sequence[Image.Image] | None = None):
        self.encoders = dict(encoders)
        scenes = list(real_scenes() if scenes is None else scenes)
        self.features = {name: encode(scenes).double() for name, encode in self.encoders.items()}
        self.usual = {name: _nearest(rows, rows, itself=True).median() for name, rows in self.features.items()}

    def defects(self, images: Sequence[Image.Image]) -> dict[str, list[float]]:
        """How often the distance to the nearest real scene doubles that which real scenes have: 0 is usual.

        log2 of the ratio of cosine distances, in features of each network.
        """
        return {
            f"defects, {name}": _doublings(encode(list(images)).double(), rows, self.usual[name])
            for (name, encode), rows in zip(self.encoders.items(), self.features.values(), strict=True)
        }

    def distances(self, images: Sequence[Image.Image]) -> dict[str, Estimate]:
        """The kernel distance of all pictures of a method to the real scenes, which has no bias in their number."""
        return {
            f"kernel distance, {name}": kernel_distance(encode(list(images)).double(), self.features[name])
            for name, encode in self.encoders.items()
        }


def _doublings(rows: Float[Tensor, "n dim"], real: Float[Tensor, "m dim"], usual: Float[Tensor, ""]) -> list[float]:
    return (_nearest(rows, real).clamp(min=1e-6) / usual.clamp(min=1e-6)).log2().tolist()


def _nearest(rows: Float[Tensor, "n dim"], real: Float[Tensor, "m dim"], itself: bool = False) -> Float[Tensor, " n"]:
    rows, real = (side / side.norm(dim=1, keepdim=True).clamp(min=1e-12) for side in (rows, real))
    apart = 1 - rows @ real.T
    if itself:
        apart.fill_diagonal_(torch.inf)
    return apart.min(dim=1).values.clamp(min=0)


def sharpness(image: Image.Image) -> float:
    """log2 of the energy of the second differences over that of the first: falls by about 1 where edges are blurred.

    Blind to colour, contrast and lightness: both energies scale alike.
    """
    grey = np.asarray(resize(image, SIZE).convert("L"), dtype=np.float64)
    first = sum((np.diff(grey, axis=axis) ** 2).mean() for axis in (0, 1))
    second = (cv2.Laplacian(grey, cv2.CV_64F) ** 2).mean()
    return float(np.log2((second + 1e-3) / (first + 1e-3)))


def softness(images: Sequence[Image.Image], further: Sequence[Image.Image]) -> list[float]:
    """By how much the edges of each picture are softer or harder than those of real further scenes, in log2."""
    usual = np.median([sharpness(image) for image in further])
    return [abs(sharpness(image) - usual) for image in images]
