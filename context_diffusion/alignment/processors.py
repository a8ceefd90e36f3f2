"""What style alignment puts into a U-Net: a processor for each self-attention, a wrapper for each group norm.

Both read one :class:`Sharing`, which says what the U-Net is doing now: nothing special, running the references (whose
keys and values are kept), or running the targets (which see what was kept).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .equations import Features, Moments, Reference, adain, centred_variance, mix_moments, moments, shared_attention
from .settings import StyleSettings

PLAIN = {"AttnProcessor", "AttnProcessor2_0", "FusedAttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor"}

# What a layer keeps of the references, (branches, references, ...): attention its key and value and the moments of its
# query; a group norm its moments.
Kept = tuple[Tensor, ...]


class ReferenceDone(Exception):
    """The references have passed their last shared layer: the rest of the pass would be thrown away."""


@dataclass
class Sharing:
    """What all layers read: the settings, the references' weights (of sum 1), and what the U-Net is doing now.

    With ``row_zero`` the reference is image 0 of each branch, otherwise it is what another pass has kept. A weight
    enters attention as a score shift by its log: weight 0 shifts by -inf.
    """

    settings: StyleSettings
    weights: Float[Tensor, " references"]
    row_zero: bool
    last_layer: str = ""
    phase: Literal["off", "reference", "targets"] = "off"
    branches: int = 1
    kept: dict[str, Kept] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scales, shifts = (
            self.settings.per_reference(name, len(self.weights)) for name in ("score_scale", "score_shift")
        )
        logs = [math.log(weight) if weight > 0 else -math.inf for weight in self.weights.tolist()]
        self.shifts = tuple(shift + log for shift, log in zip(shifts, logs, strict=True))

    def keep(self, layer: str, *tensors: Tensor) -> None:
        """Keep something of the references; end their pass after the last layer."""
        self.kept[layer] = tensors
        if layer == self.last_layer:
            raise ReferenceDone

    def references(self, key: Features, value: Features) -> list[Reference]:
        """Key and value of the references as attention wants them: joined if all count alike, otherwise one by one."""
        if len({*zip(self.scales, self.shifts, strict=True)}) == 1:
            keys, values = (
                rearrange(x, "branches refs tokens channels -> branches (refs tokens) channels") for x in (key, value)
            )
            return [Reference(keys, values, self.scales[0], self.shifts[0])]
        rows = zip(key.unbind(1), value.unbind(1), self.scales, self.shifts, strict=True)
        return [Reference(*row) for row in rows]


class StyleAlignedProcessor:
    """Self-attention with AdaIN and shared keys and values; outside a shared step, the processor it replaced."""

    def __init__(self, layer: str = "", inner=None, sharing: Sharing | None = None):
        if sharing is None:  # diffusers' IP-Adapter loader rebuilds every processor by calling its class
            raise RuntimeError("Load or unload an IP-Adapter outside the style_aligned block, not inside it.")
        self.layer, self.inner, self.sharing = layer, inner, sharing

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args,
        **kwargs,
    ) -> Tensor:
        """Attend as diffusers' processors do: (rows, tokens, channels) in and out."""
        sharing = self.sharing
        if sharing.phase == "off":
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        if attention_mask is not None or encoder_hidden_states is not None:
            raise ValueError(
                "Style alignment shares plain self-attention; this call masks it or gives it other tokens."
            )
        features = rearrange(hidden_states, "(branches images) ... -> branches images ...", branches=sharing.branches)
        query, key, value = (project(features) for project in (attn.to_q, attn.to_k, attn.to_v))
        if sharing.phase == "reference":
            sharing.keep(self.layer, key, value, *moments(query))
            out = shared_attention(query, key, value, heads=attn.heads)
        else:
            out = self._aligned(query, key, value, attn.heads)
        out = attn.to_out[1](attn.to_out[0](rearrange(out, "branches images ... -> (branches images) ...")))
        return (out + hidden_states if attn.residual_connection else out) / attn.rescale_output_factor

    def _aligned(self, query: Features, key: Features, value: Features, heads: int) -> Features:
        """The targets' attention; in row-zero mode image 0 is computed along with them and does not change."""
        sharing, settings = self.sharing, self.sharing.settings
        if settings.full_attention and sharing.row_zero:  # no image is the reference, so nobody's statistics are taken
            return shared_attention(query, key, value, heads=heads, full=True)
        if sharing.row_zero:
            kept_key, kept_value, of_query = key[:, :1], value[:, :1], moments(query[:, :1])
        else:
            kept_key, kept_value, *pair = sharing.kept[self.layer]
            of_query = Moments(*pair)
        references = sharing.references(kept_key, kept_value) if settings.share_attention else []
        if settings.adain_queries:
            query = self._adain(query, of_query)
        if settings.adain_keys:
            key = self._adain(key, moments(kept_key))
        if settings.adain_values:
            value = self._adain(value, moments(kept_value))
        first, full = int(sharing.row_zero), settings.full_attention
        return shared_attention(query, key, value, references, heads=heads, first_target=first, full=full)

    def _adain(self, features: Features, style: Moments) -> Features:
        """AdaIN of the targets, written over the projections just made; skips image 0 if it is the reference."""
        style, first = mix_moments(style, self.sharing.weights), int(self.sharing.row_zero)
        if features.requires_grad:
            return torch.cat([features[:, :first], adain(features[:, first:], style)], dim=1)
        adain(features[:, first:], style, inplace=True)
        return features


