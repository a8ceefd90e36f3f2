"""How pictures get better with training: every score over the samples that a U-Net has seen.

    python -m experiments.evaluation.over_training 216000=FOLDER 934000=FOLDER 2008000=data/checkpoints/tiny-scenes

Each folder is a whole model. All draw the same prompts and contexts from the same noises, at the guidance and in the
steps of the offline model, and one DINO and one judge, the published ones, score them all: so first generations can be
put beside later ones. It writes ``figures/over_training/scores.json`` and ``scores.png``.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from context_diffusion.commands import Parser, run_command
from context_diffusion.context.request import Request
from context_diffusion.files import ROOT, as_path, check_output_folder, written_whole
from context_diffusion.images import save_image
from context_diffusion.metrics import Estimate
from context_diffusion.scenes import OBJECTS, STYLES

from .accuracy import accuracy
from .bench import Bench
from .context_palettes import SHOWN, context_cases, palette_ratio
from .curves import picture_of, with_error
from .harness import OFFLINE_STEPS
from .realism import distances, real_scenes
from .reconstruction import decoded
from .report import finite
from .text_to_image import background, text_requests

FOLDER = ROOT / "figures" / "over_training"
GROUPS, EACH = 80, 2
PANELS = {  # of the figure: the scores that share an axis
    "right, of 1": ("object of the prompt", "style of the prompt", "style of the contexts", "object, with contexts"),
    "palette ratio (real: dashed)": ("palette ratio",),
    "Frechet distance to real scenes": ("Frechet, DINO", "Frechet, judge"),
}
FLOOR, DECODED = "real scenes", "real scenes, through the autoencoder"


def scored(drawing: Bench, scoring: Bench, groups: int = GROUPS) -> dict[str, Estimate]:
    """Draw all prompts and contexts with one model, and score them with the networks of another."""
    asked = text_requests(each=EACH)
    pictures = drawn(drawing, scoring, [request for *_, request in asked])
    seen, prompts = scoring.judge(pictures), [request.prompt for *_, request in asked]
    real = real_scenes([(thing, background(thing, style), style) for thing, style, _ in asked])
    scores = {
        "object of the prompt": accuracy(seen["object"], [OBJECTS.index(thing) for thing, *_ in asked], prompts),
        "style of the prompt": accuracy(seen["style"], [STYLES.index(style) for _, style, _ in asked], prompts),
    }
    scores |= {f"Frechet, {name}": distance for name, distance in distances(scoring, pictures, real).items()}
    cases = context_cases(groups)
    contexts = [[one.image for one in group[:SHOWN]] for group in cases.groups]
    requests = [
        Request(None, tuple(own), said, seed=i) for i, (own, said) in enumerate(zip(contexts, cases.said, strict=True))
    ]
    pictures = drawn(drawing, scoring, requests)
    seen = scoring.judge(pictures)
    wanted = [OBJECTS.index(scene.object) for scene in cases.scenes]
    return scores | {
        "palette ratio": palette_ratio(pictures, contexts, cases.rivals),
        "style of the contexts": accuracy(seen["style"], [STYLES.index(style) for style in cases.styles]),
        "object, with contexts": accuracy(seen["object"], wanted),
    }


def drawn(drawing: Bench, scoring: Bench, requests: Sequence[Request]):
    """Draw at the guidance of the offline model, whatever folder the weights are in."""
    return drawing.draw([replace(request, guidance_scale=scoring.row.guidance_scale) for request in requests])


def floors(scoring: Bench, groups: int = GROUPS) -> dict[str, dict[str, Estimate]]:
    """What real scenes score: as many of the same contents, and a further scene of each style draw.

    And what is left of them, encoded and decoded: no U-Net's pictures can be expected to be nearer to real scenes.
    """
    contents = [(thing, background(thing, style), style) for thing, style, _ in text_requests(each=EACH)]
    real, other = real_scenes(contents), real_scenes(contents, len(contents))
    cases = context_cases(groups)
    contexts = [[one.image for one in group[:SHOWN]] for group in cases.groups]
    further = [group[SHOWN].image for group in cases.groups]
    rows = {}
    for name, change in ((FLOOR, list), (DECODED, partial(decoded, scoring))):
        rows[name] = {f"Frechet, {one}": far for one, far in distances(scoring, change(other), real).items()}
        rows[name] |= {"palette ratio": palette_ratio(change(further), contexts, cases.rivals)}
    return rows


def figure(found: Mapping[int, Mapping[str, Estimate]], real: Mapping[str, Estimate]) -> Figure:
    """A panel for each kind of score, over the samples seen."""
    page = Figure(figsize=(11, 3.2), layout="constrained")
    for axis, (title, names) in zip(page.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name in names:
            with_error(axis, {samples: scores[name] for samples, scores in found.items()}, label=name)
            if name in real:
                axis.axhline(real[name].value, color=axis.lines[-1].get_color(), linestyle="--", linewidth=1)
        axis.set(title=title, xlabel="samples seen")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:.0f}k"))
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize="small")
    return page


def pair(text: str) -> tuple[int, str]:
    """Read ``SAMPLES=FOLDER``."""
    samples, sign, folder = text.partition("=")
    if not sign or not samples.isdigit():
        raise argparse.ArgumentTypeError(
            f"give SAMPLES=FOLDER, such as 2008000=data/checkpoints/tiny-scenes; got {text!r}"
        )
    return int(samples), folder


def main() -> None:
    """Draw with each folder, score, and write the record and the figure."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=pair, metavar="SAMPLES=FOLDER", help="a whole model, and what it saw")
    parser.add_argument("--groups", type=int, default=GROUPS, help="of contexts (default: %(default)s)")
    parser.add_argument("--out", type=lambda text: as_path(text, "--out"), default=FOLDER, help="default: %(default)s")
    asked = parser.parse_args()
    out, scoring = check_output_folder(asked.out, "--out"), Bench(steps=OFFLINE_STEPS)
    benches = {samples: Bench(folder, steps=OFFLINE_STEPS) for samples, folder in sorted(asked.models)}
    found = {samples: scored(bench, scoring, asked.groups) for samples, bench in benches.items()}
    rows = {**found, **floors(scoring, asked.groups)}
    record = {
        "command": "python -m experiments.evaluation.over_training", "steps": OFFLINE_STEPS, "interval": "95 %",
        "scores": {str(name): {score: finite(value) for score, value in row.items()} for name, row in rows.items()},
    }  # fmt: skip
    with written_whole(Path(out) / "scores.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    save_image(picture_of(figure(found, rows[FLOOR])), Path(out) / "scores.png")
    for name, row in rows.items():
        print(f"\n{name}")
        for score, value in row.items():
            print(f"  {score:<24}{value}")


if __name__ == "__main__":
    sys.exit(run_command(main))
