"""A world with ground truth: twelve objects, four backgrounds and ten styles, drawn from a seed.

from context_diffusion import scenes

drawn = scenes.render(scenes.Scene.draw(7, object="boat"), scenes.Style.draw(3, name="neon"), seed=0)
drawn.image, drawn.caption, drawn.depth, drawn.edges, drawn.segments
contexts = [r.image for r in scenes.context_group(seed=5, size=3)]
"""

from .dataset import TinyScenes, context_group, labels
from .scene import SEGMENTS, SIZE, Rendering, Scene, Style, caption, render
from .vocabulary import BACKGROUNDS, OBJECTS, PALETTE_FAMILIES, STYLES, words

__all__ = [
    "BACKGROUNDS", "Judge", "OBJECTS", "PALETTE_FAMILIES", "SEGMENTS", "SIZE", "STYLES", "Rendering", "Scene", "Style",
    "TinyScenes", "caption", "context_group", "labels", "render", "words",
]  # fmt: skip


def __getattr__(name: str):
    if name == "Judge":  # on demand: it needs torch, which drawing scenes does not
        from .judge import Judge

        return Judge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
