"""A scene is content and layout; a style is a way to draw it. Both are pure functions of a seed."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from einops import reduce
from PIL import Image

from ..checks import LIMITS, check_choice, check_count, check_number, shown
from ..signatures import check_fields, check_fixed, checked
from .palettes import SLOTS, draw_palette
from .shapes import OBJECT_PARTS, background_parts
from .styles import PAINTERS, Canvas, contours
from .vocabulary import BACKGROUNDS, OBJECTS, PALETTE_FAMILIES, PLACES, STYLES, SUN, SYNONYMS, article

SIZE = 128  # pixels of the finished picture
SCALE = 2  # drawn at twice the size, then averaged
FARTHEST = 10  # widths of the picture: what is farther outside is surely a slip
SEGMENTS = ("sky", "sun", "ground", "object")


@dataclass(frozen=True)
class Scene:
    """Content (object, background, sun) and layout (where everything is, in units of the picture's width)."""

    object: str
    background: str
    sun: bool
    x: float = 0.5
    y: float = 0.6
    size: float = 0.3  # half the object's extent
    flipped: bool = False
    horizon: float = 0.6
    phase: float = 0.0
    sun_x: float = 0.8
    sun_y: float = 0.18

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("object", self.object, OBJECTS)
        check_choice("background", self.background, BACKGROUNDS)
        for name in ("x", "y", "size", "horizon", "phase", "sun_x", "sun_y"):
            check_number(name, getattr(self, name), -FARTHEST, FARTHEST)

    @classmethod
    @checked
    def draw(cls, seed: int, **fixed) -> "Scene":
        """Draw a random scene; keyword arguments fix some of its fields, as in ``Scene.draw(3, object="boat")``."""
        check_count("seed", seed, LIMITS["seed"], low=0)
        check_fixed(cls, fixed)
        generator = np.random.default_rng([seed, 1])
        size = generator.uniform(0.26, 0.36)
        scene = cls(
            object=str(generator.choice(OBJECTS)),
            background=str(generator.choice(BACKGROUNDS)),
            sun=bool(generator.random() < 0.4),
            x=generator.uniform(size + 0.04, 0.96 - size),
            y=generator.uniform(max(size + 0.04, 0.5), 0.96 - size),
            size=size,
            flipped=bool(generator.random() < 0.5),
            horizon=generator.uniform(0.5, 0.72),
            phase=generator.random(),
            sun_x=generator.uniform(0.12, 0.88),
            sun_y=generator.uniform(0.12, 0.2),
        )
        return replace(scene, **fixed)


@dataclass(frozen=True)
class Style:
    """A named style with a palette and texture parameters of its own; a caption gives away only the name."""

    name: str
    family: str
    palette: tuple[tuple[float, float, float], ...]  # 8 RGB colours in [0, 1], in the order of palettes.SLOTS
    period: float  # pixels, 8 to 12
    angle: float  # radians
    weight: float  # pixels
    strength: float  # 0 to 1

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("name", self.name, STYLES)
        check_choice("family", self.family, PALETTE_FAMILIES)
        if np.shape(self.palette) != (len(SLOTS), 3):
            raise ValueError(f"A palette has {len(SLOTS)} colours of three numbers; got {shown(self.palette)}.")
        for name, low, high in (("period", 2, SIZE), ("angle", -10, 10), ("weight", 0, SIZE), ("strength", 0, 1)):
            check_number(name, getattr(self, name), low, high)

    @classmethod
    @checked
    def draw(cls, seed: int, **fixed) -> "Style":
        """Draw a random style; keyword arguments fix some of its fields, as in ``Style.draw(3, name="neon")``."""
        check_count("seed", seed, LIMITS["seed"], low=0)
        check_fixed(cls, fixed)
        generator = np.random.default_rng([seed, 2])
        check_choice("family", fixed.get("family", PALETTE_FAMILIES[0]), PALETTE_FAMILIES)
        name, family = str(generator.choice(STYLES)), str(generator.choice(PALETTE_FAMILIES))
        palette = draw_palette(fixed.get("family", family), generator)
        style = cls(
            name=name,
            family=family,
            palette=tuple(map(tuple, palette.tolist())),
            period=generator.uniform(8, 12),
            angle=generator.choice([0.15, 0.5, 0.785, 1.1]) + generator.uniform(-0.1, 0.1),
            weight=generator.uniform(1.2, 2.2),
            strength=generator.random(),
        )
        return replace(style, **fixed)


@dataclass(frozen=True)
class Rendering:
    """A drawn scene with its ground truth; all maps are 128x128."""

    scene: Scene
    style: Style
    caption: str
    pixels: np.ndarray  # (128, 128, 3) uint8
    depth: np.ndarray  # (128, 128) float32 in [0, 1], 1 is nearest
    edges: np.ndarray  # (128, 128) bool, the contours of all parts
    segments: np.ndarray  # (128, 128) uint8, index into SEGMENTS

    @property
    def image(self) -> Image.Image:
        """The picture as a PIL image."""
        return Image.fromarray(self.pixels)


def _layers(scene: Scene) -> list[tuple[str, np.ndarray, str]]:
    """All parts, back to front, as (slot, polygon in the unit square, segment)."""
    layers = []
    if scene.sun:
        angle = np.linspace(0, 2 * np.pi, 40)
        disc = np.stack([scene.sun_x + 0.09 * np.cos(angle), scene.sun_y + 0.09 * np.sin(angle)], axis=1)
        layers.append(("sun", disc, "sun"))
    layers += [(s, p, "ground") for s, p in background_parts(scene.background, scene.horizon, scene.phase)]
    flip = np.array([-1.0 if scene.flipped else 1.0, 1.0])
    for slot, polygon in OBJECT_PARTS[scene.object]:
        layers.append((slot, np.array([scene.x, scene.y]) + scene.size * flip * polygon, "object"))
    return layers


def _depth(scene: Scene, segments: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Nearness in [0, 1]: sky 0, sun 0.05, ground rising towards the viewer, the object as near as its foot."""
    rows = (np.arange(len(ids)) / len(ids))[:, None]
    layer = 0.12 * np.clip(ids, 0, 2)  # far hills behind near ones
    ground = 0.1 + layer + 0.35 * np.clip((rows - 0.35) / 0.65, 0, 1)
    nearest = 0.55 + 0.4 * np.clip((scene.y + scene.size - 0.55) / 0.45, 0, 1)
    depth = np.select([segments == 3, segments == 2, segments == 1], [nearest, ground, 0.05], 0.0)
    return np.clip(depth, 0, 1)


@checked
def render(scene: Scene, style: Style, seed: int = 0) -> Rendering:
    """Draw a scene in a style; ``seed`` changes only the noise of the texture and the wording of the caption."""
    check_count("seed", seed, LIMITS["seed"], low=0)
    side = SIZE * SCALE
    ids = np.zeros((side, side), dtype=np.uint8)
    segments = np.zeros_like(ids)
    slots = [SLOTS.index("sky")]
    for slot, polygon, segment in _layers(scene):
        points = [np.round(polygon * side * 16).astype(np.int32)]
        cv2.fillPoly(ids, points, len(slots), shift=4)
        cv2.fillPoly(segments, points, SEGMENTS.index(segment), shift=4)
        slots.append(SLOTS.index(slot))
    canvas = Canvas(
        ids, np.array(slots), np.array(style.palette), style.period, style.angle, style.weight, style.strength,
        np.random.default_rng([seed, 3]), SCALE,
    )  # fmt: skip
    painted = PAINTERS[style.name](canvas)
    pixels = cv2.resize(np.clip(painted, 0, 1), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    depth = cv2.resize(_depth(scene, segments, ids), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    edges = reduce(contours(ids), "(height y) (width x) -> height width", "any", y=SCALE, x=SCALE)
    return Rendering(
        scene, style, caption(scene, style, seed), np.round(pixels * 255).astype(np.uint8),
        depth.astype(np.float32), edges, segments[::SCALE, ::SCALE].copy(),
    )  # fmt: skip


@checked
def caption(scene: Scene, style: Style, seed: int | None = None) -> str:
    """Describe a scene in one sentence, the object first; a seed varies the wording of the plain full form.

    >>> caption(Scene("boat", "hills", False), Style.draw(0, name="watercolor"))
    'a boat among hills, watercolor style'
    """
    if seed is None:
        words = [article(scene.object), PLACES[scene.background][0], SUN[0] if scene.sun else ""]
        return f"{' '.join(w for w in words if w)}, {style.name} style"
    generator = np.random.default_rng([check_count("seed", seed, LIMITS["seed"], low=0), 4])
    other_word, other_place, form = generator.random(3)
    nouns, places = (scene.object, *SYNONYMS.get(scene.object, ())), PLACES[scene.background]
    noun = str(generator.choice(nouns)) if other_word < 0.2 else nouns[0]
    place = places[1] if other_place < 0.25 else places[0]
    sun = (SUN[0] if generator.random() < 0.7 else SUN[1]) if scene.sun else ""
    colors = f", {style.family} colors" if generator.random() < 0.15 else ""
    if form < 0.12:
        return article(noun)
    content = " ".join(w for w in (article(noun), place, sun) if w)
    return content + colors if form < 0.25 else f"{content}, {style.name} style{colors}"
