"""The one training loop: one process or many, averaged weights, mixed precision, whole checkpoints, resume, a record.

    python -m experiments.training.unet --minutes 120           # goes on from where it stands, on this machine
    torchrun --nproc-per-node 8 -m experiments.training.unet    # the same samples, on eight GPUs

It runs through Hugging Face's ``accelerate``: `torchrun` or `accelerate launch` start the processes, and each takes its
share of every batch. What it makes goes to ``build/training/NAME/`` and nowhere else; publishing the weights is a step
of its own (``python -m experiments.publishing.weights``).
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm.auto import tqdm

from context_diffusion.files import ROOT, written_whole

from .draws import Draws
from .optimizers import new_optimizers

FOLDER = ROOT / "build" / "training"
EVERY = 100  # steps between two lines of the record

Loss = Callable[[nn.Module, Draws], Tensor]


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of; each field is an option of the command line.

    ``schedule`` "cosine" falls over ``steps``; "constant" stays, so that any stretch can be continued, until a last run
    with ``finish=N`` lets the rate fall to zero over N more steps. ``minutes`` ends a run early ("cosine": its fall as
    well). ``start`` is a folder of weights to begin with where there is no checkpoint. A batch is divided among
    ``accumulate`` passes and all processes.
    """

    steps: int
    batch_size: int
    learning_rate: float
    optimizer: str = "adamw"  # or "muon"
    schedule: str = "cosine"  # or "constant"
    finish: int = 0
    warmup: int = 100
    weight_decay: float = 0.01
    beta2: float = 0.99
    ema: float = 0.999
    seed: int = 0
    minutes: float = math.inf
    accumulate: int = 1
    threads: int = 0
    start: str = ""

    def rate(self, step: int, progress: float) -> float:
        """Factor on the learning rate: linear warm-up, then half a cosine to 2 % or, in a last run, a line to 0."""
        warm = min(1, (step + 1) / self.warmup)
        if self.schedule == "cosine":
            return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1))))
        return warm * (max(0.0, 1 - progress) if self.finish else 1.0)

    @classmethod
    def from_command_line(cls, description: str | None, **defaults) -> "Recipe":
        """The recipe with each field overridable: ``--steps 500 --minutes 20 --threads 1``."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        for field, value in asdict(cls(**defaults)).items():
            parser.add_argument(
                f"--{field.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}"
            )
        return cls(**vars(parser.parse_args()))


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_pays() -> bool:
    """Whether bf16 products are faster than fp32 ones: on a GPU, and on a CPU with instructions of its own for them."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Objective(nn.Module):
    """A model and its loss as one module, whose forward pass several processes can share."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, draws: Draws) -> Tensor:
        """The mean loss over the samples of ``draws``."""
        return self.loss(self.model, draws)


def train(
    name: str,
    model: nn.Module,
    loss: Loss,
    recipe: Recipe,
    *,
    save: Callable[[nn.Module, Path], None] | None = None,
    held_out: Callable[[nn.Module], Sequence[float]] | None = None,
    save_every: int = 250,
    folder: Path | None = None,
) -> nn.Module:
    """Minimise ``loss(model, draws)`` and return the averaged model.

    ``loss`` takes all its random numbers from ``draws`` (:class:`Draws`), so a resumed run sees the samples that an
    uninterrupted one would. ``save(average, folder)`` writes the weights as the library loads them;
    ``held_out(average)`` gives losses on unseen samples (of bands of noise, say). Every 100 steps a line says how far it
    is, in the terminal and in ``NAME.jsonl``. Interrupt or kill it at any time: the next call goes on from the last
    checkpoint, and the loss of what it repeats is the same. Raises ``FloatingPointError`` where the loss is not finite.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    folder = folder or FOLDER / name
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16_pays() else "no",
        gradient_accumulation_steps=recipe.accumulate,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    share, rest = divmod(recipe.batch_size, recipe.accumulate * accelerator.num_processes)
    if rest or not share:
        raise ValueError(
            f"A batch of {recipe.batch_size} cannot be divided among {recipe.accumulate} passes of "
            f"{accelerator.num_processes} processes."
        )
    model.to(accelerator.device).train()
    run = _Run(name, model, recipe, folder)
    objective, *optimizers = accelerator.prepare(Objective(model, loss), *run.optimizers)
    started, here = time.monotonic() - run.seconds, run.step
    bar = tqdm(total=run.last, initial=run.step, desc=name, disable=None if accelerator.is_main_process else True)
    try:
        while run.step < run.last and (minutes := (time.monotonic() - started) / 60) < recipe.minutes:
            progress = (run.step - run.first) / max(1, run.last - run.first)
            if recipe.schedule == "cosine":
                progress = max(progress, minutes / recipe.minutes)
            for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
                group["lr"] = recipe.learning_rate * recipe.rate(run.step, progress)
            total = 0.0
            for part in range(recipe.accumulate):
                first = (run.step * recipe.accumulate + part) * accelerator.num_processes + accelerator.process_index
                draws = Draws(recipe.seed, range(first * share, (first + 1) * share), run.step)
                waits = part + 1 < recipe.accumulate and accelerator.num_processes > 1
                with accelerator.no_sync(objective) if waits else nullcontext():
                    value = objective(draws)
                    accelerator.backward(value)
                total += value.item() / recipe.accumulate
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in run.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            follow_average(run.average, model, min(recipe.ema, (run.step + 1) / (run.step + 10)))
            run.losses.append(total)
            if not math.isfinite(total):
                raise FloatingPointError(f"{name}: the loss is {total} at step {run.step}; lower --learning-rate.")
            run.step += 1
            bar.update()
            if accelerator.is_main_process:
                run.seconds = time.monotonic() - started
                if run.step % save_every == 0:
                    run.held_out = list(held_out(run.average)) if held_out else []
                    run.write()
                if run.step % EVERY == 0:
                    run.note(minutes, (run.step - here) * recipe.batch_size)
    finally:
        bar.close()
        if accelerator.is_main_process:
            run.write()
    if accelerator.is_main_process:
        run.write_curve()
        if save:
            save(run.average, folder)
    accelerator.wait_for_everyone()
    return run.average


