"""Queries from outside the world: sample photographs of scikit-image, and drawings made by hand with Pillow.

Nothing is cherry-picked: every query listed is shown with four consecutive seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from context_diffusion.context.request import Request
from context_diffusion.control import canny_map, control_image
from context_diffusion.images import load_image, resize
from context_diffusion.metrics import estimate_mean
from context_diffusion.scenes import SIZE, STYLES

from .accuracy import accuracy
from .bench import Bench
from .edges_and_depth import edges_kept
from .report import Report
from .sheets import labelled_sheet
from .unseen import DOMAIN, unseen_group

SEEDS = range(4)
CONTEXTS = 3
PHOTOGRAPHS = {  # name in skimage.data -> what the prompt says, if the model has a word for it
    "chelsea": "a cat", "coffee": "a cup", "rocket": "a rocket", "astronaut": "", "camera": "",
}  # fmt: skip


@dataclass(frozen=True)
class Query:
    """A picture from elsewhere, with the words that go with it."""

    name: str
    image: Image.Image
    prompt: str


def photographs() -> list[Query]:
    """Read the photographs that ship with scikit-image; nothing is downloaded."""
    try:
        from skimage import data
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            "The sample photographs are scikit-image's: `pip install -r requirements-dev.txt`."
        ) from error
    return [
        Query(name, resize(load_image(getattr(data, name)()), SIZE), prompt) for name, prompt in PHOTOGRAPHS.items()
    ]


def _sailing_boat(pen: ImageDraw.ImageDraw) -> None:
    pen.arc((20, 330, 492, 560), 195, 345, "black", 7)
    pen.polygon([(90, 350), (430, 350), (370, 430), (150, 430)], "#d8a06a", "black", 7)
    pen.line((262, 350, 262, 70), "black", 9)
    pen.polygon([(276, 80), (276, 320), (420, 320)], "white", "black", 7)
    pen.polygon([(246, 120), (246, 320), (130, 320)], "#f4f4f4", "black", 7)


def _teapot(pen: ImageDraw.ImageDraw) -> None:
    pen.ellipse((330, 200, 470, 370), None, "black", 20)
    pen.polygon([(150, 300), (40, 190), (75, 180), (170, 240)], "#7aa5c8", "black", 7)
    pen.ellipse((120, 160, 400, 420), "#7aa5c8", "black", 7)
    pen.arc((180, 130, 340, 210), 180, 360, "black", 7)
    pen.ellipse((240, 105, 280, 145), "#7aa5c8", "black", 7)


def _fish(pen: ImageDraw.ImageDraw) -> None:
    pen.polygon([(350, 256), (470, 160), (440, 256), (470, 350)], "#e8b04a", "black", 7)
    pen.ellipse((60, 150, 380, 362), "#e8b04a", "black", 7)
    pen.arc((60, 170, 200, 342), 290, 70, "black", 6)
    pen.ellipse((115, 215, 145, 245), "black")
    pen.polygon([(200, 158), (290, 90), (300, 170)], "#c98a2b", "black", 7)


def _houses(pen: ImageDraw.ImageDraw) -> None:
    for left, top, wall in ((40, 250, "#e9d8c0"), (190, 200, "#cfe0d2"), (340, 270, "#e5c9c9")):
        pen.rectangle((left, top, left + 130, 430), wall, "black", 7)
        pen.polygon([(left - 14, top), (left + 65, top - 90), (left + 144, top)], "#b0563f", "black", 7)
        pen.rectangle((left + 45, top + 90, left + 85, 430), "#6b4a35", "black", 6)
    pen.line((0, 432, 512, 432), "black", 7)


def _umbrella(pen: ImageDraw.ImageDraw) -> None:
    pen.line((256, 120, 256, 400), "black", 10)
    pen.arc((256, 360, 336, 450), 0, 180, "black", 10)
    pen.pieslice((70, 110, 442, 420), 180, 360, "#c0504d", "black", 7)
    for edge in (70, 163, 256, 349):
        pen.chord((edge, 240, edge + 93, 290), 180, 360, "white", "black", 5)


DRAWINGS: dict[str, tuple[Callable, str]] = {
    "sailing boat": (_sailing_boat, "a boat"), "fish": (_fish, "a fish"), "three houses": (_houses, "a house"),
    "umbrella": (_umbrella, "an umbrella"), "teapot": (_teapot, ""),
}  # fmt: skip


def drawings() -> list[Query]:
    """Draw those made by hand, at 512 pixels, and shrink them."""
    made = []
    for name, (strokes, prompt) in DRAWINGS.items():
        canvas = Image.new("RGB", (512, 512), "white")
        strokes(ImageDraw.Draw(canvas))
        made.append(Query(name, resize(canvas, SIZE), prompt))
    return made


def run(bench: Bench) -> Report:
    """Draw every query four times in a style of its own, and measure how well its edges are kept."""
    bench.need("controlnet-canny", "context_projector or ip-adapter", "judge")
    queries = photographs() + drawings()
    styles = [STYLES[i % len(STYLES)] for i in range(len(queries))]
    groups = [unseen_group(DOMAIN + i, style, CONTEXTS) for i, style in enumerate(styles)]
    contexts = [tuple(one.image for one in group) for group in groups]
    seeds = SEEDS[: bench.count(len(SEEDS), 1)]
    pictures = bench.draw([
        Request(one.image, contexts[i], one.prompt, layout="canny", seed=seed)
        for i, one in enumerate(queries) for seed in seeds
    ])  # fmt: skip
    report = Report(notes=[f"{len(queries)} queries x {len(seeds)} consecutive seeds; the query is the unit"])
    names = [one.name for one in queries for _ in seeds]
    split = len(PHOTOGRAPHS) * len(seeds)
    for kind, part in (("photographs", slice(0, split)), ("drawings", slice(split, None))):
        targets = [one.image for one in queries for _ in seeds][part]
        report.add(f"edge F1, {kind}", estimate_mean(edges_kept(pictures[part], targets), names[part]).within(0, 1))
    wanted = [STYLES.index(style) for style in styles for _ in seeds]
    report.add("style accuracy (the contexts' style)", accuracy(bench.judge(pictures)["style"], wanted, names))
    rows = {}
    for i, one in enumerate(queries):
        label = f"{one.name}\n{one.prompt or '(no prompt)'}"
        made = pictures[i * len(seeds) : (i + 1) * len(seeds)]
        rows[label] = [one.image, control_image(canny_map(one.image)), contexts[i][0], *made]
    report.sheets["pictures"] = labelled_sheet(rows, ["query", "edges", "a context", *(f"seed {s}" for s in seeds)])
    return report
