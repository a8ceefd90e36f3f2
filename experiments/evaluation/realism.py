"""How far drawn pictures are from real scenes, as distributions of features, and how far real scenes are themselves.

The real scenes show what the prompts say: the same objects on the same backgrounds in the same styles, each in a draw
of palette, texture and layout of its own.
"""

from collections.abc import Sequence

from PIL import Image

from context_diffusion.metrics import Estimate, frechet_distance
from context_diffusion.scenes import Scene, render

from .bench import Bench
from .unseen import REAL, seed_of, style_draw

Content = tuple[str, str, str]  # object, background, style


def real_scenes(contents: Sequence[Content], first: int = 0) -> list[Image.Image]:
    """Draw one unseen scene of each content, without a sun, as the prompts have none."""
    pictures = []
    for number, (thing, background, style) in enumerate(contents, start=REAL + first):
        scene = Scene.draw(seed_of(number), object=thing, background=background, sun=False)
        pictures.append(render(scene, style_draw(number, style), seed_of(number)).image)
    return pictures


def distances(bench: Bench, pictures: Sequence[Image.Image], real: Sequence[Image.Image]) -> dict[str, Estimate]:
    """The Frechet distance to real scenes in features of DINO and of the judge; compare at equal numbers only."""
    encoders = {"DINO": bench.dino.encode_images, "judge": bench.judge.encode_images}
    return {name: frechet_distance(pictures, real, encode) for name, encode in encoders.items()}
