"""Train the CLIP model whose towers are the text encoder and the context encoder (Radford et al. 2021).

    python -m experiments.training.clip

Pictures are cropped a little, mirrored or not, dynamically normalized, 64x64. Each step contrasts a picture with its
whole caption and with a part of it (the object alone, or the style alone); pictures with the same text share the
target. The contrast is among the pictures of one pass: more processes or ``--accumulate`` see the same samples, but
each among fewer others.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

from context_diffusion.commands import run_command
from context_diffusion.files import folder_written_whole
from context_diffusion.images import dynamic_normalization
from context_diffusion.scenes import OBJECTS, STYLES
from context_diffusion.scenes.judge import shrink
from context_diffusion.scenes.vocabulary import SYNONYMS, article

from .data import crops, pictures
from .draws import Draws
from .loop import train
from .machine import processes
from .recipe import Recipe
from .saving import load_weights, save_half
from .tokenizer import new_tokenizer, token_ids

SIDE = 64


def new_clip(tokenizer) -> CLIPModel:
    """Width 128 on both sides: text of 3 layers and 32 tokens, vision of 4 layers and 8x8 patches."""
    common = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "projection_dim": 128}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**common, **ids, "vocab_size": len(tokenizer), "num_hidden_layers": 3, "max_position_embeddings": 32}
    vision = {**common, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def normalize(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dynamic normalization of uint8 (n, h, w, 3): pictures (n, 3, h, w), and the statistics taken out, (n, 6)."""
    return dynamic_normalization(pixels.permute(0, 3, 1, 2).float() / 255)


def parts(arrays: dict, index: torch.Tensor, draws: Draws) -> list[str]:
    """For each picture a short text: "a boat" (three in four, one in five of them a synonym) or "neon style"."""
    texts = []
    for i, (kind, other, which) in zip(index.tolist(), draws.rand(3).tolist(), strict=True):
        noun = OBJECTS[arrays["object"][i]]
        others = SYNONYMS.get(noun, ())
        if others and other < 0.2:
            noun = others[int(which * len(others))]
        texts.append(article(noun) if kind < 0.75 else f"{STYLES[arrays['style'][i]]} style")
    return texts


def contrast(image: torch.Tensor, text: torch.Tensor, which: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The symmetric cross-entropy of CLIP; pictures with equal texts share the target evenly."""
    logits = scale * image @ text.T
    same = (which[:, None] == which[None]).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def main() -> None:
    """Train both towers."""
    recipe = Recipe.from_command_line(__doc__, steps=4000, batch_size=128, learning_rate=1e-3, weight_decay=0.05)
    with processes().main_process_first():
        arrays = pictures()
    tokenizer, small = new_tokenizer(), torch.from_numpy(shrink(arrays["pixels"]))
    caption_ids = token_ids(tokenizer, arrays["captions"].tolist())

    def loss(model: CLIPModel, draws: Draws) -> torch.Tensor:
        index = draws.randint(len(small))
        batch = crops(small[index].permute(0, 3, 1, 2).float() / 255, SIDE, 0.85, 1.0, draws)
        image = F.normalize(model.get_image_features(dynamic_normalization(batch)[0].to(model.device)).pooler_output)
        scale = model.logit_scale.exp().clamp(max=100)
        total = 0
        for ids in (caption_ids[index], token_ids(tokenizer, parts(arrays, index, draws))):
            longest = int((ids != 1).sum(dim=1).max()) + 1  # attention is causal: padding changes nothing before it
            unique, which = ids[:, :longest].to(model.device).unique(dim=0, return_inverse=True)
            text = F.normalize(model.get_text_features(unique).pooler_output)[which]
            total = total + contrast(image.float(), text.float(), which, scale) / 2
        return total

    def save(average: CLIPModel, folder: Path) -> None:
        save_half(average, folder / "clip")
        save_half(average.text_model, folder / "text_encoder")
        save_half(average.vision_model, folder / "image_encoder")
        with folder_written_whole(folder / "tokenizer") as temporary:
            tokenizer.save_pretrained(temporary)

    model = new_clip(tokenizer)
    if recipe.start:
        load_weights(model, Path(recipe.start) / "clip")
    model.set_attn_implementation("eager")  # on a CPU the fused attention has a slow backward pass
    train("clip", model, loss, recipe, save=save)


if __name__ == "__main__":
    sys.exit(run_command(main))
