"""ContextDiffusion: the layout of a query image, the style of context images, the meaning of a prompt.

After *Context Diffusion: In-Context Aware Image Generation* (Najdenkoska et al., 2023). The query enters through a
ControlNet (or as the start of image-to-image), the contexts as tokens after the text's; the pipeline underneath is
a plain one of diffusers. Every picture goes one way: the request is checked whole, the query planned, the contexts
encoded, the pipeline called.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from PIL import Image
from tqdm.auto import tqdm

from ..checkpoints import DEFAULT, Fallback, Model, find_model, find_part
from ..checks import LIMITS, check_callback, check_count, check_finite, check_flag, check_list, shown
from ..control import Layout
from ..fusion import FusedPrompt, Source
from ..images import ImageLike, resize
from ..latents import check_pipeline
from ..pipelines import as_pipeline, kept_adapter_scale, load_pipeline, place
from .contexts import (
    AdapterContexts,
    ColourContexts,
    Contexts,
    TokenContexts,
    by_contexts,
    by_pixels,
    check_projector_fits,
    once,
)
from .query import Plan, QueryPlanner
from .request import CheckedRequest, Request, check_request, image_generators

CALLBACK = ("pipe", "step", "timestep", "tensors")  # what diffusers hands to a callback at the end of a step


class ContextDiffusion:
    """Query image + context images + prompt -> picture; build one with :meth:`from_pretrained`.

    >>> model = ContextDiffusion.from_pretrained()  # doctest: +SKIP
    >>> image = model("query.png", ["a.png", "b.png"], "a boat", seed=0)  # doctest: +SKIP

    ``pipeline`` is the plain diffusers pipeline: load a LoRA into it, swap its scheduler, read its config, align the
    style of what it draws (:func:`context_diffusion.style_aligned`). ``model`` is its row of the table of models, and
    ``contexts`` is how context images act.
    """

    def __init__(self, pipeline, model: Model, contexts: Contexts):
        for name, value, kind in (("model", model, Model), ("contexts", contexts, Contexts)):
            if not isinstance(value, kind):
                raise TypeError(f"{name} is a {kind.__name__}, as from_pretrained makes it, not {shown(value)}.")
        check_pipeline(pipeline)
        self.pipeline, self.model, self.contexts = pipeline, model, contexts
        self.planner = QueryPlanner(model, pipeline)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = DEFAULT,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> "ContextDiffusion":
        """Load a model by name (``"tiny-scenes"``, ``"sd15"``, ``"sdxl"``), folder, or repository id.

        Contexts act by tokens where the folder holds a trained ``context_projector``, by IP-Adapter where its weights
        are at hand, and by colour otherwise. ``device`` is the GPU where there is one, ``dtype`` float16 for hub
        models on CUDA and float32 otherwise. Raises as :func:`context_diffusion.load_pipeline` does.
        """
        model = find_model(name)
        if model.transformer:
            raise ValueError(
                f"ContextDiffusion keeps to U-Nets, which have ControlNets for layout and adapters for contexts; draw "
                f"with {shown(model.name)} by cd.load_pipeline and cd.style_aligned."
            )
        pipe = load_pipeline(name, device=device, dtype=dtype)
        contexts: Contexts = ColourContexts()
        if (Path(model.location) / "context_projector").is_dir():
            contexts = TokenContexts.load(model, pipe.device, pipe.unet.dtype)
            check_projector_fits(contexts, pipe.unet, model)
        elif root := find_part(model, "ip-adapter"):
            try:
                contexts = AdapterContexts.load(pipe, root, model.adapter_file)
            except FileNotFoundError as error:
                warnings.warn(f"{error} Until then contexts act by colour alone.", Fallback, stacklevel=2)
        return cls(pipe, model, contexts)

    def __call__(
        self,
        query_image: ImageLike | None = None,
        context_images: ImageLike | Iterable[ImageLike] = (),
        prompt: str | Source | FusedPrompt | Iterable = "",
        *,
        negative_prompt: str | None = "",
        layout: Layout | None = None,
        control_scale: float | None = None,
        weights: Sequence[float] | None = None,
        strength: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | None = None,
        num_images: int = 1,
        height: int | None = None,
        width: int | None = None,
        callback_on_step_end: Callable | None = None,
        progress: bool = True,
    ) -> Image.Image | list[Image.Image]:
        """Draw a picture with the query's layout, the contexts' style, and what the prompt says.

        Args:
            query_image: gives the layout. Images are paths, PIL images, arrays, tensors, or what
                ``load_image_as_tensor`` returned. Query, contexts and prompt may each be missing, but not all.
            context_images: give palette and texture; one or several.
            prompt: a text, or the sources of one (:func:`context_diffusion.fuse_prompts`).
            negative_prompt: what not to draw; ``None`` and "" say nothing.
            layout: how the query acts: by its ``"canny"`` edges or its ``"depth"`` (ControlNet), or as the start of
                ``"img2img"``; by default canny, where such a ControlNet is at hand.
            control_scale: how strongly the ControlNet binds, 0 or more; by default the model's own.
            weights: one for each context, scaled to sum 1; by default equal.
            strength: in [0, 1]: 1 starts from noise, less from the noised query; less than one step of it returns the
                query as it is.
            num_inference_steps: denoising steps; by default the model's own (:data:`checkpoints.MODELS`).
            guidance_scale: of classifier-free guidance; 1 or less is none; by default the model's own.
            generator: one that draws the seeds, or a list with one for each image; instead of ``seed``.
            seed: of the first image; the next ones have ``seed + 1``, ... ``image.info`` holds each image's seed.
            num_images: how many; more than 1 returns a list.
            height: in pixels; by default what the model was trained for. The VAE must be able to halve it.
            width: likewise.
            callback_on_step_end: diffusers' ``callback(pipe, step, timestep, tensors)``.
            progress: show a progress bar.

        Raises ``ValueError``, ``TypeError`` or ``FileNotFoundError`` before any step is taken.
        """
        num_images = check_count("num_images", num_images, LIMITS["num_images"])
        check_callback("callback_on_step_end", callback_on_step_end, *CALLBACK)
        progress = check_flag("progress", progress)
        seeds, drawers = image_generators(seed, generator, num_images)
        request = Request(
            query_image, context_images, prompt, negative_prompt=negative_prompt, layout=layout,
            control_scale=control_scale, weights=weights, strength=strength, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, generator=drawers[0], height=height, width=width,
        )  # fmt: skip
        checked = self._checked(request)
        check_count("width times height times num_images", math.prod(checked.size) * num_images, LIMITS["pixels"])
        requests = [replace(checked, seed=own, generator=of) for own, of in zip(seeds, drawers, strict=True)]
        images = self._draw(requests, callback_on_step_end, progress)
        return images if num_images > 1 else images[0]

    def draw(
        self,
        requests: Request | Iterable[Request],
        *,
        batch_size: int = 16,
        callback_on_step_end: Callable | None = None,
        progress: bool = True,
    ) -> list[Image.Image]:
        """Draw one picture for each of ``requests``; a picture does not depend on the others, beyond rounding.

        Requests that a pipeline can draw together (same size, steps, guidance, layout, ...) are drawn in batches of up
        to ``batch_size``; in a ``style_aligned`` block without references, the first picture of each batch is the
        reference. All are checked before any is drawn; raises as :meth:`__call__` does. ``callback_on_step_end`` and
        ``progress`` are as there.
        """
        batch_size, progress = check_count("batch_size", batch_size), check_flag("progress", progress)
        check_callback("callback_on_step_end", callback_on_step_end, *CALLBACK)
        asked = [requests] if isinstance(requests, Request) else check_list("requests", requests, LIMITS["requests"])
        for each in asked:
            if not isinstance(each, Request):
                raise TypeError(f"draw takes requests, such as cd.Request(prompt='a boat'), not {shown(each)}.")
        drawers = [id(request.generator) for request in asked if request.generator is not None]
        if len(set(drawers)) < len(drawers):
            raise ValueError("Give each request a generator of its own: one that several share depends on their order.")
        checked = [self._checked(request) for request in asked]
        kinds: dict[tuple, list[int]] = {}
        for index, request in enumerate(checked):
            kinds.setdefault((request.kind, self.contexts.kind(request)), []).append(index)
        batches = [of[i : i + batch_size] for of in kinds.values() for i in range(0, len(of), batch_size)]
        drawn: dict[int, Image.Image] = {}
        with tqdm(total=len(checked), desc="drawing", disable=not progress or len(batches) < 2) as bar:
            for batch in batches:
                steps_shown = progress and len(batches) == 1
                images = self._draw([checked[index] for index in batch], callback_on_step_end, steps_shown)
                drawn |= zip(batch, images, strict=True)
                bar.update(len(batch))
        return [drawn[index] for index in range(len(checked))]

    def _checked(self, request: Request) -> CheckedRequest:
        return check_request(request, self.pipeline, self.model, contexts_start=self.contexts.starts)

    def _draw(self, requests: Sequence[CheckedRequest], callback: Callable | None, progress: bool) -> list[Image.Image]:
        """Draw a batch of one kind, in the one place that draws: plan, encode the contexts, run the pipeline."""
        first = requests[0]
        if first.returns_query:
            images = [resize(request.query, request.size) for request in requests if request.query is not None]
        else:
            plans = once(requests, lambda request: (by_pixels(request.query), by_contexts(request)), self._plan)
            image_to_image = plans[0].start is not None
            if image_to_image and int(first.steps * plans[0].strength) < 1:
                return self._labelled([plan.start.copy() for plan in plans if plan.start is not None], requests)
            pipe = as_pipeline(self.pipeline, controlnet=plans[0].controlnet, image_to_image=image_to_image)
            pipe.scheduler = deepcopy(pipe.scheduler)  # it counts steps, and other threads may be drawing
            pipe = place(pipe, self.pipeline._execution_device, self.model.vram_gb)
            pipe.set_progress_bar_config(disable=not progress)
            with kept_adapter_scale(pipe.unet):
                inputs = self.contexts.inputs(pipe, requests) | _pictures(plans, first)
                if callback is not None:
                    inputs["callback_on_step_end"] = _checked_callback(callback)
                    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
                        inputs["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs
                pixels = pipe(
                    num_inference_steps=first.steps,
                    guidance_scale=first.guidance_scale if first.guided else 1.0,
                    generator=[request.generator for request in requests],
                    output_type="np",
                    **inputs,
                ).images
            images = pipe.image_processor.numpy_to_pil(check_finite("A picture", pixels))
        return self._labelled(images, requests)

    def _labelled(self, images: list[Image.Image], requests: Sequence[CheckedRequest]) -> list[Image.Image]:
        for image, request in zip(images, requests, strict=True):
            image.info |= {"seed": request.seed, "prompt": request.prompt, "model": self.model.name}
        return images

    def _plan(self, request: CheckedRequest) -> Plan:
        return self.planner.plan(request, self.contexts.start(request), self.contexts.strength)


def _pictures(plans: Sequence[Plan], request: CheckedRequest) -> dict:
    """The pictures that a batch starts from and follows, and how strongly, as the pipeline of its plans names them."""
    named: dict = {}
    controls, starts = [plan.control for plan in plans], [plan.start for plan in plans]
    if plans[0].controlnet is not None:
        named["controlnet_conditioning_scale"] = float(request.control_scale)
    if plans[0].start is None:
        named["width"], named["height"] = request.size
        return named | ({"image": controls} if plans[0].controlnet is not None else {})
    named |= {"image": starts, "strength": plans[0].strength}
    return named | ({"control_image": controls} if plans[0].controlnet is not None else {})


def _checked_callback(callback: Callable) -> Callable:
    """Refuse what diffusers would stumble over: a callback that returns neither a dictionary nor None."""

    def called(pipe, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        changed = callback(pipe, step, timestep, tensors)
        if not isinstance(changed, dict | None):
            raise TypeError(f"callback_on_step_end returns a dictionary of tensors, or None, not {shown(changed)}.")
        return changed or {}

    return called
