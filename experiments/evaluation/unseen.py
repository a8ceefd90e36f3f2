"""Scenes that no training saw: groups from ``TinyScenes.HELD_OUT`` up; each protocol starts at a number of its own."""

from functools import cache

from context_diffusion.scenes import STYLES, Rendering, Scene, Style, TinyScenes, caption, context_group, render

SAMPLE, LAYOUT, CONTEXT, OTHERS, SETTINGS, DOMAIN = (10_000 * number for number in range(6))
REFERENCES, BLENDS, FINETUNED, ANSWERS = 60_000, 70_000, 80_000, 90_000
DEVELOPMENT, TEST, REAL = 65_000, 66_000, 95_000  # the first two are the references of style methods
SETS = 100_000  # they take 10,000 numbers for each seed
QUERY_STYLES = ("flat", "line art")  # what people bring as a query: a plain drawing, filled or not

_ANY_STYLE = Style.draw(0)


def seed_of(index: int) -> int:
    """The seed of the first scene of the unseen group ``index``; the group's own number is the seed of its style."""
    return (TinyScenes.HELD_OUT + index) * 1000


def style_draw(index: int, name: str) -> Style:
    """Draw the palette and texture that a named style has in the unseen group ``index``."""
    return Style.draw(TinyScenes.HELD_OUT + index, name=name)


def unseen(index: int, style: str, **fixed: object) -> Rendering:
    """Draw one unseen scene in a named style; ``fixed`` are fields of the scene."""
    return render(Scene.draw(seed_of(index), **fixed), style_draw(index, style), seed_of(index))


def alone(index: int, object: str) -> Scene:
    """Draw the unseen scene of a number with nothing in it but an object: a plain background, no sun."""
    return Scene.draw(seed_of(index), object=object, background="plain", sun=False)


def unseen_group(index: int, style: str, size: int) -> list[Rendering]:
    """Draw ``size`` unseen scenes that share one draw of a named style."""
    return context_group(TinyScenes.HELD_OUT + index, size, style=style_draw(index, style))


@cache
def sample(count: int) -> tuple[Rendering, ...]:
    """Draw ``count`` unseen scenes, each in a style draw of its own, the ten styles in turn."""
    return tuple(unseen(SAMPLE + i, STYLES[i % len(STYLES)]) for i in range(count))


def query(index: int, number: int, **fixed: object) -> Rendering:
    """Draw an unseen query: flat for the first ten numbers, line art for the next ten, and so on in turn."""
    return unseen(index, QUERY_STYLES[number // len(STYLES) % 2], **fixed)


def content(scene: Scene) -> str:
    """Say what a scene shows, and nothing about its style: ``"a boat among hills"``."""
    return caption(scene, _ANY_STYLE).split(",")[0]
