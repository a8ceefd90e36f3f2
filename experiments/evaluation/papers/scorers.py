"""Who scores: the model's CLIP and DINO, and for the offline world a classifier trained separately on real scenes.

The numbers come from :mod:`context_diffusion.metrics`; here they are lists, with one entry for each picture or set, to
be written down as they are made.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from context_diffusion.checkpoints import find_part
from context_diffusion.metrics import (
    pairwise_scores,
    palette_distances,
    palette_of,
    reference_scores,
    text_image_scores,
)
from context_diffusion.scenes import OBJECTS, STYLES

from ..bench import Bench

UNKNOWN = -1  # for words that the judge has no class for


class Networks:
    """The networks that score, loaded before anything is drawn; scores whose network cannot be had are left out.

    ``wanted`` are parts of the bench, such as "clip"; others come with a function that loads them. ``missing`` says,
    for each that is not there, why.
    """

    def __init__(self, bench: Bench, *wanted: str, **others: Callable[[], object]):
        self.bench, self.networks, self.missing = bench, {}, {}
        for part, load in ({part: partial(getattr, bench, part) for part in wanted} | others).items():
            try:
                self.networks[part] = load()
            except FileNotFoundError as error:
                self.missing[part] = str(error)
                print(f"scores by {part} are left out. {error}")

    def about(self) -> dict[str, str]:
        """Which networks score: a digest of the weights of each, or its name."""
        return {part: fingerprint(find_part(self.bench.row, part) or part) for part in self.networks}

    def notes(self) -> list[str]:
        """A note for the report, where scores are left out."""
        return [f"not scored, for lack of weights: {', '.join(self.missing)}"] if self.missing else []


class Scorers(Networks):
    """The scores of the papers' protocols."""

    def of_set(self, pictures: Sequence[Image.Image]) -> dict[str, list[float]]:
        """Mean cosine of DINO's class tokens, and mean palette distance, over the pairs of a set."""
        palettes = [palette_of(picture) for picture in pictures]
        first, second = zip(*itertools.combinations(palettes, 2), strict=True)
        scores = {}
        if "dino" in self.networks:
            scores["DINO"] = pairwise_scores([list(pictures)], self.networks["dino"].encode_images).tolist()
        return scores | {"palette distance": [float(palette_distances(first, second).mean())]}

    def of_text(self, pictures: Sequence[Image.Image], **texts: Sequence[str]) -> dict[str, list[float]]:
        """Cosine of each picture with its text: ``"CLIP, object"`` for the texts named ``object``, and so on."""
        if "clip" not in self.networks:
            return {}
        clip = self.networks["clip"]
        encoders = {"encode_images": clip.encode_images, "encode_text": clip.encode_text}
        return {
            f"CLIP, {name}": text_image_scores(list(pictures), list(said), **encoders).tolist()
            for name, said in texts.items()
        }

    def of_reference(self, pictures: Sequence[Image.Image], reference: Image.Image) -> dict[str, list[float]]:
        """Cosine of each picture with the reference, and distance of its palette from the reference's."""
        scores = {}
        if "dino" in self.networks:
            encode = self.networks["dino"].encode_images
            scores["DINO"] = reference_scores(list(pictures), [reference], encode)[:, 0].tolist()
        return scores | {"palette distance": palette_distances(pictures, palette_of(reference)).tolist()}

    def of_content(
        self, pictures: Sequence[Image.Image], objects: Sequence[str], style: str, lent: Sequence[str | None]
    ) -> dict[str, list[float]]:
        """Whether the judge sees the prompt's object, its style, and the object ``lent`` by the reference instead.

        All in {0, 1}; for a picture that is the reference itself, ``lent`` is None. There are no such scores without a
        judge, or where it does not know the words.
        """
        wanted = [object_class(text) for text in objects]
        if "judge" not in self.networks or UNKNOWN in wanted:
            return {}
        seen = self.networks["judge"](pictures)
        scores = {"object": (seen["object"] == np.array(wanted)).astype(float).tolist()}
        if style in STYLES:
            scores["style"] = (seen["style"] == STYLES.index(style)).astype(float).tolist()
        pairs = [(seen["object"][i], object_class(text)) for i, text in enumerate(lent) if text is not None]
        return scores | {"leakage": [float(found == theirs) for found, theirs in pairs]}


def object_class(text: str) -> int:
    """Class of "a boat" among the world's objects, or ``UNKNOWN``."""
    noun = text.split()[-1] if text.split() else ""
    return OBJECTS.index(noun) if noun in OBJECTS else UNKNOWN


def drawn_by(bench: Bench, *parts: str) -> dict[str, object]:
    """What draws, for a protocol's ``about``: the pipeline and further parts of the model, steps and guidance."""
    folder = Path(bench.row.location)
    index = folder / "model_index.json"  # only a folder has one
    own = [name for name in json.loads(index.read_text()) if (folder / name).is_dir()] if index.is_file() else []
    model = {name: fingerprint(folder / name) for name in own} or {"pipeline": bench.row.location}
    model |= {part: fingerprint(find_part(bench.row, part) or "") for part in parts}
    return {"model": model, "steps": bench.steps, "guidance": bench.row.guidance_scale}


def fingerprint(location: str | Path) -> str:
    """A digest of the weights and settings in a folder; of a repository, its name."""
    folder = Path(location)
    if not str(location) or not folder.is_dir():
        return str(location)
    whole = hashlib.sha256()
    for file in sorted(file for end in ("safetensors", "json") for file in folder.rglob(f"*.{end}")):
        whole.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return whole.hexdigest()[:16]
