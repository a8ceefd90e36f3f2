"""StyleAligned (Hertz et al. 2024): images of one style, because each attends to a reference while it is drawn.

>>> with style_aligned(pipe):                                           # the first image of the batch is the reference
...     pipe(["a house, neon style", "a boat, neon style"]).images      # doctest: +SKIP
>>> with style_aligned(pipe, references=ddim_invert(pipe, picture)):    # or your own pictures, inverted beforehand
...     pipe(["a house", "a boat", "a rocket"]).images                  # doctest: +SKIP

The equations are in :mod:`context_diffusion.alignment.equations`, and how the network is listened to in
:mod:`context_diffusion.alignment.hooks`; this file says what happens in a call, and when.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..checks import normalized_weights
from ..guidance import check_branches, guidance_branches, is_guided, pipeline_call, separate_branch, without_compilation
from ..signatures import checked
from .blending import BLENDS, blend_trajectories
from .equations import Moments, moments
from .hooks import (
    BY_OTHER_MEANS,
    RUNNING,
    Call,
    Hooks,
    Listener,
    as_rows,
    by_branch,
    check_gradients,
    check_layer,
    is_style_aligned,
    running_call,
    without_compiled_code,
)
from .networks import Architecture, Given, architecture_of, by_name, choose_layers, late_layers
from .positions import on_one_frame, placed
from .reference_pass import ReferenceCache, ReferencePass, without_control
from .settings import StyleSettings
from .sharing import Sharing, grouped_moments, shared_group_norm
from .subject import Mask, check_subject, subject_mask
from .trajectory import Trajectory


@contextmanager
@checked
def style_aligned(
    pipe,
    *,
    references: Trajectory | Sequence | None = None,
    weights: Sequence[float] | None = None,
    blend: str = "attention",
    cache: bool | ReferenceCache = False,
    branches: str | Sequence[str] | None = None,
    subject: str | Sequence[str] | Tensor | None = None,
    settings: StyleSettings | None = None,
    **changes,
) -> Iterator["StyleAligner"]:
    """Align the style of all that the network of ``pipe`` draws inside the block, in this thread.

    The network is a U-Net (SD 1.x, 2.x, SDXL) or the transformer of FLUX.1, FLUX.2, SD3, Qwen-Image or Z-Image. Other
    pipelines built on it are aligned too: ``ContextDiffusion``, or what diffusers' ``from_pipe`` returns.

    Without ``references``, the first image of each batch is the reference for the others, and no ControlNet steers it
    unless ``control_reference=True``. With trajectories (:func:`ddim_invert`, :func:`flow_invert` for transformers, and
    :func:`noised_reference` for both), every image is aligned with them.
    ``blend`` combines several: "attention" (each keeps its keys and values, and the log of its share of ``weights`` is
    its score shift), or "slerp" or "linear" (their latents are blended into one, which is inverted here).
    ``cache=True`` runs the references once per step for all calls in the block; pass a :class:`ReferenceCache` to keep
    them longer. ``subject`` is what the references are not to lend, as in Only-Style: a word of their prompts (one for
    all, or one each), whose place :func:`subject_mask` finds, or a mask of it; the keys there are multiplied by
    ``subject_scale``, such as 0.5. ``settings`` say what is shared and how strongly, by default :class:`StyleSettings`;
    ``changes`` are fields of it, such as ``score_shift=math.log(2)``.

    The pipeline that is running says how it stacks the branches of guidance and which scheduler it follows. In a loop
    of your own, ``branches`` says it, such as ("uncond", "cond"), and the scheduler is that of ``pipe``. Raises
    ``TypeError``, ``ValueError`` or, for nested blocks, ``RuntimeError`` before anything is changed; a call of the
    network whose branches are unknown raises ``ValueError``.
    """
    network = without_compilation(getattr(pipe, architecture_of(pipe).part))
    if is_style_aligned(network):
        raise RuntimeError(
            "This network is already in a style_aligned block; blocks do not nest, so leave that one first."
        )
    trajectory = _one_trajectory(pipe, references, weights, blend)
    if trajectory is None and cache is not False:
        raise ValueError("cache keeps references from outside the batch; pass references=, or leave cache out.")
    settings = replace(settings or StyleSettings(), **changes)
    aligner = StyleAligner(
        pipe,
        settings,
        trajectory,
        normalized_weights(weights if blend == "attention" else None, 1 if trajectory is None else len(trajectory)),
        ReferenceCache() if cache is True else (None if cache is False else cache),
        check_branches(branches),
        _one_mask(pipe, trajectory, subject, settings),
    )
    try:
        aligner.install()
        with without_compiled_code():
            yield aligner
    finally:
        aligner.restore()


class StyleAligner:
    """Style alignment of one network: :func:`style_aligned` installs it and yields it."""

    def __init__(self, pipe, settings: StyleSettings, trajectory, weights, cache, branches, subject: Mask | None):
        self.pipe, self.settings, self.references, self.branches = pipe, settings, trajectory, branches
        self.architecture = architecture_of(pipe)
        self.network = without_compilation(getattr(pipe, self.architecture.part))
        self.hooks = Hooks(self.network)
        if settings.control_reference and trajectory is not None:
            raise ValueError("control_reference is about the first image of the batch; references= are never steered.")
        check_settings(settings, self.architecture)
        attentions = self.architecture.layers(self.network)
        if not attentions:
            raise ValueError(f"This {type(self.network).__name__} has no self-attention layers that could be shared.")
        choice = settings.layers
        offered = [name for name in attentions if name.startswith(self.architecture.default)]
        names = offered if isinstance(choice, int | float) and offered else list(attentions)
        chosen = choose_layers(names, choice) if settings.attends else []
        self.attentions = {name: attentions[name] for name in chosen}
        self.rotary = self.architecture.rotary(self.network) if self.architecture.rotary else None
        for name, module in self.attentions.items():
            check_layer(name, module, self.architecture.processors, joint=self.architecture.grid is not None)
        self.sharing = Sharing(
            settings,
            torch.tensor(weights, dtype=torch.float64),
            row_zero=trajectory is None,
            swapped=late_layers(chosen, settings.swap_attention),
            subject=subject,
        )
        unscored = (self.sharing.scales, self.sharing.shifts) == ((1.0,), (0.0,))
        if settings.full_attention and trajectory is None and not unscored:
            raise ValueError(
                "With full_attention and no references no image is the reference: no scores to scale or shift."
            )
        everything = self.network.named_modules() if settings.share_group_norm else ()
        self.norms = {name: module for name, module in everything if isinstance(module, nn.GroupNorm)}
        self.reference_pass = None
        if trajectory is not None:
            layers = (*chosen, *self.norms)
            queries = [name for name in chosen if self.sharing.keeps_query(name)]
            self.reference_pass = ReferencePass(
                self.network, self.architecture, trajectory, layers, cache, tuple(queries)
            )
        self._checked = pipe.scheduler  # the last one that is known to fit the references
        self._found: list[tuple[nn.Module, object, object]] = []  # attention, the processor it had, ours

    def install(self) -> None:
        """Hook into the network; attention that is computed in other ways goes through PyTorch's own meanwhile."""
        from diffusers.models.attention_processor import AttnProcessor2_0

        for module in self.attentions.values():
            if type(module.processor).__name__ in BY_OTHER_MEANS:
                self._found.append((module, module.processor, AttnProcessor2_0()))
                module.set_processor(self._found[-1][2])
        self.hooks.before(self.network, self._begin)
        self.hooks.after(self.network, self._end, always=True)
        for name, module in self.attentions.items():
            self.hooks.before(module, functools.partial(self._enter, name))
            self.hooks.after(module, functools.partial(self._leave, name), always=True)
            if self.rotary:  # the last moment before queries and keys are rotated
                self.hooks.after(module.norm_q, functools.partial(self._align_normed, name, "query"))
                self.hooks.after(module.norm_k, functools.partial(self._align_normed, name, "key"))
        for name, norm in self.norms.items():
            self.hooks.before(norm, functools.partial(self._enter_norm, name))
            self.hooks.after(norm, functools.partial(self._leave, name), always=True)
        self.hooks.open()

    def restore(self) -> None:
        """Take the hooks off, and put back the very processors that were found."""
        self.hooks.close()
        while self._found:
            module, found, ours = self._found.pop()
            if module.processor is ours:
                module.set_processor(found)

    def _begin(self, network: nn.Module, args: tuple, kwargs: dict):
        """Before the network runs: the references at this time step, whose keys and values the call will see."""
        call = RUNNING.get()
        if call is not None and call.phase == "reference":  # the network that the reference pass calls is this one
            return None
        if call is not None:
            call.abandon()
        check_gradients(network)
        given = by_name(network, args, kwargs)
        sample = given[self.architecture.sample]
        branches, scheduler = self._ask_caller(given)
        if len(sample) % len(branches):
            raise ValueError(
                f"{len(sample)} rows cannot be split into the guidance branches {branches}; pass branches=('cond',) if "
                "the network is called for one branch at a time."
            )
        if self._frees_reference():
            kwargs = without_control(kwargs, self.architecture.residuals, len(sample), len(branches))
        call = Call(tuple(branches))
        RUNNING.set(call)
        time = self.architecture.scheduler_time(given, scheduler)
        alone = self.sharing.row_zero and len(sample) == len(branches)
        if (self.attentions or self.norms) and not alone and self._is_active(time, scheduler):
            if self.reference_pass is not None:
                call.kept = self.reference_pass(call, given, time, branches, scheduler, self.settings.interpolate)
            self._place(call, given, time, scheduler)
            call.phase = "targets"
        return args, kwargs

    def _place(self, call: Call, given: Given, time: float, scheduler) -> None:
        """Where the images' tokens are in a transformer's sequence, and where the references' are to be."""
        if self.architecture.grid is None:
            return
        of_reference, their_frames = call.grid, call.frames  # those of the pass before; in row-zero mode there was none
        call.grid = self.architecture.grid(self.network, given)
        call.frames = self.architecture.begins(given, call.branches)
        if self.rotary:
            steps = [float(step) for step in scheduler.timesteps]
            done = steps.index(time) / max(1, len(steps) - 1) if time in steps else 0.0
            grids = call.grid, of_reference or call.grid
            call.placement = placed(self.rotary, self.settings, *grids, self.architecture.centred, done)
            if call.frames is not None:
                theirs = call.frames[:, :1] if their_frames is None else their_frames
                call.placement = on_one_frame(call.placement, self.rotary, call.frames, theirs)

    def _end(self, network: nn.Module, args: tuple, output) -> None:
        call = RUNNING.get()
        if call is not None and call.phase != "reference":
            call.abandon()
            RUNNING.set(None)

    def _enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before an attention layer: catch its attention from now on."""
        call = running_call()
        if call.phase == "plain":
            return
        if type(module.processor).__name__ not in self.architecture.processors:
            raise RuntimeError(
                f"The processor of {name} was replaced inside the style_aligned block by one whose attention is not "
                f"seen ({type(module.processor).__name__}); do it before the block."
            )
        call.listen(Listener(module, F.scaled_dot_product_attention, functools.partial(self._attend, call, name)))

    def _enter_norm(self, name: str, norm: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before a group norm: catch its normalization."""
        call = running_call()
        if call.phase != "plain":
            call.listen(Listener(norm, F.group_norm, functools.partial(self._normalize, call, name)))

    def _leave(self, name: str, module: nn.Module, args: tuple, output) -> None:
        """After an attention layer or a group norm, also if it has raised."""
        call = RUNNING.get()
        if call is None or not call.listeners:
            return
        listener = call.listeners.pop()
        listener.__exit__()
        if output is not None and not listener.met:
            raise RuntimeError(
                f"{name} was not computed by PyTorch's {listener.function.__name__}, so it could not be shared; choose "
                "the native attention backend (network.set_attention_backend('native'))."
            )

    def _attend(
        self, call: Call, name: str, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **how
    ) -> Tensor:
        """A layer's attention, (rows, heads, tokens, dim): kept if it is the references', aligned if the targets'."""
        plain = {setting: value for setting, value in how.items() if value}
        if plain:
            raise ValueError(f"Style alignment shares plain attention; {name} attends with {plain}.")
        q, k, v = (by_branch(rows, call.branches) for rows in (query, key, value))
        image = self.architecture.image_tokens(call.grid, q.shape[2])
        if call.phase == "reference":
            call.keep(name, *self.sharing.keep(name, *(x[:, :, image] for x in (q, k, v))))
            return F.scaled_dot_product_attention(query, key, value, attn_mask)
        kept = None if self.sharing.row_zero else call.kept[name]
        heads = query.shape[1]
        if call.grid is not None:
            aligned = self.sharing.joint(q, k, v, kept, heads, image, call.placement, attn_mask)
        elif attn_mask is not None:
            raise ValueError("Style alignment shares plain self-attention; this call masks it.")
        else:
            aligned = self.sharing.attend(name, call.names, q, k, v, kept, heads)
        return as_rows(aligned, heads)

    def _align_normed(self, name: str, which: str, norm: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """After a norm of queries or keys, (rows, tokens, heads, dim), and before they are rotated: AdaIN."""
        call, settings = running_call(), self.settings
        if call.phase == "plain":
            return None
        features = rearrange(
            output, "(branches images) tokens heads dim -> branches images tokens (heads dim)", branches=call.branches
        )
        image = self.architecture.image_tokens(call.grid, features.shape[2])
        if call.phase == "reference":
            call.keep(f"{name}.{which}", *moments(features[:, :, image]))
            return None
        if not (settings.adain_queries if which == "query" else settings.adain_keys):
            return None
        of_first = moments(features[:, :1, image]) if self.sharing.row_zero else Moments(*call.kept[f"{name}.{which}"])
        return self.sharing.adain_image(features, image, of_first).view(output.shape)

    def _normalize(
        self, call: Call, name: str, features: Tensor, groups: int, weight=None, bias=None, eps: float = 1e-5
    ) -> Tensor:
        """A group norm with the references' moments mixed in."""
        own = grouped_moments(features, groups, call.branches)
        if call.phase == "reference":
            call.keep(name, *own)
            return F.group_norm(features, groups, weight, bias, eps)
        kept = None if self.sharing.row_zero else call.kept[name]
        return shared_group_norm(features, own, self.sharing.style_of(own, kept), weight, bias, eps)

    def _ask_caller(self, given: Given) -> tuple[tuple[str, ...], object]:
        """The guidance branches of this call's rows, in order, and the scheduler it follows."""
        call = pipeline_call(self.network)
        pipe = self.pipe if call is None else call.pipe
        if self.references is not None and pipe.scheduler is not self._checked:
            self.references.check(pipe)
            self._checked = pipe.scheduler
        if self.branches is not None:
            branches = self.branches
        elif self.architecture.separate:
            branches = (separate_branch(self.network, given.get("encoder_hidden_states")),)
        else:  # SD3 guides away from a network without some of its layers, in a call of its own
            branches = ("cond",) if given.get("skip_layers") is not None else guidance_branches(call)
        if self.settings.negative_query:
            self._check_negative(is_guided(call, branches), given[self.architecture.sample])
        return branches, pipe.scheduler

    def _check_negative(self, guided: bool, sample: Tensor) -> None:
        if not guided:
            raise ValueError(
                "negative_query changes the branch of guidance without the prompt, and this call has none; draw with a "
                "guidance_scale above 1."
            )
        if self.references is not None and self.references.latents.shape[-2:] != sample.shape[-2:]:
            raise ValueError(
                f"negative_query puts the reference's queries in the place of the image's own, so both have one size; "
                f"their latents are {tuple(self.references.latents.shape[-2:])} and {tuple(sample.shape[-2:])}."
            )

    def _frees_reference(self) -> bool:
        """Whether image 0 of the batch is a reference that no ControlNet is to steer."""
        steered = self.settings.control_reference or self.settings.full_attention  # then no image is the reference
        return self.sharing.row_zero and not steered and bool(self.attentions or self.norms)

    def _is_active(self, time: float, scheduler) -> bool:
        settings = self.settings
        if settings.first_step == 0 and settings.last_step is None:
            return True
        steps = [float(step) for step in scheduler.timesteps]
        if time not in steps:
            raise ValueError(
                f"first_step and last_step count the scheduler's time steps, and {time:g} is not one of them."
            )
        last = len(steps) if settings.last_step is None else settings.last_step
        return settings.first_step <= steps.index(time) <= last


def check_settings(settings: StyleSettings, architecture: Architecture) -> None:
    """Raise ``ValueError`` for settings that would do nothing, or something else, in this kind of network."""
    if architecture.rotary is None and settings.placement is not None:
        raise ValueError(
            "placement is about rotary positions, which FLUX, Qwen-Image and Z-Image have; this network has none."
        )
    if architecture.grid is None:
        return
    for name in ("full_attention", "share_group_norm", "negative_query", "swap_attention"):
        if getattr(settings, name):
            raise ValueError(
                f"{name} is for U-Nets: in a transformer, attention holds text too, and no group norms are."
            )
    if settings.subject_scale is not None:
        raise ValueError("subject is for U-Nets, whose cross-attention says where the subject is.")


def _one_mask(pipe, trajectory: Trajectory | None, subject, settings: StyleSettings) -> Mask | None:
    """The mask of the references' subject; raises ``ValueError`` where nothing would come of it."""
    if (subject is None) != (settings.subject_scale is None):
        raise ValueError(
            "subject says what the references are not to lend, and subject_scale how strongly their keys there count "
            "(0.5, say; 1 leaves them): pass both."
        )
    if subject is None:
        return None
    if trajectory is None or not (settings.share_attention or settings.swaps):
        raise ValueError("subject is about keys of references=, where attention is shared; pass references as well.")
    return (
        check_subject(subject, trajectory) if isinstance(subject, Tensor) else subject_mask(pipe, trajectory, subject)
    )


def _one_trajectory(pipe, references, weights, blend: str) -> Trajectory | None:
    """All references in one trajectory, checked against the pipeline, and blended if ``blend`` says so."""
    if blend != "attention" and blend not in BLENDS:
        raise ValueError(f"blend is 'attention', {', '.join(map(repr, BLENDS))}; got {blend!r}.")
    if references is None:
        if weights is not None or blend != "attention":
            raise ValueError("weights and blend combine references; pass references= as well.")
        return None
    trajectory = Trajectory.join([references] if isinstance(references, Trajectory) else references)
    trajectory.check(pipe)
    normalized_weights(weights, len(trajectory))
    return trajectory if blend == "attention" else blend_trajectories(pipe, [trajectory], weights, blend)
