"""Style against the truth: colours slot by slot, and the parameters of the texture.

An earth mover's distance between palettes knows nothing about where a colour is: a blue sky over red ground is as good
as a red one over blue. Here the colour of each slot is compared with the same slot's in the reference. The slots of the
reference are known; those of a picture are what the reader finds.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from context_diffusion.images import resize
from context_diffusion.metrics import srgb_to_lab
from context_diffusion.scenes import SIZE, STYLES, Rendering, Style
from context_diffusion.scenes.palettes import SLOTS
from context_diffusion.scenes.reader import CELLS, UNSURE, Reading, parameter_errors, slot_map

FEWEST = 16  # cells that a slot has, to have a colour: 0.4 % of a picture
TWO_DRAWS = 2**0.5  # root mean square distance between the parameters of two independent draws, in deviations

Colors = dict[int, Float[np.ndarray, " 3"]]


def cells_in_lab(images: Sequence[Image.Image | np.ndarray]) -> Float[np.ndarray, "n cells cells 3"]:
    """The mean colour of each of 64x64 cells, in CIELAB."""
    pixels = [np.asarray(resize(image, SIZE)) for image in images]
    return srgb_to_lab(np.stack([cv2.resize(one, (CELLS, CELLS), interpolation=cv2.INTER_AREA) for one in pixels]))


def interior(slots: UInt8[np.ndarray, "*n cells cells"]) -> Bool[np.ndarray, "*n cells cells"]:
    """The cells whose four neighbours are of the same slot: the others hold ink, or two colours."""
    padded = np.pad(slots, [(0, 0)] * (slots.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    around = (padded[..., :-2, 1:-1], padded[..., 2:, 1:-1], padded[..., 1:-1, :-2], padded[..., 1:-1, 2:])
    return np.all([one == slots for one in around], axis=0) & (slots != UNSURE)


def slot_colors(lab: Float[np.ndarray, "n cells cells 3"], slots: UInt8[np.ndarray, "n cells cells"]) -> Colors:
    """The mean colour of every slot that has enough cells, over all the pictures given."""
    inside = interior(slots)
    places = {slot: inside & (slots == slot) for slot in range(len(SLOTS))}
    return {slot: lab[place].mean(axis=0) for slot, place in places.items() if place.sum() >= FEWEST}


def reference_slots(drawn: Sequence[Rendering]) -> Colors:
    """The slots' colours in references of one style draw."""
    return slot_colors(cells_in_lab([one.image for one in drawn]), np.stack([slot_map(one.scene) for one in drawn]))


def slot_palette_distances(
    images: Sequence[Image.Image], slots: UInt8[np.ndarray, "n cells cells"], true: Colors
) -> Float[np.ndarray, " n"]:
    """The mean over slots of |colour in the picture - colour in the reference|, in Delta E*ab (1976).

    Over the slots that both show; a picture that shows none of the reference's counts with its mean colour in each.
    """
    distances = []
    for lab, found in zip(cells_in_lab(images), slots, strict=True):
        own = slot_colors(lab[None], found[None])
        common = [slot for slot in true if slot in own]
        mean = lab.mean(axis=(0, 1))
        pairs = [(own[slot], true[slot]) for slot in common] or [(mean, color) for color in true.values()]
        distances.append(float(np.mean([np.linalg.norm(one - other) for one, other in pairs])))
    return np.array(distances)


def texture_distances(reading: Reading, style: Style) -> dict[str, Float[np.ndarray, " n"]]:
    """How far each picture's texture is from a style draw's, in deviations over style draws.

    Under the name of each parameter that the style shows |read - true| / deviation, and under "texture" the root of
    their mean square. A picture that is read as another style is as far as a random draw is: sqrt(2).
    """
    alike = reading.styles == STYLES.index(style.name)
    errors = parameter_errors(reading.parameters(style.name), style)
    whole = np.sqrt(np.mean([error**2 for error in errors.values()], axis=0)) if errors else np.zeros(len(alike))
    return {name: np.where(alike, error, TWO_DRAWS) for name, error in (errors | {"texture": whole}).items()}
