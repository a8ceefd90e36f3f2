"""What a training run is made of, and the learning rate at each of its steps."""

import argparse
import math
from dataclasses import asdict, dataclass

from context_diffusion.checks import check_count, check_number

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
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {', '.join(map(repr, known[:-1]))} or {known[-1]!r}; got {value!r}.")
        for name in ("steps", "batch_size", "warmup", "accumulate"):
            check_count(name, getattr(self, name))
        check_number("learning_rate", self.learning_rate, 0)
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
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        return cls(**vars(cls.parser(description, **defaults).parse_args()))
