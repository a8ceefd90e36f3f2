"""Content: does a picture show what its prompt says, as the judge and the reader see it?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from context_diffusion.scenes import BACKGROUNDS, OBJECTS
from context_diffusion.scenes.palettes import SLOTS
from context_diffusion.scenes.vocabulary import PLACES, SUN, SYNONYMS

SUN_CELLS = 25  # of the map of slots; a sun that nothing hides has 104


@dataclass(frozen=True)
class Content:
    """What a prompt asks for, in the world's words; ``object`` is None where it is none of the world's."""

    object: str | None
    background: str
    sun: bool


def content_of(prompt: str) -> Content:
    """Read a prompt as the world writes its captions: a prompt that names no place means a plain background.

    >>> content_of("a ship by the sea on a sunny day, neon style")
    Content(object='boat', background='sea', sun=True)
    """
    said = f" {prompt.split(',')[0].lower()} "
    nouns = {noun: thing for thing in OBJECTS for noun in (thing, *SYNONYMS.get(thing, ()))}
    things = [nouns[word] for word in said.split() if word in nouns]
    places = [place for place in BACKGROUNDS if any(f" {phrase} " in said for phrase in PLACES[place] if phrase)]
    return Content(things[0] if things else None, places[0] if places else "plain", any(p in said for p in SUN))


def content_scores(
    seen: dict[str, Int[np.ndarray, " n"]],
    slots: UInt8[np.ndarray, "n cells cells"] | None,
    wanted: Sequence[Content],
) -> dict[str, list[float]]:
    """Whether the judge sees each prompt's object and background, and the reader its sun or that there is none."""
    scores = {
        "object": [float(OBJECTS[i] == one.object) for i, one in zip(seen["object"], wanted, strict=True)],
        "background": [
            float(BACKGROUNDS[i] == one.background) for i, one in zip(seen["background"], wanted, strict=True)
        ],
    }
    if slots is not None:
        suns = (slots == SLOTS.index("sun")).sum(axis=(1, 2)) >= SUN_CELLS
        scores["sun"] = [float(found == one.sun) for found, one in zip(suns, wanted, strict=True)]
    return scores


def leakage(seen: Int[np.ndarray, " n"], wanted: Sequence[Content], lent: Sequence[str]) -> list[float]:
    """Whether the judge sees a reference's object in a picture whose prompt names another."""
    return [float(OBJECTS[i] in lent) for i, one in zip(seen, wanted, strict=True) if one.object not in lent]
