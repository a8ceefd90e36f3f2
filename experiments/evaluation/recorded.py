"""Read back the scores that a protocol of the papers recorded: under every setting, a grid of sets by seeds.

``figures/evaluation/<protocol>-units.csv`` has one line for each unit (setting, index of the set, seed) with the mean
of each score over the unit's pictures, as ``python -m experiments.evaluation papers`` writes it.
"""

import csv
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from context_diffusion.files import ROOT

EVALUATION = ROOT / "figures" / "evaluation"


def recorded_scores(
    score: str, protocol: str = "style-sets", folder: str | os.PathLike = EVALUATION
) -> dict[str, Float[np.ndarray, "sets seeds"]]:
    """Read one score: under each setting that has it, a row for each set and a column for each seed, in order.

    Raises ``FileNotFoundError`` where the protocol has not been run, and ``ValueError`` for a score that it does not
    have or a grid with holes.
    """
    path = Path(folder) / f"{protocol}-units.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not there; `python -m experiments.evaluation {protocol}` writes it.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names = [name for name in reader.fieldnames or () if name not in ("setting", "index", "seed")]
        if score not in names:
            raise ValueError(f"{path.name} has no score {score!r}; it has {', '.join(names)}.")
        found: dict[str, dict[tuple[int, int], float]] = {}
        for line in reader:
            if line[score]:
                found.setdefault(line["setting"], {})[int(line["index"]), int(line["seed"])] = float(line[score])
    return {setting: _grid(values, f"{setting}: {score}") for setting, values in found.items()}


def _grid(values: Mapping[tuple[int, int], float], what: str) -> Float[np.ndarray, "sets seeds"]:
    sets, seeds = (sorted(set(numbers)) for numbers in zip(*values, strict=True))
    if missing := [(i, s) for i in sets for s in seeds if (i, s) not in values]:
        raise ValueError(
            f"Every set needs the same seeds; {what} lacks {len(missing)} of {len(sets) * len(seeds)}, the first is "
            f"set {missing[0][0]}, seed {missing[0][1]}."
        )
    return np.array([[values[i, s] for s in seeds] for i in sets])
