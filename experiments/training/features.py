"""What the frozen encoders make of every training picture, computed once and kept on disk."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from context_diffusion.checkpoints import load_part
from context_diffusion.context.projector import ContextProjector
from context_diffusion.files import TINY_SCENES
from context_diffusion.scenes.judge import shrink

from .clip import normalize
from .data import CACHE, kept, pictures, to_tensor
from .machine import autocast, device
from .tokenizer import token_ids

BATCH = 64
ENCODERS = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "image_encoder": CLIPVisionModel}


def features(parts: Path, groups: int, first_group: int = 0) -> dict[str, torch.Tensor]:
    """Tensors in the order of :func:`pictures`, from the ``vae``, ``text_encoder`` and ``image_encoder`` in ``parts``.

    ``latents`` (n, 12, 16, 16) in half precision, already times the scaling factor; ``text`` (captions, 32, 128) with
    ``caption`` (n,) the index of each picture's caption, the last entry being the empty prompt; ``pooled`` (n, 16, 128)
    and ``statistics`` (n, 6) for the context projector; ``background`` (n,). Raises ``FileNotFoundError`` where an
    encoder is missing.
    """
    makers = {
        "latents": (_latents, ("vae",)),
        "clip": (_clip_features, ("text_encoder", "image_encoder")),
    }
    data: dict[str, torch.Tensor] = {}
    for name, (make, encoders) in makers.items():
        file = CACHE / f"{name}-{_digest(parts, encoders)}-{first_group}-{groups}.pt"
        data |= kept(file, torch.load, lambda to, make=make: torch.save(make(parts, pictures(groups, first_group)), to))
    return {
        key: value.float() if value.dtype == torch.float16 and key != "latents" else value
        for key, value in data.items()
    }


def _digest(parts: Path, encoders: Sequence[str]) -> str:
    """A short name for the weights of some encoders."""
    found = {encoder: sorted((parts / encoder).glob("*.safetensors")) for encoder in encoders}
    if missing := [encoder for encoder in encoders if not found[encoder]]:
        raise FileNotFoundError(f"The U-Net reads what {' and '.join(missing)} say, and {parts} holds none.")
    files = [file for encoder in encoders for file in found[encoder]]
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=6).hexdigest()


def _batches(pixels: np.ndarray, what: str):
    for i in tqdm(range(0, len(pixels), BATCH), desc=what, mininterval=5):
        yield pixels[i : i + BATCH]


@torch.no_grad()
def _latents(parts: Path, arrays: dict) -> dict[str, torch.Tensor]:
    vae = load_part(AutoencoderKL, str(parts / "vae"), device=device())
    made = []
    with autocast():
        for pixels in _batches(arrays["pixels"], "latents"):
            latents = vae.encode(to_tensor(pixels).to(device())).latent_dist.mean * vae.config.scaling_factor
            made.append(latents.half().cpu())
    return {"latents": torch.cat(made), "background": torch.from_numpy(arrays["background"])}


@torch.no_grad()
def _clip_features(parts: Path, arrays: dict) -> dict[str, torch.Tensor]:
    text_encoder = load_part(CLIPTextModel, str(parts / "text_encoder"), device=device())
    image_encoder = load_part(CLIPVisionModel, str(parts / "image_encoder"), device=device())
    tokenizer = load_part(CLIPTokenizer, str(TINY_SCENES / "tokenizer"), None)
    projector, pooled, statistics = ContextProjector(), [], []
    with autocast():
        for pixels in _batches(arrays["pixels"], "context features"):
            normalized, removed = normalize(torch.from_numpy(shrink(pixels)))
            seen = image_encoder(normalized.to(device())).last_hidden_state[:, 1:]
            pooled.append(projector.pool(seen).half().cpu())
            statistics.append(removed)
        captions, caption = np.unique(arrays["captions"], return_inverse=True)
        ids = token_ids(tokenizer, [*captions.tolist(), ""])
        text = [text_encoder(chunk.to(device())).last_hidden_state.half().cpu() for chunk in ids.split(256)]
    return {
        "pooled": torch.cat(pooled), "statistics": torch.cat(statistics), "text": torch.cat(text),
        "caption": torch.from_numpy(caption),
    }  # fmt: skip
