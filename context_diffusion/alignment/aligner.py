"""StyleAligned (Hertz et al. 2024): images of one style, because each attends to a reference while it is drawn.

>>> with style_aligned(pipe):                                           # the first image of the batch is the reference
...     pipe(["a house, neon style", "a boat, neon style"]).images      # doctest: +SKIP
>>> with style_aligned(pipe, references=ddim_invert(pipe, picture)):    # or your own pictures, inverted beforehand
...     pipe(["a house", "a boat", "a rocket"]).images                  # doctest: +SKIP

The equations are in :mod:`context_diffusion.alignment.equations` and what goes into the U-Net is in
:mod:`context_diffusion.alignment.processors`; this file puts it in and takes it out again.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..checks import normalized_weights
from ..guidance import check_branches, guidance_branches, running_call, without_compilation
from .blending import BLENDS, blend_trajectories
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
    """Align the style of everything drawn inside the block with the U-Net of ``pipe``; then restore the U-Net.

    Other pipelines built on that U-Net are aligned too: ``ContextDiffusion``, or what diffusers' ``from_pipe`` returns.

    Without ``references``, the first image of each batch is the reference for the others, and no ControlNet steers it
    unless ``control_reference=True``. With trajectories (:func:`ddim_invert`), every image is aligned with them.
    ``blend`` combines several: "attention" (each keeps its keys and values, and the log of its share of ``weights`` is
    its score shift), or "slerp" or "linear" (their latents are blended into one, which is inverted here).
    ``cache=True`` runs the references once per step for all calls in the block; pass a :class:`ReferenceCache` to keep
    them longer. ``settings`` say what is shared and how strongly, by default :class:`StyleSettings`; ``changes`` are
    fields of it, such as ``score_shift=math.log(2)``.

    The pipeline that is running says how it stacks the branches of guidance and which scheduler it follows. In a loop
    of your own, ``branches`` says it, such as ("uncond", "cond"), and the scheduler is that of ``pipe``. Raises
    ``TypeError``, ``ValueError`` or, for nested blocks, ``RuntimeError`` before anything is changed; a U-Net call
    whose branches are unknown raises ``ValueError``.
    """
    if getattr(pipe, "unet", None) is None:
        raise TypeError(f"style_aligned needs a pipeline with a U-Net (SD 1.x, 2.x, SDXL); got {type(pipe).__name__}.")
    if is_style_aligned(pipe.unet):
        raise RuntimeError(
            "This U-Net is already in a style_aligned block; blocks do not nest, so leave that one first."
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
        check_branches(branches),
    )
    try:
        aligner.install()
        yield aligner
    finally:
        aligner.restore()


class StyleAligner:
    """Style alignment of one U-Net: :func:`style_aligned` installs it and yields it."""

    def __init__(self, pipe, settings: StyleSettings, trajectory, weights, cache, branches):
        self.pipe, self.unet, self.settings = pipe, without_compilation(pipe.unet), settings
        self.references, self.cache, self.branches = trajectory, cache, branches
        if settings.control_reference and trajectory is not None:
            raise ValueError("control_reference is about the first image of the batch; references= are never steered.")
        self.sharing = Sharing(settings, torch.tensor(weights, dtype=torch.float64), row_zero=trajectory is None)
        unscored = (self.sharing.scales, self.sharing.shifts) == ((1.0,), (0.0,))
        if settings.full_attention and trajectory is None and not unscored:
            raise ValueError(
                "With full_attention and no references no image is the reference: no scores to scale or shift."
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
            self.reference_pass = ReferencePass(self.unet, trajectory, self.sharing, (*chosen, *self.norms), cache)
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
        ours = functools.wraps(forward)(functools.partial(self._forward, forward))
        self._replace_forward(self.unet, torch.compiler.disable(ours))  # it looks at the frames of its callers

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
                    f"The processor of {name} was replaced inside the style_aligned block; do it before the block."
                )
        branches, scheduler = self._ask_caller()
        if len(sample) % len(branches):
            raise ValueError(
                f"{len(sample)} rows cannot be split into the guidance branches {branches}; pass branches=('cond',) if "
                "the U-Net is called for one branch at a time."
            )
        sharing, alone = self.sharing, len(sample) == len(branches)
        if self._frees_reference():
            kwargs = without_control(kwargs, len(sample), len(branches))
        kept = {}
        active = (self.attentions or self.norms) and not (sharing.row_zero and alone)
        active = active and self._is_active(timestep, scheduler)
        if active and self.reference_pass is not None:
            kept = self.reference_pass(forward, sample, timestep, branches, scheduler, kwargs)
        if active:
            sharing.phase, sharing.branches, sharing.kept = "targets", len(branches), kept
        try:
            return forward(sample, timestep, encoder_hidden_states, *args, **kwargs)
        finally:
            sharing.phase, sharing.kept = "off", {}

    def _ask_caller(self) -> tuple[tuple[str, ...], object]:
        """The guidance branches of this call's rows, in order, and the scheduler it follows."""
        call = running_call(self.unet)
        pipe = self.pipe if call is None else call.pipe
        if self.references is not None and pipe.scheduler is not self.pipe.scheduler:
            self.references.check(pipe)
        return self.branches or guidance_branches(call), pipe.scheduler

    def _frees_reference(self) -> bool:
        """Whether image 0 of the batch is a reference that no ControlNet is to steer."""
        steered = self.settings.control_reference or self.settings.full_attention  # then no image is the reference
        return self.sharing.row_zero and not steered and bool(self.attentions or self.norms)

    def _is_active(self, timestep, scheduler) -> bool:
        settings = self.settings
        if settings.first_step == 0 and settings.last_step is None:
            return True
        steps = [float(step) for step in scheduler.timesteps]
        time = single_timestep(timestep)
        if time not in steps:
            raise ValueError(
                f"first_step and last_step count the scheduler's time steps, and {time:g} is not one of them."
            )
        last = len(steps) if settings.last_step is None else settings.last_step
        return settings.first_step <= steps.index(time) <= last


def _one_trajectory(pipe, references, weights, blend: str) -> Trajectory | None:
    """All references in one trajectory, checked against the pipeline, and blended if ``blend`` says so."""
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
