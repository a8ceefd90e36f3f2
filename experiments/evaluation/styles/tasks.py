"""What style methods are asked: prompts to draw in the style of references. The world's, and those of a folder.

The world's references come in two sets, with scenes of their own: one to develop on, and one for the published table
alone, which holds two styles besides that no training saw (:mod:`.held_out`). Their truth is known, and stays with the
bench: a method sees pictures and words.
"""

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image

from context_diffusion.checks import hint
from context_diffusion.files import as_path
from context_diffusion.finetune import read_folder
from context_diffusion.images import load_image
from context_diffusion.scenes import BACKGROUNDS, OBJECTS, STYLES, Rendering, Scene, render

from ..unseen import DEVELOPMENT, TEST, content, seed_of, style_draw
from .held_out import HELD_OUT
from .scores import TIMES, Truth

PICTURES, REFERENCES = 4, 2  # prompts of a task, and references, which share a style draw
MOST = 100  # references in a set: each has ten numbers of its own
CAPTIONS = "captions.toml"
_NONE = "-"
THINGS = ("a boat", "a cat", "a house", "a tree", "a car", "a cup")  # drawn with a folder's references, the first four
_AROUND = {"of", "at", "in", "on", "by", "among", "with", "under", "over", "beside", "behind", "before", "near"}


@dataclass(frozen=True)
class Task:
    """Prompts, each with its seed, and the references whose style the pictures are to have, each with its caption.

    The prompts name the style in words; they name none where the caption of a reference from a folder does not.
    """

    prompts: tuple[str, ...]
    references: tuple[Image.Image, ...]
    captions: tuple[str, ...]
    seeds: tuple[int, ...]

    def noise(self) -> list[torch.Generator]:
        """One fresh generator for each picture, as a diffusers pipeline takes them."""
        return [torch.Generator().manual_seed(seed) for seed in self.seeds]

    @property
    def subject(self) -> str:
        """What the first reference shows, in one word of its caption: the last before a place or a comma.

        >>> Task((), (), ("a red boat by the sea, neon style",), ()).subject
        'boat'
        """
        words = self.captions[0].split(",")[0].split()
        last = next((i for i, word in enumerate(words) if i and word in _AROUND), len(words))
        return words[last - 1]

    def parts(self, size: int) -> list["Task"]:
        """The task in parts of at most ``size`` pictures."""
        starts = range(0, len(self.prompts), size)
        return [
            replace(self, prompts=self.prompts[i : i + size], seeds=self.seeds[i : i + size]) for i in starts
        ]  # fmt: skip


