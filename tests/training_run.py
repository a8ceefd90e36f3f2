"""A small training run for the tests of the loop, in this process or, as a script, in processes of its own.

python tests/training_run.py FOLDER MOMENT adamw-1 muon-2     # optimizer and passes; MOMENT is "step", "write" or ""
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from experiments.training.loop import train
from experiments.training.machine import processes
from experiments.training.recipe import Recipe

STEPS = 20


class Tiny(nn.Module):
    """A convolution, channels last; a layer that no more than half of the steps use; a weight that never learns."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.seldom = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)
        self.fixed = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, pictures: torch.Tensor, seldom: bool) -> torch.Tensor:
        hidden = self.convolution(pictures).relu().mean(dim=(2, 3))
        return self.fixed(self.last(hidden + self.seldom(hidden) if seldom else hidden))


def run(folder: Path, optimizer: str = "adamw", accumulate: int = 1, moment: str = "", **options) -> nn.Module:
    """Train for 20 steps of 8 samples, with a line in ``seen-PROCESS.jsonl`` for each sample; killed at ``moment``."""
    folder.mkdir(parents=True, exist_ok=True)

    def loss(model: Tiny, draws) -> torch.Tensor:
        pictures = draws.randn(3, 6, 6)
        seldom = bool(torch.rand((), generator=draws.common) < 0.5)
        with open(folder / f"seen-{processes().process_index}.jsonl", "a") as lines:
            for number, picture in zip(draws.samples, pictures, strict=True):
                lines.write(json.dumps([number, seldom, picture.flatten()[:3].tolist()]) + "\n")
        if moment == "step" and draws.samples[0] >= 8 * 13:
            os.kill(os.getpid(), signal.SIGKILL)
        target = torch.stack([pictures.mean(dim=(1, 2, 3)), pictures.square().mean(dim=(1, 2, 3))], dim=1)
        return (model(pictures, seldom) - target).square().mean()

    if moment == "write":
        whole, torch.save = torch.save, None

        def killed_half_way(state, file):
            whole(state, file)
            if state["step"] == 15:
                os.truncate(file, 1000)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = killed_half_way
    settings = {"warmup": 5, "ema": 0.9, "mixed_precision": "no"} | options
    recipe = Recipe(STEPS, 8, 0.02, optimizer=optimizer, accumulate=accumulate, **settings)
    return train("tiny", Tiny(), loss, recipe, save_every=5, folder=folder)


if __name__ == "__main__":
    where, when, *kinds = sys.argv[1:]
    for kind in kinds:
        run(Path(where) / kind, kind.split("-")[0], int(kind.split("-")[1]), when)
