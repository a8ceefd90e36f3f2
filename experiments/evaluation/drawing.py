"""Many pictures to a batch, each the one that the model would have drawn alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from tqdm.auto import tqdm

from context_diffusion.context.contexts import HeldColour
from context_diffusion.context.model import ContextDiffusion
from context_diffusion.context.request import Request, check_request
from context_diffusion.metrics.inputs import batched
from context_diffusion.pipelines import as_pipeline

STEPS = 25


@dataclass(frozen=True)
class Order:
    """One picture to draw; the fields are arguments of ``ContextDiffusion``."""

    prompt: str = ""
    contexts: tuple[Image.Image, ...] = ()
    query: Image.Image | None = None
    layout: str | None = None  # "canny" or "depth", where there is a query
    seed: int = 0

    @property
    def kind(self) -> tuple[bool, bool, str | None]:
        """What pictures of one batch have in common: guidance, context tokens, the ControlNet."""
        return bool(self.prompt or self.contexts), bool(self.contexts), self.layout if self.query else None


def draw(
    model: ContextDiffusion,
    orders: Sequence[Order],
    *,
    steps: int = STEPS,
    batch_size: int = 16,
    label: str | None = "",
) -> list[Image.Image]:
    """Draw every order with its own seed; the result does not depend on ``batch_size`` (beyond rounding)."""
    kinds: dict[tuple, list[int]] = {}
    for index, order in enumerate(orders):
        if order.query is not None and order.layout not in ("canny", "depth"):
            raise ValueError(f"A query acts by layout='canny' or 'depth' here, not {order.layout!r}.")
        kinds.setdefault(order.kind, []).append(index)
    drawn: dict[int, Image.Image] = {}
    with tqdm(total=len(orders), desc=label or "drawing", mininterval=2, disable=label is None) as bar:
        for indices in kinds.values():
            for chunk in batched(indices, batch_size):
                drawn |= zip(chunk, _draw_batch(model, [orders[i] for i in chunk], steps), strict=True)
                bar.update(len(chunk))
    return [drawn[index] for index in range(len(orders))]


def _draw_batch(model: ContextDiffusion, orders: Sequence[Order], steps: int) -> list[Image.Image]:
    """Draw orders of one kind: what the model would pass to diffusers for each of them, joined."""
    requests = [_request(model, order, steps) for order in orders]
    plans = [model.layouts.plan(request, model.contexts) for request in requests]
    pipe = as_pipeline(model.pipeline, controlnet=plans[0].controlnet)
    pipe.set_progress_bar_config(disable=True)
    inputs = [model.contexts.inputs(pipe, r) | plan.inputs(r) for r, plan in zip(requests, plans, strict=True)]
    return pipe(
        num_inference_steps=steps,
        guidance_scale=requests[0].guidance_scale if requests[0].guided else 1.0,
        generator=[generator for request in requests for generator in request.generators],
        **_joined(inputs),
    ).images


def _request(model: ContextDiffusion, order: Order, steps: int) -> Request:
    return check_request(
        model.pipeline, model.model, order.query, list(order.contexts), prompt=order.prompt, negative_prompt="",
        layout=order.layout, control_scale=None, weights=None, strength=None, num_inference_steps=steps,
        guidance_scale=None, generator=None, seed=order.seed, num_images=1, height=None, width=None,
    )  # fmt: skip


def _joined(inputs: Sequence[dict]) -> dict:
    """Tensors one below the other, control maps in a list, colours together; sizes and scales are the same for all."""
    joined = dict(inputs[0])
    for key, first in inputs[0].items():
        if isinstance(first, torch.Tensor):
            joined[key] = torch.cat([each[key] for each in inputs])
        elif isinstance(first, Image.Image):
            joined[key] = [each[key] for each in inputs]
        elif isinstance(first, HeldColour):
            joined[key] = HeldColour(torch.cat([each[key].mean for each in inputs]), first.hidden)
    return joined