class World:
    """Tasks of the toy world, each in a style draw that no training saw, with all that is known about them.

    Args:
        count: how many, in the order of the set.
        test: take the held-out set instead of the one to develop on.
    """

    references = REFERENCES

    def __init__(self, count: int, *, test: bool = False) -> None:
        self.count, self.first, self.test = min(count, MOST), TEST if test else DEVELOPMENT, test
        self.styles = (*STYLES, *HELD_OUT) if test else STYLES
        self.task, self.truth = lru_cache(maxsize=64)(self._task), lru_cache(maxsize=16)(self._truth)

    def about(self) -> list[object]:
        """What the pictures of each task depend on, besides the method."""
        return ["test" if self.test else "development"] * self.count

    def note(self) -> str:
        """What was asked, in a line of the report."""
        which = "held-out test set" if self.test else "development set"
        asked = f"{counted(self.count, 'task')} of the {which}"
        return f"{asked}, {REFERENCES} references in one style draw, {PICTURES} pictures each"

    def style(self, index: int) -> str:
        """The name of the style of a task."""
        return self.styles[index % len(self.styles)]

    def _task(self, index: int) -> Task:
        drawn, style = self.drawn(index), self.style(index)
        prompts = tuple(f"{content(scene)}, {style} style" for scene in self.asked(index).values())
        captions = tuple(f"{content(one.scene)}, {style} style" for one in drawn)
        seeds = tuple(10 * (self.first + index) + k for k in range(PICTURES))
        return Task(prompts, tuple(one.image for one in drawn), captions, seeds)

    def _truth(self, index: int) -> Truth:
        further = [one for time in range(1, TIMES + 1) for one in self.real(index, time)]
        return Truth(self.drawn(index), further, textured=self.style(index) in STYLES)

    def drawn(self, index: int) -> list[Rendering]:
        """The references of a task, of two different objects."""
        found = []
        for number in range(self.number(index), self.number(index) + REFERENCES):
            name = OBJECTS[(self.thing(index) + 2 * len(found)) % len(OBJECTS)]
            found.append(self.paint(Scene.draw(seed_of(number), object=name), index, seed_of(number)))
        return found

    def asked(self, index: int, time: int = 0) -> dict[int, Scene]:
        """What the prompts ask for, by seed: four other objects in every background, half of them under a sun."""
        thing, first, found = self.thing(index), seed_of(self.number(index)) + 100 * (time + 1), {}
        for k, step in enumerate((4, 7, 10, 13)):
            name, place = OBJECTS[(thing + step) % len(OBJECTS)], BACKGROUNDS[(index + k) % len(BACKGROUNDS)]
            found[first + k] = Scene.draw(first + k, object=name, background=place, sun=(index // 4 + k) % 2 == 0)
        return found

    def thing(self, index: int) -> int:
        """The object of the first reference; it takes turns faster than the styles."""
        return 5 * index + index // len(self.styles)

    def real(self, index: int, time: int = 0) -> list[Image.Image]:
        """What the prompts ask for, in the very style draw of the references: what a perfect method would reach."""
        return [self.paint(scene, index, seed).image for seed, scene in self.asked(index, time).items()]

    def number(self, index: int) -> int:
        """The first of the ten numbers of a task among the unseen."""
        return self.first + 10 * index

    def paint(self, scene: Scene, index: int, seed: int) -> Rendering:
        """Draw a scene in the style draw of a task."""
        name = self.style(index)
        if name in HELD_OUT:
            return HELD_OUT[name](scene, style_draw(self.number(index), "flat"), seed)
        return render(scene, style_draw(self.number(index), name), seed)


class Folder:
    """Pictures of one's own, captioned ``"what it shows, style"``, as tasks: each is a reference.

    The captions are in ``captions.toml``, or each in a text file beside its picture, as for fine-tuning::

        prompts = ["a bridge", "a fox"]    # what to draw in every style; may be left out
        [captions]
        "fuji.png" = "a mountain, woodblock print"

    Raises ``FileNotFoundError`` or ``ValueError`` for a folder, a picture or a caption that will not do.
    """

    references = 1

    def __init__(self, folder: str | Path, limit: int | None = None) -> None:
        self.folder = as_path(folder, "--references")
        files, beside = read_folder(self.folder, _NONE)
        names = [file.name for file in files]
        self.prompts, listed = read_captions(self.folder / CAPTIONS, names)
        self.captions = [listed.get(name, said) for name, said in zip(names, beside, strict=True)][:limit]
        self.files, self.count = files[:limit], len(self.captions)
        self.names = [file.name for file in self.files]
        for file, caption in zip(self.files, self.captions, strict=True):
            if caption == _NONE:
                raise ValueError(
                    f"Every reference has a caption; {file.name} has none in {CAPTIONS} of its folder, nor a text file "
                    'beside it ("a mountain, woodblock print").'
                )
            if not caption.split(",")[0].strip():
                raise ValueError(
                    f'A caption says what the picture shows, then its style ("a mountain, woodblock print"); that of '
                    f"{file.name} is {caption!r}."
                )
        self.task = lru_cache(maxsize=64)(self._task)

    def about(self) -> list[object]:
        """What the pictures of each task depend on: the file of its reference, and the words."""
        return [[*self.mark(index), *self.task(index).prompts] for index in range(self.count)]

    def note(self) -> str:
        """What was asked, in a line of the report."""
        return f"{counted(self.count, 'reference')} of {self.folder.name}: {', '.join(self.names)}"

    def mark(self, index: int) -> list[str]:
        """What a picture and its caption are known by: a digest of the file, and the words."""
        return [hashlib.sha256(self.files[index].read_bytes()).hexdigest()[:16], self.captions[index]]

    def image(self, index: int) -> Image.Image:
        """A picture, in its own size."""
        return load_image(self.files[index])

    def said(self, index: int) -> tuple[str, str]:
        """What a caption says: what the picture shows, and its style, which may be missing."""
        shown, comma, style = self.captions[index].rpartition(",")
        return (shown.strip(), style.strip()) if comma else (style.strip(), "")

    def others(self, index: int) -> list[int]:
        """All pictures but one, those that follow it first."""
        return [(index + step) % len(self.files) for step in range(1, len(self.files))]

    def things(self, *references: int) -> list[str]:
        """What to draw with some of the pictures as references: the folder's prompts, or what none of them shows."""
        shown = {word for index in references for word in self.said(index)[0].split()}
        return list(self.prompts) or [one for one in THINGS if one.split()[-1] not in shown][:PICTURES]

    def check_pair(self, why: str) -> None:
        """Refuse a folder with a single picture; raises ``ValueError``."""
        if len(self.files) < 2:
            raise ValueError(f"{why}; {self.folder.name} has {self.names[0]} alone.")

    def _task(self, index: int) -> Task:
        prompts = tuple(in_style(thing, self.said(index)[1]) for thing in self.things(index))
        seeds = tuple(100 * index + k for k in range(len(prompts)))
        return Task(prompts, (self.image(index),), (self.captions[index],), seeds)

    def truth(self, index: int) -> None:
        """Nothing is known of other people's pictures."""

    def real(self, index: int) -> list[Image.Image]:
        """There are no further pictures in the very style."""
        return []


def in_style(thing: str, style: str) -> str:
    """A prompt for a thing, which names the style where there are words for it."""
    return f"{thing}, {style}" if style else thing


def counted(count: int, thing: str) -> str:
    """A number of things in words.

    >>> counted(1, "task"), counted(2, "task")
    ('1 task', '2 tasks')
    """
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def read_captions(file: Path, names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The prompts and the caption of each picture; neither where there is no such file."""
    if not file.is_file():
        return (), {}
    try:
        said = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name} is not TOML: {error}") from None
    prompts, captions = said.pop("prompts", []), said.pop("captions", {})
    texts = [*prompts, *captions.values()] if isinstance(prompts, list) and isinstance(captions, dict) else [None]
    if said or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f'{file.name} holds prompts = ["a fox"] and, under [captions], "a.png" = "a hill, ink".')
    if unknown := [name for name in captions if name not in names]:
        raise ValueError(
            f"{file.name} has a caption of {unknown[0]!r}, which is not among the pictures{hint(unknown[0], names)}"
        )
    return tuple(prompts), captions
