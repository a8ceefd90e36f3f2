"""The twelve objects and four backgrounds as polygons.

An object's coordinates are x to the right and y down, both in [-1, 1]. A part is ``(slot, polygon)``: the slot names
the palette colour that fills the polygon. Parts are listed back to front.
"""

from collections.abc import Sequence

import numpy as np

Part = tuple[str, np.ndarray]


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=np.float64)


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> np.ndarray:
    """An ellipse, or its part between two angles (degrees, clockwise from the right)."""
    angle = np.radians(np.linspace(start, stop, 40))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _stroke(centre: np.ndarray, width: float) -> np.ndarray:
    """A band of constant width along a curve."""
    tangent = np.gradient(centre, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    normal *= width / 2 / np.linalg.norm(normal, axis=1, keepdims=True)
    return np.concatenate([centre + normal, (centre - normal)[::-1]])


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float, width: float) -> np.ndarray:
    return _stroke(_ellipse(x, y, rx, ry, start, stop), width)


def _petals(count: int, radius: float, size: float, y: float) -> list[Part]:
    angles = 2 * np.pi * np.arange(count) / count
    return [("main", _ellipse(radius * np.cos(a), y + radius * np.sin(a), size, size)) for a in angles]


OBJECT_PARTS: dict[str, Sequence[Part]] = {
    "house": [
        ("detail", _box(0.38, -0.85, 0.6, -0.2)),
        ("main", _box(-0.72, -0.12, 0.72, 0.95)),
        ("accent", _polygon((-0.98, -0.08), (0, -0.95), (0.98, -0.08))),
        ("detail", _box(-0.52, 0.3, -0.1, 0.95)),
        ("light", _box(0.14, 0.18, 0.52, 0.54)),
    ],
    "tree": [
        ("detail", _polygon((-0.16, 0.2), (0.16, 0.2), (0.24, 0.98), (-0.24, 0.98))),
        ("main", _ellipse(-0.4, 0.0, 0.46, 0.42)),
        ("main", _ellipse(0.4, 0.0, 0.46, 0.42)),
        ("accent", _ellipse(0.0, -0.45, 0.52, 0.5)),
    ],
    "boat": [
        ("detail", _box(-0.06, -0.95, 0.06, 0.42)),
        ("accent", _polygon((0.14, -0.9), (0.85, 0.28), (0.14, 0.28))),
        ("light", _polygon((-0.14, -0.68), (-0.14, 0.28), (-0.72, 0.28))),
        ("main", _polygon((-0.98, 0.4), (0.98, 0.4), (0.62, 0.92), (-0.62, 0.92))),
    ],
    "car": [
        ("main", _polygon((-0.5, 0.05), (-0.3, -0.45), (0.32, -0.45), (0.58, 0.05))),
        ("light", _polygon((-0.36, 0.04), (-0.22, -0.32), (0.24, -0.32), (0.42, 0.04))),
        (
            "main",
            _polygon((-0.98, 0.1), (-0.85, 0.02), (0.88, 0.02), (0.98, 0.16), (0.98, 0.5), (-0.98, 0.5)),
        ),
        ("detail", _ellipse(-0.52, 0.5, 0.26, 0.26)),
        ("detail", _ellipse(0.52, 0.5, 0.26, 0.26)),
        ("accent", _ellipse(-0.52, 0.5, 0.12, 0.12)),
        ("accent", _ellipse(0.52, 0.5, 0.12, 0.12)),
    ],
    "fish": [
        ("accent", _polygon((0.42, 0), (0.98, -0.5), (0.84, 0), (0.98, 0.5))),
        ("accent", _polygon((-0.3, -0.34), (0.1, -0.78), (0.34, -0.26))),
        ("main", _ellipse(-0.18, 0, 0.78, 0.48)),
        ("accent", _polygon((-0.1, 0.06), (0.34, -0.06), (0.3, 0.3))),
        ("light", _ellipse(-0.58, -0.1, 0.15, 0.15)),
        ("detail", _ellipse(-0.6, -0.1, 0.08, 0.08)),
    ],
    "flower": [
        ("detail", _box(-0.07, 0.0, 0.07, 0.98)),
        ("detail", _polygon((0.05, 0.82), (0.3, 0.45), (0.62, 0.42), (0.42, 0.74))),
        ("detail", _polygon((-0.05, 0.9), (-0.3, 0.53), (-0.62, 0.5), (-0.42, 0.82))),
        *_petals(6, 0.37, 0.26, -0.36),
        ("accent", _ellipse(0, -0.36, 0.24, 0.24)),
    ],
    "mushroom": [
        ("light", _polygon((-0.22, 0.0), (0.22, 0.0), (0.36, 0.95), (-0.36, 0.95))),
        ("main", _ellipse(0, 0.08, 0.95, 0.98, 180, 360)),
        ("accent", _ellipse(-0.45, -0.25, 0.18, 0.18)),
        ("accent", _ellipse(0.06, -0.52, 0.2, 0.2)),
        ("accent", _ellipse(0.5, -0.2, 0.17, 0.17)),
    ],
    "rocket": [
        ("accent", _polygon((-0.3, 0.1), (-0.72, 0.72), (-0.3, 0.56))),
        ("accent", _polygon((0.3, 0.1), (0.72, 0.72), (0.3, 0.56))),
        ("sun", _polygon((-0.2, 0.58), (0.2, 0.58), (0, 1.0))),
        ("main", _polygon((-0.32, 0.6), (-0.34, -0.3), (0, -0.3), (0.34, -0.3), (0.32, 0.6))),
        ("accent", _polygon((-0.34, -0.3), (-0.2, -0.72), (0, -0.98), (0.2, -0.72), (0.34, -0.3))),
        ("light", _ellipse(0, 0.0, 0.18, 0.18)),
    ],
    "cup": [
        ("detail", _arc(0.5, 0.15, 0.42, 0.38, -80, 80, 0.17)),
        ("main", _polygon((-0.75, -0.45), (0.6, -0.45), (0.44, 0.85), (-0.58, 0.85))),
        ("accent", _polygon((-0.71, -0.1), (0.56, -0.1), (0.51, 0.28), (-0.66, 0.28))),
        ("light", _ellipse(-0.075, -0.45, 0.675, 0.16)),
    ],
    "umbrella": [
        ("detail", _box(-0.06, -0.1, 0.06, 0.78)),
        ("detail", _arc(0.2, 0.76, 0.2, 0.2, 0, 180, 0.12)),
        ("main", _ellipse(0, 0.06, 0.98, 0.96, 180, 360)),
        ("accent", _polygon((-0.34, 0.06), (-0.3, -0.42), (0, -0.9), (0.3, -0.42), (0.34, 0.06))),
        ("detail", _box(-0.05, -0.98, 0.05, -0.84)),
    ],
    "cat": [
        ("main", _arc(0.42, 0.42, 0.42, 0.45, 80, -60, 0.16)),
        ("main", _ellipse(0, 0.5, 0.48, 0.47)),
        ("main", _polygon((-0.46, -0.3), (-0.44, -0.95), (-0.02, -0.58))),
        ("main", _polygon((0.46, -0.3), (0.44, -0.95), (0.02, -0.58))),
        ("main", _ellipse(0, -0.25, 0.5, 0.42)),
        ("accent", _ellipse(0, 0.58, 0.26, 0.33)),
        ("light", _ellipse(-0.2, -0.32, 0.11, 0.12)),
        ("light", _ellipse(0.2, -0.32, 0.11, 0.12)),
        ("detail", _polygon((-0.1, -0.12), (0.1, -0.12), (0, 0.02))),
    ],
    "balloon": [
        ("detail", _polygon((-0.42, 0.1), (-0.34, 0.1), (-0.14, 0.74), (-0.2, 0.74))),
        ("detail", _polygon((0.42, 0.1), (0.34, 0.1), (0.14, 0.74), (0.2, 0.74))),
        (
            "main",
            np.concatenate([_ellipse(0, -0.3, 0.7, 0.68, 150, 390), _polygon((0.22, 0.44), (-0.22, 0.44))]),
        ),
        (
            "accent",
            np.concatenate([_ellipse(0, -0.3, 0.28, 0.68, 180, 360), _polygon((0.1, 0.44), (-0.1, 0.44))]),
        ),
        ("detail", _box(-0.22, 0.68, 0.22, 0.98)),
    ],
}


def background_parts(kind: str, horizon: float, phase: float) -> list[Part]:
    """The layers behind the object, in the picture's unit square; ``phase`` in [0, 1) shifts hills and waves."""
    x = np.linspace(0, 1, 65)

    def ridge(height: np.ndarray) -> np.ndarray:
        return np.concatenate([np.stack([x, height], axis=1), [(1.0, 1.01), (0.0, 1.01)]])

    if kind == "field":
        return [("near", ridge(np.full_like(x, horizon)))]
    if kind == "hills":
        far = horizon - 0.1 - 0.13 * np.sin(2 * np.pi * (1.0 * x + phase))
        near = horizon + 0.08 + 0.09 * np.sin(2 * np.pi * (1.3 * x + 2 * phase))
        return [("far", ridge(far)), ("near", ridge(near))]
    if kind == "sea":
        wave = horizon + 0.17 + 0.03 * np.abs(np.sin(2 * np.pi * (2.5 * x + phase)))
        return [("far", ridge(np.full_like(x, horizon))), ("near", ridge(wave))]
    return []
