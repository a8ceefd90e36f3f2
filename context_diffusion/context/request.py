"""What a caller asks for, and the one place that checks it: every fault is told before any work starts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TypeVar

import torch
from PIL import Image

from ..checkpoints import Model, find_part
from ..checks import LIMITS, check_choice, check_count, check_list, check_number, check_text, normalized_weights, shown
from ..control import CONTROLS, LAYOUTS
from ..encoders import warn_if_cut
from ..fusion import FusedPrompt, Source, fuse_prompts
from ..images import ImageLike, listed, load_image
from ..latents import picture_size
from ..signatures import checked

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Request:
    """One picture to draw; the fields are arguments of :meth:`ContextDiffusion.__call__`, with the same defaults.

    ``generator`` draws this picture's noise, and is used up by it; or ``seed`` seeds one. With neither the seed is
    random.

    >>> Request(prompt="a boat", context_images=["a.png", "b.png"], seed=3).prompt
    'a boat'
    """

    query_image: ImageLike | None = None
    context_images: ImageLike | Iterable[ImageLike] = ()
    prompt: str | Source | FusedPrompt | Iterable = ""
    _: KW_ONLY
    negative_prompt: str | None = ""
    layout: str | None = None
    control_scale: float | None = None
    weights: Sequence[float] | None = None
    strength: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    generator: torch.Generator | None = None
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class CheckedRequest:
    """A request that was checked and read: nothing in it can fail any more."""

    query: Image.Image | None
    contexts: list[Image.Image]
    weights: tuple[float, ...]  # one for each context, of sum 1
    prompt: str
    negative_prompt: str
    layout: str | None  # None: the model's own
    control_scale: float
    strength: float | None
    steps: int
    guidance_scale: float
    seed: int | None
    generator: torch.Generator
    size: tuple[int, int]  # width, height

    @property
    def guided(self) -> bool:
        """Say whether classifier-free guidance has anything to do: there is a condition and it is to be exceeded."""
        return self.guidance_scale > 1 and bool(self.prompt or self.negative_prompt or self.contexts)

    @property
    def returns_query(self) -> bool:
        """Say whether the strength amounts to no step at all."""
        return self.query is not None and self.strength is not None and int(self.steps * self.strength) < 1

    @property
    def kind(self) -> tuple:
        """What the pictures of one batch have in common, because a pipeline takes it once for all of them."""
        given = tuple(map(bool, (self.query, self.contexts, self.prompt, self.negative_prompt)))
        numbers = self.steps, self.guidance_scale if self.guided else None, self.control_scale, self.strength
        return self.size, self.layout, self.returns_query, *given, *numbers


def check_request(request: Request, pipe, model: Model, *, contexts_start: bool = False) -> CheckedRequest:
    """Check all of a request and read its images and its prompt; raise what teaches.

    ``contexts_start`` says whether contexts give a picture to start from. Raises ``ValueError``, ``TypeError`` or
    ``FileNotFoundError``; warns of words beyond the text encoder's length.
    """
    size = picture_size(pipe, request.width, request.height)
    steps, most = _either(request.num_inference_steps, model.steps), pipe.scheduler.config.num_train_timesteps
    steps = check_count("num_inference_steps", steps, most)
    scale = check_scale("guidance_scale", _either(request.guidance_scale, model.guidance_scale))
    control_scale = check_scale("control_scale", _either(request.control_scale, model.control_scale))
    strength = None if request.strength is None else check_number("strength", request.strength, 0, 1)
    negative = check_text("negative_prompt", request.negative_prompt)
    one = None if request.generator is None else [check_generator(request.generator)]
    (seed,), (generator,) = image_generators(request.seed, one, 1)
    layout = check_layout(request.layout, request.query_image is not None, model)
    given = [] if request.context_images is None else listed(request.context_images)
    weights = _weights(request.weights, len(given))
    if strength is not None and request.query_image is None and not (given and contexts_start):
        raise ValueError("strength says how much of the query is drawn anew; pass query_image as well.")
    prompt = as_text(request.prompt, pipe, model)
    if request.query_image is None and not given and not prompt.strip():
        raise ValueError("Give at least one of query_image, context_images and prompt.")
    query = None if request.query_image is None else load_image(request.query_image)
    contexts = [load_image(image) for image in given]
    for name, text in (("prompt", prompt), ("negative prompt", negative)):
        warn_if_cut(text, pipe.tokenizer, name, stacklevel=5)
    return CheckedRequest(
        query, contexts, weights, prompt, negative, layout, control_scale, strength, steps, scale, seed, generator, size
    )


def check_layout(layout: str | None, has_query: bool, model: Model) -> str | None:
    """Refuse a layout that is unknown, that has no query to act on, or whose ControlNet the model does not have."""
    if layout is None:
        return None
    check_choice("layout", layout, LAYOUTS)
    if not has_query:
        raise ValueError(f"layout={layout!r} says how the query acts; pass query_image as well.")
    if layout in CONTROLS and find_part(model, f"controlnet-{layout}") is None:
        raise ValueError(
            f"{model.name!r} has no ControlNet for {layout!r} (a folder controlnet-{layout}/ beside it): "
            "take layout='img2img' or another layout."
        )
    return layout


def as_text(prompt: str | Source | FusedPrompt | Iterable | None, pipe, model: Model) -> str:
    """Take a prompt as it is, or fuse several sources into one within the text encoder's length."""
    if isinstance(prompt, FusedPrompt):
        prompt = prompt.text
    if isinstance(prompt, Source):
        prompt = [prompt]
    if prompt is None or isinstance(prompt, str | bytes | Mapping) or not isinstance(prompt, Iterable):
        return check_text("prompt", prompt)
    sources = check_list("prompt", prompt, LIMITS["sources"])
    return fuse_prompts(sources, tokenizer=pipe.tokenizer, order=model.prompt_order).text if sources else ""


