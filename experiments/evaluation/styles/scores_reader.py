"""How far off the reader is on real scenes that it never saw: what the scores by its reading can see, and what not.

    python -m experiments.evaluation reader

Errors of the texture's parameters are in deviations over style draws, where guessing their mean is 0.87 off.
"""

import numpy as np
from PIL import Image

from context_diffusion.metrics import Estimate, estimate_mean
from context_diffusion.scenes import STYLES, Style
from context_diffusion.scenes.reader import PARAMETERS, Reader, slot_map

from ...training.texture import UNSEEN, errors
from ..bench import Bench
from ..report import Report
from ..sheets import labelled_sheet
from ..tables import Table
from ..unseen import sample

GUESS = 0.87  # E|x| of a uniform draw of deviation 1


def run(bench: Bench) -> Report:
    """Read unseen scenes, and show ten of them with the slots that were found."""
    reader = Reader.from_pretrained(bench.part("texture"))
    report = Report(notes=[f"guessing the mean of a parameter is {GUESS} deviations off; one scene is one unit"])
    for name, off in errors(reader, bench.count(UNSEEN, 50)).items():
        what = f"{name}, mean error in deviations" if name in PARAMETERS else f"wrong {name}s, share"
        if off:
            report.add(what, estimate_mean(off).within(0), at_most=GUESS / 2 if name in PARAMETERS else 0.05)
    report.tables["styles"] = Table("What the reader reads, style by style", by_style(reader, bench.count(UNSEEN, 50)),
                                    lower=("wrong slots", *PARAMETERS))  # fmt: skip
    shown = sample(len(STYLES))
    read, true = reader([one.image for one in shown]).slots, [slot_map(one.scene, sure=False) for one in shown]
    rows = {"scene": [one.image for one in shown], "slots, read": list(map(colored, read))}
    report.sheets["pictures"] = labelled_sheet(rows | {"slots, true": list(map(colored, true))}, STYLES, cell=96)
    return report


def by_style(reader: Reader, unseen: int) -> dict[str, dict[str, Estimate]]:
    """The share of cells in a wrong slot, and the mean error of each parameter in deviations, under each style."""
    found = {}
    for style in STYLES:
        off = {name: values for name, values in errors(reader, unseen, [style]).items() if values and name != "style"}
        found[style] = {
            {"slot": "wrong slots"}.get(name, name): estimate_mean(values).within(0) for name, values in off.items()
        }
    return found


def colored(slots: np.ndarray) -> Image.Image:
    """A map of slots in the colours of one palette."""
    palette = np.array(Style.draw(7, family="vivid").palette)
    return Image.fromarray(np.round(255 * palette[slots]).astype(np.uint8)).resize((128, 128), Image.Resampling.NEAREST)
