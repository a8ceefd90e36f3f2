"""What all protocols share: the model under test, the networks that score it, and how much was asked for."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from context_diffusion.checkpoints import DEFAULT, Fallback, find_model, find_part
from context_diffusion.context.contexts import Contexts
from context_diffusion.context.model import ContextDiffusion
from context_diffusion.context.request import Request
from context_diffusion.control import DepthEstimator
from context_diffusion.encoders import TransformersEncoder, load_encoder
from context_diffusion.files import ROOT
from context_diffusion.pipelines import load_pipeline
from context_diffusion.scenes.judge import Judge


class Bench:
    """The model under test: a name of the table, a folder, or a repository id; each part is loaded when first used.

    Args:
        name: the model, as :func:`context_diffusion.checkpoints.find_model` takes it.
        quick: take the smallest numbers that prove that a protocol runs.
        limit: of the papers' protocols, take the first few sets, references, mixtures or queries only.
        seeds: of style sets, seeds of each set.
        prompts: of style sets, a list of prompts by name or path; by default the model's own.
        steps: sampling steps of every picture; by default the model's own.
        batch_size: pictures drawn at once.
        references: of protocols that take reference pictures, a folder of one's own.
        methods: of the comparison of style methods, further ones, as ``module:name`` or ``file.py:name``.
        only: of it, the rows to draw; all where there are none.
        test: of it, take the held-out test set.
        work: folder in which pictures and scores are kept as they are made.

    Raises ``ValueError`` or ``FileNotFoundError`` for a model that is not there.
    """

    def __init__(
        self,
        name: str | Path = DEFAULT,
        *,
        quick: bool = False,
        limit: int | None = None,
        seeds: int = 3,
        prompts: str | None = None,
        steps: int | None = None,
        batch_size: int = 16,
        references: Path | None = None,
        methods: Sequence[str] = (),
        only: Sequence[str] = (),
        test: bool = False,
        work: Path = ROOT / "build" / "evaluation",
    ) -> None:
        self.name, self.row = str(name), find_model(name)
        self.quick, self.limit, self.seeds, self.prompts = quick, limit, seeds, prompts
        self.references, self.methods, self.only, self.test = references, tuple(methods), tuple(only), test
        self.steps, self.batch_size, self.work = steps or self.row.steps, batch_size, work

    def count(self, full: int, quick: int) -> int:
        """How many to take."""
        return quick if self.quick else full

    def first(self, full: int, quick: int) -> int:
        """How many to take of what ``limit`` counts."""
        return self.limit or self.count(full, quick)

    def has(self, part: str) -> bool:
        """Say whether the model has a part: in its folder, or at the place that the table names."""
        return find_part(self.row, part) is not None

    def need(self, *parts: str) -> None:
        """Raise ``FileNotFoundError`` unless the model has every part, or one of those joined by " or "."""
        missing = [part for part in parts if not any(self.has(one) for one in part.split(" or "))]
        if missing:
            raise FileNotFoundError(
                f"There is no {' and no '.join(missing)} beside {self.name}; `make train` builds such folders for "
                f"{DEFAULT}."
            )

    def part(self, part: str) -> str:
        """Say where a part is, a folder or a repository id; raise ``FileNotFoundError`` where there is none."""
        self.need(part)
        return find_part(self.row, part)

    @cached_property
    def model(self) -> ContextDiffusion:
        """Query + contexts + prompt -> picture.

        Raises ``FileNotFoundError`` where the model would make do with less than the table promises: a measurement
        takes no fallback.
        """
        with no_fallback():
            return ContextDiffusion.from_pretrained(self.name)

    @cached_property
    def pipe(self):
        """The plain diffusers pipeline, without a progress bar of its own."""
        pipe = load_pipeline(self.name)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @cached_property
    def without_contexts(self) -> ContextDiffusion:
        """Query + prompt -> picture, on the parts of the plain pipeline."""
        return ContextDiffusion(self.pipe, self.row, Contexts())

    @property
    def sampling(self) -> dict[str, float]:
        """Steps and guidance scale, as a diffusers pipeline takes them."""
        return {"num_inference_steps": self.steps, "guidance_scale": self.row.guidance_scale}

    def draw(
        self, requests: Sequence[Request], model: ContextDiffusion | None = None, *, progress: bool = True
    ) -> list[Image.Image]:
        """Draw with the model under test, or with another one built from its parts, in the steps asked for."""
        asked = [replace(request, num_inference_steps=self.steps) for request in requests]
        with no_fallback():
            return (model or self.model).draw(asked, batch_size=self.batch_size, progress=progress)

    @cached_property
    def clip(self) -> TransformersEncoder:
        """CLIP's two towers."""
        return load_encoder("clip", self.name)

    @cached_property
    def dino(self) -> TransformersEncoder:
        """An encoder of pictures alone, trained without labels."""
        return load_encoder("dino", self.name)

    @cached_property
    def judge(self) -> Judge:
        """The classifier of scenes; only a model of the offline world has one."""
        return Judge.from_pretrained(self.part("judge"))

    @cached_property
    def depth(self) -> DepthEstimator:
        """The depth estimator."""
        return DepthEstimator.from_pretrained(self.part("depth"))


def foreign(bench: Bench) -> list[str]:
    """A note where a model that never saw the toy world is given drawings of it."""
    if bench.references or bench.has("judge"):
        return []
    return [
        f"{bench.name} never saw the toy world, whose drawings are the references here, so the numbers tell little of "
        "what it does with other pictures; --references FOLDER takes yours"
    ]


@contextmanager
def no_fallback() -> Iterator[None]:
    """Raise ``FileNotFoundError`` where a model would make do with less than the table promises."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Fallback)
        try:
            yield
        except Fallback as warning:
            raise FileNotFoundError(str(warning)) from None