def image_generators(
    seed: int | None, generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> tuple[Sequence[int | None], list[torch.Generator]]:
    """Give each of ``count`` images its seed and the generator of its noise; a ``generator`` alone draws the seeds.

    Of several generators, one for each image, the seeds are not known: they are None.
    """
    if seed is not None and generator is not None:
        raise ValueError("Give seed or generator, not both.")
    if isinstance(generator, Sequence):
        drawers = [check_generator(one) for one in generator]
        if len(drawers) != count:
            raise ValueError(f"Give one generator for each image: {count} image(s), {len(drawers)} generator(s).")
        return [None] * count, drawers
    seeds = image_seeds(seed, None if generator is None else check_generator(generator), count)
    return seeds, [torch.Generator().manual_seed(each) for each in seeds]


def check_generator(value: object) -> torch.Generator:
    """Refuse what is no generator of torch."""
    if not isinstance(value, torch.Generator):
        raise TypeError(f"generator is a torch.Generator, or a list with one for each image, not {shown(value)}.")
    return value


@checked
def image_seeds(seed: int | None, generator: torch.Generator | None, count: int) -> list[int]:
    """Give each of ``count`` images a seed: ``seed``, ``seed + 1``, ..., or what ``generator`` (or chance) draws."""
    if seed is not None:
        return [check_count("seed", seed, LIMITS["seed"] - count, low=0) + index for index in range(count)]
    count = check_count("count", count, LIMITS["images"])
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    return torch.randint(2**31, (count,), generator=generator, device=generator.device).tolist()


def check_scale(name: str, value: object) -> float:
    """Return a scale that is finite and within its limit."""
    return check_number(name, value, 0, LIMITS[name])


def _weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    return normalized_weights(weights, count, "context image") if count or weights is not None else ()


def _either(asked: Number | None, own: Number) -> Number:
    return own if asked is None else asked
