"""Seeded, random, tiny diffusers pipelines for the tests: the real classes, in milliseconds.

``from tiny import tiny_sdxl``. A call returns one shared, cached pipeline; ``fresh=True`` builds another
with the same weights, for tests that change it (load an adapter, cast it, swap a processor). Pictures are
32x32 pixels, latents 16x16.
"""

from functools import cache, wraps

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_words import WORDS as WORDS
from tiny_words import tiny_tokenizer
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

WIDTH = 32  # of the text encoders and of the image encoder


def _quiet(pipe: diffusers.DiffusionPipeline) -> diffusers.DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _cached_or_fresh(build):
    """``build(...)`` is cached, ``build(..., fresh=True)`` is not; neither moves the global random state."""

    @wraps(build)
    def make(*args, **kwargs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(*args, **kwargs)

    kept = cache(make)

    @wraps(build)
    def call(*args, fresh: bool = False, **kwargs):
        return make(*args, **kwargs) if fresh else kept(*args, **kwargs)

    return call


def _text_encoder(tokenizer: CLIPTokenizer, projected: bool = False):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=WIDTH,
        hidden_act="gelu" if projected else "quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()
    for (
        name,
        weight,
    ) in model.named_parameters():  # the default spread of 0.02 makes all prompts look the same
        if "embedding" in name:
            torch.nn.init.normal_(weight, std=1.0)
    return model


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=0.18215,
    ).eval()


def _unet(xl: bool) -> UNet2DConditionModel:
    shared = {"block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 16, "norm_num_groups": 8}
    if xl:
        unet = UNet2DConditionModel(
            **shared,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=2 * WIDTH,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        )
    else:
        unet = UNet2DConditionModel(
            **shared,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
        )
    with torch.no_grad():  # a fresh attention is nearly uniform: sharpen it, or tests of attention prove little
        for name, weight in unet.named_parameters():
            if "to_q.weight" in name or "to_k.weight" in name:
                weight.mul_(3.0)
    return unet.eval()


def tiny_scheduler(prediction_type: str = "epsilon", **changes) -> DDIMScheduler:
    """DDIM as Stable Diffusion configures it."""
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }
    return DDIMScheduler(num_train_timesteps=1000, **settings | changes)


@_cached_or_fresh
def tiny_sd15(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """A random text-to-image pipeline of the Stable Diffusion 1.5 layout."""
    tokenizer = tiny_tokenizer()
    pipe = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(xl=False),
        scheduler=tiny_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _quiet(pipe)


@_cached_or_fresh
def tiny_sdxl(prediction_type: str = "epsilon") -> StableDiffusionXLPipeline:
    """A random text-to-image pipeline of the SDXL layout: two text encoders, pooled text, sizes."""
    tokenizer = tiny_tokenizer()
    pipe = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_text_encoder(tokenizer),
        text_encoder_2=_text_encoder(tokenizer, projected=True),
        tokenizer=tokenizer,
        tokenizer_2=tiny_tokenizer(),
        unet=_unet(xl=True),
        scheduler=tiny_scheduler(prediction_type),
        add_watermarker=False,
    )
    return _quiet(pipe)


@_cached_or_fresh
def tiny_controlnet(xl: bool = False) -> ControlNetModel:
    """A random ControlNet for ``tiny_sdxl`` or ``tiny_sd15``, with its zero convolutions filled."""
    controlnet = ControlNetModel.from_unet(_unet(xl), conditioning_embedding_out_channels=(8, 16)).eval()
    for weight in controlnet.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return controlnet


@_cached_or_fresh
def tiny_image_encoder() -> CLIPVisionModelWithProjection:
    """A random CLIP image encoder of 32x32 pixels in patches of 8."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    return CLIPVisionModelWithProjection(config).eval()


def _with(kind: type, xl: bool, control: bool, fresh: bool):
    """The parts of ``tiny_sd15`` or ``tiny_sdxl`` in another kind of pipeline."""
    base = (tiny_sdxl if xl else tiny_sd15)(fresh=fresh)
    parts = dict(base.components)
    if control:
        parts["controlnet"] = tiny_controlnet(xl=xl, fresh=fresh)
    extra = {} if xl else {"requires_safety_checker": False}
    return _quiet(kind(**parts, **extra))


def tiny_img2img(xl: bool = False, *, fresh: bool = False):
    """Image-to-image on the weights of ``tiny_sd15`` (or ``tiny_sdxl``)."""
    return _with(StableDiffusionXLImg2ImgPipeline if xl else StableDiffusionImg2ImgPipeline, xl, False, fresh)


def tiny_inpaint(xl: bool = False, *, fresh: bool = False):
    """Inpainting on the weights of ``tiny_sd15`` (or ``tiny_sdxl``)."""
    return _with(StableDiffusionXLInpaintPipeline if xl else StableDiffusionInpaintPipeline, xl, False, fresh)


def tiny_control(xl: bool = False, *, fresh: bool = False):
    """Text-to-image with a ControlNet on the weights of ``tiny_sd15`` (or ``tiny_sdxl``)."""
    return _with(StableDiffusionXLControlNetPipeline if xl else StableDiffusionControlNetPipeline, xl, True, fresh)


def tiny_control_img2img(xl: bool = False, *, fresh: bool = False):
    """Image-to-image with a ControlNet on the weights of ``tiny_sd15`` (or ``tiny_sdxl``)."""
    kind = StableDiffusionXLControlNetImg2ImgPipeline if xl else StableDiffusionControlNetImg2ImgPipeline
    return _with(kind, xl, True, fresh)


@_cached_or_fresh
def tiny_pix2pix() -> StableDiffusionInstructPix2PixPipeline:
    """InstructPix2Pix on the weights of ``tiny_sd15``, whose first layer also sees the latents of a picture."""
    parts = dict(tiny_sd15(fresh=True).components)
    weights = parts["unet"].state_dict()
    weights["conv_in.weight"] = torch.cat([weights["conv_in.weight"], weights["conv_in.weight"].flip(1)], dim=1)
    parts["unet"] = UNet2DConditionModel.from_config(parts["unet"].config, in_channels=8).eval()
    parts["unet"].load_state_dict(weights)
    return _quiet(StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False))


def load_tiny_ip_adapter(pipe, seed: int = 1) -> None:
    """Load a random IP-Adapter of four tokens into ``pipe`` (a fresh one) and give it an image encoder."""
    generator = torch.Generator().manual_seed(seed)
    width = pipe.unet.config.cross_attention_dim
    weights = {"proj.weight": torch.randn(4 * width, WIDTH, generator=generator) * 0.3}
    weights |= {
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    attention = {}
    names = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    for i, name in enumerate(names):
        inner = pipe.unet.get_submodule(name.removesuffix(".processor")).inner_dim
        for part in ("to_k_ip", "to_v_ip"):
            attention[f"{2 * i + 1}.{part}.weight"] = torch.randn(inner, width, generator=generator) * 0.3
    pipe.register_modules(
        image_encoder=tiny_image_encoder(),
        feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    )
    state = {"image_proj": weights, "ip_adapter": attention}
    pipe.load_ip_adapter(state, subfolder=None, weight_name=None, image_encoder_folder=None)
