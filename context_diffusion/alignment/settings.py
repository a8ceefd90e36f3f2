"""The settings of style alignment."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..checks import LIMITS, check_count
from ..signatures import check_fields, checked


@dataclass(frozen=True)
class StyleSettings:
    """What is shared with the reference, how strongly, in which layers and at which steps.

    Queries, keys and values take on the reference's moments where ``adain_queries``, ``adain_keys`` and
    ``adain_values`` say so; ``share_attention`` lets every image attend to the reference, and ``share_group_norm``
    shares the statistics of group norms. ``score_scale`` multiplies the scores of the reference's keys and
    ``score_shift`` is added to them (``math.log(2)`` makes each of its tokens count twice): one number, or one per
    reference. ``full_attention`` lets all images see each other. ``layers`` is a fraction of the self-attention layers,
    evenly spaced (the paper tries 1, 0.5 and 0.1), or words from their names, such as "up_blocks". Steps are counted
    from 0 over the whole schedule, from ``first_step`` to ``last_step``, both included. ``interpolate`` allows sampling
    at time steps between those of the reference's trajectory. Layer norms are not shared: they act on one token at a
    time, so sharing them would change nothing. ``control_reference=True`` lets a ControlNet steer a reference that is
    the first image of its batch; otherwise its residuals are zero there at every step, as in the StyleAligned authors'
    code. A reference from outside the batch is never steered.

    ``swap_attention`` names the layers in which a target attends to the references instead of itself: the last fraction
    of the shared layers, in the order in which they run, or words from their names. With ``negative_query`` the branch
    of guidance without the prompt takes no style; in the layers that are not swapped its images attend with the
    reference's queries to their own keys and values, so that guidance leads away from the reference's layout.
    :meth:`nvqg` sets both as their authors do. ``subject_scale`` multiplies those keys of the references that lie
    inside the subject named to ``style_aligned``; 1 leaves them, ``None`` belongs to no subject.

    ``placement`` is for transformers with rotary positions, and says where the reference lies: "beside" the picture
    (AlignedGen; what ``None`` means there), on the "same" places, or there with "untwisted" keys, whose highest and
    lowest frequencies are scaled by ``untwist_high`` and ``untwist_low``, each from the first step to the last
    (Untwisting RoPE). Wherever it lies, ``score_scale=1`` keeps it as loud as on the same places.
    """

    adain_queries: bool = True
    adain_keys: bool = True
    adain_values: bool = False
    share_attention: bool = True
    full_attention: bool = False
    share_group_norm: bool = False
    score_scale: float | Sequence[float] = 1.0
    score_shift: float | Sequence[float] = 0.0
    layers: float | str | Sequence[str] = 1.0
    first_step: int = 0
    last_step: int | None = None
    interpolate: bool = False
    control_reference: bool = False
    swap_attention: float | str | Sequence[str] = 0.0
    negative_query: bool = False
    subject_scale: float | None = None
    placement: str | None = None
    untwist_high: tuple[float, float] = (0.25, 0.75)
    untwist_low: tuple[float, float] = (1.0, 1.4)

    @classmethod
    def nvqg(cls, **changes) -> "StyleSettings":
        """Settings of visual style prompting with negative visual query guidance (Jeong et al. 2025, StyleKeeper).

        ``eps = (1 + w) eps(Q, K_r, V_r) - w eps(Q_r, K, V)``: with the prompt, the references' keys and values stand in
        for the image's own in the last sixth of the layers, which is the last third of the up blocks in SD 1.5 and
        SDXL; without it, their queries do in all other layers. ``changes`` are fields of the settings.
        """
        theirs = {"adain_queries": False, "adain_keys": False, "share_attention": False}
        return cls(**{**theirs, "swap_attention": 1 / 6, "negative_query": True, **changes})

    def __post_init__(self) -> None:
        check_fields(self, *(self.__dataclass_fields__.keys() - {"score_shift"}))  # -inf is a shift: not shared
        if isinstance(self.layers, int | float) and not 0 <= self.layers <= 1:
            raise ValueError(f"layers is a fraction from 0 to 1, or words from layer names; got {self.layers}.")
        if isinstance(self.swap_attention, int | float) and not 0 <= self.swap_attention <= 1:
            raise ValueError(
                f"swap_attention is a fraction from 0 to 1, or words from layer names; got {self.swap_attention}."
            )
        if self.full_attention and (self.swaps or self.negative_query):
            raise ValueError(
                "full_attention lets all images see each other, so none is the reference whose attention would be "
                "swapped in; leave it out with swap_attention or negative_query."
            )
        if self.placement not in (None, "beside", "same", "untwisted"):
            raise ValueError(f"placement is 'beside', 'same' or 'untwisted'; got {self.placement!r}.")
        if self.subject_scale is not None and not 0 <= self.subject_scale < math.inf:
            raise ValueError(f"subject_scale multiplies keys, by 0 or more; got {self.subject_scale}.")
        if self.first_step < 0 or (self.last_step is not None and self.last_step < self.first_step):
            raise ValueError(
                f"Steps run from first_step (0 or more) to last_step; got {self.first_step} to {self.last_step}."
            )

    @property
    def attends(self) -> bool:
        """Whether self-attention layers are changed at all."""
        adain = self.adain_queries or self.adain_keys or self.adain_values
        shares = self.share_attention or self.full_attention or self.swaps or self.negative_query
        return (adain or shares) and self.layers != 0

    @property
    def swaps(self) -> bool:
        """Whether any layer attends to the references alone."""
        return bool(self.swap_attention)

    @checked
    def per_reference(self, name: Literal["score_scale", "score_shift"], count: int) -> tuple[float, ...]:
        """The setting called ``name`` (``score_scale`` or ``score_shift``) of each of ``count`` references."""
        check_count("count", count, LIMITS["references"])
        value = getattr(self, name)
        values = (float(value),) * count if isinstance(value, int | float) else tuple(float(each) for each in value)
        if len(values) != count:
            raise ValueError(f"{name} is one number or one per reference; got {len(values)} for {count} references.")
        for each in values:
            if math.isnan(each) or each == math.inf or (name == "score_scale" and math.isinf(each)):
                raise ValueError(f"{name} is a finite number (a shift may be -inf: not shared); got {each}.")
        return values
