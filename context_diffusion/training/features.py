"""What the frozen encoders say of every training picture, computed once and kept on disk."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPTokenizer

from ..paths import TINY_SCENES
from ..projector import ContextProjector
from .clip import normalize, shrink
from .data import CACHE, GROUPS, pictures, to_tensor
from .loop import device
from .tokenizer import token_ids

BATCH = 64


@torch.no_grad()
def features(groups: int = GROUPS, first_group: int = 0) -> dict[str, torch.Tensor]:
    """Tensors in the order of :func:`pictures`.

    ``latents`` (n, 12, 16, 16), already times the scaling factor; ``text`` (captions, 32, 128) with ``caption`` (n,)
    the index of each picture's caption, the last entry being the empty prompt; ``pooled`` (n, 16, 128) and
    ``statistics`` (n, 6) for the context projector.
    """
    file = CACHE / f"features-{first_group}-{groups}.pt"
    if not file.exists():
        made = _encode(pictures(groups, first_group))
        torch.save(made, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").rename(file)
    return {key: value.float() if value.is_floating_point() else value for key, value in torch.load(file).items()}


def _encode(arrays: dict) -> dict[str, torch.Tensor]:
    vae = AutoencoderKL.from_pretrained(TINY_SCENES / "vae").to(device(), torch.float32)
    clip = CLIPModel.from_pretrained(TINY_SCENES / "clip").to(device(), torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(TINY_SCENES / "tokenizer")
    projector = ContextProjector()
    columns: dict[str, list[torch.Tensor]] = {"latents": [], "pooled": [], "statistics": []}
    with torch.autocast(device().type, torch.bfloat16):
        for i in tqdm(range(0, len(arrays["pixels"]), BATCH), desc="encoding pictures", mininterval=5):
            pixels = arrays["pixels"][i : i + BATCH]
            mean = vae.encode(to_tensor(pixels).to(device())).latent_dist.mean
            normalized, statistics = normalize(torch.from_numpy(shrink(pixels)))
            seen = clip.vision_model(normalized.to(device())).last_hidden_state[:, 1:]
            columns["latents"].append(mean * vae.config.scaling_factor)
            columns["pooled"].append(projector.pool(seen))
            columns["statistics"].append(statistics)
        captions, caption = np.unique(arrays["captions"], return_inverse=True)
        ids = token_ids(tokenizer, [*captions.tolist(), ""])
        text = [clip.text_model(chunk.to(device())).last_hidden_state for chunk in ids.split(256)]
    made = {key: torch.cat(values).half().cpu() for key, values in columns.items()}
    return {**made, "text": torch.cat(text).half().cpu(), "caption": torch.from_numpy(caption)}
