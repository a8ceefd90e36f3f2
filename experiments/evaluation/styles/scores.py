"""The scores of the bench: what a picture took over from its reference, against the truth about the reference.

    scores = StyleScores(bench)
    scores(pictures, prompts, references, truth)     # {"slot palette": [...], "texture": [...], ...}
    scores(pictures, prompts, references)            # of pictures without a known truth: fewer scores

The pictures are those of one task: one of each prompt, all in the style of the references. A list has a number for each
picture, or a single one where it is about all of them. What a perfect method would reach are real further scenes, the
same prompts in the reference's own style draw; the scores are made so that cheats do not reach it:
``tests/test_bench_scores.py`` holds them to that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from context_diffusion.checkpoints import find_part
from context_diffusion.metrics import Estimate, palette_distances, palette_of, reference_scores, text_image_scores
from context_diffusion.scenes import STYLES, Rendering, Scene, Style, render
from context_diffusion.scenes.reader import Reader, Reading, slot_map

from ..bench import Bench
from ..papers.scorers import fingerprint
from ..unseen import seed_of
from .scores_content import Content, content_of, content_scores, leakage
from .scores_copying import diversity, layout_copies, pixel_copies, segments_of
from .scores_realism import Crowd, softness
from .scores_style import reference_slots, slot_palette_distances, texture_distances

FURTHER, TIMES = 98_000, 3  # unseen numbers of real further scenes, and how many there are of each prompt
LOWER = (
    "palette distance", "slot palette", "texture", "period", "angle", "weight", "strength", "leakage", "pixel copy",
    "layout copy", "defects, DINO", "defects, judge", "softness",
)  # fmt: skip
HIGHER = (
    "DINO", "CLIP, prompt", "style", "object", "background", "sun", "diversity of features", "diversity of layout",
)  # fmt: skip
RATES = ("style", "object", "background", "sun", "leakage")  # 0 or 1 for each picture
CHEATED = ("DINO", "palette distance")  # a cheat wins them: they are there to be compared with other papers


@dataclass(frozen=True)
class Truth:
    """What is known about references: how each was drawn, and what else there is in their style draw.

    Args:
        drawn: one rendering for each reference; all share a style draw.
        further: real further scenes of the prompts in the same style draw; drawn here unless given.
        textured: whether the style is one of the world's ten, whose textures can be read.
    """

    drawn: Sequence[Rendering]
    further: Sequence[Image.Image] = ()
    textured: bool = True


class StyleScores:
    """The networks that score, loaded before anything is drawn; scores whose network cannot be had are left out.

    ``networks`` are those of the bench's model; ``missing`` says, for each that is not there, why.
    """

    def __init__(self, bench: Bench):
        self.bench, self.networks, self.missing = bench, {}, {}
        loaders = {"clip": lambda: bench.clip, "dino": lambda: bench.dino, "judge": lambda: bench.judge}
        loaders["texture"] = lambda: Reader.from_pretrained(bench.part("texture"))
        for part, load in loaders.items():
            try:
                self.networks[part] = load()
            except FileNotFoundError as error:
                self.missing[part] = str(error)
        self.further = lru_cache(maxsize=64)(further_scenes)
        self.crowd = lru_cache(maxsize=1)(self._crowd)

    def about(self) -> dict[str, str]:
        """Which networks score: a digest of the weights of each, or its name."""
        return {part: fingerprint(find_part(self.bench.row, part) or part) for part in self.networks}

    def notes(self) -> list[str]:
        """A note for the report, where scores are left out."""
        return [f"not scored, for lack of weights: {', '.join(self.missing)}"] if self.missing else []

    def __call__(
        self,
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        references: Sequence[Image.Image],
        truth: Truth | None = None,
    ) -> dict[str, list[float]]:
        """Score the pictures of one task; without references, only what they show and how real they look."""
        if len(pictures) != len(prompts):
            raise ValueError(
                f"Each picture has its prompt; there are {len(pictures)} pictures, {len(prompts)} prompts."
            )
        scores = self.of_prompts(pictures, prompts) | self.of_references(pictures, references)
        if truth is not None:
            scores |= self.of_truth(pictures, prompts, references, truth)
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
        self,
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        references: Sequence[Image.Image],
        truth: Truth,
    ) -> dict[str, list[float]]:
        """Whatever is compared with real scenes or with what is known of the references."""
        style, wanted = truth.drawn[0].style, [content_of(prompt) for prompt in prompts]
        further = list(truth.further or self.further(style, tuple(wanted)))
        reading, real = self.read(pictures), self.read(further)
        slots = reading.slots if reading else None
        scores = {"softness": softness(pictures, further), "pixel copy": pixel_copies(pictures, references, further)}
        if "judge" in self.networks and all(one.object for one in wanted):
            seen = self.networks["judge"](pictures)
            scores |= content_scores(seen, slots, wanted)
            scores["leakage"] = leakage(seen["object"], wanted, [one.scene.object for one in truth.drawn])
            if truth.textured:
                scores["style"] = (seen["style"] == STYLES.index(style.name)).astype(float).tolist()
        if reading and real:
            own = np.stack([slot_map(one.scene, sure=False) for one in truth.drawn])
            segments = [segments_of(maps) for maps in (reading.slots, own, real.slots)]
            scores["layout copy"] = layout_copies(*segments)
            scores["slot palette"] = slot_palette_distances(pictures, reading.slots, reference_slots(truth.drawn))
            if truth.textured:
                scores |= texture_distances(reading, truth.drawn[0])
        encode = self.networks["dino"].encode_images if "dino" in self.networks else None
        maps = (segments_of(reading.slots), segments_of(real.slots)) if reading and real else (None, None)
        scores |= diversity(pictures, further, *maps, encode)
        return scores | self.crowd().defects(pictures)

    def read(self, pictures: Sequence[Image.Image]) -> Reading | None:
        """What the reader says, where there is one."""
        return self.networks["texture"](list(pictures)) if "texture" in self.networks else None

    def of_row(self, pictures: Sequence[Image.Image]) -> dict[str, Estimate]:
        """Of all pictures of a method together: the kernel distance to real scenes, 0 for more of those."""
        return self.crowd().distances(pictures)

    def _crowd(self) -> Crowd:
        known = {"dino": "DINO", "judge": "judge"}
        return Crowd({known[part]: self.networks[part].encode_images for part in known if part in self.networks})


def further_scenes(style: Style, contents: tuple[Content, ...]) -> list[Image.Image]:
    """Real scenes of some prompts in a style draw, each prompt several times: what a perfect method would reach."""
    pictures = []
    for number, one in enumerate(contents * TIMES, start=FURTHER):
        things = {"object": one.object} if one.object else {}
        scene = Scene.draw(seed_of(number), background=one.background, sun=one.sun, **things)
        pictures.append(render(scene, style, seed_of(number)).image)
    return pictures
