"""Who scores: CLIP and DINO of the model, and for the offline world a classifier trained apart on real scenes.

The numbers themselves come from :mod:`context_diffusion.metrics`; here they are lists, one entry for each picture or
set, to be written down as they are made.
"""

import hashlib
import itertools
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from context_diffusion.encoders import TransformersEncoder, load_encoder
from context_diffusion.metrics import (
    Palette,
    pairwise_scores,
    palette_distances,
    palette_of,
    reference_scores,
    text_image_scores,
)
from context_diffusion.scenes import OBJECTS, STYLES
from context_diffusion.scenes.judge import Judge

from ..bench import Bench

MIXED = -1  # what is asked of the judge where it knows no class


class Scorers:
    """The networks that score, each loaded when first asked for."""

    def __init__(self, bench: Bench):
        self.bench = bench

    @cached_property
    def clip(self) -> TransformersEncoder:
        """Text and pictures in one space."""
        return load_encoder("clip", self.bench.name)

    @cached_property
    def dino(self) -> TransformersEncoder:
        """Pictures alone, learned without labels."""
        return load_encoder("dino", self.bench.name)

    @property
    def judge(self) -> Judge | None:
        """The classifier of scenes; hub models have none, and the scores that need it are left out."""
        return self.bench.judge if self.bench.has("judge") else None

    def about(self, *parts: str) -> dict[str, str]:
        """Say which networks score: a digest of the weights of each, or the name."""
        return {part: fingerprint(self.bench, part) for part in parts}

    def of_set(self, pictures: Sequence[Image.Image]) -> dict[str, list[float]]:
        """Mean cosine of DINO's class tokens, and mean palette distance, over the pairs of a set."""
        palettes = [palette_of(picture) for picture in pictures]
        first, second = zip(*itertools.combinations(palettes, 2), strict=True)
        return {
            "DINO": pairwise_scores([list(pictures)], self.dino.encode_images).tolist(),
            "palette distance": [float(palette_distances(first, second).mean())],
        }

    def of_text(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """Cosine of each picture with its text."""
        encoders = {"encode_images": self.clip.encode_images, "encode_text": self.clip.encode_text}
        return text_image_scores(list(pictures), list(texts), **encoders).tolist()

    def of_reference(self, pictures: Sequence[Image.Image], reference: Image.Image, own: Palette) -> dict:
        """Cosine of each picture with the reference, and distance of its palette from the reference's."""
        return {
            "DINO": reference_scores(list(pictures), [reference], self.dino.encode_images)[:, 0].tolist(),
            "palette distance": palette_distances(pictures, own).tolist(),
        }

    def of_content(
        self, pictures: Sequence[Image.Image], objects: Sequence[str], style: str, lent: Sequence[str | None]
    ) -> dict[str, list[float]]:
        """Whether the judge sees the prompt's object, its style, and the object ``lent`` by the reference instead.

        All in {0, 1}; a picture that is the reference itself has None lent. Nothing where there is no judge, or where
        it does not know the words.
        """
        wanted = [object_class(text) for text in objects]
        if self.judge is None or MIXED in wanted:
            return {}
        seen = self.judge(pictures)
        scores = {"object": (seen["object"] == np.array(wanted)).astype(float).tolist()}
        if style in STYLES:
            scores["style"] = (seen["style"] == STYLES.index(style)).astype(float).tolist()
        pairs = [(seen["object"][i], object_class(text)) for i, text in enumerate(lent) if text is not None]
        return scores | {"leakage": [float(found == theirs) for found, theirs in pairs]}


def object_class(text: str) -> int:
    """Class of "a boat" among the world's objects, or ``MIXED``."""
    noun = text.split()[-1] if text.split() else ""
    return OBJECTS.index(noun) if noun in OBJECTS else MIXED


def drawn_by(bench: Bench, *parts: str) -> dict[str, object]:
    """Say what draws, for a protocol's ``about``: the pipeline's networks, further parts, steps and guidance."""
    networks = ("unet", "vae", "text_encoder", *parts)
    model = {part: fingerprint(bench, part) for part in networks}
    return {"model": model, "steps": bench.steps, "guidance": bench.guidance}


def fingerprint(bench: Bench, part: str) -> str:
    """Digest of the weights of a part that lies in a folder; for a model of the hub, its name."""
    folder = Path(bench.folder) / part
    if not folder.is_dir():
        return f"{bench.name}/{part}"
    whole = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        whole.update(file.name.encode() + file.read_bytes())
    return whole.hexdigest()[:16]
