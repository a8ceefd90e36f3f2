"""The ten styles: each turns a map of parts and a palette into a picture.

Every painter has the same signature, ``painter(canvas) -> (height, width, 3)`` in [0, 1]. Lengths are in pixels of the
finished picture, and are multiplied by ``canvas.scale`` (the supersampling factor) where they are used.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from .palettes import SLOTS
from .vocabulary import STYLES

WHITE = np.ones(3)


@dataclass
class Canvas:
    """What a painter sees: the parts, their colours, the style's parameters and a source of noise."""

    ids: np.ndarray  # (H, W) int: which part is in front
    slot_of_id: np.ndarray  # (parts,) int: index into SLOTS
    palette: np.ndarray  # (8, 3) RGB in [0, 1]
    period: float  # pixels: dots, strokes, tiles, grid
    angle: float  # radians: direction of dots and strokes
    weight: float  # pixels: thickness of lines
    strength: float  # 0 to 1: how strong the texture is
    generator: np.random.Generator
    scale: int

    def color(self, slot: str) -> np.ndarray:
        """The palette's colour for a slot."""
        return self.palette[SLOTS.index(slot)]

    @cached_property
    def fill(self) -> np.ndarray:
        """Every part in its plain colour, (H, W, 3)."""
        return self.palette[self.slot_of_id[self.ids]]

    @cached_property
    def tone(self) -> np.ndarray:
        """Luminance of the plain colours, (H, W, 1)."""
        return self.fill @ np.array([[0.3], [0.59], [0.11]])

    @cached_property
    def distance(self) -> np.ndarray:
        """Distance to the nearest contour in pixels of the finished picture, (H, W, 1)."""
        return cv2.distanceTransform((~contours(self.ids)).astype(np.uint8), cv2.DIST_L2, 3)[..., None] / self.scale

    def line(self, weight: float) -> np.ndarray:
        """Coverage in [0, 1] by contours drawn with a pen of this thickness, (H, W, 1)."""
        return np.clip((weight / 2 - self.distance) * self.scale + 0.5, 0, 1)

    def noise(self, size: float, stretch: float = 1.0) -> np.ndarray:
        """Smooth unit noise with features of about ``size`` pixels, stretched along ``angle``; (H, W, 1)."""
        height, width = self.ids.shape
        u, v = self.rotated()
        cells = int(2 * max(height, width) / (size * self.scale)) + 6
        grid = self.generator.standard_normal((cells, cells)).astype(np.float32)
        x = (u / stretch / (size * self.scale) + cells / 2).astype(np.float32)
        y = (v / (size * self.scale) + cells / 2).astype(np.float32)
        return cv2.remap(grid, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)[..., None].astype(np.float64)

    def rotated(self, extra: float | np.ndarray = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates along and across the direction ``angle + extra``, with the origin in the middle."""
        height, width = self.ids.shape
        y, x = np.mgrid[:height, :width] - np.array([[[height / 2]], [[width / 2]]])
        c, s = np.cos(self.angle + extra), np.sin(self.angle + extra)
        return x * c + y * s, y * c - x * s


def contours(ids: np.ndarray) -> np.ndarray:
    """Whether the pixel to the right or below belongs to another part, bool (H, W)."""
    edge = np.zeros(ids.shape, dtype=bool)
    edge[:, :-1] |= ids[:, 1:] != ids[:, :-1]
    edge[:-1] |= ids[1:] != ids[:-1]
    return edge


def mix(a: np.ndarray, b: np.ndarray, amount: float | np.ndarray) -> np.ndarray:
    """``a`` where amount is 0, ``b`` where it is 1."""
    return a * (1 - amount) + b * amount


def _flat(canvas: Canvas) -> np.ndarray:
    return canvas.fill


def _line_art(canvas: Canvas) -> np.ndarray:
    paper = mix(WHITE, canvas.color("light"), 0.5)
    tint = mix(paper, canvas.fill, 0.1 + 0.15 * canvas.strength)
    return mix(tint, canvas.color("detail") * 0.6, canvas.line(0.8 + canvas.weight))


def _watercolor(canvas: Canvas) -> np.ndarray:
    wash = 0.68 + 0.16 * canvas.strength * canvas.noise(canvas.period * 1.6)
    rim = 0.3 * np.exp(-canvas.distance / 2.2)
    painted = mix(WHITE, canvas.fill, np.clip(wash + rim, 0.3, 1))
    bleed = 1.1 * canvas.scale
    return np.clip(cv2.GaussianBlur(painted, (0, 0), bleed) * (1 - 0.35 * rim), 0, 1)


def _halftone(canvas: Canvas) -> np.ndarray:
    u, v = canvas.rotated()
    step = canvas.period * canvas.scale
    from_centre = np.hypot(u - step * np.round(u / step), v - step * np.round(v / step))[..., None] / step
    radius = 0.26 + 0.2 * (1 - canvas.tone)
    dots = np.clip((radius - from_centre) * canvas.period / 1.6 + 0.5, 0, 1)
    paper = mix(WHITE, canvas.fill, 0.7 - 0.1 * canvas.strength)
    return mix(paper, canvas.fill * 0.78, dots)


def _hatching(canvas: Canvas) -> np.ndarray:
    turn = np.pi / 4 * (canvas.slot_of_id[canvas.ids] % 3)
    _, v = canvas.rotated(turn)
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * v / (canvas.period * canvas.scale))[..., None]
    cover = 0.3 + 0.4 * (1 - canvas.tone)
    strokes = np.clip((wave - 1 + cover) * 2.5 + 0.5, 0, 1)
    paper = mix(WHITE, canvas.fill, 0.62)
    inked = mix(paper, canvas.fill * 0.72, strokes)
    return mix(inked, canvas.color("detail"), canvas.line(canvas.weight + 0.6))


def _mosaic(canvas: Canvas) -> np.ndarray:
    height, width = canvas.ids.shape
    step = canvas.period * canvas.scale
    y, x = np.mgrid[:height, :width]
    row = (y // step).astype(int)
    shifted = x + row % 2 * step / 2
    shades = canvas.generator.uniform(-1, 1, (row.max() + 1, int(shifted.max() // step) + 1))
    tiles = canvas.fill * (1 + 0.14 * shades[row, (shifted // step).astype(int)][..., None])
    joint = (np.minimum(y % step, shifted % step) < 1.4 * canvas.scale)[..., None]
    grout = mix(canvas.color("detail"), WHITE, 0.8 * (canvas.strength > 0.5))
    return mix(tiles, grout, np.maximum(0.45 * joint, 0.8 * canvas.line(2.2)))


def _pixel_art(canvas: Canvas) -> np.ndarray:
    height, width = canvas.ids.shape
    cells = int(round(height / (canvas.period * 0.48 * canvas.scale)))
    small = cv2.resize(canvas.ids.astype(np.float32), (cells, cells), interpolation=cv2.INTER_NEAREST_EXACT)
    ids = small.astype(int)
    checker = (np.indices(ids.shape).sum(axis=0) % 2)[..., None] * 2 - 1
    shaded = canvas.palette[canvas.slot_of_id[ids]] * (1 + 0.07 * checker)
    outlined = np.where(contours(ids)[..., None], shaded * 0.55, shaded)
    return cv2.resize(outlined, (width, height), interpolation=cv2.INTER_NEAREST)


def _neon(canvas: Canvas) -> np.ndarray:
    night = canvas.color("detail") * 0.22
    bright = canvas.fill / canvas.fill.max(axis=2, keepdims=True)
    line = canvas.line(canvas.weight + 0.4)
    sigma = (2.0 + 2.5 * canvas.strength) * canvas.scale
    glow = cv2.GaussianBlur(bright * line, (0, 0), sigma) * 3.0
    return np.clip(mix(night + glow, mix(bright, WHITE, 0.45), line), 0, 1)


def _crayon(canvas: Canvas) -> np.ndarray:
    grain = canvas.noise(canvas.period * 0.42, stretch=5.0)
    cover = 1 / (1 + np.exp(-(grain + 0.75 + 0.3 * (1 - canvas.strength)) * 3))
    paper = mix(WHITE, canvas.color("light"), 0.35)
    waxed = mix(paper, canvas.fill, 0.35 + 0.62 * cover)
    return mix(waxed, canvas.fill * 0.6, canvas.line(canvas.weight + 0.8) * 0.7)


def _blueprint(canvas: Canvas) -> np.ndarray:
    hue = canvas.color("sky") / canvas.color("sky").max()
    paper = mix(hue**1.8 * 0.62, canvas.color("detail"), 0.35)
    height, width = canvas.ids.shape
    y, x = np.mgrid[:height, :width]
    step = 1.6 * canvas.period * canvas.scale
    grid = (np.minimum(y % step, x % step) < canvas.scale * 1.2)[..., None]
    ink = mix(WHITE, hue, 0.12)
    sheet = mix(paper, ink, 0.2 * grid + 0.08 * (canvas.tone > 0.6))
    return mix(sheet, ink, canvas.line(canvas.weight + 0.3))


_IN_ORDER = (
    _flat, _line_art, _watercolor, _halftone, _hatching, _mosaic, _pixel_art, _neon, _crayon, _blueprint,
)  # fmt: skip
PAINTERS = dict(zip(STYLES, _IN_ORDER, strict=True))
