"""Seeded, random, tiny transformers for the tests: diffusers' own classes, each with inputs for a batch of pictures.

``network, given = tiny_transformer("flux", rows=3)``: call it as ``network(**given)``.
"""

from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)

KINDS = ("flux", "flux2", "sd3", "qwen", "z-image")
ROWS, COLUMNS = 4, 6  # patches of a picture
WORDS = 5
TIME = 0.7  # of the noise; on the scale of the schedulers 700


@cache
def network(kind: str) -> torch.nn.Module:
    """One of the five, in evaluation mode."""
    heads = {"attention_head_dim": 16, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "flux":
            made = FluxTransformer2DModel(
                in_channels=16, num_layers=1, num_single_layers=2, joint_attention_dim=24, pooled_projection_dim=8,
                guidance_embeds=True, axes_dims_rope=(4, 4, 8), **heads,
            )  # fmt: skip
        elif kind == "flux2":
            made = Flux2Transformer2DModel(
                in_channels=16, num_layers=1, num_single_layers=2, joint_attention_dim=24, axes_dims_rope=(4, 4, 4, 4),
                timestep_guidance_channels=16, **heads,
            )  # fmt: skip
        elif kind == "sd3":
            made = SD3Transformer2DModel(
                sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, joint_attention_dim=24,
                caption_projection_dim=32, pooled_projection_dim=8, pos_embed_max_size=16, qk_norm="rms_norm",
                dual_attention_layers=(0,), **heads,
            )  # fmt: skip
        elif kind == "qwen":
            made = QwenImageTransformer2DModel(
                in_channels=16, out_channels=4, num_layers=2, joint_attention_dim=24, axes_dims_rope=(4, 4, 8), **heads,
            )  # fmt: skip
        else:
            made = ZImageTransformer2DModel(
                all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=2, n_refiner_layers=1,
                n_heads=2, n_kv_heads=2, cap_feat_dim=24, axes_dims=[4, 4, 8], axes_lens=[64, 64, 64],
            )  # fmt: skip
        for name, weight in made.named_parameters():
            if "proj_out" in name or "all_final_layer" in name:  # some begin at zero
                torch.nn.init.normal_(weight, std=0.05)
    return made.eval().requires_grad_(False)


def inputs(kind: str, rows: int = 3, grid: tuple[int, int] = (ROWS, COLUMNS), seed: int = 0) -> dict[str, Any]:
    """What the pipelines give it, for pictures of ``grid`` patches, on noise and texts of their own."""
    height, width = grid
    noise = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.stack([torch.randn(*shape, generator=noise) for _ in range(rows)])

    text = {"encoder_hidden_states": random(WORDS, 24)}
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    ids = torch.cat([torch.zeros(len(places), 1), places], dim=1)
    time = torch.full((rows,), TIME)
    if kind == "flux":
        return text | {
            "hidden_states": random(height * width, 16), "pooled_projections": random(8), "timestep": time,
            "guidance": torch.full((rows,), 3.5), "img_ids": ids, "txt_ids": torch.zeros(WORDS, 3),
        }  # fmt: skip
    if kind == "flux2":
        words = torch.cat([torch.zeros(WORDS, 3), torch.arange(WORDS)[:, None]], dim=1).float()
        four = torch.cat([ids, torch.zeros(len(ids), 1)], dim=1)
        return text | {
            "hidden_states": random(height * width, 16), "timestep": time, "guidance": torch.full((rows,), 3.5),
            "img_ids": four.expand(rows, -1, -1), "txt_ids": words.expand(rows, -1, -1),
        }  # fmt: skip
    if kind == "sd3":
        return text | {
            "hidden_states": random(4, 2 * height, 2 * width),
            "pooled_projections": random(8),
            "timestep": 1000 * time,
        }
    if kind == "qwen":
        mask = torch.ones(rows, WORDS, dtype=torch.bool)
        mask[-1, -2:] = False  # the last prompt is shorter
        return text | {
            "hidden_states": random(height * width, 16), "encoder_hidden_states_mask": mask, "timestep": time,
            "img_shapes": [[(1, height, width)]] * rows,
        }  # fmt: skip
    captions = [text["encoder_hidden_states"][row][: WORDS - row % 2] for row in range(rows)]
    return {"x": list(random(4, 1, 2 * height, 2 * width)), "t": 1 - time, "cap_feats": captions}


def output(made: torch.nn.Module, given: dict[str, Any]) -> torch.Tensor:
    """What it says of each row."""
    found = made(**given, return_dict=False)[0]
    return torch.stack(found) if isinstance(found, list) else found


def _embedding(prompt: str, words: int = WORDS) -> torch.Tensor:
    """A text as random features that depend on its words alone."""
    seed = int.from_bytes(prompt.encode(), "little") % 2**31
    return torch.randn(words, 24, generator=torch.Generator().manual_seed(seed))


def _vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, shift_factor=0.1, scaling_factor=0.5,
    ).eval()  # fmt: skip


