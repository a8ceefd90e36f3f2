"""The autoencoder (Rombach et al. 2022, section 3.1): from pictures to small latents and back.

image  3 x H x W  --encoder-->  mean, standard deviation  --sample, scale-->  latent  C x H/8 x W/8  --decoder-->  image
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .attention import PixelAttention
from .blocks import Downsample, ResidualBlock, Upsample

EPS = 1e-6  # of every group norm in this file


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution, with attention between them (left out in small models)."""

    def __init__(self, channels: int, groups: int, attention: bool):
        super().__init__()
        self.residual = nn.ModuleList(ResidualBlock(channels, channels, groups, EPS) for _ in range(2))
        self.attention = nn.ModuleList([PixelAttention(channels, groups)] if attention else [])

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        x = self.residual[0](x)
        for attention in self.attention:
            x = attention(x)
        return self.residual[1](x)


class Stage(nn.Module):
    """Residual blocks at one resolution, then perhaps a step down or up to the next one."""

    def __init__(self, before: int, width: int, layers: int, groups: int, **step: nn.Module):
        super().__init__()
        widths = [before] + [width] * layers
        pairs = zip(widths, widths[1:], strict=False)
        self.residual = nn.ModuleList(ResidualBlock(a, b, groups, EPS) for a, b in pairs)
        self.downsample = step.get("downsample", nn.Identity())
        self.upsample = step.get("upsample", nn.Identity())

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height2 width2"]:
        for block in self.residual:
            x = block(x)
        return self.upsample(self.downsample(x))


class Encoder(nn.Module):
    """Residual stages, all but the last halving the picture; the output is the latent's mean and log-variance."""

    def __init__(
        self, in_channels: int, latent_channels: int, widths: Sequence[int], layers: int, groups: int, attention: bool
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        before = widths[0]
        for i, width in enumerate(widths):
            step = {"downsample": Downsample(width, all_sides=False)} if i < len(widths) - 1 else {}
            self.down.append(Stage(before, width, layers, groups, **step))
            before = width
        self.mid = Middle(before, groups, attention)
        self.norm_out = nn.GroupNorm(groups, before, EPS)
        self.conv_out = nn.Conv2d(before, 2 * latent_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch moments h w"]:
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """The encoder's mirror image, with one more residual block in each stage."""

    def __init__(
        self, latent_channels: int, out_channels: int, widths: Sequence[int], layers: int, groups: int, attention: bool
    ):
        super().__init__()
        before = widths[-1]
        self.conv_in = nn.Conv2d(latent_channels, before, 3, padding=1)
        self.mid = Middle(before, groups, attention)
        self.up = nn.ModuleList()
        for i, width in enumerate(reversed(widths)):
            step = {"upsample": Upsample(width)} if i < len(widths) - 1 else {}
            self.up.append(Stage(before, width, layers + 1, groups, **step))
            before = width
        self.norm_out = nn.GroupNorm(groups, before, EPS)
        self.conv_out = nn.Conv2d(before, out_channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "batch latent h w"]) -> Float[Tensor, "batch channels height width"]:
        x = self.mid(self.conv_in(z))
        for stage in self.up:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """Images in [-1, 1] to latents of about unit variance, and back. Argument names are those of ``config.json``."""

    FIXED = {"act_fn": "silu", "shift_factor": None, "latents_mean": None, "latents_std": None}

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        scaling_factor: float = 0.18215,
        mid_block_add_attention: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
    ):
        super().__init__()
        shape = (block_out_channels, layers_per_block, norm_num_groups, mid_block_add_attention)
        self.encoder = Encoder(in_channels, latent_channels, *shape)
        self.decoder = Decoder(latent_channels, out_channels, *shape)
        mixing = 2 * latent_channels  # 1x1 convolutions that mix channels, left from the VQ variant
        self.quant_conv = nn.Conv2d(mixing, mixing, 1) if use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else nn.Identity()
        self.latent_channels, self.scaling_factor = latent_channels, scaling_factor
        self.factor = 2 ** (len(block_out_channels) - 1)  # pixels per latent, along each side

    def posterior(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch latent h w"], Float[Tensor, "batch latent h w"]]:
        """Mean and standard deviation of q(z | x), a Gaussian for each number (Kingma & Welling 2014, eq. 9)."""
        self.check_size(*images.shape[-2:])
        moments = self.quant_conv(self.encoder(images))
        mean, log_variance = rearrange(moments, "batch (two latent) h w -> two batch latent h w", two=2)
        return mean, torch.exp(0.5 * log_variance.clamp(-30, 20))

    def encode(
        self, images: Float[Tensor, "batch 3 height width"], noise: Float[Tensor, "batch latent h w"] | None = None
    ) -> Float[Tensor, "batch latent h w"]:
        """Latents of images: the posterior's mean, or with ``noise`` ~ N(0, 1) the sample mean + std * noise.

        Both are multiplied by ``scaling_factor``, one over the standard deviation of the training set's latents
        (Rombach et al. 2022, appendix G), because diffusion wants data as large as its noise.
        """
        mean, std = self.posterior(images)
        return self.scaling_factor * (mean if noise is None else mean + std * noise)

    def decode(self, latents: Float[Tensor, "batch latent h w"]) -> Float[Tensor, "batch 3 height width"]:
        """Images of latents; values may lie a little outside [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents / self.scaling_factor))

    def check_size(self, height: int, width: int) -> None:
        """Raise ``ValueError`` if the encoder cannot halve this size often enough."""
        if height % self.factor or width % self.factor or min(height, width) < 1:
            raise ValueError(
                f"Height and width must be multiples of {self.factor}, the pixels per latent; got {height} x {width}."
            )
