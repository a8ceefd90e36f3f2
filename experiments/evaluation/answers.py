"""What an encoder of pictures answers to: palette, texture or content?

A scene is drawn again with one of the three changed: another palette; another style and texture in the same palette;
another scene in the same style. How far each moves the picture (1 - cosine) is divided by the sum of the three. A
colour meter answers to the palette alone.

The second number is what a cheat scores: pictures of other styles, each given the mean and spread of the first one's
channels, beside real further scenes of the first one's style.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from PIL import Image

from context_diffusion.images import denormalize, dynamic_normalization, to_pil, to_tensor
from context_diffusion.metrics import estimate_mean
from context_diffusion.scenes import STYLES, Rendering, Scene, Style, render

from .bench import Bench
from .context_palettes import estimate_ratio
from .report import Report
from .sheets import labelled_sheet
from .unseen import ANSWERS, seed_of, style_draw, unseen

FACTORS = ("palette", "texture", "content")


def another_style(index: int) -> str:
    """Another style than the one whose turn it is, each as often as the others."""
    step = 1 + index // len(STYLES) % (len(STYLES) - 1)
    return STYLES[(index + step) % len(STYLES)]


def changed(index: int, drawn: Rendering) -> dict[str, Rendering]:
    """Draw the unseen scene of a number again, with one factor changed."""
    seed = seed_of(ANSWERS + index)
    other = style_draw(ANSWERS + 5000 + index, another_style(index))
    recoloured = replace(drawn.style, family=other.family, palette=other.palette)
    retextured: Style = replace(other, family=drawn.style.family, palette=drawn.style.palette)
    return {
        "palette": render(drawn.scene, recoloured, seed),
        "texture": render(drawn.scene, retextured, seed),
        "content": render(Scene.draw(seed_of(ANSWERS + 5000 + index)), drawn.style, seed),
    }


def colour_copy(picture: Image.Image, of: Image.Image) -> Image.Image:
    """Give a picture the mean and the deviation of another one's channels (AdaIN on pixels)."""
    normal, _ = dynamic_normalization(to_tensor(picture))
    return to_pil(denormalize(normal, dynamic_normalization(to_tensor(of))[1]))


def run(bench: Bench) -> Report:
    """Shares of palette, texture and content in the distances of DINO and of CLIP, and what colour copies score."""
    count = bench.count(200, 8)
    drawn = [unseen(ANSWERS + i, STYLES[i % len(STYLES)]) for i in range(count)]
    versions = [changed(i, one) for i, one in enumerate(drawn)]
    rows: dict[str, list[Image.Image]] = {"a scene": [one.image for one in drawn]}
    rows |= {f"another {name}": [of[name].image for of in versions] for name in FACTORS}
    rows["another style,\ncolours copied"] = [
        colour_copy(unseen(ANSWERS + 5000 + i, another_style(i)).image, one.image) for i, one in enumerate(drawn)
    ]
    report = Report(notes=[f"{count} unseen scenes, each a unit; shares of the mean distances 1 - cosine"])
    for name, encoder in (("DINO", bench.dino), ("CLIP", bench.clip)):
        vectors = {row: encoder.encode_images(images).numpy() for row, images in rows.items()}
        origin, *others, copied = vectors.values()
        far = {factor: 1 - cosines(origin, other) for factor, other in zip(FACTORS, others, strict=True)}
        for factor, distances in far.items():
            report.add(f"{name}: share of {factor}", estimate_ratio(distances, np.sum(list(far.values()), axis=0)))
        report.add(f"{name}: cosine with a further scene of the style", estimate_mean(1 - far["content"]))
        report.add(f"{name}: cosine with a colour copy in another style", estimate_mean(cosines(origin, copied)))
    shown: dict[str, Sequence[Image.Image]] = {row: images[:10] for row, images in rows.items()}
    report.sheets["pictures"] = labelled_sheet(shown, STYLES[: min(count, 10)])
    return report


def cosines(first: Float[np.ndarray, "n dim"], second: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, " n"]:
    """The cosine of each row with its partner."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / lengths
