"""Seeded, random, tiny transformers for the tests: diffusers' own classes, each with inputs for a batch of pictures.

``network, given = tiny_transformer("flux", rows=3)``: call it as ``network(**given)``.
"""

from functools import cache
from typing import Any

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
