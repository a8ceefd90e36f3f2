"""The U-Net that predicts the noise (Ronneberger et al. 2015, fig. 1; conditioned as in Rombach et al. 2022, fig. 3).

x_t ─ conv_in ─┬─ down 0 ─┬─ down 1 ─┬─ ... ─ mid ─ ... ─┬─ up 0 ─┬─ up 1 ─ norm, SiLU, conv_out ─ noise
               └──────────┴──────────┴──── skips ────────┴────────┘
Every residual block hears the time t; every transformer looks at the prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .attention import SpatialTransformer
from .blocks import Downsample, ResidualBlock, Upsample

DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # stage name in config.json -> looks at the prompt?
UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


def sinusoids(
    t: Float[Tensor, " batch"], width: int, flip_sin_to_cos: bool = True, freq_shift: float = 0
) -> Float[Tensor, "batch width"]:
    """Time as sines and cosines whose frequencies fall geometrically (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t[:, None] * torch.exp(-math.log(10000) * exponent)
    waves = [angles.sin(), angles.cos()]
    return torch.cat(waves[::-1] if flip_sin_to_cos else waves, dim=-1)


class TimeEmbedding(nn.Module):
    """A small network on top of the sinusoids (Ho et al. 2020, appendix B)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear1 = nn.Linear(width, out)
        self.linear2 = nn.Linear(out, out)

    def forward(self, waves: Float[Tensor, "batch width"]) -> Float[Tensor, "batch time"]:
        return self.linear2(F.silu(self.linear1(waves)))


class DownStage(nn.Module):
    """Residual blocks, each followed by a transformer if the stage attends, then half the size; keeps every result."""

    def __init__(self, residual: list[nn.Module], attention: list[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.residual, self.attention = nn.ModuleList(residual), nn.ModuleList(attention)
        self.downsample = downsample

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        time: Float[Tensor, "batch time"],
        context: Float[Tensor, "batch tokens context"],
    ) -> tuple[Float[Tensor, "batch out h w"], list[Tensor]]:
        skips = []
        for i, residual in enumerate(self.residual):
            x = residual(x, time)
            if self.attention:
                x = self.attention[i](x, context)
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            skips.append(x)
        return x, skips


class UpStage(nn.Module):
    """The way back: each residual block gets the skip of its mirror image along with what comes from below."""

    def __init__(self, residual: list[nn.Module], attention: list[nn.Module], upsample: nn.Module | None):
        super().__init__()
        self.residual, self.attention = nn.ModuleList(residual), nn.ModuleList(attention)
        self.upsample = upsample

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        skips: list[Tensor],
        time: Float[Tensor, "batch time"],
        context: Float[Tensor, "batch tokens context"],
    ) -> Float[Tensor, "batch out h w"]:
        for i, residual in enumerate(self.residual):
            x = residual(torch.cat([x, skips.pop()], dim=1), time)
            if self.attention:
                x = self.attention[i](x, context)
        if self.upsample is not None:
            x = self.upsample(x, size=skips[-1].shape[-2:])  # an odd size was rounded up on the way down
        return x


class MiddleStage(nn.Module):
    """Residual, transformer, residual, at the lowest resolution."""

    def __init__(self, residual: list[nn.Module], attention: nn.Module):
        super().__init__()
        self.residual, self.attention = nn.ModuleList(residual), nn.ModuleList([attention])

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        time: Float[Tensor, "batch time"],
        context: Float[Tensor, "batch tokens context"],
    ) -> Float[Tensor, "batch channels height width"]:
        return self.residual[1](self.attention[0](self.residual[0](x, time), context), time)


@dataclass(frozen=True)
class Plan:
    """The sizes of every stage, from the highest resolution to the lowest, and how to build from them."""

    widths: list[int]  # channels
    layers: list[int]  # residual blocks on the way down; the way up has one more
    heads: list[int]
    depths: list[int]  # transformer blocks in each transformer
    groups: int
    eps: float
    time_width: int
    context_width: int

    def residual(self, before: int, after: int) -> ResidualBlock:
        """One residual block that hears the time."""
        return ResidualBlock(before, after, self.groups, self.eps, self.time_width)

    def transformer(self, stage: int) -> SpatialTransformer:
        """One transformer that looks at the prompt, sized for a stage."""
        sizes = self.widths[stage], self.heads[stage], self.context_width, self.groups, self.depths[stage]
        return SpatialTransformer(*sizes)

    def way_down(self, kinds: Sequence[str]) -> tuple[nn.ModuleList, list[int]]:
        """The stages that shrink the picture, and the channels of every skip they will push."""
        stages, before, skips = nn.ModuleList(), self.widths[0], [self.widths[0]]
        for i, (width, attends) in enumerate(zip(self.widths, attending(kinds, DOWN), strict=True)):
            residual = [self.residual(before if j == 0 else width, width) for j in range(self.layers[i])]
            attention = [self.transformer(i) for _ in residual if attends]
            downsample = Downsample(width, all_sides=True) if i < len(self.widths) - 1 else None
            stages.append(DownStage(residual, attention, downsample))
            before, skips = width, skips + [width] * (len(residual) + (downsample is not None))
        return stages, skips

    def way_up(self, kinds: Sequence[str], skips: list[int]) -> nn.ModuleList:
        """The stages that enlarge it again and pop those skips."""
        stages, before = nn.ModuleList(), self.widths[-1]
        for i, attends in zip(reversed(range(len(self.widths))), attending(kinds, UP), strict=True):
            width = self.widths[i]
            inputs = [before] + [width] * self.layers[i]
            residual = [self.residual(channels + skips.pop(), width) for channels in inputs]
            attention = [self.transformer(i) for _ in residual if attends]
            stages.append(UpStage(residual, attention, Upsample(width) if i > 0 else None))
            before = width
        return stages


def attending(kinds: Sequence[str], known: dict[str, bool]) -> list[bool]:
    """Which stages look at the prompt, from the names of their kinds."""
    if unknown := [kind for kind in kinds if kind not in known]:
        raise ValueError(f"A stage of this U-Net is one of {sorted(known)}; the configuration asks for {unknown[0]!r}.")
    return [known[kind] for kind in kinds]


class UNet(nn.Module):
    """Predicts what the scheduler's ``prediction_type`` says, usually the noise. Arguments as in ``config.json``.

    ``attention_head_dim`` is the *number* of heads: an old naming mistake that the published files live with.
    ``use_linear_projection`` is not needed: see ``SpatialTransformer``.
    """

    FIXED = {
        "act_fn": "silu", "center_input_sample": False, "dual_cross_attention": False, "only_cross_attention": False,
        "class_embed_type": None, "addition_embed_type": None, "encoder_hid_dim_type": None, "encoder_hid_dim": None,
        "num_class_embeds": None, "resnet_time_scale_shift": "default", "resnet_skip_time_act": False,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "mid_block_scale_factor": 1, "time_embedding_type": "positional",
        "time_embedding_act_fn": None, "timestep_post_act": None, "downsample_padding": 1, "conv_in_kernel": 3,
        "conv_out_kernel": 3, "cross_attention_norm": None, "attention_type": "default", "dropout": 0.0,
        "resnet_out_scale_factor": 1.0, "reverse_transformer_layers_per_block": None,
    }  # fmt: skip

    def __init__(
        self,
        *,
        sample_size: int = 64,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        down_block_types: Sequence[str] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types: Sequence[str] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block: int | Sequence[int] = 2,
        transformer_layers_per_block: int | Sequence[int] = 1,
        attention_head_dim: int | Sequence[int] = 8,
        cross_attention_dim: int = 768,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        flip_sin_to_cos: bool = True,
        freq_shift: float = 0,
    ):
        super().__init__()
        stages = len(block_out_channels)

        def each(value: int | Sequence[int]) -> list[int]:
            return [value] * stages if isinstance(value, int) else list(value)

        widths, time_width = list(block_out_channels), 4 * block_out_channels[0]
        plan = Plan(
            widths, each(layers_per_block), each(attention_head_dim), each(transformer_layers_per_block),
            norm_num_groups, norm_eps, time_width, cross_attention_dim,
        )  # fmt: skip
        self.sample_size, self.in_channels, self.context_width = sample_size, in_channels, cross_attention_dim
        self.waves: dict[str, Any] = {"width": widths[0], "flip_sin_to_cos": flip_sin_to_cos, "freq_shift": freq_shift}
        self.time_embedding = TimeEmbedding(widths[0], time_width)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down, skips = plan.way_down(down_block_types)
        self.mid = MiddleStage([plan.residual(widths[-1], widths[-1]) for _ in range(2)], plan.transformer(stages - 1))
        self.up = plan.way_up(up_block_types, skips)
        self.norm_out = nn.GroupNorm(norm_num_groups, widths[0], norm_eps)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: float | Tensor,
        context: Float[Tensor, "batch tokens context"],
    ) -> Float[Tensor, "batch out height width"]:
        """The prediction for latents ``x`` at time ``t`` (one number, or one per picture), given prompt vectors.

        ``context`` may hold any number of tokens: the text encoder's, or more appended to them.
        """
        t = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(x.shape[0])
        time = self.time_embedding(sinusoids(t, **self.waves).to(x.dtype))
        x = self.conv_in(x)
        skips = [x]
        for stage in self.down:
            x, more = stage(x, time, context)
            skips += more
        x = self.mid(x, time, context)
        for stage in self.up:
            x = stage(x, skips, time, context)
        return self.conv_out(F.silu(self.norm_out(x)))
