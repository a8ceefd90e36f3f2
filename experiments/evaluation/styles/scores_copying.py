"""Copying, and its opposite: is the reference itself in the picture, and do pictures differ from each other?

Pixels and layouts are compared at the best of some small shifts and zooms. The texture is averaged away first, since a
method should take it over. What counts as copying is what is above chance: above what real further scenes of the same
prompts, in the same style draw, have in common with the reference. 0 is chance, 1 the reference itself.
"""

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from context_diffusion.images import resize
from context_diffusion.scenes import SEGMENTS, SIZE
from context_diffusion.scenes.palettes import SLOTS

COARSE = 32  # pixels on a side: 4x4 of the picture's in one
WINDOW = 22  # of them, in the middle of the reference, are looked for: shifts by up to 20 of the picture's pixels
Map = Float[np.ndarray, "height width *channels"]
Maps = Sequence[Map]
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


def coarse_pixels(images: Sequence[Image.Image]) -> Maps:
    """Luminance without texture: 32x32, each the mean of about 8x8 pixels."""
    grey = (np.asarray(resize(image, SIZE).convert("L"), dtype=np.float32) for image in images)
    return [cv2.GaussianBlur(one, (0, 0), 2) for one in grey]


def coarse_layout(segments: UInt8[np.ndarray, "n cells cells"]) -> Maps:
    """What share of each cell is sky, sun, ground and object."""
    return [np.eye(len(SEGMENTS), dtype=np.float32)[one] for one in segments]


def correlation(picture: Map, middle: Map) -> float:
    """The largest correlation of the reference's middle with a part of the picture, in [-1, 1].

    Over pixels and channels, each channel about its mean: blind to gain and lift, and to how much sky there is.
    """
    return float(cv2.matchTemplate(picture, middle, cv2.TM_CCOEFF_NORMED).max())


def most_alike(maps: Maps, references: Maps) -> Float[np.ndarray, " n"]:
    """What each map shares with the reference, and the shift and zoom of it, with which it shares most."""
    middles = [_middle(reference, round(COARSE * zoom)) for reference in references for zoom in ZOOMS]
    shrunk = [_shrunk(one, COARSE) for one in maps]
    return np.array([max(correlation(one, middle) for middle in middles) for one in shrunk])


def beyond_chance(shared: Float[np.ndarray, " n"], further: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """(shared - chance) / (1 - chance), where chance is the mean over further scenes: 0 for those, 1 for the same."""
    chance = min(float(further.mean()), 0.99) if len(further) else 0.0
    return (shared - chance) / (1 - chance)


def differences(maps: Maps) -> float:
    """The mean over pairs of what two maps do not share."""
    pairs = itertools.combinations(maps, 2)
    return float(np.mean([1 - most_alike([one], [other])[0] for one, other in pairs]))


def diversity(maps: Maps, further: Maps) -> float:
    """The differences of pictures, of those within sets of real further scenes: 1 is as diverse as these.

    ``further`` holds one set after the other, each with the prompts of the pictures in their order. Where all pictures
    have one prompt, this is the diversity over seeds.
    """
    count = len(maps)
    sets = [further[first : first + count] for first in range(0, len(further) - count + 1, count)]
    return differences(maps) / max(1e-6, float(np.mean([differences(one) for one in sets])))


def _shrunk(one: Map, side: int) -> Map:
    return cv2.resize(one, (side, side), interpolation=cv2.INTER_AREA)


def _middle(one: Map, side: int) -> Map:
    first = (side - WINDOW) // 2
    return _shrunk(one, side)[first : first + WINDOW, first : first + WINDOW]
