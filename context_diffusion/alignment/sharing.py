"""What the targets take from the references in one layer: keys, values and moments, by the settings and the weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from .equations import (
    Features,
    Mask,
    Moments,
    Reference,
    adain,
    centred_variance,
    mix_moments,
    moments,
    shared_attention,
    swapped_attention,
)
from .hooks import Kept
from .positions import Placement, turned
from .settings import StyleSettings
from .subject import key_scales


@dataclass
class Sharing:
    """The settings and the references' weights (of sum 1), as equations want them.

    With ``row_zero`` the reference is image 0 of each branch, otherwise it is what another pass has kept. A weight
    enters attention as a score shift by its log: weight 0 shifts by -inf. In the layers called ``swapped`` the targets
    attend to the references alone. ``subject`` is where the references' keys are scaled, if anywhere.
    """

    settings: StyleSettings
    weights: Float[Tensor, " references"]
    row_zero: bool
    swapped: Sequence[str] = ()
    subject: Bool[Tensor, "references height width"] | None = None
    _factors: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scales, shifts = (
            self.settings.per_reference(name, len(self.weights)) for name in ("score_scale", "score_shift")
        )
        logs = [math.log(weight) if weight > 0 else -math.inf for weight in self.weights.tolist()]
        self.shifts = tuple(shift + log for shift, log in zip(shifts, logs, strict=True))

    def keep(self, layer: str, query: Features, key: Features, value: Features) -> Kept:
        """What a layer keeps of the references: key, value, the moments of the query, and the query where it is used.

        :meth:`attend` takes it.
        """
        return (key, value, *moments(query), *([query] if self.keeps_query(layer) else []))

    def keeps_query(self, layer: str) -> bool:
        """Whether a layer attends with the references' queries: one that is not swapped, under ``negative_query``."""
        return self.settings.negative_query and layer not in self.swapped

    def references(self, key: Features, value: Features) -> list[Reference]:
        """Key and value of the references as attention wants them: joined if all count alike, otherwise one by one."""
        if self.subject is not None and self.settings.subject_scale is not None:
            tokens = key.shape[2]
            if tokens not in self._factors:
                self._factors[tokens] = key_scales(self.subject, self.settings.subject_scale, tokens)
            key = key * self._factors[tokens].to(key)
        if len({*zip(self.scales, self.shifts, strict=True)}) == 1:
            keys, values = (
                rearrange(x, "branches refs tokens channels -> branches (refs tokens) channels") for x in (key, value)
            )
            return [Reference(keys, values, self.scales[0], self.shifts[0])]
        rows = zip(key.unbind(1), value.unbind(1), self.scales, self.shifts, strict=True)
        return [Reference(*row) for row in rows]

    def attend(
        self,
        layer: str,
        branches: Sequence[str],
        query: Features,
        key: Features,
        value: Features,
        kept: Kept | None,
        heads: int,
    ) -> Features:
        """The targets' attention; in row-zero mode image 0 is computed along with them and does not change.

        ``branches`` are the names of the branches of guidance, the first axis of all tensors.
        """
        if self.settings.full_attention and self.row_zero:  # no image is the reference: nobody's statistics are taken
            return shared_attention(query, key, value, heads=heads, full=True)
        if kept is None:
            kept = self.keep(layer, *(x[:, :1] for x in (query, key, value)))
        if not self.settings.negative_query:
            return self.styled(layer, query, key, value, kept, heads)
        attended = []
        for at, branch in enumerate(branches):
            one = slice(at, at + 1)
            own, theirs = (query[one], key[one], value[one]), tuple(x[one] for x in kept)
            away = branch == "uncond"
            attended.append(self.away(*own, theirs, heads) if away else self.styled(layer, *own, theirs, heads))
        return torch.cat(attended)

    def styled(self, layer: str, query: Features, key: Features, value: Features, kept: Kept, heads: int) -> Features:
        """Attention that takes the references' style: AdaIN, then their keys and values beside or in place of its own.

        Arguments and result are those of :meth:`attend`.
        """
        settings, swap = self.settings, layer in self.swapped
        kept_key, kept_value, of_query = *kept[:2], Moments(*kept[2:4])
        references = self.references(kept_key, kept_value) if settings.share_attention or swap else []
        if settings.adain_queries:
            query = self.adain(query, of_query)
        if settings.adain_keys:
            key = self.adain(key, moments(kept_key))
        if settings.adain_values:
            value = self.adain(value, moments(kept_value))
        first, full = int(self.row_zero), settings.full_attention
        if not swap or all(each.shift == -math.inf for each in references):
            return shared_attention(query, key, value, references, heads=heads, first_target=first, full=full)
        swapped = swapped_attention(query[:, first:], references, heads=heads)
        if not first:
            return swapped
        alone = shared_attention(query[:, :first], key[:, :first], value[:, :first], heads=heads)
        return torch.cat([alone, swapped], dim=1)

    def joint(
        self,
        query: Features,
        key: Features,
        value: Features,
        kept: Kept | None,
        heads: int,
        image: slice,
        placement: Placement | None,
        mask: Mask | None,
    ) -> Features:
        """Joint attention of text and image in a transformer, whose targets also see the references' image tokens.

        ``image`` is where the image's tokens stand. With a ``placement`` the references' keys are put there, and AdaIN
        of queries and keys has been done before they were rotated; without one it is done here.
        """
        settings = self.settings
        if placement is not None and placement.own is not None:
            query, key = (turned(x, placement.own) for x in (query, key))
        if kept is None:
            kept = self.keep("", *(x[:, :1, image] for x in (query, key, value)))
        kept_key, kept_value, of_query = *kept[:2], Moments(*kept[2:4])
        if placement is None and settings.adain_queries:
            query = self.adain_image(query, image, of_query)
        if placement is None and settings.adain_keys:
            key = self.adain_image(key, image, moments(kept_key))
        if settings.adain_values:
            value = self.adain_image(value, image, moments(kept_value))
        if placement is not None:
            kept_key = turned(kept_key, placement.angles, placement.scales)
        references = self.references(kept_key, kept_value) if settings.share_attention else []
        return shared_attention(query, key, value, references, heads=heads, first_target=int(self.row_zero), mask=mask)

    def adain_image(self, features: Features, image: slice, style: Moments) -> Features:
        """AdaIN of the targets' image tokens alone."""
        before, of_image, after = features[:, :, : image.start], features[:, :, image], features[:, :, image.stop :]
        return torch.cat([before, self.adain(of_image.clone(), style), after], dim=2)

    def away(self, query: Features, key: Features, value: Features, kept: Kept, heads: int) -> Features:
        """Attention of the branch that guidance leads away from: the references' queries to the image's own keys.

        Several references give the mean of what their queries find, by the weights. Swapped layers have kept no
        queries, and are left plain. Arguments and result are those of :meth:`attend`.
        """
        if len(kept) == 4:
            return shared_attention(query, key, value, heads=heads)
        found = [
            weight * shared_attention(theirs[:, None].expand_as(query), key, value, heads=heads)
            for weight, theirs in zip(self.weights.tolist(), kept[4].unbind(1), strict=True)
            if weight > 0
        ]
        return sum(found[1:], found[0])

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
    features: Float[Tensor, "rows channels *pixels"],
    own: Moments,
    style: Moments,
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    eps: float,
) -> Float[Tensor, "rows channels *pixels"]:
    """Group normalization with the moments of the image and of the references, half and half.

    As if the features of the two lay side by side: ``mean = (m + m_r) / 2``, ``var = (v + v_r) / 2 + (m - m_r)^2 / 4``.
    """
    mean = (own.mean + style.mean) / 2
    var = (own.var + style.var) / 2 + (own.mean - style.mean) ** 2 / 4
    branches, _, groups, _ = own.mean.shape
    grouped = _grouped(features, groups, branches)
    # centred in the image's own mean first: a nearly constant group would lose precision to cancellation
    moved = (grouped - own.mean.to(features.dtype)) + (own.mean - mean).to(features.dtype)
    normalized = (moved * (var + eps).rsqrt().to(features.dtype)).view(features.shape)
    if weight is None or bias is None:
        return normalized
    shape = (-1, *[1] * (features.ndim - 2))
    return torch.addcmul(bias.view(shape), normalized, weight.view(shape))


def _grouped(features: Tensor, groups: int, branches: int) -> Float[Tensor, "branches images groups members"]:
    return rearrange(
        features,
        "(branches images) (groups channels) ... -> branches images groups (channels ...)",
        branches=branches,
        groups=groups,
    )
