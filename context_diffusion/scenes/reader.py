"""The reader: says of a picture where each colour of the palette is, its style, and its texture's parameters.

It is trained on real scenes alone, as the judge is, and apart from it. What it reads are the numbers that the world
drew the picture from, so that a picture can be compared with the truth about a style, not only with other pictures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import einsum, rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ..checkpoints import load_part
from ..images import ImageLike
from .judge import batches, folder_of
from .palettes import SLOTS
from .scene import SEGMENTS, SIZE, Scene, Style, render
from .vocabulary import STYLES

PARAMETERS = ("period", "angle", "weight", "strength")
SHOWN = {  # style -> the parameters that its pictures show
    "flat": (),
    "line art": ("weight",),  # a weak tint of strong colours looks like a strong one of weak colours
    "watercolor": ("period", "strength"),  # its noise turns with the angle too, but has no direction
    "halftone": ("period", "angle", "strength"),
    "hatching": ("period", "angle", "weight"),
    "mosaic": ("period", "strength"),
    "pixel art": ("period",),
    "neon": ("weight", "strength"),
    "crayon": ("period", "angle", "weight", "strength"),
    "blueprint": ("period", "weight"),
}
CENTRE = {"period": 10.0, "weight": 1.7, "strength": 0.5}  # the mean over draws
SPREAD = {"period": 4 / 12**0.5, "angle": 0.355, "weight": 1 / 12**0.5, "strength": 1 / 12**0.5}  # the deviation
FOLDS = {"halftone": 4}  # turns of the angle that look the same: a lattice has four, strokes have two
CELLS = 64  # the map of slots has 64 x 64 cells
UNSURE = 255  # a cell that two slots share
LEVELS = 3  # of the network: cells of 4, 8 and 16 pixels


def shown_parameters(style: Style) -> dict[str, float]:
    """The texture's parameters as a picture shows them: those that its style has, and no finer than they are drawn.

    Mosaic has two kinds of joints, for strengths below and above one half; pixel art has whole numbers of cells.
    """
    found = {name: getattr(style, name) for name in SHOWN.get(style.name, ())}
    if style.name == "mosaic":
        found["strength"] = 0.75 if style.strength > 0.5 else 0.25
    if style.name == "pixel art":
        found["period"] = SIZE / 0.48 / round(SIZE / (0.48 * style.period))
    return found


def slot_map(scene: Scene, *, sure: bool = True) -> UInt8[np.ndarray, "cells cells"]:
    """The slot of the palette that fills each cell of a scene; if it has to be ``sure``, ``UNSURE`` where two meet.

    Eight slots drawn in the eight corners of the RGB cube can be read off a flat picture. ``sun`` is the one in the sky
    alone: a rocket's flame, which has its colour, is unsure.
    """
    corners = np.array([[code >> bit & 1 for bit in range(3)] for code in range(len(SLOTS))], dtype=float)
    coded = render(scene, Style("flat", "warm", tuple(map(tuple, corners.tolist())), 8.0, 0.0, 1.0, 0.0))
    small = cv2.resize(coded.pixels, (CELLS, CELLS), interpolation=cv2.INTER_AREA) / 255
    slots = (small > 0.5) @ np.array([1, 2, 4], dtype=np.uint8)
    if not sure:
        return slots.astype(np.uint8)
    flame = (slots == SLOTS.index("sun")) & (shrunk_segments(coded.segments) == SEGMENTS.index("object"))
    return np.where((np.abs(small - 0.5) < 0.35).any(axis=2) | flame, UNSURE, slots).astype(np.uint8)


def shrunk_segments(segments: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "cells cells"]:
    """The segment at each cell's corner."""
    step = len(segments) // CELLS
    return segments[::step, ::step]


class Convolutions(nn.Module):
    """Two 3x3 convolutions beside an identity."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, cells: Float[Tensor, "n width h w"]) -> Float[Tensor, "n width h w"]:
        """Add what the convolutions say."""
        return (cells + self.layers(cells)).relu()


class Pooling(nn.Module):
    """Mean and deviation over all cells, and the mean over those that each of four heads looks at: lines, say."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.look = nn.Conv2d(width, heads, 1)

    def forward(self, cells: Float[Tensor, "n width h w"]) -> Float[Tensor, "n dim"]:
        """The six means and deviations of each channel, one after the other."""
        flat = rearrange(cells, "n width h w -> n width (h w)")
        look = rearrange(self.look(cells), "n heads h w -> n heads (h w)").softmax(dim=2)
        seen = rearrange(
            einsum(look, flat, "n heads cells, n width cells -> n heads width"), "n heads width -> n (heads width)"
        )
        return torch.cat([flat.mean(dim=2), flat.std(dim=2), seen], dim=1)