class _Run:
    """The state of a run: what a checkpoint holds."""

    def __init__(self, name: str, model: nn.Module, recipe: Recipe, folder: Path):
        self.name, self.model, self.recipe, self.folder = name, model, recipe, folder
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = list(
            new_optimizers(model, recipe.optimizer, recipe.learning_rate, recipe.weight_decay, recipe.beta2)
        )
        self.step, self.first, self.seconds, self.losses, self.held_out = 0, 0, 0.0, [], []
        self.clock = time.monotonic()
        self.file = folder / f"{name}{'-finish' * bool(recipe.finish)}.pt"
        found = self.file if self.file.exists() else folder / f"{name}.pt"
        if found.exists():
            self._read(found)
        if recipe.finish and found != self.file:
            self.first = self.step
        self.last = self.first + recipe.finish if recipe.finish else recipe.steps
        self.done_before = self.seconds

    def _read(self, file: Path) -> None:
        state = torch.load(file, map_location=next(self.model.parameters()).device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for field in ("step", "first", "seconds", "losses", "held_out"):
            setattr(self, field, state[field])

    def write(self) -> None:
        """Write the checkpoint, whole."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            **{field: getattr(self, field) for field in ("step", "first", "seconds", "losses", "held_out")},
        }
        with written_whole(self.file) as temporary:
            torch.save(state, temporary)

    def note(self, minutes: float, samples_here: int) -> None:
        """Print a line and add it to the record."""
        recent, losses = self.losses[-EVERY:], self.held_out
        speed = samples_here / max(1e-9, self.seconds - self.done_before)
        left = min((self.last - self.step) * self.recipe.batch_size / speed / 60, self.recipe.minutes - minutes)
        line = {
            "step": self.step,
            "samples": self.step * self.recipe.batch_size,
            "loss": round(sum(recent) / len(recent), 5),
            "held_out": [round(value, 5) for value in losses],
            "samples_a_second": round(speed, 1),
            "minutes": round(self.seconds / 60, 1),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{self.name}.jsonl", "a") as record:
            record.write(json.dumps(line) + "\n")
        bands = f", held out {sum(losses) / len(losses):.4f} ({' '.join(f'{v:.3f}' for v in losses)})" if losses else ""
        tqdm.write(
            f"{self.name}: step {self.step}, {line['samples']} samples, loss {line['loss']:.4f}{bands}, "
            f"{speed:.0f} samples a second, {left:.0f} minutes left"
        )

    def write_curve(self) -> None:
        """``NAME.json`` (recipe, time, loss per hundredth) and its picture."""
        from matplotlib.figure import Figure

        window = max(1, len(self.losses) // 100)
        smooth = [sum(part) / len(part) for part in _chunks(self.losses, window)]
        settings = {key: value for key, value in asdict(self.recipe).items() if value != math.inf}
        record = {"recipe": settings, "steps_done": self.step, "minutes": round(self.seconds / 60, 1), "every": window}
        with written_whole(self.folder / f"{self.name}.json") as temporary:
            temporary.write_text(json.dumps(record | {"loss": [round(v, 5) for v in smooth]}, indent=1) + "\n")
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss", title=self.name, yscale="log")
        axes.plot([i * window for i in range(len(smooth))], smooth)
        figure.savefig(self.folder / f"{self.name}.png", dpi=80)


def _chunks(values: list[float], size: int) -> list[list[float]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


@torch.no_grad()
def follow_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights: average <- decay * average + (1 - decay) * model."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for own, new in zip(average.buffers(), model.buffers(), strict=True):
        own.copy_(new)


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Take over all weights of a saved model of the same kind; raises ``FileNotFoundError`` where there are none."""
    if not list(Path(folder).glob("*.safetensors")):
        raise FileNotFoundError(f"Training starts from weights in {folder}, and it holds none.")
    saved = type(model).from_pretrained(folder, torch_dtype=torch.float32).state_dict()  # maps renamed keys
    model.load_state_dict({key: saved[key] for key in model.state_dict() if key in saved})


def save_half(model, folder: Path) -> None:
    """``model.save_pretrained`` in fp16 safetensors, file by file whole."""
    temporary = folder.with_name(folder.name + ".tmp")
    half = copy.deepcopy(model).to("cpu", torch.float16, memory_format=torch.contiguous_format)
    half.save_pretrained(temporary, safe_serialization=True)
    folder.mkdir(parents=True, exist_ok=True)
    for file in temporary.iterdir():
        file.replace(folder / file.name)
    temporary.rmdir()
