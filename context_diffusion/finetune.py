"""Teach a model a style it has never seen, with LoRA (Hu et al. 2021) and a folder of pictures.

    python -m context_diffusion.finetune --images FOLDER --caption "a picture, stained glass style" --out LORA

``LORA`` is a folder that diffusers loads: ``pipe.load_lora_weights("LORA")``. A picture ``a.png`` may have its own
caption in ``a.txt`` next to it; ``--caption`` serves the others. You can interrupt at any time: what was learned so far
is saved, and the same command goes on from there.
"""

import hashlib
import json
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import ImageOps
from tqdm.auto import tqdm

from .checkpoints import DEFAULT, find_model
from .checks import LIMITS, check_count, check_finite, check_flag, check_number, check_text
from .commands import Parser, run_command
from .files import as_path, check_output, sweep, written_whole
from .images import ImageLike, load_image, resize
from .latents import encode_images, picture_size
from .metrics.inputs import batched
from .pipelines import load_pipeline
from .stopping import check_step, signals_noted, taken_up

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the projections of every attention layer
WEIGHTS = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
PROGRESS = "unfinished.pt"  # beside it, until the last step is done
STRETCH = 25  # steps between two writes of the progress
ONLY = "Fine-tuning works on tiny-scenes and Stable Diffusion 1.x and 2.x"
LEAST_RATE = 1e-12


def read_folder(folder: str | Path, caption: str) -> tuple[list[Path], list[str]]:
    """The pictures of a folder, sorted by name, and the caption of each; refuses pictures that cannot be read."""
    folder, caption = as_path(folder, "images"), check_text("caption", caption).strip()
    if not folder.is_dir():
        raise FileNotFoundError(f"The pictures must be a folder of files; {folder} is not a folder.")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))}).")
    captions = [read_caption(file.with_suffix(".txt"), caption) for file in files]
    if "" in captions:
        name = files[captions.index("")].name
        raise ValueError(f"{name} has no caption: pass --caption, or write one into a .txt file next to it.")
    for file in files:
        load_image(file)
    return files, captions


def read_caption(file: Path, otherwise: str) -> str:
    """The text of a file, or another text where there is no such file; raises ``ValueError`` for an empty one."""
    if not file.is_file():
        return otherwise
    try:
        text = check_text(file.name, file.read_text(encoding="utf-8-sig")).strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason}): save it in that encoding.") from error
    if not text:
        raise ValueError(f"{file.name} is empty: write the caption of the picture beside it into it, or delete it.")
    return text


def finetune(
    images: str | Path,
    caption: str,
    out: str | Path,
    *,
    model: str = DEFAULT,
    steps: int = 300,
    batch_size: int = 8,
    rank: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> list[float]:
    """Train a LoRA on the U-Net's attention, write it to the folder ``out``, and return the loss of every step.

    Training minimizes the error of the predicted noise (Ho et al. 2020, eq. 14; of the velocity for v-prediction
    models) over the LoRA matrices alone. Raises ``FileNotFoundError``, ``ValueError`` or ``TypeError`` for pictures,
    captions, numbers or an output that will not do, before any model is loaded, and ``FloatingPointError`` where the
    loss or its gradient is not finite, before either reaches the weights.

    Kill it at any moment: the same call goes on from ``out/unfinished.pt``. Ctrl-C and SIGTERM let it finish its step
    and save, then it raises ``KeyboardInterrupt``.

    Arguments:
        images: a folder of pictures.
        caption: serves the pictures that have no ``.txt`` file of their own.
        out: the folder for the LoRA.
        model: ``"tiny-scenes"``, ``"sd15"``, a folder or a repository id.
        steps, batch_size, learning_rate: those of AdamW.
        rank: of the LoRA matrices.
        seed: of the batches, the noise and the matrices' start.
        progress: whether to show a progress bar.
    """
    out = check_output(as_path(out, "out") / WEIGHTS, what="out").parent
    asked = _check_settings(steps, batch_size, rank, learning_rate, seed)
    hidden = not check_flag("progress", progress)
    files, captions = read_folder(images, caption)
    asked |= {"model": str(model), "pictures and captions": digest(files, captions)}
    if find_model(model).transformer:
        raise ValueError(f"{ONLY}; {model} draws with a transformer.")
    pipe = load_pipeline(model)
    if hasattr(pipe, "text_encoder_2") or not hasattr(pipe, "unet"):
        raise ValueError(f"{ONLY}; {model} is a {type(pipe).__name__}.")
    learner = Learner(pipe, asked["rank"], asked["learning_rate"], asked["seed"])
    losses = learner.take_up(out / PROGRESS, asked)
    latents, text = encode(pipe, files, captions)
    steps, batch_size = asked["steps"], asked["batch_size"]
    bar = tqdm(total=steps, initial=len(losses), desc="fine-tuning", disable=hidden)
    with bar, signals_noted() as signals:
        while len(losses) < steps and not signals:
            losses.append(learner.step(latents, text, batch_size, len(losses)))
            bar.update()
            if len(losses) % STRETCH == 0:
                learner.write(out / PROGRESS, asked, losses)
        if signals:
            learner.write(out / PROGRESS, asked, losses)
        save_lora(pipe, out)
    if signals:
        raise KeyboardInterrupt(f"{out}: stopped at step {len(losses)} of {steps}; the same call goes on from there.")
    (out / PROGRESS).unlink(missing_ok=True)
    sweep(out / PROGRESS)
    return losses


def _check_settings(steps: int, batch_size: int, rank: int, learning_rate: float, seed: int) -> dict[str, Any]:
    """The settings by name, as Python's own numbers; refuses what is out of range."""
    return {
        "steps": check_count("steps", steps, LIMITS["training_steps"]),
        "batch_size": check_count("batch_size", batch_size, LIMITS["batch_size"]),
        "rank": check_count("rank", rank, LIMITS["rank"]),
        "learning_rate": check_number("learning_rate", learning_rate, LEAST_RATE, LIMITS["learning_rate"]),
        "seed": check_count("seed", seed, LIMITS["seed"], 0),
    }


def digest(files: Sequence[Path], captions: Sequence[str]) -> str:
    """Say in 16 digits what is learned from."""
    found = hashlib.sha256(json.dumps(list(captions)).encode())
    for file in files:
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]


