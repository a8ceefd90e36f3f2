"""The convolutional blocks that make up both the autoencoder and the U-Net."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + f(x), where f is (normalize, SiLU, convolve) twice, normalizing first (He et al. 2016b, fig. 4e).

    In the U-Net the time is added between the two convolutions, one number per channel (Ho et al. 2020, appendix B).
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, eps: float, time_width: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if time_width is not None:
            self.time_projection = nn.Linear(time_width, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], time: Float[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch out height width"]:
        h = self.conv1(F.silu(self.norm1(x)))
        if time is not None:
            h = h + self.time_projection(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class Downsample(nn.Module):
    """Halve height and width with a convolution of stride 2.

    The U-Net pads all four sides, the autoencoder only the right and the bottom. They were trained that way, and it
    shows if the two are swapped.
    """

    def __init__(self, channels: int, all_sides: bool):
        super().__init__()
        self.pad = (1, 1, 1, 1) if all_sides else (0, 1, 0, 1)
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels half1 half2"]:
        return self.conv(F.pad(x, self.pad))


class Upsample(nn.Module):
    """Repeat pixels up to ``size`` (by default twice the height and width), then smooth with a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], size: tuple[int, ...] | None = None
    ) -> Float[Tensor, "batch channels twice1 twice2"]:
        size = size or (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=tuple(size), mode="nearest"))
