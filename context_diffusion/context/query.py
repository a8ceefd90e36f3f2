"""How the query image acts: as a control map through a ControlNet, or as the start of image-to-image."""

import warnings
from dataclasses import dataclass

import torch
from PIL import Image

from ..checkpoints import Fallback, Model, find_part
from ..control import CONTROLS, DepthEstimator, canny_map, control_image
from ..images import resize
from ..pipelines import load_controlnet
from .request import CheckedRequest

STRENGTH = 0.75  # of image-to-image from the query itself


@dataclass(frozen=True)
class Plan:
    """One way through diffusers: which ControlNet with which map, and which picture to start from, if any."""

    controlnet: torch.nn.Module | None = None
    control: Image.Image | None = None
    start: Image.Image | None = None
    strength: float = 1.0


class QueryPlanner:
    """The ControlNets and the depth estimator of a model, each loaded when it is first asked for."""

    def __init__(self, model: Model, pipe):
        self.model, self.pipe = model, pipe
        self._controlnets: dict[str, torch.nn.Module] = {}
        self._depth: DepthEstimator | None = None

    def plan(self, request: CheckedRequest, start: Image.Image | None, start_strength: float) -> Plan:
        """Decide how the query gets in; ``start`` is where the contexts want to begin, at ``start_strength``."""
        controlnet, control = self._control(request)
        starts = controlnet is None or (request.strength is not None and request.strength < 1)
        if start is None and request.query is not None and starts:
            start, start_strength = resize(request.query, request.size), STRENGTH
        strength = start_strength if request.strength is None else request.strength
        return Plan(controlnet, control, start, strength)

    def _control(self, request: CheckedRequest) -> tuple[torch.nn.Module | None, Image.Image | None]:
        """Take the ControlNet asked for, or by default canny if there is one; without it image-to-image is left."""
        layout = request.layout
        if layout is None and find_part(self.model, "controlnet-canny") is not None:
            layout = "canny"
        if request.query is None or layout is None or layout not in CONTROLS:
            return None, None
        try:
            return self._controlnet(layout), self._map(layout, resize(request.query, request.size))
        except FileNotFoundError as error:
            if request.layout is not None:
                raise
            warnings.warn(f"{error} Until then the query acts by image-to-image.", Fallback, stacklevel=5)
            return None, None

    def _controlnet(self, kind: str) -> torch.nn.Module:
        if kind not in self._controlnets:
            self._controlnets[kind] = load_controlnet(self.model, kind, self.pipe.unet.dtype)
        return self._controlnets[kind].to(self.pipe._execution_device)

    def _map(self, layout: str, query: Image.Image) -> Image.Image:
        """Draw the control map of the query, which has the size of the picture to be."""
        if layout == "canny":
            return control_image(canny_map(query))
        if self._depth is None:
            self._depth = DepthEstimator.from_pretrained(self.model.name, device=self.pipe._execution_device)
        return control_image(self._depth(query))
