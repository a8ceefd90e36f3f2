"""What the targets take from the references in one layer: keys, values and moments, by the settings and the weights."""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .equations import Features, Moments, Reference, adain, centred_variance, mix_moments, moments, shared_attention
from .hooks import Kept
from .settings import StyleSettings


@dataclass
class Sharing:
    """The settings and the references' weights (of sum 1), as equations want them.

    With ``row_zero`` the reference is image 0 of each branch, otherwise it is what another pass has kept. A weight
    enters attention as a score shift by its log: weight 0 shifts by -inf.
    """

    settings: StyleSettings
    weights: Float[Tensor, " references"]
    row_zero: bool

    def __post_init__(self) -> None:
        self.scales, shifts = (
            self.settings.per_reference(name, len(self.weights)) for name in ("score_scale", "score_shift")
        )
        logs = [math.log(weight) if weight > 0 else -math.inf for weight in self.weights.tolist()]
        self.shifts = tuple(shift + log for shift, log in zip(shifts, logs, strict=True))

    def references(self, key: Features, value: Features) -> list[Reference]:
        """Key and value of the references as attention wants them: joined if all count alike, otherwise one by one."""
        if len({*zip(self.scales, self.shifts, strict=True)}) == 1:
            keys, values = (
                rearrange(x, "branches refs tokens channels -> branches (refs tokens) channels") for x in (key, value)
            )
            return [Reference(keys, values, self.scales[0], self.shifts[0])]
        rows = zip(key.unbind(1), value.unbind(1), self.scales, self.shifts, strict=True)
        return [Reference(*row) for row in rows]

    def attend(self, query: Features, key: Features, value: Features, kept: Kept | None, heads: int) -> Features:
        """The targets' attention; in row-zero mode image 0 is computed along with them and does not change."""
        settings = self.settings
        if settings.full_attention and self.row_zero:  # no image is the reference, so nobody's statistics are taken
            return shared_attention(query, key, value, heads=heads, full=True)
        if kept is None:
            kept_key, kept_value, of_query = key[:, :1], value[:, :1], moments(query[:, :1])
        else:
            kept_key, kept_value, *pair = kept
            of_query = Moments(*pair)
        references = self.references(kept_key, kept_value) if settings.share_attention else []
        if settings.adain_queries:
            query = self.adain(query, of_query)
        if settings.adain_keys:
            key = self.adain(key, moments(kept_key))
        if settings.adain_values:
            value = self.adain(value, moments(kept_value))
        first, full = int(self.row_zero), settings.full_attention
        return shared_attention(query, key, value, references, heads=heads, first_target=first, full=full)

    def adain(self, features: Features, style: Moments) -> Features:
        """AdaIN of the targets, written over the projections just made; skips image 0 if it is the reference."""
        style, first = mix_moments(style, self.weights), int(self.row_zero)
        if features.requires_grad:
            return torch.cat([features[:, :first], adain(features[:, first:], style)], dim=1)
        adain(features[:, first:], style, inplace=True)
        return features

    def style_of(self, own: Moments, kept: Kept | None) -> Moments:
        """The references' moments in a group norm: image 0's, or what was kept, mixed by the weights."""
        if kept is None:
            return Moments(*(x[:, :1] for x in own))
        return mix_moments(Moments(*kept), self.weights)


def grouped_moments(features: Float[Tensor, "rows channels *pixels"], groups: int, branches: int) -> Moments:
    """The moments of each group of channels over its channels and pixels, (branches, images, groups, 1)."""
    grouped = _grouped(features, groups, branches)
    mean = grouped.mean(dim=-1, keepdim=True, dtype=torch.float32)
    return Moments(mean, centred_variance(grouped - mean.to(features.dtype), dim=-1))


def shared_group_norm(
    features: Float[Tensor, "rows channels *pixels"], norm: nn.GroupNorm, own: Moments, style: Moments
) -> Float[Tensor, "rows channels *pixels"]:
    """Group normalization with the moments of the image and of the references, half and half.

    As if the features of the two lay side by side: ``mean = (m + m_r) / 2``, ``var = (v + v_r) / 2 + (m - m_r)^2 / 4``.
    """
    mean = (own.mean + style.mean) / 2
    var = (own.var + style.var) / 2 + (own.mean - style.mean) ** 2 / 4
    grouped = _grouped(features, norm.num_groups, len(own.mean))
    # centred in the image's own mean first: a nearly constant group would lose precision to cancellation
    moved = (grouped - own.mean.to(features.dtype)) + (own.mean - mean).to(features.dtype)
    normalized = (moved * (var + norm.eps).rsqrt().to(features.dtype)).view(features.shape)
    if not norm.affine:
        return normalized
    shape = (-1, *[1] * (features.ndim - 2))
    return torch.addcmul(norm.bias.view(shape), normalized, norm.weight.view(shape))


def _grouped(features: Tensor, groups: int, branches: int) -> Float[Tensor, "branches images groups members"]:
    return rearrange(
        features,
        "(branches images) (groups channels) ... -> branches images groups (channels ...)",
        branches=branches,
        groups=groups,
    )
