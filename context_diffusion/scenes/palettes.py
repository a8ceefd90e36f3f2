"""Colour: six palette families, from which a style draws its eight named colours."""

import colorsys

import numpy as np

SLOTS = ("sky", "far", "near", "main", "accent", "light", "detail", "sun")

# For each family: the hues to choose from (in turns), the range of saturation, the range of the ground tones' value.
_FAMILIES = {
    "warm": ((0.98, 0.03, 0.08, 0.12), (0.55, 0.9), (0.75, 0.98)),
    "cool": ((0.47, 0.53, 0.6, 0.68), (0.45, 0.85), (0.6, 0.95)),
    "pastel": ((0.0, 0.12, 0.35, 0.55, 0.75, 0.9), (0.2, 0.38), (0.88, 1.0)),
    "earth": ((0.05, 0.08, 0.11, 0.2, 0.27), (0.4, 0.7), (0.4, 0.75)),
    "vivid": ((0.0, 0.14, 0.33, 0.5, 0.62, 0.78, 0.9), (0.85, 1.0), (0.85, 1.0)),
    "mono": ((0.0, 0.09, 0.3, 0.5, 0.62, 0.8), (0.05, 0.6), (0.45, 0.95)),
}


def draw_palette(family: str, generator: np.random.Generator) -> np.ndarray:
    """Draw a palette: one RGB colour in [0, 1] for each of :data:`SLOTS`, shape ``(8, 3)``.

    It is the most readable of eight candidates: the object's colours stand out from sky and ground.
    """
    palettes = [_draw_once(family, generator) for _ in range(8)]
    return max(palettes, key=_readability)


def _readability(palette: np.ndarray) -> float:
    """The distance, in RGB, from the object's colour to those around it; beyond 0.5 more does not help."""
    sky, _, near, main, accent, *_ = palette
    to_sky, to_near, to_accent = (float(np.linalg.norm(main - colour)) for colour in (sky, near, accent))
    return min(0.5, to_sky, to_near, 1.5 * to_accent)


def _draw_once(family: str, generator: np.random.Generator) -> np.ndarray:
    hues, saturations, values = _FAMILIES[family]
    if family == "mono":
        hue = generator.choice(hues) + generator.uniform(-0.05, 0.05)
        chosen = np.full(5, hue)
    else:
        chosen = generator.permutation(np.tile(hues, 2)[: max(5, len(hues))])[:5] + generator.uniform(-0.03, 0.03, 5)
    saturation = generator.uniform(*saturations, 5)
    value = generator.uniform(*values, 5)

    def rgb(i: int, saturation_scale: float, value_scale: float) -> tuple[float, float, float]:
        return colorsys.hsv_to_rgb(
            chosen[i] % 1, min(1, saturation[i] * saturation_scale), min(1, value[i] * value_scale)
        )

    night = generator.random() < 0.25  # a light object before a dark sky, not the other way round
    sky, ground, body = ((0.9, 0.42), 0.6, 1.15) if night else ((0.45, 1.12), 0.95, 0.72)
    return np.array([
        rgb(0, *sky),
        rgb(1, 0.75, (ground + sky[1]) / 2),
        rgb(2, 1.0, ground * 0.85),
        rgb(3, 1.15, body),
        rgb(4, 1.0, 1.1),
        rgb(0, 0.2, 1.3),
        rgb(3, 1.1, 0.33),
        rgb(4, 0.8, 1.25),
    ])  # fmt: skip
