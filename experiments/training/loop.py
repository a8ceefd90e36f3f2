"""The one training loop: one process or many, averaged weights, mixed precision, resume, a record.

    python -m experiments.training.unet --minutes 120              # goes on from where it stands, on this machine
    torchrun --nproc-per-node 8 -m -- experiments.training.unet    # the same samples, on eight GPUs

It runs through Hugging Face's ``accelerate``: `torchrun` starts the processes, and each takes its share of every batch.
(What stands behind ``--`` is for the script: `torchrun` takes ``--start`` for an option of its own.)
What it makes goes to ``build/training/NAME/`` and nowhere else; publishing the weights is a step of its own
(``python -m experiments.publishing.weights``).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm.auto import tqdm

from context_diffusion.files import check_output_folder
from context_diffusion.stopping import check_step, signals_noted

from .draws import Draws
from .machine import autocast, processes
from .recipe import FOLDER, Recipe
from .run import EVERY, Run

LONGEST = 1.0  # longer gradients are shortened to this norm

Loss = Callable[[nn.Module, Draws], Tensor]


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
    after_step: Callable[[nn.Module], None] | None = None,
    save_every: int = 250,
    folder: Path | None = None,
) -> nn.Module:
    """Minimise ``loss(model, draws)`` and return the averaged model.

    ``loss`` takes all its random numbers from ``draws`` (:class:`Draws`), so a resumed run sees the samples that an
    uninterrupted one would. Every ``save_every`` steps ``held_out(average)`` measures losses on unseen samples (in
    bands of noise, say), a checkpoint goes to ``folder`` (``build/training/NAME/``), and ``save(average, folder)``
    writes the weights there as the library loads them. ``after_step(model)`` follows each update. Every 100 steps a
    line says how far the run is, in the terminal and in ``NAME.jsonl``.

    Kill it at any moment: the same call goes on from the last checkpoint. SIGINT and SIGTERM let it finish its step and
    save, then it raises ``KeyboardInterrupt``. Raises ``FloatingPointError`` where the loss or the gradient is not
    finite, before either reaches the weights, and ``ValueError`` for a batch that cannot be divided, a folder that
    cannot be written, or a checkpoint that is damaged.
    """
    folder = check_output_folder(folder or FOLDER / name, "The folder of a run")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    accelerator = new_accelerator(recipe)
    objective = accelerator.prepare(Objective(model.to(accelerator.device).train(), loss))
    run = Run(name, model, recipe, folder)
    kept, stopped = None, False

    def keep() -> None:
        if accelerator.is_main_process:
            if held_out and not stopped:
                with torch.no_grad(), autocast(recipe.mixed_precision):
                    run.held_out = list(held_out(run.average))
            run.write()
            if save:
                save(run.average, run.folder)

    with signals_noted() as signals, _bar(run, accelerator) as bar:
        while run.step < run.last and run.spent() < recipe.minutes and not stopped:
            value = add_gradients(objective, accelerator, recipe, run.step)
            value, run.seconds, stopped = _agreed(accelerator, value, time.monotonic() - run.clock, bool(signals))
            length = nn.utils.clip_grad_norm_(model.parameters(), LONGEST)
            check_step(name, run.step, loss=value, gradient=length.item(), lower="--learning-rate")
            run.update(value)
            if after_step:
                after_step(model)
            bar.update()
            if run.step % save_every == 0:
                keep()
                kept = run.step
            if run.step % EVERY == 0 and accelerator.is_main_process:
                run.note()
        if kept != run.step:
            keep()
        if accelerator.is_main_process:
            run.draw_curve()
    accelerator.wait_for_everyone()
    if stopped:
        raise KeyboardInterrupt(f"{name}: stopped at step {run.step}; the same call goes on from there.")
    return run.average


def new_accelerator(recipe: Recipe) -> Accelerator:
    """The processes of a run; raises ``ValueError`` where they cannot share the recipe's batch."""
    state = processes()
    if recipe.batch_size % (recipe.accumulate * state.num_processes):
        raise ValueError(
            f"A batch of {recipe.batch_size} cannot be divided among {recipe.accumulate} passes of "
            f"{state.num_processes} processes; take a multiple of {recipe.accumulate * state.num_processes}."
        )
    return Accelerator(
        mixed_precision="no",  # accelerate's own switch is one for the whole process; see `autocast`
        cpu=state.device.type == "cpu",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # a loss may leave some out
    )


def _bar(run: Run, accelerator: Accelerator) -> tqdm:
    hidden = None if accelerator.is_main_process else True  # None: where nobody watches a terminal
    return tqdm(total=run.last, initial=run.step, desc=run.name, mininterval=5, disable=hidden)


def add_gradients(objective: nn.Module, accelerator: Accelerator, recipe: Recipe, step: int) -> float:
    """Add up the gradients of this process's share of a batch, pass by pass, and return the share's mean loss."""
    share = recipe.batch_size // (recipe.accumulate * accelerator.num_processes)
    total = 0.0
    for part in range(recipe.accumulate):
        place = (step * recipe.accumulate + part) * accelerator.num_processes + accelerator.process_index
        draws = Draws(recipe.seed, range(place * share, (place + 1) * share), step)
        waits = part + 1 < recipe.accumulate  # the processes add up their gradients in the last pass only
        with accelerator.no_sync(objective) if waits else nullcontext():
            with autocast(recipe.mixed_precision):
                value = objective(draws)
            accelerator.backward(value / recipe.accumulate)
        total += value.item() / recipe.accumulate
    return total


def _agreed(accelerator: Accelerator, loss: float, seconds: float, stopped: bool) -> tuple[float, float, bool]:
    """The mean loss of all processes, the first one's clock, and whether any was told to stop: the same for each."""
    own = torch.tensor([[loss, seconds, stopped]], dtype=torch.float64, device=accelerator.device)
    rows = accelerator.gather(own).cpu()
    return rows[:, 0].mean().item(), rows[0, 1].item(), bool(rows[:, 2].any())
