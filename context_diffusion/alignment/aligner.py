"""StyleAligned (Hertz et al. 2024): images of one style, by letting each attend to a reference while it is drawn.

>>> with style_aligned(pipe):                                           # the first image of the batch is the reference
...     pipe(["a house, neon style", "a boat, neon style"]).images      # doctest: +SKIP
>>> with style_aligned(pipe, references=ddim_invert(pipe, picture)):    # or pictures of your own, inverted before
...     pipe(["a house", "a boat", "a rocket"]).images                  # doctest: +SKIP

The equations are in :mod:`context_diffusion.alignment.equations`, what is put into the U-Net in
:mod:`context_diffusion.alignment.processors`; this file puts it in, and takes it out again.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..checks import normalized_weights
from .blending import BLENDS, blend_trajectories
from .equations import Moments, adain, mix_moments, moments, shared_attention
from .processors import (
    SharedGroupNorm,
    Sharing,
    StyleAlignedProcessor,
    check_layer,
    choose_layers,
    is_style_aligned,
    self_attentions,
)
from .reference_pass import ReferenceCache, ReferencePass, single_timestep, without_control
from .settings import StyleSettings
from .trajectory import Trajectory

__all__ = [
    "Moments", "ReferenceCache", "StyleAligner", "StyleSettings", "adain", "is_style_aligned", "mix_moments",
    "moments", "shared_attention", "style_aligned",
]  # fmt: skip


@contextmanager
def style_aligned(
    pipe,
    *,
    references: Trajectory | Sequence | None = None,
    weights: Sequence[float] | None = None,
    blend: str = "attention",
    cache: bool | ReferenceCache = False,
    branches: Sequence[str] | None = None,
    settings: StyleSettings | None = None,
    **changes,
) -> Iterator["StyleAligner"]:
    """Align the style of everything that ``pipe`` draws inside the block; leave the pipeline as it was found.

    Without ``references``, the first image of each batch is the reference of the others; no ControlNet steers it
    (``control_reference=True``: as the others). With trajectories (:func:`ddim_invert`), every image is aligned with
    them. Several are combined by ``blend``: "attention" (each keeps its keys and values and enters with the log of
    its weight as score shift), or "slerp" or "linear" (their latents are blended into one and inverted, here).
    ``cache=True`` runs the references once per step for all calls in the block; pass a :class:`ReferenceCache` to
    keep them longer. ``changes`` are fields of :class:`StyleSettings`, such as ``score_shift=math.log(2)``.

    The layout of guidance is asked of the pipeline (or its guider) at each call; ``branches``, such as
    ("uncond", "cond"), overrides it for loops of your own. Raises ``TypeError``, ``ValueError`` or, for nested
    blocks, ``RuntimeError`` before anything is changed.
    """
    if getattr(pipe, "unet", None) is None:
        raise TypeError(f"style_aligned needs a pipeline with a U-Net (SD 1.x, 2.x, SDXL); got {type(pipe).__name__}.")
    if is_style_aligned(pipe.unet):
        raise RuntimeError(
            "This U-Net is in a style_aligned block already; blocks do not nest, so leave that one first."
        )
    trajectory = _one_trajectory(pipe, references, weights, blend)
    if trajectory is None and cache is not False:
        raise ValueError("cache keeps references from outside the batch; pass references=, or leave cache out.")
    aligner = StyleAligner(
        pipe,
        replace(settings or StyleSettings(), **changes),
        trajectory,
        normalized_weights(weights if blend == "attention" else None, 1 if trajectory is None else len(trajectory)),
        ReferenceCache() if cache is True else (None if cache is False else cache),
        tuple(branches) if branches else None,
    )
    try:
        aligner.install()
        yield aligner
    finally:
        aligner.restore()


class StyleAligner:
    """Style alignment of one U-Net: installed by :func:`style_aligned`, which yields it."""

    def __init__(self, pipe, settings: StyleSettings, trajectory, weights, cache, branches):
        self.pipe, self.unet, self.settings = pipe, pipe.unet, settings
        self.references, self.cache, self.branches = trajectory, cache, branches
        scales, shifts = (settings.per_reference(name, len(weights)) for name in ("score_scale", "score_shift"))
        if settings.full_attention and trajectory is None and (set(scales), set(shifts)) != ({1.0}, {0.0}):
            raise ValueError(
                "With full_attention and no references no image is the reference: no scores to scale or shift."
            )
        if settings.control_reference and trajectory is not None:
            raise ValueError("control_reference is about the first image of the batch; references= are never steered.")
        self.sharing = Sharing(
            settings.adain_queries,
            settings.adain_keys,
            settings.adain_values,
            settings.share_attention,
            settings.full_attention,
            torch.tensor(weights),
            scales,
            tuple(s + (math.log(w) if w > 0 else -math.inf) for s, w in zip(shifts, weights, strict=True)),
            row_zero=trajectory is None,
        )
        attentions = self_attentions(self.unet)
        if not attentions:
            raise ValueError("This U-Net has no self-attention layers (named attn1) that could be shared.")
        chosen = choose_layers(list(attentions), settings.layers) if settings.attends else []
        self.attentions = {name: attentions[name] for name in chosen}
        for name, module in self.attentions.items():
            check_layer(name, module)
        everything = self.unet.named_modules() if settings.share_group_norm else ()
        self.norms = {name: module for name, module in everything if isinstance(module, nn.GroupNorm)}
        self.reference_pass = None
        if trajectory is not None:
            layers = (*chosen, *self.norms)
            self.reference_pass = ReferencePass(pipe, trajectory, self.sharing, layers, settings.interpolate, cache)
        self._undo: list = []

    def install(self) -> None:
        """Put processors, norms and the U-Net's forward in place, remembering how to take each out."""
        self.unet._style_aligned = True
        self._undo.append(functools.partial(delattr, self.unet, "_style_aligned"))
        for name, module in self.attentions.items():
            found = module.processor
            self._undo.append(functools.partial(module.set_processor, found))
            module.set_processor(StyleAlignedProcessor(name, found, self.sharing))
        for name, norm in self.norms.items():
            self._replace_forward(norm, SharedGroupNorm(name, norm, norm.forward, self.sharing))
        forward = self.unet.forward
        self._replace_forward(self.unet, functools.wraps(forward)(functools.partial(self._forward, forward)))

    def restore(self) -> None:
        """Put back the very objects that were found, the last change first."""
        while self._undo:
            self._undo.pop()()

    def _replace_forward(self, module: nn.Module, forward) -> None:
        if "forward" in vars(module):  # an offloading hook put it there
            self._undo.append(functools.partial(setattr, module, "forward", module.forward))
        else:
            self._undo.append(functools.partial(delattr, module, "forward"))
        module.forward = forward

    def _forward(self, forward, sample: Tensor, timestep, encoder_hidden_states, *args, **kwargs):
        """The U-Net's forward: first the references at this time step, then the caller's batch, which sees them."""
        for name, module in self.attentions.items():
            if getattr(module.processor, "sharing", None) is not self.sharing:
                raise RuntimeError(
                    f"The processor of {name} was replaced inside the style_aligned block; do it before."
                )
        branches = self._branches()
        if len(sample) % len(branches):
            raise ValueError(
                f"{len(sample)} rows cannot be split into the guidance branches {branches}; pass branches=('cond',) if "
                "the U-Net is called for one branch at a time."
            )
        sharing, alone = self.sharing, len(sample) == len(branches)
        if self._frees_reference():
            kwargs = without_control(kwargs, len(sample), len(branches))
        kept = {}
        active = (self.attentions or self.norms) and self._is_active(timestep) and not (sharing.row_zero and alone)
        if active and self.reference_pass is not None:
            kept = self.reference_pass(forward, sample, timestep, branches, kwargs)
        if active:
            sharing.phase, sharing.branches, sharing.kept = "targets", len(branches), kept
        try:
            return forward(sample, timestep, encoder_hidden_states, *args, **kwargs)
        finally:
            sharing.phase, sharing.kept = "off", {}

    def _branches(self) -> tuple[str, ...]:
        """The guidance branches of this call's rows, in order."""
        if self.branches is not None:
            return self.branches
        guider = getattr(self.pipe, "guider", None)
        if guider is not None:  # modular pipelines call the U-Net once per branch
            return ("cond",) if guider.is_conditional else ("uncond",)
        return ("uncond", "cond") if getattr(self.pipe, "do_classifier_free_guidance", False) else ("cond",)

    def _frees_reference(self) -> bool:
        """Whether image 0 of the batch is a reference that no ControlNet is to steer."""
        steered = self.settings.control_reference or self.settings.full_attention  # then nobody is the reference
        return self.sharing.row_zero and not steered and bool(self.attentions or self.norms)

    def _is_active(self, timestep) -> bool:
        settings = self.settings
        if settings.first_step == 0 and settings.last_step is None:
            return True
        steps = [float(step) for step in self.pipe.scheduler.timesteps]
        time = single_timestep(timestep)
        if time not in steps:
            raise ValueError(
                f"first_step and last_step count the scheduler's time steps, and {time:g} is not one of them."
            )
        last = len(steps) if settings.last_step is None else settings.last_step
        return settings.first_step <= steps.index(time) <= last


def _one_trajectory(pipe, references, weights, blend: str) -> Trajectory | None:
    """All references in one trajectory, checked against the pipeline; blended where that is asked for."""
    if blend != "attention" and blend not in BLENDS:
        raise ValueError(f"blend is 'attention', {', '.join(map(repr, BLENDS))}; got {blend!r}.")
    if references is None:
        if weights is not None or blend != "attention":
            raise ValueError("weights and blend combine references; pass references= as well.")
        return None
    trajectories = [references] if isinstance(references, Trajectory) else list(references)
    wrong = next((each for each in trajectories if not isinstance(each, Trajectory)), None)
    if wrong is not None:
        raise TypeError(f"References are trajectories, as ddim_invert returns them; got {type(wrong).__name__}.")
    trajectory = Trajectory.join(trajectories)
    trajectory.check(pipe)
    normalized_weights(weights, len(trajectory))
    return trajectory if blend == "attention" else blend_trajectories(pipe, [trajectory], weights, blend)
