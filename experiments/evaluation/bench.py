"""What the protocols share: the model and those who score it, each loaded when it is first asked for."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from context_diffusion.checkpoints import DEFAULT, MODELS, find_model
from context_diffusion.context.model import ContextDiffusion
from context_diffusion.control import DepthEstimator
from context_diffusion.encoders import TransformersEncoder, load_encoder
from context_diffusion.pipelines import load_pipeline
from context_diffusion.scenes.judge import Judge

from .drawing import STEPS, Order, draw


class Bench:
    """The model under test: a name of the table or a folder in the layout of ``tiny-scenes``.

    ``quick`` takes the least numbers that prove a protocol runs. A part that is not there yet raises
    ``FileNotFoundError`` with the command that makes it, before anything is drawn.
    """

    def __init__(
        self, name: str | Path = DEFAULT, *, quick: bool = False, batch_size: int = 16, steps: int = STEPS
    ) -> None:
        self.name, self.quick, self.batch_size, self.steps = str(name), quick, batch_size, steps
        self.folder = Path(MODELS[self.name].location if self.name in MODELS else name)

    def count(self, full: int, quick: int) -> int:
        """How many to take."""
        return quick if self.quick else full

    def has(self, part: str) -> bool:
        """Say whether a part has been trained and saved."""
        return (self.folder / part / "config.json").is_file()

    def part(self, part: str) -> Path:
        """Find the folder of a part, or raise ``FileNotFoundError``."""
        if not self.has(part):
            raise FileNotFoundError(f"There is no {part} in {self.folder.name}; `make train` builds it.")
        return self.folder / part

    @cached_property
    def model(self) -> ContextDiffusion:
        """The whole thing: query + contexts + prompt -> picture."""
        for part in ("vae", "text_encoder", "unet", "image_encoder", "context_projector"):
            self.part(part)
        return ContextDiffusion.from_pretrained(self.name)

    @cached_property
    def pipe(self):
        """The plain diffusers pipeline, without a progress bar of its own."""
        pipe = load_pipeline(self.name)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @property
    def guidance(self) -> float:
        """The guidance scale that the table gives the model."""
        return find_model(self.name).guidance_scale

    def sample(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], guidance: float | None = None
    ) -> list[Image.Image]:
        """Draw one picture for each prompt by the plain pipeline, each from the noise of its own generator."""
        scale = self.guidance if guidance is None else guidance
        steps = {"num_inference_steps": self.steps, "guidance_scale": scale}
        return self.pipe(list(prompts), generator=list(generators), **steps).images

    @cached_property
    def encoder(self) -> TransformersEncoder:
        """CLIP's two towers."""
        self.part("clip")
        return load_encoder("clip", self.name)

    @cached_property
    def judge(self) -> Judge:
        """The classifier that scores generated pictures."""
        return Judge.from_pretrained(self.part("judge"))

    @cached_property
    def depth(self) -> DepthEstimator:
        """The depth estimator."""
        return DepthEstimator.from_pretrained(self.part("depth"))

    def draw(
        self, orders: Sequence[Order], label: str | None, model: ContextDiffusion | None = None
    ) -> list[Image.Image]:
        """Draw with the model under test, or with another one built from its parts; no label, no progress bar."""
        return draw(model or self.model, orders, steps=self.steps, batch_size=self.batch_size, label=label)
