"""The references of the blending protocol, and rulers that say how much of each style a picture has."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from context_diffusion.encoders import TransformersEncoder
from context_diffusion.metrics import Palette, palette_distances, palette_of, style_shares
from context_diffusion.scenes import OBJECTS, PALETTE_FAMILIES, STYLES, Rendering, Style, TinyScenes, caption, render
from context_diffusion.scenes.vocabulary import article

from ..styles.tasks import Folder, Task
from ..unseen import BLENDS, alone, seed_of

SCENES, OTHER_DRAWS = 4, 8  # real scenes in each style, for a yardstick; other styles, for what all have in common


@dataclass(frozen=True)
class Mixture:
    """The references of one index, unlike in style, family of palettes and object; and the things to be drawn."""

    references: tuple[Rendering, ...]
    things: tuple[str, ...]

    @property
    def captions(self) -> list[str]:
        """What the references show, in words."""
        return [caption(one.scene, one.style) for one in self.references]


class Mixtures:
    """Tasks with the unseen mixtures of the first indices as references; their prompts name no style."""

    references = 3

    def __init__(self, count: int) -> None:
        self.count = count

    def about(self) -> list[object]:
        """What the pictures of each task depend on: nothing but its number."""
        return []

    def note(self) -> str:
        """What was asked, in a line of the report."""
        return f"{self.count} mixtures x {len(mixture(0).things)} things"

    def task(self, index: int) -> Task:
        """The mixture of an index."""
        drawn = mixture(index)
        images, prompts = tuple(one.image for one in drawn.references), tuple(map(article, drawn.things))
        return Task(prompts, images, tuple(drawn.captions), seeds_of(index, len(prompts)))


class OwnMixtures:
    """Tasks that mix each picture of a folder with the next two, or the only two; raises as :class:`Folder` does."""

    def __init__(self, folder: str | Path, limit: int | None = None) -> None:
        self.folder = Folder(folder)
        self.folder.check_pair("blends mixes at least two pictures")
        among = self.folder.count
        mixed = [[first, *self.folder.others(first)[:2]] for first in range(among)]
        self.mixed = mixed[:1] if among == 2 else mixed[:limit]  # of two pictures, both mixtures would be one
        self.count, self.references = len(self.mixed), min(3, among)
        self.task = lru_cache(maxsize=16)(self._task)

    def about(self) -> list[object]:
        """What the pictures of each task depend on: the files of its references, and the words."""
        return [
            [*(self.folder.mark(one) for one in mixed), *self.task(index).prompts]
            for index, mixed in enumerate(self.mixed)
        ]

    def note(self) -> str:
        """What was asked, in a line of the report."""
        told = ", ".join(" + ".join(self.folder.names[one] for one in mixed) for mixed in self.mixed)
        shared = " (they share pictures: the intervals are too narrow)" if self.count > 1 else ""
        return f"mixtures of {self.folder.folder.name}: {told}{shared}"

    def _task(self, index: int) -> Task:
        mixed = self.mixed[index]
        prompts, captions = tuple(self.folder.things(*mixed)), tuple(self.folder.captions[one] for one in mixed)
        return Task(prompts, tuple(map(self.folder.image, mixed)), captions, seeds_of(index, len(prompts)))


def seeds_of(index: int, count: int) -> tuple[int, ...]:
    """The seed of each picture of a mixture."""
    return tuple(10 * index + k for k in range(count))


@lru_cache(maxsize=64)
def mixture(index: int, count: int = 3) -> Mixture:
    """Draw the references of an index; styles, families and objects take turns, far from each other in their lists."""
    references = []
    for k in range(count):
        seed = BLENDS + 10 * index + k
        style = Style.draw(
            TinyScenes.HELD_OUT + seed,
            name=STYLES[(index + 3 * k) % len(STYLES)],
            family=PALETTE_FAMILIES[(index + 2 * k) % len(PALETTE_FAMILIES)],
        )
        scene = alone(seed, OBJECTS[(index + 5 * k) % len(OBJECTS)])
        references.append(render(scene, style, seed_of(seed)))
    return Mixture(tuple(references), tuple(OBJECTS[(index + step) % len(OBJECTS)] for step in (2, 4, 9)))


@lru_cache(maxsize=256)
def real(index: int, which: int, thing: str, count: int = SCENES) -> tuple[Image.Image, ...]:
    """Render unseen scenes of a thing in the very style of a reference; no picture that is drawn sees them."""
    style = mixture(index).references[which].style
    return tuple(_scene(thing, 500 + k, style) for k in range(count))


@lru_cache(maxsize=16)
def elsewhere(thing: str) -> tuple[Image.Image, ...]:
    """Render a thing in styles that no reference has: their embeddings show what all pictures of it have in common."""
    draws = [Style.draw(TinyScenes.HELD_OUT + BLENDS + 9000 + k) for k in range(OTHER_DRAWS)]
    return tuple(_scene(thing, 600 + k, style) for k, style in enumerate(draws))


def _scene(thing: str, number: int, style: Style) -> Image.Image:
    return render(alone(BLENDS + number, thing), style, seed_of(BLENDS + number)).image


class Ruler:
    """The shares of styles in a picture by a network, against its mean embeddings of real scenes in each style."""

    def __init__(self, encoder: TransformersEncoder):
        self.encoder = encoder
        self.yardstick = lru_cache(maxsize=256)(self._yardstick)
        self.common = lru_cache(maxsize=16)(lambda thing: self.encoder.encode_images(elsewhere(thing)).mean(dim=0))

    def _yardstick(self, index: int, count: int, thing: str) -> Float[Tensor, "references dim"]:
        return torch.stack([self.encoder.encode_images(real(index, k, thing)).mean(dim=0) for k in range(count)])

    def shares(self, index: int, count: int, thing: str, embedding: Float[Tensor, " dim"]) -> list[float]:
        """The shares of the ``count`` styles of an index in a picture of ``thing``; they sum to 1."""
        ruler, common = self.yardstick(index, count, thing), self.common(thing)
        return style_shares(embedding[None], ruler, center=common)[0][0].tolist()


def palette_shares(picture: Image.Image, references: Sequence[Palette]) -> list[float]:
    """Shares by palette, in inverse proportion to the distances: s_k = (1 / d_k) / sum_j (1 / d_j)."""
    distances = palette_distances([palette_of(picture)] * len(references), references)
    closeness = 1 / np.maximum(distances, 1e-6)
    return (closeness / closeness.sum()).tolist()
