"""Context tokens and statistic tokens: what the U-Net's cross-attention reads about the context images."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from ..checks import LIMITS, check_count, check_flag, shown


class ContextProjector(ModelMixin, ConfigMixin):
    """CLIP's patch tokens and the removed statistics of one or more images, as tokens of the text's width.

    Context Diffusion (Najdenkoska et al. 2023, section 3.2) projects the patch tokens of each context image and
    combines the images before they enter cross-attention behind the text. Here the patches are first pooled to a
    ``grid x grid`` map; and since dynamic normalization took the palette out of what CLIP sees, one more token made of
    the removed mean and standard deviation gives it back.

    Args:
        vision_width: width of CLIP's vision tokens.
        cross_attention_dim: width of the U-Net's cross-attention.
        patches: patches on each side of CLIP's input.
        grid: side of the pooled map; there are ``grid ** 2`` context tokens.
        statistics: whether there is a statistic token.
    """

    @register_to_config
    def __init__(
        self,
        vision_width: int = 128,
        cross_attention_dim: int = 128,
        patches: int = 8,
        grid: int = 4,
        statistics: bool = True,
    ):
        super().__init__()
        numbers = {"vision_width": vision_width, "cross_attention_dim": cross_attention_dim, "grid": grid}
        for name, number in (numbers | {"patches": patches}).items():
            check_count(name, number, LIMITS["channels"])
            if not isinstance(number, int):  # it goes into a file of settings
                raise TypeError(f"{name} is a whole number of Python's own here, not {shown(number)}.")
        check_flag("statistics", statistics)
        if patches % grid:
            raise ValueError(f"grid must divide the number of patches on a side, {patches}; got {grid}.")
        self.norm = nn.LayerNorm(vision_width)
        self.proj = nn.Linear(vision_width, cross_attention_dim)
        self.position = nn.Parameter(0.02 * torch.randn(grid**2, cross_attention_dim))
        if statistics:
            self.statistic = nn.Sequential(
                nn.Linear(6, cross_attention_dim), nn.SiLU(), nn.Linear(cross_attention_dim, cross_attention_dim)
            )

    @property
    def tokens(self) -> int:
        """Number of tokens it makes."""
        return self.config.grid**2 + self.config.statistics

    def pool(self, patch_tokens: Float[Tensor, "*batch patches width"]) -> Float[Tensor, "*batch tokens width"]:
        """Average the patch tokens over the cells of the grid."""
        side, grid = self.config.patches, self.config.grid
        cells = patch_tokens.unflatten(-2, (grid, side // grid, grid, side // grid))
        return cells.mean(dim=(-4, -2)).flatten(-3, -2)

    def forward(
        self,
        pooled: Float[Tensor, "batch images grid width"],
        statistics: Float[Tensor, "batch images 6"],
        weights: Float[Tensor, "batch images"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of each set of context images, averaged over the set with ``weights`` (default: equal).

        Args:
            pooled: patch tokens after :meth:`pool`.
            statistics: mean and standard deviation of red, green, blue in [0, 1], as removed by normalization.
            weights: not negative; normalized here to sum to 1 over the images.
        """
        if weights is None:
            weights = pooled.new_ones(pooled.shape[:2])
        weights = weights / weights.sum(dim=1, keepdim=True)
        tokens = self.proj(self.norm(pooled)) + self.position
        if self.config.statistics:
            tokens = torch.cat([tokens, self.statistic(4 * statistics - 2)[:, :, None]], dim=2)
        return torch.einsum("bn,bntd->btd", weights.to(tokens.dtype), tokens)
