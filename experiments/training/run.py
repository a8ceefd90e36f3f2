"""A training run as it stands: what its checkpoint holds, and the record of how it went."""

import copy
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from context_diffusion.files import ROOT, TINY_FUSION, TINY_SCENES, written_whole
from context_diffusion.stopping import taken_up

from .optimizers import new_optimizers
from .recipe import Recipe

EVERY = 100  # steps between two lines of the record
RECORDS = ROOT / "figures" / "training"  # of the runs whose weights are published
KEPT = ("step", "first", "seconds", "losses", "held_out", "earlier")


class Run:
    """A model in training, its average and optimizers, how far it is, and its losses so far.

    It begins anew, or as the checkpoint in ``folder`` left it. Raises ``ValueError`` where that is of another run, or
    damaged.
    """

    def __init__(self, name: str, model: nn.Module, recipe: Recipe, folder: Path):
        self.name, self.model, self.recipe, self.folder = name, model, recipe, folder
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = list(
            new_optimizers(model, recipe.optimizer, recipe.learning_rate, recipe.weight_decay, recipe.beta2)
        )
        self.step, self.first, self.seconds = 0, 0, 0.0
        self.losses, self.held_out, self.earlier = [], [], forerunners(name, recipe.start)
        stretch = f"{name}-finish" if recipe.finish else name
        self.file, self.lines = folder / f"{stretch}.pt", folder / f"{stretch}.jsonl"
        found = next((file for file in (self.file, folder / f"{name}.pt") if file.exists()), None)
        if found:
            self._read(found)
        if recipe.finish and found != self.file:
            self.first = self.step
        self.last = self.first + recipe.finish if recipe.finish else recipe.steps
        self.begun = self.step, self.seconds
        self.clock = time.monotonic() - self.seconds

    def _read(self, file: Path) -> None:
        with taken_up(file):
            state = torch.load(file, map_location="cpu", weights_only=True)
            start, optimizers = state.get("start", self.recipe.start), list(state["optimizers"])
        if start != self.recipe.start:
            raise ValueError(
                f"{file} began with --start {start or 'nothing'}, not {self.recipe.start or 'nothing'}: "
                "give that again, or move the file away to begin anew."
            )
        if len(optimizers) != len(self.optimizers):
            raise ValueError(f"{file} was written with another --optimizer than {self.recipe.optimizer}.")
        with taken_up(file):
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(self.optimizers, optimizers, strict=True):
                options = optimizer.state_dict()["param_groups"]  # those of the recipe, not of the checkpoint
                optimizer.load_state_dict({**saved, "param_groups": options})
            self.step, self.losses = int(state["step"]), list(state["losses"])
        for field in KEPT:
            setattr(self, field, state.get(field, getattr(self, field)))

    def write(self) -> None:
        """Write the checkpoint, whole, and with it the record, ``NAME.json``."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "start": self.recipe.start,
            **{field: getattr(self, field) for field in KEPT},
        }
        with written_whole(self.file) as temporary:
            torch.save(state, temporary)
        with written_whole(self.folder / f"{self.name}.json") as temporary:
            temporary.write_text(json.dumps(self.record(), indent=1) + "\n")

    def spent(self) -> float:
        """Minutes that count towards ``recipe.minutes``: of the whole run for a cosine, otherwise of this call."""
        return (self.seconds - (0 if self.recipe.schedule == "cosine" else self.begun[1])) / 60

    def progress(self) -> float:
        """How much of the run is over, 0 to 1, by steps; a cosine's also by its minutes."""
        done = (self.step - self.first) / max(1, self.last - self.first)
        return max(done, self.spent() / self.recipe.minutes) if self.recipe.schedule == "cosine" else done

    def update(self, loss: float) -> None:
        """Move the weights by the gradients at hand, and their average after them."""
        rate = self.recipe.learning_rate * self.recipe.rate(self.step, self.progress())
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        follow_average(self.average, self.model, min(self.recipe.ema, (self.step + 1) / (self.step + 10)))
        self.losses.append(loss)
        self.step += 1

    def note(self) -> None:
        """Print a line, and add it to ``NAME.jsonl`` in place of any that a run beyond the checkpoint has left."""
        recent, batch = self.losses[-EVERY:], self.recipe.batch_size
        speed = (self.step - self.begun[0]) * batch / max(1e-9, self.seconds - self.begun[1])
        left = min((self.last - self.step) * batch / speed / 60, self.recipe.minutes - self.spent())
        line = {
            "step": self.step,
            "samples": self.step * batch,
            "loss": round(sum(recent) / len(recent), 5),
            "held_out": [round(value, 5) for value in self.held_out],
            "samples_a_second": round(speed, 1),
            "minutes": round(self.seconds / 60, 1),
        }
        before = self.lines.read_text(errors="replace").splitlines(keepends=True) if self.lines.exists() else []
        before = [one for one in before if _step_of(one) < self.step]
        with written_whole(self.lines) as temporary:
            temporary.write_text("".join([*before, json.dumps(line) + "\n"]))
        bands = " ".join(f"{value:.3f}" for value in self.held_out)
        mean = f", held out {sum(self.held_out) / len(self.held_out):.4f} ({bands})" if bands else ""
        tqdm.write(
            f"{self.name}: step {self.step}, {line['samples']} samples, loss {line['loss']:.4f}{mean}, "
            f"{speed:.0f} samples a second, {left:.0f} minutes left"
        )

    def record(self) -> dict:
        """The recipe, the time it took, the loss of each hundredth of the run, and its forerunners."""
        every = max(1, len(self.losses) // 100)
        parts = [self.losses[first : first + every] for first in range(0, len(self.losses), every)]
        settings = {key: value for key, value in asdict(self.recipe).items() if value != math.inf}
        if self.recipe.start:  # in words that hold on any machine
            start = Path(self.recipe.start).resolve()
            settings["start"] = str(start.relative_to(ROOT)) if start.is_relative_to(ROOT) else start.name
        return {
            "recipe": settings,
            "steps_done": self.step,
            "minutes": round(self.seconds / 60, 1),
            "every": every,
            "loss": [round(sum(part) / len(part), 5) for part in parts],
            "earlier": self.earlier,
        }

    def draw_curve(self) -> None:
        """Draw ``NAME.png``, the record's losses one run after another."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss", title=self.name, yscale="log")
        start = 0
        for run in (*self.earlier, self.record()):
            axes.plot([start + i * run["every"] for i in range(len(run["loss"]))], run["loss"])
            start += run["steps_done"]
        with written_whole(self.folder / f"{self.name}.png") as temporary:
            figure.savefig(temporary, dpi=80)


def forerunners(name: str, start: str) -> list[dict]:
    """The records of the runs that made the weights in ``start``, oldest first, where there are any."""
    published = Path(start).resolve() in (TINY_SCENES, TINY_FUSION)
    file = (RECORDS if published else Path(start)) / f"{name}.json"
    if not start or not file.is_file():
        return []
    with taken_up(file):
        last = json.loads(file.read_text())
        return [*last.pop("earlier", []), last]


def _step_of(line: str) -> float:
    """The step that a line of the record is about; a line that is no record is of no step, and is left out."""
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return math.inf


@torch.no_grad()
def follow_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights: average <- decay * average + (1 - decay) * model."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for own, new in zip(average.buffers(), model.buffers(), strict=True):
        own.copy_(new)
