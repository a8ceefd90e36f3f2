"""Checking what a caller asks for before any work starts, and one seed for each image."""

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..checkpoints import DEFAULT, Model
from ..checks import check_count, check_number, normalized_weights
from ..fusion import FusedPrompt, Source, fuse_prompts
from ..images import load_image
from ..latents import picture_size


@dataclass(frozen=True)
class Request:
    """What a caller asked for, checked and read: nothing in it can fail any more."""

    query: Image.Image | None
    contexts: list[Image.Image]
    weights: tuple[float, ...]  # one for each context, of sum 1
    prompt: str
    negative_prompt: str
    layout: str | None
    control_scale: float
    strength: float | None
    steps: int
    guidance_scale: float
    seeds: list[int | None]  # one for each image asked for
    generators: list[torch.Generator]
    size: tuple[int, int]  # width, height

    @property
    def guided(self) -> bool:
        """Say whether classifier-free guidance has anything to do: there is a condition and it is to be exceeded."""
        return self.guidance_scale > 1 and bool(self.prompt or self.negative_prompt or self.contexts)

    @property
    def returns_query(self) -> bool:
        """Say whether the strength amounts to no step at all."""
        return self.query is not None and self.strength is not None and int(self.steps * self.strength) < 1


def check_request(
    pipe, model: Model, query_image, context_images, *, control_scale, weights, num_inference_steps, guidance_scale,
    generator, seed, num_images, height, width, **asked,
) -> Request:  # fmt: skip
    """Read the images and check every argument of ``ContextDiffusion.__call__``; raise what teaches."""
    contexts = [load_image(image) for image in as_list(context_images)]
    query = None if query_image is None else load_image(query_image)
    if query is None and not contexts and not asked["prompt"].strip():
        raise ValueError("Give at least one of query_image, context_images and prompt.")
    check_count("num_images", num_images)
    if asked["strength"] is not None:
        check_number("strength", asked["strength"], 0, 1)
    seeds = image_seeds(seed, generator, num_images)
    request = Request(
        query,
        contexts,
        normalized_weights(weights, len(contexts), "context image") if contexts or weights is not None else (),
        steps=check_count(
            "num_inference_steps",
            model.steps if num_inference_steps is None else num_inference_steps,
            pipe.scheduler.config.num_train_timesteps,
        ),
        control_scale=check_number("control_scale", model.control_scale if control_scale is None else control_scale, 0),
        guidance_scale=check_number(
            "guidance_scale", model.guidance_scale if guidance_scale is None else guidance_scale, 0
        ),
        seeds=seeds,
        generators=image_generators(seeds, generator),
        size=picture_size(pipe, width, height),
        **asked,
    )
    warn_if_cut(request.prompt, pipe.tokenizer, "prompt")
    warn_if_cut(request.negative_prompt, pipe.tokenizer, "negative prompt")
    return request


def as_list(images: object) -> list:
    """Make a list of one image, of a batch, or of any iterable of images."""
    if images is None:
        return []
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return list(images) if images.ndim == 4 else [images]
    single = isinstance(images, (str, os.PathLike, Image.Image)) or not isinstance(images, Iterable)
    return [images] if single else list(images)


def as_text(prompt: str | Source | FusedPrompt | Iterable, pipe, model: Model) -> str:
    """Take a prompt as it is, or make one of several sources within the text encoder's length."""
    if isinstance(prompt, (str, FusedPrompt)):
        return str(prompt)
    sources = [prompt] if isinstance(prompt, Source) else list(prompt)
    order = "sentence" if model.name == DEFAULT else "importance"
    return fuse_prompts(sources, tokenizer=pipe.tokenizer, order=order).text if sources else ""


def image_seeds(seed: int | None, generator: torch.Generator | Sequence | None, count: int) -> list[int | None]:
    """Give each of ``count`` images a seed: ``seed``, ``seed + 1``, ...; random ones where neither is given.

    One generator draws the seeds; a list of generators, one for each image, is used as it is (``None`` for each).
    """
    if seed is not None and generator is not None:
        raise ValueError("Give seed or generator, not both.")
    if seed is not None:
        return [int(check_number("seed", seed, 0, 2**63 - 1 - count)) + index for index in range(count)]
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise ValueError(f"Give one generator for each image: {count} image(s), {len(generator)} generator(s).")
        return [None] * count
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    return torch.randint(2**31, (count,), generator=generator, device=generator.device).tolist()


def image_generators(
    seeds: Sequence[int | None], generator: torch.Generator | Sequence | None
) -> list[torch.Generator]:
    """Build one CPU generator for each image, so that a picture depends neither on the batch nor on the device."""
    if isinstance(generator, Sequence):
        return list(generator)
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def warn_if_cut(prompt: str, tokenizer, name: str = "prompt") -> None:
    """Warn with the words that a text encoder of fixed length will not see."""
    ids = tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
    if len(ids) > tokenizer.model_max_length:
        cut = tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1])
        warnings.warn(
            f"The {name} is longer than the text encoder's {tokenizer.model_max_length} tokens; this is cut: {cut!r}",
            stacklevel=3,
        )
