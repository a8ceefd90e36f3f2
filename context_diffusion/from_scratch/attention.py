"""Attention, and the transformer that lets every pixel of the U-Net look at the picture and at the prompt."""

import torch.nn.functional as F
from einops import einsum, rearrange
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
                f"The width of an attention layer is a multiple of its number of heads; got {width} and {heads}."
            )
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias)
        self.to_k = nn.Linear(context_width or width, width, bias)
        self.to_v = nn.Linear(context_width or width, width, bias)
        self.to_out = nn.Linear(width, width)

    def split(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch heads tokens d"]:
        """Cut the width into heads."""
        return rearrange(x, "batch tokens (heads d) -> batch heads tokens d", heads=self.heads)

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch keys context"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "batch queries width"]:
        context = x if context is None else context
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(context)), self.split(self.to_v(context))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.to_out(rearrange(heads, "batch heads queries d -> batch queries (heads d)"))

    def weights(
        self, x: Float[Tensor, "batch queries width"], context: Float[Tensor, "batch keys context"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """The softmax of eq. (1) alone, its rows summing to 1: who looks at what. ``forward`` never stores it."""
        q, k = self.split(self.to_q(x)), self.split(self.to_k(context))
        scores = einsum(q, k, "batch heads queries d, batch heads keys d -> batch heads queries keys")
        return (scores / q.shape[-1] ** 0.5).softmax(dim=-1)


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
    """Look at the picture, look at the prompt, think (Rombach et al. 2022, table 16); each step adds to x."""

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
    """Take a feature map as a sequence of pixels through transformer blocks and back (Rombach et al. 2022, app. E.2.1).

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
        pixels = self.proj_in(as_sequence(self.norm(x)))
        for block in self.blocks:
            pixels = block(pixels, context)
        return x + as_map(self.proj_out(pixels), height=x.shape[2])


class PixelAttention(Attention):
    """The autoencoder's attention: every pixel looks at every pixel, with one head, after a group norm."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        pixels = super().forward(as_sequence(self.group_norm(x)))
        return x + as_map(pixels, height=x.shape[2])


def as_sequence(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch pixels channels"]:
    """A feature map as a sequence of pixels, row by row."""
    return rearrange(x, "batch channels height width -> batch (height width) channels")


def as_map(pixels: Float[Tensor, "batch pixels channels"], height: int) -> Float[Tensor, "batch channels height width"]:
    """A sequence of pixels as a feature map again."""
    return rearrange(pixels, "batch (height width) channels -> batch channels height width", height=height)
