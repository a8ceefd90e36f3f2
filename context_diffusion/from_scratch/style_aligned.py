"""StyleAligned as the paper describes it, with nothing clever (Hertz et al. 2024, section 3.2).

Image 0 of the batch is the reference. In every self-attention layer, image i takes on the statistics of the
reference's queries and keys, and attends to the reference as well as to itself:

    Q'_i = AdaIN(Q_i, Q_0),    K'_i = AdaIN(K_i, K_0),                                           (1)
    out_i = softmax(Q'_i [K'_i, K_0]^T / sqrt(d)) [V_i, V_0].                                    (2)

This file copies the reference's keys and values for every image, and writes all scores out if they are scaled or
shifted. ``context_diffusion.alignment`` does without both, and is tested and timed against this file.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

Heads = Float[Tensor, "images heads tokens d"]


@dataclass(frozen=True)
class TextbookSettings:
    """What is shared with image 0, under the names of ``alignment.StyleSettings``.

    ``branches`` is the number of guidance branches in the U-Net's batch: 2 with guidance, else 1.
    """

    branches: int = 2
    adain_queries: bool = True
    adain_keys: bool = True
    adain_values: bool = False
    share_attention: bool = True
    full_attention: bool = False  # every image sees all images, as equals
    share_group_norm: bool = False
    score_scale: float = 1.0  # of the scores of the reference's tokens
    score_shift: float = 0.0  # added to them: each token then counts exp(shift) times


@contextmanager
def textbook(unet: nn.Module, settings: TextbookSettings) -> Iterator[None]:
    """Align every batch with its first image while inside the block; ``unet`` is a U-Net of diffusers.

    with textbook(pipe.unet, TextbookSettings()):
        images = pipe(["a house, neon style", "a boat, neon style"]).images
    """
    before = unet.attn_processors
    ours = {name: TextbookProcessor(settings) if "attn1" in name else kept for name, kept in before.items()}
    norms = [module for module in unet.modules() if isinstance(module, nn.GroupNorm) and settings.share_group_norm]
    try:
        unet.set_attn_processor(ours)  # diffusers calls self-attention attn1, cross-attention attn2
        for norm in norms:
            norm.forward = textbook_group_norm(norm, settings.branches)
        yield
    finally:
        unet.set_attn_processor(before)
        for norm in norms:
            norm.__dict__.pop("forward", None)


class TextbookProcessor:
    """One self-attention layer, called by diffusers in place of its own attention processor."""

    def __init__(self, settings: TextbookSettings):
        self.settings = settings

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *_, **__) -> Float[Tensor, "rows tokens channels"]:
        """Attend within each guidance branch: (rows, tokens, channels) in and out."""
        branches = rearrange(
            hidden_states, "(branches images) ... -> branches images ...", branches=self.settings.branches
        )
        out = torch.cat([self.one_branch(attn, images) for images in branches])
        out = attn.to_out[1](attn.to_out[0](out))
        return (out + hidden_states if attn.residual_connection else out) / attn.rescale_output_factor

    def one_branch(
        self, attn: nn.Module, images: Float[Tensor, "images tokens channels"]
    ) -> Float[Tensor, "images tokens channels"]:
        """Attention of the images of one branch, the reference first."""
        settings, count = self.settings, len(images)
        query, key, value = (
            rearrange(project(images), "images tokens (heads d) -> images heads tokens d", heads=attn.heads)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        own = key.shape[2]
        if settings.full_attention:
            key, value = (repeat(x, "images heads t d -> count heads (images t) d", count=count) for x in (key, value))
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            query = textbook_adain(query) if settings.adain_queries else query  #                Eq. (1)
            key = textbook_adain(key) if settings.adain_keys else key
            value = textbook_adain(value) if settings.adain_values else value
            if settings.share_attention:
                key, value = (torch.cat([x, x[:1].expand_as(x)], dim=2) for x in (key, value))
            out = textbook_attention(query, key, value, own, settings.score_scale, settings.score_shift)
        return rearrange(out, "images heads tokens d -> images tokens (heads d)")


def textbook_adain(x: Heads) -> Heads:
    """Give every image the mean and standard deviation, over tokens, of image 0 (Huang and Belongie 2017, eq. 8)."""
    mean = x.mean(dim=2, keepdim=True)
    std = (x.var(dim=2, keepdim=True) + 1e-5).sqrt()
    return (x - mean) / std * std[:1] + mean[:1]


def textbook_attention(query: Heads, key: Tensor, value: Tensor, own: int, scale: float, shift: float) -> Heads:
    """Eq. (2), where the scores of the keys from number ``own`` on, the reference's, become scale * score + shift."""
    if scale == 1 and shift == 0:
        return F.scaled_dot_product_attention(query, key, value)
    scores = einsum(query, key, "images heads i d, images heads j d -> images heads i j") / query.shape[-1] ** 0.5
    scores[1:, :, :, own:] = scale * scores[1:, :, :, own:] + shift  # not for image 0: it is the reference
    return einsum(scores.softmax(dim=-1), value, "images heads i j, images heads j d -> images heads i d")


def textbook_group_norm(norm: nn.GroupNorm, branches: int) -> Callable[[Tensor], Tensor]:
    """A forward for ``norm`` that takes its statistics over each image together with image 0 of its branch."""

    def forward(features: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "rows channels height width"]:
        images = rearrange(features, "(branches images) ... -> branches images ...", branches=branches)
        pairs = torch.cat([images, images[:, :1].expand_as(images)], dim=-2)  # the reference below each image
        normalized = nn.GroupNorm.forward(norm, rearrange(pairs, "branches images ... -> (branches images) ..."))
        return normalized[..., : features.shape[-2], :]

    return forward
