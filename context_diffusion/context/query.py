"""How the query image acts: as a control map through a ControlNet, or as the start of image-to-image."""

import warnings
from dataclasses import dataclass

import torch
from diffusers import ControlNetModel
from PIL import Image

from ..checkpoints import Model, find_part, load_part
from ..control import LAYOUTS, DepthEstimator, canny_map, control_image
from ..images import resize
from ..pipelines import GuidedControlNet
from .contexts import ColourContexts
from .request import Request

STRENGTH = 0.75  # of image-to-image from the query itself
COLOUR_STRENGTH = 0.9  # of image-to-image from a recoloured query or from averaged contexts


@dataclass(frozen=True)
class Plan:
    """One way through diffusers: which ControlNet with which map, and which picture to start from, if any."""

    controlnet: torch.nn.Module | None = None
    control: Image.Image | None = None
    start: Image.Image | None = None
    strength: float = 1.0

    def inputs(self, request: Request) -> dict:
        """Name the pictures as the pipeline of this plan does."""
        scale = {"controlnet_conditioning_scale": float(request.control_scale)} if self.controlnet else {}
        scale |= {"guess_mode": True} if isinstance(self.controlnet, GuidedControlNet) else {}
        if self.start is None:
            width, height = request.size
            return scale | {"width": width, "height": height} | ({"image": self.control} if self.controlnet else {})
        control = {"control_image": self.control} if self.controlnet else {}
        return scale | control | {"image": self.start, "strength": self.strength}


class Layouts:
    """The ControlNets and the depth estimator of a model, each loaded when it is first asked for."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype):
        self.model, self.device, self.dtype = model, device, dtype
        self._controlnets: dict[str, torch.nn.Module] = {}
        self._depth: DepthEstimator | None = None

    def plan(self, request: Request, contexts: object) -> Plan:
        """Decide how the query and, where nothing is trained for them, the contexts' colours get in."""
        layout = request.layout
        if layout is not None and layout not in (*LAYOUTS, "img2img"):
            raise ValueError(f"layout is 'canny', 'depth' or 'img2img', not {layout!r}.")
        controlnet, control = None, None
        if request.query is not None and layout != "img2img":
            layout, controlnet = self._choose(layout)
            if controlnet is not None:
                control = self.control(layout, request)
        start, strength = None, request.strength
        if isinstance(contexts, ColourContexts) and request.contexts:
            start, strength = contexts.start(request), COLOUR_STRENGTH if strength is None else strength
        elif request.query is not None and (controlnet is None or (strength is not None and strength < 1)):
            start, strength = resize(request.query, request.size), STRENGTH if strength is None else strength
        return Plan(controlnet, control, start, 1.0 if strength is None else strength)

    def control(self, layout: str, request: Request) -> Image.Image:
        """Draw the control map of the query at the size of the picture to be."""
        query = resize(request.query, request.size)
        if layout == "canny":
            return control_image(canny_map(query))
        if self._depth is None:
            self._depth = DepthEstimator.from_pretrained(self.model.name, device=self.device)
        return control_image(self._depth(query))

    def _choose(self, layout: str | None) -> tuple[str, torch.nn.Module | None]:
        """Take the layout asked for, or by default canny if there is a ControlNet for it, else image-to-image."""
        if layout is not None:
            return layout, self._controlnet(layout)
        if find_part(self.model, "controlnet-canny") is None:
            return "img2img", None
        try:
            return "canny", self._controlnet("canny")
        except FileNotFoundError as error:
            warnings.warn(f"{error} Until then the query acts by image-to-image.", stacklevel=4)
            return "img2img", None

    def _controlnet(self, kind: str) -> torch.nn.Module:
        if kind not in self._controlnets:
            location = find_part(self.model, f"controlnet-{kind}")
            if location is None:
                raise ValueError(
                    f"{self.model.name!r} has no ControlNet for {kind!r} (a folder controlnet-{kind}/ beside it): "
                    "take layout='img2img' or another layout."
                )
            of = GuidedControlNet if self.model.guided_control else ControlNetModel
            network = load_part(of, location, self.dtype).eval().requires_grad_(False)
            self._controlnets[kind] = network.to(self.device)
        return self._controlnets[kind]