class ReaderNetwork(ModelMixin, ConfigMixin):
    """A small U-Net over cells of four pixels, with three outputs.

    Args:
        width: channels at every level.
    """

    @register_to_config
    def __init__(self, width: int = 56):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 24, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.coarse = nn.Sequential(
            nn.Conv2d(24, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.down = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(LEVELS - 1))
        self.blocks = nn.ModuleList(Convolutions(width) for _ in range(LEVELS + 1))
        self.up = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(LEVELS - 1))
        self.slots = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 4 * len(SLOTS), 1), nn.PixelShuffle(2),
        )  # fmt: skip
        self.pool = nn.ModuleList(Pooling(width) for _ in range(LEVELS))
        self.texture = nn.Sequential(
            nn.Linear(6 * LEVELS * width, 96), nn.ReLU(), nn.Linear(96, len(STYLES) * (2 + len(PARAMETERS)))
        )

    def forward(
        self, pixels: Float[Tensor, "n 3 height width"]
    ) -> tuple[Float[Tensor, "n slots cells cells"], Float[Tensor, "n styles"], Float[Tensor, "n styles 5"]]:
        """Logits of the slots, logits of the styles, and under each style what its texture's parameters would be.

        ``pixels`` are 128x128 in [-1, 1]. A style's five numbers are cos and sin of the folded angle, then period,
        weight and strength, standardized.
        """
        cells = self.blocks[0](self.coarse(self.fine(pixels)))
        levels = [self.blocks[1](cells)]
        for number, down in enumerate(self.down):
            levels.append(self.blocks[2 + number](down(levels[-1])))
        pooled = [pool(level) for pool, level in zip(self.pool, levels, strict=True)]
        styles = rearrange(
            self.texture(torch.cat(pooled, dim=1)), "n (styles rows) -> n styles rows", styles=len(STYLES)
        )
        fine = levels[-1]
        for coarse, up in zip(reversed(levels[:-1]), self.up, strict=True):
            fine = coarse + nn.functional.interpolate(up(fine), scale_factor=2, mode="nearest")
        return self.slots(fine), styles[..., 0], styles[..., 1:]


def targets(style: Style) -> tuple[Float[np.ndarray, " 5"], Float[np.ndarray, " 5"]]:
    """What the network should say of a style's texture, and 1 or 0 for what the style shows of it."""
    values, known = np.zeros(5, dtype=np.float32), np.zeros(5, dtype=np.float32)
    for name, value in shown_parameters(style).items():
        if name == "angle":
            turned = FOLDS.get(style.name, 2) * value
            values[:2], known[:2] = (math.cos(turned), math.sin(turned)), 1
        else:
            place = 2 + list(CENTRE).index(name)
            values[place], known[place] = (value - CENTRE[name]) / SPREAD[name], 1
    return values, known


@dataclass(frozen=True)
class Reading:
    """What the reader says of some pictures."""

    slots: UInt8[np.ndarray, "n cells cells"]  # index into palettes.SLOTS
    styles: Int[np.ndarray, " n"]  # index into STYLES
    numbers: Float[np.ndarray, "n styles 5"]

    def parameters(self, style: str) -> dict[str, Float[np.ndarray, " n"]]:
        """The parameters that a style shows, read as if each picture were in that style; angles in radians."""
        rows = self.numbers[:, STYLES.index(style)]
        found = {}
        for name in SHOWN[style]:
            if name == "angle":
                found[name] = np.arctan2(rows[:, 1], rows[:, 0]) / FOLDS.get(style, 2)
            else:
                found[name] = CENTRE[name] + SPREAD[name] * rows[:, 2 + list(CENTRE).index(name)]
        return found


def parameter_errors(found: dict[str, Float[np.ndarray, " n"]], style: Style) -> dict[str, Float[np.ndarray, " n"]]:
    """How far parameters are from a style's own, in deviations over draws; angles the shorter way round."""
    errors = {}
    for name, true in shown_parameters(style).items():
        away = found[name] - true
        if name == "angle":
            half = math.pi / FOLDS.get(style.name, 2)
            away = (away + half) % (2 * half) - half
        errors[name] = np.abs(away) / SPREAD[name]
    return errors


class Reader:
    """Reads pictures: ``reader(images).styles`` holds an index into ``scenes.STYLES`` for each."""

    def __init__(self, network: ReaderNetwork):
        self.network = network.eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> "Reader":
        """Load the reader of ``tiny-scenes``, or one saved in ``folder``.

        Raises ``FileNotFoundError`` if there is no such folder, ``ValueError`` if it holds no reader.
        """
        return cls(load_part(ReaderNetwork, folder_of("texture", "reader", folder)))

    @torch.inference_mode()
    def __call__(self, images: Sequence[ImageLike]) -> Reading:
        """Read pictures of any size."""
        slots, styles, numbers = [], [], []
        for pixels in batches(images, SIZE):
            maps, names, rows = self.network(pixels.to(self.network.device))
            slots.append(maps.argmax(dim=1).to(torch.uint8).cpu())
            styles.append(names.argmax(dim=1).cpu())
            numbers.append(rows.cpu())
        return Reading(torch.cat(slots).numpy(), torch.cat(styles).numpy(), torch.cat(numbers).double().numpy())
