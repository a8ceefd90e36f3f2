"""Teach a model a style it has never seen, with LoRA (Hu et al. 2021) and a folder of pictures.

    python -m context_diffusion.finetune --images FOLDER --caption "a picture, stained glass style" --out LORA

``LORA`` is a folder that diffusers loads: ``pipe.load_lora_weights("LORA")``. A picture ``a.png`` may have its own
caption in ``a.txt`` next to it; ``--caption`` serves the others. You can interrupt at any time: what was learned so far
is saved.
"""

import argparse
from pathlib import Path

import torch
from PIL import ImageOps
from tqdm.auto import tqdm

from .checkpoints import DEFAULT
from .files import written_whole
from .images import resize
from .latents import encode_images, picture_size
from .metrics.inputs import batched
from .pipelines import load_pipeline

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the projections of every attention layer


def read_folder(folder: str | Path, caption: str) -> tuple[list[Path], list[str]]:
    """The pictures of a folder, sorted by name, and the caption of each."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"--images must be a folder of pictures; {folder} is not a folder.")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))}).")
    own = [file.with_suffix(".txt") for file in files]
    captions = [text.read_text().strip() if text.is_file() else caption for text in own]
    if "" in captions:
        name = files[captions.index("")].name
        raise ValueError(f"{name} has no caption: pass --caption, or write one into a .txt file next to it.")
    return files, captions


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
    models) over the LoRA matrices alone. Raises ``FileNotFoundError`` or ``ValueError`` for pictures, captions or
    numbers that will not do, before any model is loaded.

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
    files, captions = read_folder(images, caption)
    if min(steps, batch_size, rank) < 1 or not learning_rate > 0:
        raise ValueError(
            "steps, batch_size, rank and learning_rate must be positive; "
            f"got {steps}, {batch_size}, {rank}, {learning_rate}."
        )
    pipe = load_pipeline(model)
    if hasattr(pipe, "text_encoder_2"):
        raise ValueError(f"Fine-tuning works on tiny-scenes and Stable Diffusion 1.x and 2.x; {model} is SDXL.")
    from peft import LoraConfig

    torch.manual_seed(seed)
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    latents, text = encode(pipe, files, captions)
    losses: list[float] = []
    try:
        for value in _descend(pipe, latents, text, steps, batch_size, learning_rate, seed, progress):
            losses.append(value)
    except KeyboardInterrupt:
        tqdm.write(f"Stopped after {len(losses)} of {steps} steps; saving what was learned.")
    save_lora(pipe, out)
    return losses


@torch.no_grad()
def encode(pipe, files: list[Path], captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (2n, channels, h, w) of the pictures, then of their mirror images; text embeddings (2n, tokens, dim)."""
    pictures = [resize(file, picture_size(pipe, None, None)) for file in files]
    pictures += [ImageOps.mirror(picture) for picture in pictures]
    latents = torch.cat([encode_images(pipe, chunk) for chunk in batched(pictures, 16)]).to(pipe.unet.dtype)
    text, _ = pipe.encode_prompt(captions + captions, pipe.device, 1, False)
    return latents, text


def _descend(pipe, latents, text, steps, batch_size, learning_rate, seed, progress):
    """Take one optimizer step at a time and yield its loss."""
    scheduler, generator = pipe.scheduler, torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in pipe.unet.parameters() if p.requires_grad], learning_rate)
    pipe.unet.train()
    for _ in tqdm(range(steps), desc="fine-tuning", disable=not progress):
        index = torch.randint(len(latents), (batch_size,), generator=generator)
        timestep = torch.randint(scheduler.config.num_train_timesteps, (batch_size,), generator=generator)
        noise = torch.randn(latents[index].shape, generator=generator).to(latents)
        timestep = timestep.to(latents.device)
        target = noise
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents[index], noise, timestep)
        noisy = scheduler.add_noise(latents[index], noise, timestep)
        loss = (pipe.unet(noisy, timestep, text[index]).sample.float() - target.float()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()
    pipe.unet.eval()


def save_lora(pipe, out: str | Path) -> None:
    """Write ``pytorch_lora_weights.safetensors`` into the folder ``out``, whole or not at all."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    with written_whole(Path(out) / "pytorch_lora_weights.safetensors") as temporary:
        pipe.save_lora_weights(temporary.parent, unet_lora_layers=layers, weight_name=temporary.name)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    main()
