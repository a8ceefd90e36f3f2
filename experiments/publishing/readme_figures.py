"""The two pictures of the README.

    python -m experiments.publishing.readme_figures                           # -> figures/world.webp, figures/demo.webp
    python -m experiments.publishing.readme_figures world --out build/here    # -> build/here/world.webp

Objects, styles and seeds are consecutive; nothing is cherry-picked.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

from context_diffusion.checks import check_choice
from context_diffusion.cli import DEMO_CONTEXTS, DEMO_PROMPT, DEMO_QUERY
from context_diffusion.commands import Parser, run_command
from context_diffusion.context.model import ContextDiffusion
from context_diffusion.files import ROOT, check_output
from context_diffusion.images import load_image
from context_diffusion.scenes import OBJECTS, STYLES, Scene, Style, TinyScenes, render

from ..evaluation.sheets import labelled_sheet, save_sheet

SEEDS = 4


def world() -> Image.Image:
    """Every object in every style; place, palette and texture parameters come from unseen seeds."""
    rows = {}
    for row, name in enumerate(STYLES):
        seeds = [TinyScenes.HELD_OUT + len(OBJECTS) * row + column for column in range(len(OBJECTS))]
        rows[name] = [
            render(Scene.draw(seed, object=kind), Style.draw(seed, name=name), seed).image
            for seed, kind in zip(seeds, OBJECTS, strict=True)
        ]
    return labelled_sheet(rows, OBJECTS, cell=96)


def demo() -> Image.Image:
    """The inputs of ``make demo``, then what the model draws from all of them, and with one of them left out."""
    model = ContextDiffusion.from_pretrained()
    query, contexts = load_image(DEMO_QUERY), [load_image(path) for path in DEMO_CONTEXTS]
    settings = {
        f'query + contexts +\n"{DEMO_PROMPT}"': (query, contexts, DEMO_PROMPT),
        "query + contexts": (query, contexts, ""),
        f'query +\n"{DEMO_PROMPT}"': (query, (), DEMO_PROMPT),
        f'contexts +\n"{DEMO_PROMPT}"': (None, contexts, DEMO_PROMPT),
    }
    rows = {"inputs: query,\nthree contexts": [query, *contexts]}
    rows |= {name: model(*inputs, seed=0, num_images=SEEDS) for name, inputs in settings.items()}
    return labelled_sheet(rows)


FIGURES = {"world": world, "demo": demo}


def main() -> None:
    """Draw all figures, or those named."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(FIGURES)} (default: all)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "figures", metavar="FOLDER", help="where to write (default: figures)"
    )
    asked = parser.parse_args()
    names = asked.names or list(FIGURES)
    for name in names:
        check_choice("The name of a figure", name, FIGURES)
        check_output(asked.out / f"{name}.webp", what="--out")
    for name in names:
        print(save_sheet(FIGURES[name](), asked.out / f"{name}.webp"))


if __name__ == "__main__":
    sys.exit(run_command(main))
