"""Two styles that no training saw, for the test set alone: linocuts, and pictures of dots.

One takes the colours away and is all contour and stripe, the other keeps them and is all texture. Both are painted over
a flat scene, so layout, segments and slots stay known.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import cv2
import numpy as np

from context_diffusion.scenes import SIZE, Rendering, Scene, Style, render

from ..finetuned import linocut

Painter = Callable[[Scene, Style, int], Rendering]  # of a scene, a flat style draw, and the seed of the texture


def cut(scene: Scene, style: Style, seed: int) -> Rendering:
    """Cut a scene into a dark sheet on bright paper, both of the hues of the style's palette."""
    flat = render(scene, replace(style, palette=Style.draw(4).palette), seed)  # a linocut follows contrasts
    ordered = sorted(style.palette, key=sum)
    ink, paper = (0.5 * np.array(ordered[0]), 0.3 + 0.7 * np.array(ordered[-1]))
    return replace(flat, pixels=np.round(255 * linocut(flat, ink, paper)).astype(np.uint8))


def dotted(scene: Scene, style: Style, seed: int) -> Rendering:
    """Paint a scene in dots of the style's palette on pale paper; the style draws their radius and unevenness."""
    flat, random = render(scene, style, seed), np.random.default_rng([seed, 7])
    radius, spread = 1.5 + style.weight / 2, 15 + 25 * style.strength  # pixels, grey levels
    side = 2 * SIZE  # drawn at twice the size, then averaged
    page, colors = np.full((side, side, 3), 238, dtype=np.uint8), cv2.GaussianBlur(flat.pixels, (0, 0), 1)
    step = 1.4 * radius
    grid = np.stack(np.meshgrid(np.arange(0, SIZE, step), np.arange(0, SIZE, step)), axis=-1).reshape(-1, 2)
    places = random.permutation(np.clip(grid + random.uniform(-step / 2, step / 2, grid.shape), 0, SIZE - 1))
    for (x, y), shade in zip(places, random.normal(0, spread / 2, (len(places), 3)), strict=True):
        color = np.clip(colors[int(y), int(x)] + shade, 0, 255)
        cv2.circle(page, (round(2 * x), round(2 * y)), round(2 * radius), color.tolist(), -1, cv2.LINE_AA)
    return replace(flat, pixels=cv2.resize(page, (SIZE, SIZE), interpolation=cv2.INTER_AREA))


HELD_OUT: Mapping[str, Painter] = {"linocut": cut, "pointillism": dotted}
