"""What a training run is made of, and the learning rate at each of its steps."""

import argparse
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from context_diffusion.checks import LIMITS, check_choice, check_count, check_number
from context_diffusion.commands import Parser
from context_diffusion.files import ROOT, check_output_folder

FOLDER = ROOT / "build" / "training"
CHOICES = {
    "optimizer": ("adamw", "muon"),
    "schedule": ("cosine", "constant"),
    "mixed_precision": ("auto", "bf16", "no"),
}


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of; each field is an option of the command line.

    Args:
        steps: updates of the weights, at most.
        batch_size: samples in each step, divided among ``accumulate`` passes and all processes.
        learning_rate: the highest rate, reached after ``warmup`` steps.
        optimizer: "adamw", or "muon" for matrices and AdamW for the rest.
        schedule: "cosine" falls over ``steps``. "constant" stays, so that any stretch can be continued.
        finish: after a run at a constant rate, that many more steps in which the rate falls to zero.
        ema: decay of the averaged weights.
        minutes: ends the run early. A cosine falls within the minutes of the whole run, interruptions left out; at a
            constant rate they are those of this call.
        mixed_precision: "bf16", "no", or "auto": bf16 where it is faster.
        threads: of the CPU; 0 leaves their number alone.
        start: a folder of weights to begin with.
    """

    steps: int
    batch_size: int
    learning_rate: float
    optimizer: str = "adamw"
    schedule: str = "cosine"
    finish: int = 0
    warmup: int = 100
    weight_decay: float = 0.01
    beta2: float = 0.99
    ema: float = 0.999
    seed: int = 0
    minutes: float = math.inf
    accumulate: int = 1
    mixed_precision: str = "auto"
    threads: int = 0
    start: str = ""

    def __post_init__(self):
        for name, known in CHOICES.items():
            check_choice(name, getattr(self, name), known)
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 1), ("accumulate", 1), ("finish", 0)):
            check_count(name, getattr(self, name), LIMITS["training_steps"], least)
        check_count("threads", self.threads, 1024, 0)
        check_count("seed", self.seed, 2**30, 0)
        for name, most in (("learning_rate", LIMITS["learning_rate"]), ("weight_decay", 1), ("beta2", 1), ("ema", 1)):
            check_number(name, getattr(self, name), 0, most)
        if not self.minutes >= 0:  # infinite by default
            raise ValueError(f"minutes must be at least 0; got {self.minutes}.")
        if self.finish and self.schedule == "cosine":
            raise ValueError("finish lets a constant rate fall to zero; a cosine falls by itself.")

    def rate(self, step: int, progress: float) -> float:
        """Factor on the learning rate at ``step`` (from 0), where ``progress`` of the run is over (0 to 1).

        A linear warm-up, times half a cosine from 1 to 0.02; or times 1 at a constant rate; or, in the steps of
        ``finish``, times a line from 1 to 0.
        """
        warm = min(1, (step + 1) / self.warmup)
        if self.schedule == "cosine":
            return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1))))
        return warm * (max(0.0, 1 - progress) if self.finish else 1.0)

    @classmethod
    def parser(cls, description: str | None, **defaults) -> argparse.ArgumentParser:
        """A command line with an option for each field: ``--steps 500 --minutes 20 --threads 1``."""
        parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        for field, value in asdict(cls(**defaults)).items():
            parser.add_argument(
                f"--{field.replace('_', '-')}",
                type=type(value),
                default=value,
                choices=CHOICES.get(field),
                help="(default: %(default)s)",
            )
        return parser

    @classmethod
    def from_command_line(cls, description: str | None, **defaults) -> "Recipe":
        """The recipe that the command line asks for."""
        return cls(**read_options(cls.parser(description, **defaults)))


def read_options(parser: argparse.ArgumentParser) -> dict:
    """Read the options of a training's command line; refuse places that are not there or cannot be written to."""
    options = vars(parser.parse_args())
    if options["start"] and not Path(options["start"]).is_dir():
        raise FileNotFoundError(f"--start is a folder of weights to begin with, and {options['start']} is none.")
    check_output_folder(FOLDER, "The folder of all runs")
    return options