class SharedGroupNorm:
    """Group normalization with the moments of the image and of the references, half and half.

    As if the features of the two lay side by side: ``mean = (m + m_r) / 2``, ``var = (v + v_r) / 2 + (m - m_r)^2 / 4``
    for each group, where ``m_r, v_r`` are mixed over the references by their weights.
    """

    def __init__(self, layer: str, norm: nn.GroupNorm, original, sharing: Sharing):
        self.layer, self.norm, self.original, self.sharing = layer, norm, original, sharing

    def __call__(self, features: Float[Tensor, "rows channels *pixels"]) -> Float[Tensor, "rows channels *pixels"]:
        """Normalize (rows, channels, ...) as ``nn.GroupNorm`` does."""
        sharing, norm = self.sharing, self.norm
        if sharing.phase == "off":
            return self.original(features)
        grouped = rearrange(
            features,
            "(branches images) (groups channels) ... -> branches images groups (channels ...)",
            branches=sharing.branches,
            groups=norm.num_groups,
        )
        mean = grouped.mean(dim=-1, keepdim=True, dtype=torch.float32)  # (branches, images, groups, 1)
        centred = grouped - mean.to(features.dtype)
        own = Moments(mean, centred_variance(centred, dim=-1))
        if sharing.phase == "reference":
            sharing.keep(self.layer, *own)
            return self.original(features)
        if sharing.row_zero:
            style = Moments(*(x[:, :1] for x in own))
        else:
            style = mix_moments(Moments(*sharing.kept[self.layer]), sharing.weights)
        var = (own.var + style.var) / 2 + (own.mean - style.mean) ** 2 / 4
        scale = (var + norm.eps).rsqrt()
        moved = centred + ((own.mean - style.mean) / 2).to(features.dtype)  # minus the common mean
        normalized = (moved * scale.to(features.dtype)).view(features.shape)
        if not norm.affine:
            return normalized
        shape = (-1, *[1] * (features.ndim - 2))
        return torch.addcmul(norm.bias.view(shape), normalized, norm.weight.view(shape))


def self_attentions(unet: nn.Module) -> dict[str, nn.Module]:
    """The self-attention layers of a U-Net by name, in the order of depth: down, middle, up."""
    found = {
        name: module
        for name, module in unet.named_modules()
        if name.endswith("attn1") and hasattr(module, "processor") and not module.is_cross_attention
    }
    depth = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return dict(sorted(found.items(), key=lambda item: depth.get(item[0].split(".")[0], 3)))  # stable within blocks


def choose_layers(names: Sequence[str], layers: float | str | Sequence[str]) -> list[str]:
    """A fraction of the layers, evenly spaced, or those whose name contains one of the given words."""
    if isinstance(layers, int | float):
        count = max(1, round(layers * len(names))) if layers > 0 else 0
        return [names[int((i + 0.5) * len(names) / count)] for i in range(count)]
    words = [layers] if isinstance(layers, str) else list(layers)
    unused = [word for word in words if not any(word in name for name in names)]
    if unused:
        raise ValueError(f"No self-attention layer has {unused[0]!r} in its name; they are {', '.join(names)}.")
    return [name for name in names if any(word in name for word in words)]


def check_layer(name: str, module: nn.Module) -> None:
    """Raise ``ValueError`` for a layer that does more than plain self-attention."""
    kind = type(module.processor).__name__
    if kind not in PLAIN:
        raise ValueError(f"Layer {name} already has a processor of its own ({kind}); remove it before aligning styles.")
    extras = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross")
    extra = next((extra for extra in extras if getattr(module, extra, None) is not None), None)
    if extra is not None:
        raise ValueError(
            f"Layer {name} has a {extra}, which style alignment does not support; SD 1.x, 2.x and SDXL have none."
        )


def is_style_aligned(unet: nn.Module) -> bool:
    """Whether a ``style_aligned`` block is open on this U-Net."""
    return getattr(unet, "_style_aligned", False)
