"""Text to image: 12 objects x 10 styles x 4 pictures of consecutive seeds, judged by a classifier of real scenes."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from context_diffusion.context.request import Request
from context_diffusion.images import image_grid
from context_diffusion.scenes import BACKGROUNDS, OBJECTS, STYLES, Scene, labels

from .accuracy import accuracy
from .bench import Bench
from .realism import distances, real_scenes
from .reconstruction import originals_and_decoded
from .report import Report
from .sheets import labelled_sheet
from .unseen import content, sample

EACH = 4  # pictures of a prompt


def background(object: str, style: str) -> str:
    """Give each pair of object and style one of the four backgrounds, in turn."""
    return BACKGROUNDS[(OBJECTS.index(object) + STYLES.index(style)) % len(BACKGROUNDS)]


def text_prompt(object: str, style: str) -> str:
    """Name a pair as the captions do.

    >>> text_prompt("boat", "watercolor")
    'a boat, watercolor style'
    """
    return f"{content(Scene(object, background(object, style), sun=False))}, {style} style"


def text_requests(
    objects: Sequence[str] = OBJECTS, styles: Sequence[str] = STYLES, each: int = EACH
) -> list[tuple[str, str, Request]]:
    """(object, style, request) for every object in every style, each several times; the seeds are 0, 1, 2, ...

    Where a prompt leaves the palette open, the noise decides it: pictures that shared a seed would share their colours.
    """
    cells = [(object, style) for style in styles for object in objects for _ in range(each)]
    return [
        (object, style, Request(prompt=text_prompt(object, style), seed=seed))
        for seed, (object, style) in enumerate(cells)
    ]


def run(bench: Bench) -> Report:
    """Draw, judge, and compare with what the judge says of real scenes."""
    judge = bench.judge
    objects, styles, each = (OBJECTS[:3], STYLES[:3], 2) if bench.quick else (OBJECTS, STYLES, EACH)
    asked = text_requests(objects, styles, each)
    pictures = bench.draw([request for *_, request in asked])
    seen, prompts = judge(pictures), [request.prompt for *_, request in asked]
    wanted = {
        "object": [OBJECTS.index(object) for object, *_ in asked],
        "style": [STYLES.index(style) for _, style, _ in asked],
        "background": [BACKGROUNDS.index(background(object, style)) for object, style, _ in asked],
    }
    report = Report(notes=[f"{len(asked)} pictures; the {len(objects) * len(styles)} prompts are the units"])
    for head, indices in wanted.items():
        aim = {"object": 0.99, "style": 0.98}.get(head)
        report.add(f"{head} accuracy", accuracy(seen[head], indices, prompts), at_least=aim)
    add_ceiling(report, bench)
    add_realism(report, bench, pictures, asked)
    for head, names in (("object", objects), ("style", styles)):
        for name in names:
            among = np.array(wanted[head]) == {"object": OBJECTS, "style": STYLES}[head].index(name)
            report.add(f"{head} accuracy, {name}", accuracy(seen[head], wanted[head], prompts, among))
    report.sheets = sheets(pictures, objects, styles, each)
    return report


def add_realism(
    report: Report, bench: Bench, pictures: Sequence[Image.Image], asked: Sequence[tuple[str, str, Request]]
) -> None:
    """Add the distance to as many real scenes of the same contents, and that of other such scenes: the floor."""
    contents = [(object, background(object, style), style) for object, style, _ in asked]
    real, others = real_scenes(contents), real_scenes(contents, len(contents))
    for crowd, shown in (("drawn", pictures), ("other real scenes", others)):
        for name, distance in distances(bench, shown, real).items():
            report.add(f"Frechet distance to real scenes, {name} features, {crowd}", distance)


def add_ceiling(report: Report, bench: Bench) -> None:
    """Add the judge's accuracy on unseen real scenes, plain and through the autoencoder: the sampler's ceiling."""
    pixels, decoded = originals_and_decoded(bench)
    drawn = sample(len(pixels))
    for name, shown in (("real scenes", pixels), ("decoded real scenes", decoded)):
        seen = bench.judge([Image.fromarray(one) for one in shown])
        for head in ("object", "style"):
            right = accuracy(seen[head], [labels(one)[head] for one in drawn])
            report.add(f"judge's {head} accuracy on {name}", right)


def sheets(
    pictures: Sequence[Image.Image], objects: Sequence[str], styles: Sequence[str], each: int
) -> dict[str, Image.Image]:
    """Two sheets: the first picture of every pair, and all of every pair in a square of their own."""
    width = len(objects) * each
    rows = {style: list(pictures[i * width : (i + 1) * width]) for i, style in enumerate(styles)}
    first = {style: row[::each] for style, row in rows.items()}
    squares = {
        style: [image_grid(row[i : i + each], 2, gap=0) for i in range(0, width, each)] for style, row in rows.items()
    }
    return {"first": labelled_sheet(first, objects), "all": labelled_sheet(squares, objects, cell=144)}
