"""A protocol that needs no model, and a command that works through it: ``python counting_protocol.py OUT [PAUSE]``."""

import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from context_diffusion.commands import run_command
from experiments.evaluation.report import Report
from experiments.evaluation.results import Results, Unit
from experiments.evaluation.units import work


class Counting:
    """Noise of a unit's own seed, scored by its mean."""

    name = "counting"

    def __init__(
        self, count: int = 6, pause: float = 0.0, model: str = "one", scorer: str = "mean", **own: object
    ) -> None:
        self.count, self.pause, self.model, self.scorer = count, pause, model, scorer
        self.own = own  # what the pictures of each setting and of each set depend on
        self.drawn: list[Unit] = []
        self.scored: list[Unit] = []

    def about(self) -> dict:
        return {"model": self.model, **self.own, "scorers": {"scorer": self.scorer}}

    def units(self) -> list[Unit]:
        settings = self.own.get("settings", ("plain", "with AdaIN"))
        return [Unit(setting, i) for i in range(self.count) for setting in settings]

    def draw(self, unit: Unit) -> list[Image.Image]:
        self.drawn.append(unit)
        time.sleep(self.pause)
        noise = np.random.default_rng([unit.index, unit.seed, len(unit.setting)])
        return [Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(2)]

    def score(self, unit: Unit, pictures) -> dict[str, list[float]]:
        self.scored.append(unit)
        time.sleep(self.pause)
        return {"brightness": [float(np.asarray(picture).mean()) for picture in pictures]}

    def report(self, results: Results) -> Report:
        return Report()


def main() -> None:
    found = work(Counting(pause=float(sys.argv[2]) if len(sys.argv) > 2 else 0.0), Path(sys.argv[1]))
    print("whole" if found else "part")


if __name__ == "__main__":
    sys.exit(run_command(main))
