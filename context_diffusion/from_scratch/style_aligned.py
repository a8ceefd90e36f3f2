"""StyleAligned as the paper describes it, with nothing clever: the yardstick of the benchmark and of the tests.

The reference is image 0 of the batch, keys and values are concatenated for every image, the scores are written out
where they are scaled or shifted, and the group norms run over the concatenated features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class TextbookSettings:
    """The settings under which ``context_diffusion`` knows them; ``branches`` is 2 with guidance, else 1."""

    branches: int = 2
    adain_queries: bool = True
    adain_keys: bool = True
    adain_values: bool = False
    share_attention: bool = True
    full_attention: bool = False
    share_group_norm: bool = False
    score_scale: float = 1.0
    score_shift: float = 0.0


def textbook_adain(x: Tensor) -> Tensor:
    """(images, heads, tokens, dim): the statistics of image 0 for all."""
    mean = x.mean(dim=2, keepdim=True)
    std = (x.var(dim=2, keepdim=True) + 1e-5).sqrt()
    return (x - mean) / std * std[:1] + mean[:1]


class TextbookProcessor:
    """One self-attention layer."""

    def __init__(self, settings: TextbookSettings):
        self.settings = settings

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
        branches = hidden_states.chunk(self.settings.branches)
        out = torch.cat([self.one_branch(attn, images) for images in branches])
        out = attn.to_out[1](attn.to_out[0](out))
        return (out + hidden_states if attn.residual_connection else out) / attn.rescale_output_factor

    def one_branch(self, attn, images: Tensor) -> Tensor:
        settings = self.settings
        query, key, value = (
            project(images).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if settings.full_attention:
            key, value = (torch.cat([torch.cat(list(x), dim=1)[None]] * len(images)) for x in (key, value))
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        query = textbook_adain(query) if settings.adain_queries else query
        key = textbook_adain(key) if settings.adain_keys else key
        value = textbook_adain(value) if settings.adain_values else value
        tokens = key.shape[2]
        if settings.share_attention:
            key, value = (torch.cat([x, torch.cat([x[:1]] * len(x))], dim=2) for x in (key, value))
        if settings.score_scale == 1 and settings.score_shift == 0:
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        scores = torch.einsum("bhid,bhjd->bhij", query, key) / query.shape[-1] ** 0.5
        scores[1:, :, :, tokens:] = settings.score_scale * scores[1:, :, :, tokens:] + settings.score_shift
        return torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), value).transpose(1, 2).flatten(2)


def textbook_group_norm(norm: nn.GroupNorm, branches: int):
    """A forward of ``norm`` over each image side by side with image 0 of its branch."""

    def forward(features: Tensor) -> Tensor:
        out = []
        for images in features.chunk(branches):
            both = torch.cat([images, torch.cat([images[:1]] * len(images))], dim=-2)
            out.append(nn.GroupNorm.forward(norm, both)[..., : images.shape[-2], :])
        return torch.cat(out)

    return forward


@contextmanager
def textbook(unet: nn.Module, settings: TextbookSettings) -> Iterator[None]:
    """Run the U-Net that way inside the block."""
    before = unet.attn_processors
    ours = {name: TextbookProcessor(settings) if "attn1" in name else kept for name, kept in before.items()}
    norms = [module for module in unet.modules() if isinstance(module, nn.GroupNorm) and settings.share_group_norm]
    try:
        unet.set_attn_processor(ours)
        for norm in norms:
            norm.forward = textbook_group_norm(norm, settings.branches)
        yield
    finally:
        unet.set_attn_processor(before)
        for norm in norms:
            norm.__dict__.pop("forward", None)
