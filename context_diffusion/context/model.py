"""ContextDiffusion: the layout of a query image, the style of context images, the meaning of a prompt.

After *Context Diffusion: In-Context Aware Image Generation* (Najdenkoska et al., 2023). The query enters through a
ControlNet (or as the start of image-to-image), the contexts as tokens beside the text's; the pipeline underneath is
a plain one of diffusers.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from ..checkpoints import DEFAULT, Model, find_model, find_part
from ..fusion import FusedPrompt, Source
from ..images import ImageLike, resize
from ..pipelines import as_pipeline, load_pipeline, place
from .contexts import AdapterContexts, ColourContexts, TokenContexts
from .query import Layouts, Plan
from .request import Request, as_text, check_request

Layout = Literal["canny", "depth", "img2img"]


class ContextDiffusion:
    """Query image + context images + prompt -> picture; build one with :meth:`from_pretrained`.

    >>> model = ContextDiffusion.from_pretrained()  # doctest: +SKIP
    >>> image = model("query.png", ["a.png", "b.png"], "a boat", seed=0)  # doctest: +SKIP

    ``pipeline`` is the plain diffusers pipeline: load a LoRA into it, swap its scheduler, read its config.
    """

    def __init__(self, pipeline, model: Model, contexts: TokenContexts | AdapterContexts | ColourContexts):
        self.pipeline, self.model, self.contexts = pipeline, model, contexts
        self.layouts = Layouts(model, pipeline._execution_device, pipeline.unet.dtype)

    @classmethod
    def from_pretrained(
        cls, name: str | Path = DEFAULT, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "ContextDiffusion":
        """Load a model by name (``"tiny-scenes"``, ``"sd15"``, ``"sdxl"``), folder, or repository id.

        Contexts act by tokens where the folder holds a trained ``context_projector``, by IP-Adapter where its weights
        are at hand, and by colour otherwise. Raises as :func:`context_diffusion.load_pipeline` does.
        """
        model = find_model(name)
        pipe = load_pipeline(name, device=device, dtype=dtype)
        if (Path(model.location) / "context_projector").is_dir():
            contexts = TokenContexts.load(model, pipe.device, pipe.unet.dtype)
        elif find_part(model, "ip-adapter"):
            try:
                contexts = AdapterContexts.load(pipe, model)
            except FileNotFoundError as error:
                warnings.warn(f"{error} Until then contexts act by colour alone.", stacklevel=2)
                contexts = ColourContexts()
        else:
            contexts = ColourContexts()
        return cls(pipe, model, contexts)

    def __call__(
        self,
        query_image: ImageLike | None = None,
        context_images: ImageLike | Iterable[ImageLike] = (),
        prompt: str | Source | FusedPrompt | Iterable = "",
        *,
        negative_prompt: str = "",
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

        Each of the three may be missing, not all. The prompt is a text, or sources of one (texts, pictures, the
        weather: see :func:`context_diffusion.fuse_prompts`). Images are paths, PIL images, arrays, tensors, or what
        ``load_image_as_tensor`` returned. ``layout`` says how the query acts: by its ``"canny"`` edges or its
        ``"depth"`` (ControlNet, times ``control_scale``), or as the start of ``"img2img"``; the default is canny where
        such a ControlNet is at hand. ``strength`` in [0, 1]: 1 starts from noise, less from the noised query; less
        than one step of it returns the query as it is. ``weights``: one for each context, scaled to sum 1. Scales and
        steps that are None are the model's own (:data:`context_diffusion.checkpoints.MODELS`). ``num_images`` above 1
        uses ``seed``, ``seed + 1``, ... and returns a list; ``image.info`` holds each seed.
        ``callback_on_step_end(pipe, step, timestep, tensors)`` is diffusers'.

        Raises ``ValueError``, ``TypeError`` or ``FileNotFoundError`` before any step is taken.
        """
        prompt = as_text(prompt, self.pipeline, self.model)
        request = check_request(
            self.pipeline, self.model, query_image, context_images, prompt=prompt, negative_prompt=negative_prompt,
            layout=layout, control_scale=control_scale, weights=weights, strength=strength,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, generator=generator, seed=seed,
            num_images=num_images, height=height, width=width,
        )  # fmt: skip
        if request.returns_query:
            images = [resize(request.query, request.size) for _ in request.seeds]
        else:
            images = self._draw(request, self.layouts.plan(request, self.contexts), callback_on_step_end, progress)
        for image, number in zip(images, request.seeds, strict=True):
            image.info |= {"seed": number, "prompt": prompt, "model": self.model.name}
        return images if num_images > 1 else images[0]

    def _draw(self, request: Request, plan: Plan, callback: Callable | None, progress: bool) -> list[Image.Image]:
        """Run the diffusers pipeline that the plan asks for, built from the parts of ``pipeline``."""
        pipe = as_pipeline(self.pipeline, controlnet=plan.controlnet, image_to_image=plan.start is not None)
        pipe = place(pipe, self.pipeline._execution_device, self.model.vram_gb)
        pipe.set_progress_bar_config(disable=not progress)
        inputs = self.contexts.inputs(pipe, request) | plan.inputs(request)
        if callback is not None:
            inputs["callback_on_step_end"] = _after(inputs.get("callback_on_step_end"), callback)
        return pipe(
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale if request.guided else 1.0,
            num_images_per_prompt=len(request.seeds),
            generator=request.generators,
            **inputs,
        ).images


def _after(own: Callable | None, callback: Callable) -> Callable:
    """Call ``callback`` at the end of a step, on what our own callback, if any, has made of the latents."""

    def both(pipe, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        tensors = tensors | own(pipe, step, timestep, tensors) if own else tensors
        return tensors | (callback(pipe, step, timestep, tensors) or {})

    return both