@torch.no_grad()
def encode(pipe, files: Sequence[ImageLike], captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (2n, channels, h, w) of the pictures, then of their mirror images; text embeddings (2n, tokens, dim)."""
    pictures = [resize(file, picture_size(pipe, None, None)) for file in files]
    pictures += [ImageOps.mirror(picture) for picture in pictures]
    latents = torch.cat([encode_images(pipe, chunk) for chunk in batched(pictures, 16)]).to(pipe.unet.dtype)
    text, _ = pipe.encode_prompt(captions + captions, pipe.device, 1, False)
    return latents, text


class Learner:
    """The LoRA matrices of a pipeline's U-Net, their optimizer, and the random numbers of their training."""

    def __init__(self, pipe, rank: int, learning_rate: float, seed: int):
        from peft import LoraConfig

        torch.manual_seed(seed)
        pipe.unet.requires_grad_(False)
        pipe.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
        self.pipe = pipe
        self.weights = [weight for weight in pipe.unet.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, learning_rate)
        self.generator = torch.Generator().manual_seed(seed)
        pipe.unet.train()

    def step(self, latents: torch.Tensor, text: torch.Tensor, batch_size: int, number: int) -> float:
        """Update the matrices by one batch and return its loss; raises ``FloatingPointError`` instead of NaN."""
        scheduler, generator = self.pipe.scheduler, self.generator
        index = torch.randint(len(latents), (batch_size,), generator=generator)
        timestep = torch.randint(scheduler.config.num_train_timesteps, (batch_size,), generator=generator)
        noise = torch.randn(latents[index].shape, generator=generator).to(latents)
        timestep = timestep.to(latents.device)
        target = noise
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents[index], noise, timestep)
        noisy = scheduler.add_noise(latents[index], noise, timestep)
        loss = (self.pipe.unet(noisy, timestep, text[index]).sample.float() - target.float()).square().mean()
        loss.backward()
        gradient = torch.nn.utils.get_total_norm([weight.grad for weight in self.weights])
        check_step("finetune", number, loss=loss.item(), gradient=gradient.item())
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def write(self, file: Path, asked: dict, losses: list[float]) -> None:
        """Write how far the training is, whole."""
        state = {
            "asked": asked, "losses": losses, "weights": [weight.detach() for weight in self.weights],
            "optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state(),
        }  # fmt: skip
        with written_whole(file) as temporary:
            torch.save(state, temporary)

    def take_up(self, file: Path, asked: dict) -> list[float]:
        """Go on from where a call with the same arguments was stopped, and return its losses; else begin anew."""
        if not file.exists():
            return []
        with taken_up(file):
            state = torch.load(file, map_location="cpu", weights_only=True)
            before, losses = dict(state["asked"]), list(state["losses"])
        for name, value in asked.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{file} began with {name} {before.get(name)}, not {value}: give that again, or move the file "
                    "away to begin anew."
                )
        with taken_up(file), torch.no_grad():
            for weight, saved in zip(self.weights, state["weights"], strict=True):
                weight.copy_(saved)
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
        return losses


def save_lora(pipe, out: str | Path) -> None:
    """Write ``pytorch_lora_weights.safetensors`` into the folder ``out``, whole or not at all, and never with NaN."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    for name, matrix in layers.items():
        check_finite(name, matrix)
    with written_whole(Path(out) / WEIGHTS) as temporary:
        pipe.save_lora_weights(temporary.parent, unet_lora_layers=layers, weight_name=temporary.name)


def main() -> None:
    """Run the command line."""
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder of pictures in the new style")
    parser.add_argument("--caption", default="", help="caption of the pictures that have none of their own")
    parser.add_argument("--out", required=True, help="folder to write the LoRA to")
    parser.add_argument("--model", default=DEFAULT, help="%(default)s, sd15, a folder or a repository id")
    parser.add_argument("--steps", type=int, default=300, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--rank", type=int, default=8, help="rank of the LoRA matrices (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    asked = vars(parser.parse_args())
    losses = finetune(asked.pop("images"), asked.pop("caption"), asked.pop("out"), **asked)
    tenth = max(1, len(losses) // 10)
    print(f"loss {sum(losses[:tenth]) / tenth:.4f} -> {sum(losses[-tenth:]) / tenth:.4f} in {len(losses)} steps")


if __name__ == "__main__":
    sys.exit(run_command(main))
