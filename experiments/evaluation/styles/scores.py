"""The scores of the bench: what a picture took over from its reference, against the truth about the reference.

    scores = StyleScores(bench)
    scores(pictures, prompts, references, Truth(drawn))   # {"slot palette": [...], "texture": [...], ...}
    scores(pictures, prompts, references)                 # where no truth is known: fewer scores
    scores.of_row(all_pictures_of_a_method)               # {"kernel distance, DINO": Estimate, ...}

The pictures are those of one task: one of each prompt, all in the style of the references. A list has a number for each
picture, or one where it is about all of them. What a perfect method would reach are *real further scenes*: the prompts
of the task in the reference's own style draw. Cheats do not reach them: ``tests/test_bench_scores.py`` holds every
score to that.

Thrown away, because a cheat wins it or because it measures something else:

- **DINO's cosine and the distance of palettes**, as proof of style: a plain picture that is given the reference's mean
  and spread of each channel comes near real further scenes, and the reference itself beats them. Both are kept, in
  ``CHEATED``, to be compared with papers.
- **Diversity in DINO's features**: it tells styles apart, not contents. One scene in four styles is some fifty times
  as diverse as scenes in one style, and still several times where all pictures are grey.
- **Defects by the nearest real scene, as a scale**: in features of the judge neither blur nor copied colours show, and
  in DINO's a picture that is all stain is nearer than one that is half of it. They are shown, and do not count towards
  "passes".
- **One order of all methods by a weighted sum**: any weights let a cheat win somewhere. "passes" is no sum: a picture
  passes if it is like real further scenes in everything at once, and a cheat nearly always fails in something.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from PIL import Image

from context_diffusion.metrics import Estimate, palette_distances, palette_of, reference_scores, text_image_scores
from context_diffusion.scenes import STYLES, Rendering, Scene, Style, render
from context_diffusion.scenes.reader import Reader, Reading, slot_map

from ..bench import Bench
from ..papers.scorers import Networks
from ..unseen import seed_of
from .scores_content import Content, content_of, content_scores, leakage
from .scores_copying import (
    Maps,
    beyond_chance,
    coarse_layout,
    coarse_pixels,
    diversity,
    most_alike,
    segments_of,
)
from .scores_realism import Crowd, softness
from .scores_style import reference_slots, slot_palette_distances, texture_distances

FURTHER, TIMES = 98_000, 3  # unseen numbers of real further scenes, and how many there are of each prompt
LOWER = (
    "palette distance", "slot palette", "texture", "period", "angle", "weight", "strength", "leakage", "pixel copy",
    "layout copy", "pixel correlation", "defects, DINO", "defects, judge", "softness",
)  # fmt: skip
HIGHER = (
    "passes", "style", "object", "background", "sun", "DINO", "CLIP, prompt", "diversity of pixels",
    "diversity of layouts",
)  # fmt: skip
CHEATED = ("DINO", "palette distance")
TO_PASS = ("slot palette", "texture", "pixel copy", "layout copy")  # no more than the worst real further scene has

Values = dict[str, Float[np.ndarray, " n"]]


@dataclass(frozen=True)
class Truth:
    """What is known about references: how each was drawn, and what else there is in their style draw.

    Args:
        drawn: one rendering for each reference; all share a style draw.
        further: real further scenes in it, several sets of the task's prompts in order; drawn here unless given.
        textured: whether the style is one of the world's ten, whose textures can be read.
    """

    drawn: Sequence[Rendering]
    further: Sequence[Image.Image] = ()
    textured: bool = True


class StyleScores(Networks):
    """The scores of style methods, by the model's CLIP, DINO, judge and reader of textures."""

    def __init__(self, bench: Bench):
        super().__init__(bench, "clip", "dino", "judge", texture=lambda: Reader.from_pretrained(bench.part("texture")))
        self.further = lru_cache(maxsize=64)(further_scenes)
        self.crowd = lru_cache(maxsize=1)(self._crowd)

    def __call__(
        self,
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        references: Sequence[Image.Image] = (),
        truth: Truth | None = None,
    ) -> dict[str, list[float]]:
        """Score the pictures of one task."""
        if len(pictures) != len(prompts):
            raise ValueError(f"Each picture has its prompt; got {len(pictures)} pictures and {len(prompts)} prompts.")
        scores = self.of_prompts(pictures, prompts) | self.of_references(pictures, references)
        if truth is not None:
            return scores | self.of_truth(list(pictures), prompts, references, truth)
        if references:  # without real further scenes, there is no telling what is chance
            scores["pixel correlation"] = most_alike(coarse_pixels(pictures), coarse_pixels(references)).tolist()
        return scores

    def of_prompts(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, list[float]]:
        """CLIP's cosine of each picture with its prompt."""
        if "clip" not in self.networks:
            return {}
        clip = self.networks["clip"]
        encoders = {"encode_images": clip.encode_images, "encode_text": clip.encode_text}
        return {"CLIP, prompt": text_image_scores(list(pictures), list(prompts), **encoders).tolist()}

    def of_references(
        self, pictures: Sequence[Image.Image], references: Sequence[Image.Image]
    ) -> dict[str, list[float]]:
        """The papers' scores: DINO's cosine with the references, and the distance of palettes. Cheats win both."""
        if not references:
            return {}
        scores = {"palette distance": palette_distances(pictures, palette_of(list(references))).tolist()}
        if "dino" in self.networks:
            cosines = reference_scores(list(pictures), list(references), self.networks["dino"].encode_images)
            scores["DINO"] = cosines.mean(axis=1).tolist()
        return scores

    def of_truth(
        self, pictures: list[Image.Image], prompts: Sequence[str], references: Sequence[Image.Image], truth: Truth
    ) -> dict[str, list[float]]:
        """Whatever is compared with real scenes, or with what is known of the references."""
        wanted, count = tuple(map(content_of, prompts)), len(pictures)
        further = list(truth.further or self.further(truth.drawn[0].style, wanted))
        if len(further) % count:
            raise ValueError(f"Real further scenes come in sets of the {count} prompts; there are {len(further)}.")
        everyone = pictures + further
        reading = self.networks["texture"](everyone) if "texture" in self.networks else None
        maps = {"pixel": (coarse_pixels(everyone), coarse_pixels(references))}
        if reading is not None:
            true = np.stack([slot_map(one.scene, sure=False) for one in truth.drawn])
            maps["layout"] = (coarse_layout(segments_of(reading.slots)), coarse_layout(segments_of(true)))
        found = copies(maps, count) | ({} if reading is None else style_distances(everyone, reading, truth))
        content = self.of_content(pictures, reading, wanted, truth)
        scores = {name: values[:count].tolist() for name, values in found.items()} | content
        scores |= {"softness": softness(pictures, further)} | self.crowd().defects(pictures)
        if "object" in content and reading is not None:
            scores["passes"] = passes(found, content, count)
        if count > 1:
            scores |= {
                f"diversity of {kind}s": [diversity(own[:count], own[count:])] for kind, (own, _) in maps.items()
            }
        return scores

    def of_content(
        self, pictures: list[Image.Image], reading: Reading | None, wanted: tuple[Content, ...], truth: Truth
    ) -> dict[str, list[float]]:
        """What the judge and the reader see, against the prompts; nothing where a prompt names none of the objects."""
        if "judge" not in self.networks or not all(one.object for one in wanted):
            return {}
        seen, slots = self.networks["judge"](pictures), None if reading is None else reading.slots[: len(pictures)]
        scores = content_scores(seen, slots, wanted)
        scores["leakage"] = leakage(seen["object"], wanted, [one.scene.object for one in truth.drawn])
        if truth.textured:
            scores["style"] = (seen["style"] == STYLES.index(truth.drawn[0].style.name)).astype(float).tolist()
        return scores

    def of_row(self, pictures: Sequence[Image.Image]) -> dict[str, Estimate]:
        """Of all pictures of a method together: the kernel distance to real scenes, 0 for more of those."""
        return self.crowd().distances(pictures)

    def _crowd(self) -> Crowd:
        known = {"dino": "DINO", "judge": "judge"}
        return Crowd({known[part]: self.networks[part].encode_images for part in known if part in self.networks})