class _FromWords:
    """Encodes prompts without an encoder."""

    def texts(self, prompt) -> torch.Tensor:
        found = torch.stack([_embedding(each) for each in ([prompt] if isinstance(prompt, str) else prompt)])
        return found.to(self.transformer.dtype)


class TinyFlux(_FromWords, diffusers.FluxPipeline):
    def encode_prompt(self, prompt=None, prompt_2=None, prompt_embeds=None, pooled_prompt_embeds=None, **_):
        texts = self.texts(prompt) if prompt_embeds is None else prompt_embeds
        return texts, texts[:, 0, :8], torch.zeros(texts.shape[1], 3)


class TinyFlux2(_FromWords, diffusers.Flux2Pipeline):
    def encode_prompt(self, prompt=None, prompt_embeds=None, **_):
        texts = self.texts(prompt) if prompt_embeds is None else prompt_embeds
        return texts, self._prepare_text_ids(texts)


class TinySD3(_FromWords, diffusers.StableDiffusion3Pipeline):
    def encode_prompt(self, prompt=None, negative_prompt=None, prompt_embeds=None, **_):
        count = len(prompt) if isinstance(prompt, list) else 1
        texts, none = self.texts(prompt), self.texts(negative_prompt or [""] * count)
        none = none.expand_as(texts)
        return texts, none, texts[:, 0, :8], none[:, 0, :8]


class TinyQwen(_FromWords, diffusers.QwenImagePipeline):
    def encode_prompt(self, prompt=None, prompt_embeds=None, **_):
        texts = self.texts(prompt)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        mask = torch.ones(texts.shape[:2], dtype=torch.bool)
        mask[[len(each) % 2 == 0 for each in prompts], -1] = False
        return texts, None if mask.all() else mask  # as diffusers does


class TinyZImage(_FromWords, diffusers.ZImagePipeline):
    def encode_prompt(self, prompt=None, negative_prompt=None, do_classifier_free_guidance=True, **_):
        prompts = [prompt] if isinstance(prompt, str) else prompt
        negative = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""] * len(prompts)
        texts, others = (
            [_embedding(each, 3 + len(each) % 3).to(self.transformer.dtype) for each in words]
            for words in (prompts, negative)
        )
        return texts, others if do_classifier_free_guidance else []


@cache
def pipeline(kind: str):
    """A tiny pipeline with that transformer; its pictures are of 4 x 6 patches at 32 x 48 or 16 x 24 pixels."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind == "flux":
            made = TinyFlux(scheduler, _vae(), None, None, None, None, network(kind))
        elif kind == "sd3":
            made = TinySD3(network(kind), scheduler, _vae(), None, None, None, None, None, None)
        elif kind == "z-image":
            made = TinyZImage(scheduler, _vae(), None, None, network(kind))
        elif kind == "flux2":
            vae = diffusers.AutoencoderKLFlux2(
                block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=2,
                up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
            ).eval()  # fmt: skip
            made = TinyFlux2(scheduler, vae, None, None, network(kind))
        else:
            vae = diffusers.AutoencoderKLQwenImage(
                base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
                latents_mean=[0.1] * 4, latents_std=[0.9] * 4,
            ).eval()  # fmt: skip
            made = TinyQwen(scheduler, vae, None, None, network(kind))
    made.set_progress_bar_config(disable=True)
    return made


def some_rows(given: dict[str, Any], rows: slice) -> dict[str, Any]:
    """The inputs of some of the pictures."""
    common = ("img_ids", "txt_ids")
    shared = {name for name in common if name in given and given[name].ndim == 2}
    return {name: value if name in shared else value[rows] for name, value in given.items()}
