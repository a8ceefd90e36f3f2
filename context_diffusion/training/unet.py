"""Train the U-Net and the context projector together.

    python -m context_diffusion.training.unet

The network predicts the noise (Ho et al. 2020). Its error is weighted as if it predicted the velocity, with min-SNR-5
(Hang et al. 2023): by ``min(SNR, 5) / SNR / alpha_bar``, the last factor at most 30. At high noise, where the palette
is decided, a small error of the noise is a large error of the picture; without that factor it would hardly count.

Its cross-attention reads text tokens, then 16 context tokens and a statistic token of one to three *other* pictures of
the same style draw. The text is dropped in 15 % of the samples. Contexts are missing in 50 %: left out of the sequence
in two batches of five, and set to zero (the null context of guidance) in one sample of six of the others.
"""

import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from ..paths import TINY_SCENES
from ..projector import ContextProjector
from .data import group_mates
from .features import features
from .loop import Recipe, load_published, publish_pretrained, train

TEXT_DROP = 0.15
NO_CONTEXT = 0.4
NULL_CONTEXT = 1 / 6
MIN_SNR = 5.0
MOST_WEIGHT = 30.0


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, but ending at 0.02 where that ends at 0.012.

    On 16x16 latents, 0.012 leaves so much of a picture's mean colour at the last step (a third of its variance there)
    that sampling, which starts from noise alone, can only draw muted palettes (Lin et al. 2023, section 3.1).
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def new_unet() -> UNet2DConditionModel:
    """Three levels (16x16, 8x8, 4x4); attention everywhere but on the way down at 16x16. SD 1.x layout."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=12,
        out_channels=12,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=(2, 4, 6),  # in this class the number of heads: 32 channels each
        norm_num_groups=16,
    )


class Denoiser(nn.Module):
    """U-Net and context projector as one module, so that one optimizer and one average hold both."""

    def __init__(self, unet: UNet2DConditionModel, projector: ContextProjector):
        super().__init__()
        self.unet, self.projector = unet, projector


def condition(data: dict, projector: ContextProjector, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cross-attention tokens of a batch, (batch, 32 or 49, 128), with text and contexts dropped as the module says."""
    batch, device = len(index), projector.position.device
    caption = data["caption"][index]
    caption[torch.rand(batch, generator=generator) < TEXT_DROP] = len(data["text"]) - 1
    text = data["text"][caption].to(device)
    if torch.rand((), generator=generator) < NO_CONTEXT:
        return text
    count = int(torch.randint(1, 4, (), generator=generator))
    mates = group_mates(index, generator, count)
    context = projector(data["pooled"][mates].to(device), data["statistics"][mates].to(device))
    present = torch.rand(batch, 1, 1, generator=generator) >= NULL_CONTEXT
    return torch.cat([text, (context * present.to(device)).to(text.dtype)], dim=1)


def noised(data: dict, index: torch.Tensor, scheduler, generator: torch.Generator, device) -> tuple:
    """Noisy latents, timesteps, noise and the weight of each sample's error."""
    latents = data["latents"][index]
    timestep = torch.randint(scheduler.config.num_train_timesteps, (len(index),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    alpha = scheduler.alphas_cumprod[timestep]
    weight = (MIN_SNR / (alpha / (1 - alpha))).clamp(max=1) * (1 / alpha).clamp(max=MOST_WEIGHT)
    noisy = scheduler.add_noise(latents, noise, timestep)
    return tuple(x.to(device) for x in (noisy, timestep, noise, weight))


def publish_index(root: Path = TINY_SCENES) -> None:
    """Write the scheduler and ``model_index.json``, which make the folder an ordinary Stable Diffusion pipeline."""
    new_scheduler().save_pretrained(root / "scheduler")
    parts = {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        **dict.fromkeys(["safety_checker", "feature_extractor", "image_encoder"], [None, None]),
    }
    index = {"_class_name": "StableDiffusionPipeline", **parts, "requires_safety_checker": False}
    (root / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    """Train and publish."""
    recipe = Recipe.from_command_line(__doc__, steps=20000, batch_size=32, learning_rate=1e-3, ema=0.9995)
    data, scheduler = features(), new_scheduler()
    model = Denoiser(new_unet(), ContextProjector())
    if recipe.warm:
        load_published(model.unet, "unet")
        load_published(model.projector, "context_projector")
    model.unet.set_attn_processor(AttnProcessor())  # on a CPU the fused attention has a slow backward pass
    model.unet.to(memory_format=torch.channels_last)

    def loss(model: Denoiser, generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(data["latents"]), (recipe.batch_size,), generator=generator)
        tokens = condition(data, model.projector, index, generator)
        noisy, timestep, noise, weight = noised(data, index, scheduler, generator, model.unet.device)
        error = (model.unet(noisy, timestep, tokens).sample.float() - noise).square().mean(dim=(1, 2, 3))
        return (weight * error).mean()

    def publish(model: Denoiser) -> None:
        publish_pretrained(model.unet, "unet")
        publish_pretrained(model.projector, "context_projector")
        publish_index()

    train("unet", model, loss, recipe, publish=publish, publish_every=500)


if __name__ == "__main__":
    main()
