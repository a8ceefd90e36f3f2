"""Attention, and the transformer that lets every pixel of the U-Net look at the picture and at the prompt."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, eq. 1 and section 3.2.2): softmax(Q K^T / sqrt(d)) V.

    Queries come from ``x``; keys and values from ``context``, or from ``x`` itself: self-attention.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None, bias: bool = False):
        super().__init__()
        if width % heads:
            raise ValueError(
                f"The width of an attention layer must be a multiple of its heads; got {width} and {heads}."
            )
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias)
        self.to_k = nn.Linear(context_width or width, width, bias)
        self.to_v = nn.Linear(context_width or width, width, bias)
        self.to_out = nn.Linear(width, width)

    def split(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch heads tokens d"]:
        """Cut the width into heads."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch keys context"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "batch queries width"]:
        context = x if context is None else context
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(context)), self.split(self.to_v(context))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  #       batch heads queries d
        return self.to_out(heads.transpose(1, 2).flatten(2))

    def weights(
        self, x: Float[Tensor, "batch queries width"], context: Float[Tensor, "batch keys context"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """The softmax of eq. (1) by itself, rows summing to 1: who looks at what. ``forward`` never stores it."""
        q, k = self.split(self.to_q(x)), self.split(self.to_k(context))
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020, eq. 6): (x V) * gelu(x W), then back to the width of x."""

    def __init__(self, width: int, factor: int = 4):
        super().__init__()
        self.expand = nn.Linear(width, 2 * factor * width)
        self.contract = nn.Linear(factor * width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        value, gate = self.expand(x).chunk(2, dim=-1)
        return self.contract(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Look at the picture, look at the prompt, think (Rombach et al. 2022, table 15); each adds to x."""

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads, context_width)
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(
        self, x: Float[Tensor, "batch pixels width"], context: Float[Tensor, "batch tokens context"]
    ) -> Float[Tensor, "batch pixels width"]:
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), context)
        return x + self.feed_forward(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A feature map as a sequence of pixels, through transformer blocks, and back (Rombach et al. 2022, app. E.2.1).

    SD 1.x stores the two projections as 1x1 convolutions, SD 2.x as linear layers. A 1x1 convolution *is* a linear
    layer on every pixel, so one form serves both.
    """

    def __init__(self, channels: int, heads: int, context_width: int, groups: int, depth: int = 1):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads, context_width) for _ in range(depth))
        self.proj_out = nn.Linear(channels, channels)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], context: Float[Tensor, "batch tokens context"]
    ) -> Float[Tensor, "batch channels height width"]:
        pixels = self.norm(x).flatten(2).transpose(1, 2)  #                        batch pixels channels
        pixels = self.proj_in(pixels)
        for block in self.blocks:
            pixels = block(pixels, context)
        return x + self.proj_out(pixels).transpose(1, 2).unflatten(2, x.shape[2:])


class PixelAttention(Attention):
    """The autoencoder's attention: every pixel looks at every pixel, in one head, with its own group norm."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        pixels = self.group_norm(x).flatten(2).transpose(1, 2)
        return x + super().forward(pixels).transpose(1, 2).unflatten(2, x.shape[2:])
