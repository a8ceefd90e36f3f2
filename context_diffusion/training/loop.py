"""The one training loop: averaged weights, cosine schedule, bf16, atomic checkpoints, resume, a loss curve."""

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from ..paths import ROOT, TINY_SCENES, written_whole

STATE_FOLDER = ROOT / "build" / "training"
FIGURES = ROOT / "figures"


@dataclass(frozen=True)
class Recipe:
    """What a training run is made of.

    ``minutes`` ends the cosine early on a machine too slow for all steps. ``warm`` starts from the published weights
    instead of from nothing, for a run that goes on where the optimizer's state is not at hand.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 0.01
    beta2: float = 0.99
    ema: float = 0.999
    seed: int = 0
    minutes: float = math.inf
    threads: int = 0
    warm: bool = False

    def rate(self, progress: float, step: int) -> float:
        """Factor on the learning rate: linear warm-up, then half a cosine down to 2 %."""
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
        return min(1, (step + 1) / self.warmup) * cosine

    @classmethod
    def from_command_line(cls, description: str | None, **defaults) -> "Recipe":
        """The recipe with each field overridable: ``--steps 500 --minutes 20 --threads 1``."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        for field, value in asdict(cls(**defaults)).items():
            kind = {"action": "store_true"} if isinstance(value, bool) else {"type": type(value), "default": value}
            parser.add_argument(f"--{field.replace('_', '-')}", help=f"default: {value}", **kind)
        return cls(**vars(parser.parse_args()))


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_pays() -> bool:
    """Whether bf16 products are faster than fp32 ones: on a GPU, and on a CPU with instructions of its own for them."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def train(
    name: str,
    model: nn.Module,
    loss: Callable[[nn.Module, torch.Generator], torch.Tensor],
    recipe: Recipe,
    *,
    publish: Callable[[nn.Module], None] | None = None,
    publish_every: int = 1000,
    folder: Path | None = None,
) -> nn.Module:
    """Minimise ``loss(model, generator)`` and return the averaged model.

    Each step gets a generator seeded by the recipe's seed and the step's number, so a resumed run sees the batches
    that an uninterrupted one would. ``publish(averaged_model)`` is called now and then and at the end: it writes
    the weights that the library loads. Interrupt at any time; the next call goes on from the last checkpoint. What it
    keeps goes to ``build/training/`` and its curve to ``figures/training/``, or both to ``folder``.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    model.to(device()).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, recipe.learning_rate, betas=(0.9, recipe.beta2), weight_decay=recipe.weight_decay, fused=True
    )
    state_file = (folder or STATE_FOLDER) / f"{name}.pt"
    step, seconds, losses = _resume(state_file, model, average, optimizer)
    started, bar = time.time() - seconds, tqdm(total=recipe.steps, initial=step, desc=name, mininterval=5)
    try:
        while step < recipe.steps and (elapsed := (time.time() - started) / 60) < recipe.minutes:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * recipe.rate(
                    max(step / recipe.steps, elapsed / recipe.minutes), step
                )
            generator = torch.Generator().manual_seed(recipe.seed * 10_000_019 + step)
            with torch.autocast(device().type, torch.bfloat16, enabled=bf16_pays()):
                value = loss(model, generator)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            follow_average(average, model, min(recipe.ema, (step + 1) / (step + 10)))
            losses.append(value.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"{name}: the loss is {losses[-1]} at step {step}; lower --learning-rate.")
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}", refresh=False)
            if step % publish_every == 0:
                _save(state_file, model, average, optimizer, step, time.time() - started, losses)
                if publish:
                    publish(average)
    finally:
        bar.close()
        _save(state_file, model, average, optimizer, step, time.time() - started, losses)
    write_curve(name, losses, recipe, time.time() - started, folder or FIGURES / "training")
    if publish:
        publish(average)
    return average


@torch.no_grad()
def follow_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights: average <- decay * average + (1 - decay) * model."""
    with torch.autocast(device().type, enabled=False):
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        for own, new in zip(average.buffers(), model.buffers(), strict=True):
            own.copy_(new)


def _save(file: Path, model, average, optimizer, step: int, seconds: float, losses: list[float]) -> None:
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
        "losses": losses,
    }
    with written_whole(file) as temporary:
        torch.save(state, temporary)


def _resume(file: Path, model, average, optimizer) -> tuple[int, float, list[float]]:
    if not file.exists():
        return 0, 0.0, []
    state = torch.load(file, map_location=device(), weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"], state["losses"]


def write_curve(name: str, losses: list[float], recipe: Recipe, seconds: float, folder: Path) -> None:
    """``<folder>/<name>.json`` (recipe, time, loss per hundredth) and its picture.

    Where a run was warm, the record of the one whose weights it started from is kept under "earlier", oldest first.
    """
    from matplotlib.figure import Figure

    file = folder / f"{name}.json"
    window = max(1, len(losses) // 100)
    smooth = [sum(losses[i : i + window]) / len(losses[i : i + window]) for i in range(0, len(losses), window)]
    settings = {k: v for k, v in asdict(recipe).items() if v != math.inf}
    record = {"recipe": settings, "steps_done": len(losses), "minutes": round(seconds / 60, 1), "every": window}
    record["loss"] = [round(v, 5) for v in smooth]
    forerunner = json.loads(file.read_text()) if recipe.warm and file.exists() else {}
    earlier = forerunner.pop("earlier", [])
    if forerunner and forerunner["loss"] != record["loss"]:  # the same where a finished run is started again
        earlier = [*earlier, forerunner]
    record["earlier"] = earlier
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", title=name, yscale="log")
    start = 0
    for run in (*earlier, record):
        axes.plot([start + i * run["every"] for i in range(len(run["loss"]))], run["loss"])
        start += run["steps_done"]
    figure.savefig(folder / f"{name}.png", dpi=80)


def load_published(model: nn.Module, folder: str, *, root: Path = TINY_SCENES) -> None:
    """Take over the published weights, whole; raises ``FileNotFoundError`` where there are none."""
    if not list((root / folder).glob("*.safetensors")):
        raise FileNotFoundError(f"--warm goes on from published weights, and {root / folder} holds none.")
    saved = type(model).from_pretrained(root / folder, torch_dtype=torch.float32).state_dict()  # maps renamed keys
    model.load_state_dict({key: saved[key] for key in model.state_dict() if key in saved})


def publish_pretrained(model, folder: str, *, root: Path = TINY_SCENES) -> None:
    """``model.save_pretrained`` in fp16 safetensors, moved into place only when it is whole."""
    target = root / folder
    temporary = target.with_name(target.name + ".tmp")
    half = copy.deepcopy(model).to("cpu", torch.float16, memory_format=torch.contiguous_format)
    half.save_pretrained(temporary, safe_serialization=True)
    target.mkdir(parents=True, exist_ok=True)
    for file in temporary.iterdir():
        os.replace(file, target / file.name)
    temporary.rmdir()
