"""Saved pipelines of three layouts, each loaded twice: by ``from_scratch`` and by diffusers."""

import json
import tempfile
from functools import cache
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import tiny_scheduler, tiny_sd15, tiny_tokenizer

from context_diffusion.files import TINY_SCENES
from context_diffusion.from_scratch import StableDiffusion

_SAVED = tempfile.TemporaryDirectory(prefix="from_scratch_")  # gone when the tests are
LAYOUTS = ["sd1", "sd2", *(["tiny-scenes"] if (TINY_SCENES / "unet" / "config.json").is_file() else [])]


def _sd2() -> diffusers.StableDiffusionPipeline:
    """The SD 2.x layout: linear projections, a head count per stage, gelu, v-prediction, '!' as padding."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "!"
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=3,
            max_position_embeddings=16, hidden_act="gelu", bos_token_id=0, eos_token_id=1, pad_token_id=2,
        )
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 16, 32), down_block_types=("DownEncoderBlock2D",) * 3, layers_per_block=2,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=6, norm_num_groups=4, scaling_factor=0.7,
        mid_block_add_attention=False,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32, 48), layers_per_block=2, sample_size=8, in_channels=6, out_channels=6,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=(2, 4, 6),
        cross_attention_dim=48, use_linear_projection=True, upcast_attention=True,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=tiny_scheduler("v_prediction"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@cache
def folder(layout: str) -> Path:
    """Where the saved pipeline of a layout lies; filled with random weights, none of them zero."""
    if layout == "tiny-scenes":
        return TINY_SCENES
    path = Path(_SAVED.name) / layout
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipe = tiny_sd15(fresh=True) if layout == "sd1" else _sd2()
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            for name, weight in part.named_parameters():
                if weight.ndim == 1:  # biases are born 0 and norms 1: a swap of two of them would not show
                    torch.nn.init.normal_(weight, mean=float("norm" in name and "weight" in name), std=0.1)
                elif "to_q" in name or "to_k" in name or "token_embedding" in name:
                    torch.nn.init.normal_(weight, std=0.5)
    pipe.save_pretrained(path)
    return path


@cache
def ours(layout: str) -> StableDiffusion:
    return StableDiffusion.from_pretrained(folder(layout))


@cache
def theirs(layout: str) -> diffusers.StableDiffusionPipeline:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder(layout), safety_checker=None).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rewrite_weights(part: Path, change) -> None:
    """Save the tensors of a part's only safetensors file again, after ``change(dict) -> dict``."""
    (path,) = part.glob("*.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def rewrite_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
