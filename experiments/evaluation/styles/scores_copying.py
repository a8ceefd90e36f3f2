"""Copying, and its opposite: is the reference itself in the picture, and do pictures differ from each other?

The texture is averaged away before pixels are compared, since a method should take it over. What counts as copying is
what is above chance: above what real further scenes of the same prompts, in the same style draw, have in common with
the reference. 0 is chance, 1 the reference itself.
"""

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from context_diffusion.images import resize
from context_diffusion.metrics import pairwise_scores
from context_diffusion.metrics.inputs import Encoder
from context_diffusion.scenes import SEGMENTS, SIZE
from context_diffusion.scenes.palettes import SLOTS

COARSE = 32  # pixels on a side: 4x4 of the picture's in one
WINDOW = 22  # of them, in the middle of the reference, are looked for: shifts by up to 20 of the picture's pixels
ZOOMS = (0.85, 0.92, 1.0, 1.08, 1.18)
_SEGMENT = np.array(  # of each slot
    [
        SEGMENTS.index({"sky": "sky", "sun": "sun", "far": "ground", "near": "ground"}.get(slot, "object"))
        for slot in SLOTS
    ],
    dtype=np.uint8,
)


def segments_of(slots: UInt8[np.ndarray, "n cells cells"]) -> UInt8[np.ndarray, "n cells cells"]:
    """The segment of each cell: sky, sun, ground or object."""
    return _SEGMENT[slots]


def beyond_chance(shared: Float[np.ndarray, " n"], chance: Float[np.ndarray, " m"]) -> list[float]:
    """(shared - chance) / (1 - chance): 0 for what is common anyway, 1 for the same."""
    common = min(float(np.mean(chance)), 0.99) if len(chance) else 0.0
    return ((shared - common) / (1 - common)).tolist()


def best_correlation(image: Image.Image, reference: Image.Image) -> float:
    """The largest correlation of the reference's middle with a part of the picture, over small shifts and zooms.

    Of luminance, in [-1, 1]; blind to its gain and lift, and to texture.
    """
    picture = _coarse(image, COARSE)
    found = []
    for zoom in ZOOMS:
        whole = _coarse(reference, round(COARSE * zoom))
        first = (len(whole) - WINDOW) // 2
        middle = whole[first : first + WINDOW, first : first + WINDOW]
        found.append(cv2.matchTemplate(picture, middle, cv2.TM_CCOEFF_NORMED).max())
    return float(max(found))


def _coarse(image: Image.Image, side: int) -> Float[np.ndarray, "side side"]:
    grey = np.asarray(resize(image, SIZE).convert("L"), dtype=np.float32)
    return cv2.resize(cv2.GaussianBlur(grey, (0, 0), 2), (side, side), interpolation=cv2.INTER_AREA)


def pixel_copies(
    images: Sequence[Image.Image], references: Sequence[Image.Image], further: Sequence[Image.Image] = ()
) -> list[float]:
    """How much of the most copied reference's pixels is found in each picture, beyond chance."""

    def most(pictures: Sequence[Image.Image]) -> Float[np.ndarray, " n"]:
        return np.array([max(best_correlation(one, reference) for reference in references) for one in pictures])

    return beyond_chance(most(images), most(further))


def layout_copies(
    segments: UInt8[np.ndarray, "n cells cells"],
    references: UInt8[np.ndarray, "references cells cells"],
    further: UInt8[np.ndarray, "m cells cells"],
) -> list[float]:
    """The share of cells that are in the same segment as in the most similar reference, beyond chance."""

    def most(maps: UInt8[np.ndarray, "n cells cells"]) -> Float[np.ndarray, " n"]:
        return (maps[:, None] == references[None]).mean(axis=(2, 3)).max(axis=1)

    return beyond_chance(most(segments), most(further))


def diversity(
    images: Sequence[Image.Image],
    further: Sequence[Image.Image],
    segments: UInt8[np.ndarray, "n cells cells"] | None,
    further_segments: UInt8[np.ndarray, "m cells cells"] | None,
    encode: Encoder | None,
) -> dict[str, list[float]]:
    """The mean distance over pairs of pictures, of that within sets of real further scenes: 1 is as diverse as those.

    Of layouts, and of features of the pictures in grey, whose palette does not count. Sets have the prompts of the
    pictures, in order; where all pictures have one prompt, it is the diversity over seeds.
    """
    count = len(images)
    starts = range(0, len(further) - count + 1, count)
    if count < 2 or not starts:
        return {}
    found = {}
    if encode is not None:
        sets = [images, *(further[first : first + count] for first in starts)]
        own, *real = 1 - pairwise_scores([[_grey(one) for one in members] for members in sets], encode)
        found["diversity of features"] = [float(own / max(np.mean(real), 1e-6))]
    if segments is not None and further_segments is not None:
        apart = np.mean([layout_differences(further_segments[first : first + count]) for first in starts])
        found["diversity of layout"] = [float(layout_differences(segments) / max(apart, 1e-6))]
    return found


def layout_differences(segments: UInt8[np.ndarray, "n cells cells"]) -> float:
    """The mean share of cells that are in different segments, over pairs of pictures."""
    return float(np.mean([(one != other).mean() for one, other in itertools.combinations(segments, 2)]))


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")
