"""Train the captioner: a small BLIP that says what a scene shows (Li et al. 2022, its captioning loss alone).

    python -m experiments.training.captioner

Its vision tower starts as that of the offline CLIP, as BLIP's starts from a trained ViT: 64x64 pixels in patches of 8,
dynamically normalized. A causal decoder over the world's own words learns to write the whole sentence, "a boat among
hills under the sun, watercolor style". How often it is right on unseen scenes:
``python -m experiments.evaluation captions``.
"""

import sys
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, CLIPModel

from context_diffusion.checkpoints import load_part
from context_diffusion.commands import run_command
from context_diffusion.files import TINY_SCENES
from context_diffusion.images import dynamic_normalization
from context_diffusion.scenes import Scene, TinyScenes, caption, words
from context_diffusion.scenes.dataset import GROUP
from context_diffusion.scenes.judge import shrink

from .clip import SIDE
from .data import GROUPS, crops, pictures
from .draws import Draws
from .loop import train
from .machine import device, processes
from .recipe import Recipe
from .saving import load_weights, save_half
from .tokenizer import word_tokenizer

LENGTH = 16  # tokens; the longest sentence has 12 words and marks between start and end
IGNORED = -100  # a label that cross-entropy leaves out


def new_word_tokenizer() -> BertTokenizer:
    """The tokenizer of the scenes' words."""
    return word_tokenizer(words(), LENGTH)


def new_captioner(tokenizer: BertTokenizer) -> BlipForConditionalGeneration:
    """A ViT as wide as the offline CLIP's, and a decoder of two layers."""
    common = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    vision = {
        **common, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8, "hidden_act": "quick_gelu",
        "initializer_range": 0.02,  # the class's own 1e-10 is meant for loading weights: from there nothing learns
    }  # fmt: skip
    text = {
        **common, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id, "sep_token_id": tokenizer.sep_token_id,
    }  # fmt: skip
    return BlipForConditionalGeneration(BlipConfig(vision_config=vision, text_config=text))


@torch.no_grad()
def start_from_clip(vision: nn.Module, tower: nn.Module, batch: Float[Tensor, "n 3 side side"]) -> None:
    """Copy a trained CLIP vision tower into BLIP's, which is the same network except for CLIP's first LayerNorm.

    That layer, (e - mean e) / std e * g + b over the channels of each embedded patch e, is folded into the embedding:
    mean, g and b exactly, because they act linearly; std as its average over ``batch``, normalized pictures.
    """
    own, embeddings = vision.embeddings, tower.embeddings
    norm = tower.pre_layrnorm
    spread = embeddings(batch)[:, 1:].std(dim=-1, correction=0).mean()
    kernel = embeddings.patch_embedding.weight
    shape = (-1, 1, 1, 1)
    own.patch_embedding.weight.copy_((kernel - kernel.mean(dim=0)) / spread * norm.weight.view(shape))
    own.patch_embedding.bias.zero_()
    places = embeddings.position_embedding.weight
    folded = (places - places.mean(dim=-1, keepdim=True)) / spread * norm.weight + norm.bias
    own.class_embedding.zero_()
    own.position_embedding.copy_(torch.cat([norm(embeddings.class_embedding + places[:1]), folded[1:]])[None])
    for layer, trained in zip(vision.encoder.layers, tower.encoder.layers, strict=True):
        attention = trained.self_attn
        state = {f"mlp.{key}": value for key, value in trained.mlp.state_dict().items()}
        for kind in ("weight", "bias"):
            parts = [getattr(getattr(attention, f"{name}_proj"), kind) for name in "qkv"]
            state[f"self_attn.qkv.{kind}"] = torch.cat(parts)
            state[f"self_attn.projection.{kind}"] = getattr(attention.out_proj, kind)
            for name in ("layer_norm1", "layer_norm2"):
                state[f"{name}.{kind}"] = getattr(getattr(trained, name), kind)
        layer.load_state_dict(state)
    vision.post_layernorm.load_state_dict(tower.post_layernorm.state_dict())


def full_captions(groups: int = GROUPS, first_group: int = 0) -> list[str]:
    """The full sentence for each picture of :func:`.data.pictures`, in the same order."""
    said = []
    for group in range(first_group, first_group + groups):
        style = TinyScenes.style(group)
        said += [caption(Scene.draw(group * 1000 + number), style) for number in range(GROUP)]
    return said


def caption_loss(model: BlipForConditionalGeneration, pixels: Tensor, ids: Tensor) -> Tensor:
    """The mean cross-entropy of each next word, given the picture and the words before it; padding does not count."""
    labels = ids.masked_fill(ids == model.config.text_config.pad_token_id, IGNORED)
    return model(pixel_values=pixels, input_ids=ids, labels=labels).loss


def main() -> None:
    """Train, from the offline CLIP's tower or from the captioner in ``--start``."""
    recipe = Recipe.from_command_line(__doc__, steps=4000, batch_size=64, learning_rate=1e-3, weight_decay=0.05)
    with processes().main_process_first():
        small = torch.from_numpy(shrink(pictures()["pixels"]))
    small, tokenizer = rearrange(small, "n h w c -> n c h w"), new_word_tokenizer()
    ids = tokenizer(full_captions(), padding=True, return_tensors="pt").input_ids
    model = new_captioner(tokenizer)
    if recipe.start:
        load_weights(model, Path(recipe.start) / "captioner")
    else:
        tower = load_part(CLIPModel, str(TINY_SCENES / "clip")).vision_model
        start_from_clip(model.vision_model, tower, dynamic_normalization(small[:256] / 255)[0])

    def loss(model: BlipForConditionalGeneration, draws: Draws) -> Tensor:
        index = draws.randint(len(small))
        batch = crops(small[index].float() / 255, SIDE, 0.85, 1.0, draws)
        return caption_loss(model, dynamic_normalization(batch)[0].to(device()), ids[index].to(device()))

    def save(average: BlipForConditionalGeneration, folder: Path) -> None:
        save_half(average, folder / "captioner", tokenizer)

    train("captioner", model, loss, recipe, save=save)


if __name__ == "__main__":
    sys.exit(run_command(main))