def copies(maps: Mapping[str, tuple[Maps, Maps]], count: int) -> Values:
    """How much of a reference is found in the pictures, the first ``count`` of all, and in real further scenes."""
    shared = {kind: most_alike(everyone, references) for kind, (everyone, references) in maps.items()}
    return {f"{kind} copy": beyond_chance(values, values[count:]) for kind, values in shared.items()}


def style_distances(everyone: Sequence[Image.Image], reading: Reading, truth: Truth) -> Values:
    """How far the colours and textures that the reader finds are from the truth about the references."""
    found = {"slot palette": slot_palette_distances(everyone, reading.slots, reference_slots(truth.drawn))}
    return found | (texture_distances(reading, truth.drawn[0].style) if truth.textured else {})


def passes(found: Values, content: dict[str, list[float]], count: int) -> list[float]:
    """Whether a picture has the right object and style, and is like real further scenes in all of ``TO_PASS``."""
    right = [np.array(content[name]) > 0 for name in ("object", "style") if name in content]
    alike = [found[name][:count] <= found[name][count:].max() for name in TO_PASS if name in found]
    return np.all([*right, *alike], axis=0).astype(float).tolist()


def further_scenes(style: Style, contents: tuple[Content, ...]) -> list[Image.Image]:
    """Real scenes of some prompts in a style draw, each prompt several times: what a perfect method would reach."""
    pictures = []
    for number, one in enumerate(contents * TIMES, start=FURTHER):
        things = {"object": one.object} if one.object else {}
        scene = Scene.draw(seed_of(number), background=one.background, sun=one.sun, **things)
        pictures.append(render(scene, style, seed_of(number)).image)
    return pictures
