"""Layout as a picture: Canny edges and depth maps, the inputs of a ControlNet."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from .checkpoints import DEFAULT, find_model, find_part, load_part
from .checks import check_path
from .images import ImageLike, load_image, resize, to_tensor
from .signatures import checked

Control = Literal["canny", "depth"]  # maps that a ControlNet follows
Layout = Literal["canny", "depth", "img2img"]  # how a query acts
CONTROLS, LAYOUTS = get_args(Control), get_args(Layout)
STEEPEST = 1530  # the largest |dx| + |dy| of 8-bit greys
WIDEST_BLUR = 100  # pixels
RATIO = 32  # of a picture's sides: a depth network of the hub halves the shorter one five times
METRIC = ("zoedepth", "depth_pro", "prompt_depth_anything")  # networks that output metres, not nearness


@checked
def canny_map(
    image: ImageLike, low: float = 100, high: float = 200, *, blur: float = 0.0
) -> Float[Tensor, "height width"]:
    """Find edges by Canny's method (1986): float32, 1 on an edge and 0 elsewhere, in the image's own size.

    ``low`` and ``high`` are the hysteresis thresholds on the gradient of 8-bit grey levels (OpenCV's |dx| + |dy| from
    3x3 Sobel filters, 0 to 1530): an edge starts above ``high`` and is followed down to ``low``. ``blur`` is the
    standard deviation, in pixels, of a Gaussian applied first: raise it if texture yields more edges than shape does.
    Raises ``ValueError`` unless 0 <= low <= high and 0 <= blur <= 100.
    """
    import cv2

    if not 0 <= low <= high:
        raise ValueError(f"Canny's thresholds need 0 <= low <= high; got low={low}, high={high}.")
    if not 0 <= blur <= WIDEST_BLUR:
        raise ValueError(f"blur is a standard deviation in pixels, from 0 to {WIDEST_BLUR}; got {blur}.")
    grey = np.asarray(load_image(image).convert("L"))
    if blur:
        grey = cv2.GaussianBlur(grey, (0, 0), blur)
    return torch.from_numpy(cv2.Canny(grey, min(low, STEEPEST), min(high, STEEPEST)).astype(np.float32) / 255)


class DepthEstimator:
    """A depth network (DPT, Depth Anything) with its preprocessing; call it with an image."""

    @checked
    def __init__(self, network: torch.nn.Module, preprocess: Callable[[ImageLike], Float[Tensor, "3 h w"]]):
        self.network, self.preprocess = network, preprocess

    @classmethod
    @checked
    def from_pretrained(cls, name: str | Path = DEFAULT, *, device: str | torch.device = "cpu") -> "DepthEstimator":
        """Load the depth estimator of a model (by default the offline one), or one by its folder or repository id.

        Raises ``ValueError`` if a model has none or a folder holds another network, ``FileNotFoundError`` if the
        weights cannot be found.
        """
        from transformers import AutoModelForDepthEstimation

        name = check_path("name", name)
        folder = Path(name)
        if (folder / "config.json").is_file():
            location: str | None = str(folder)
        else:
            model = find_model(name)
            location = find_part(model, "depth") or (None if Path(model.location).is_dir() else str(name))
        if location is None:
            raise ValueError(
                f"{name} has no depth estimator (no folder depth/); name one, such as 'sd15' for the hub's."
            )
        try:
            network = load_part(AutoModelForDepthEstimation, location, device=device).eval().requires_grad_(False)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{location} is no depth network (such as DPT or Depth Anything): {reason}") from error
        return cls(network, _preprocessing(location, network))

    @torch.inference_mode()
    def __call__(self, image: ImageLike) -> Float[Tensor, "height width"]:
        """Estimate nearness: float32 in [0, 1], 1 is nearest, in the image's own size; no unit, no fixed zero.

        The network's output (inverse depth; distances are inverted) is stretched so that the farthest point is 0 and
        the nearest 1; a picture in which everything is equally far gives zeros.
        """
        picture = load_image(image)
        pixels = self.preprocess(picture)[None].to(self.network.device)
        raw = self.network(pixel_values=pixels).predicted_depth.float()
        config = self.network.config
        if config.model_type in METRIC or getattr(config, "depth_estimation_type", "relative") == "metric":
            raw = 1 / raw.clamp(min=1e-3)
        size = (picture.height, picture.width)
        full = torch.nn.functional.interpolate(raw[:, None], size, mode="bicubic", antialias=True)
        return stretch(full[0, 0].cpu())


@checked
def depth_map(image: ImageLike, estimator: DepthEstimator | str | Path = DEFAULT) -> Float[Tensor, "height width"]:
    """Estimate nearness in an ``image``, by default with the offline estimator: float32 in [0, 1], 1 is nearest.

    ``estimator`` is a loaded one, or what :meth:`DepthEstimator.from_pretrained` takes, such as
    ``"Intel/dpt-hybrid-midas"``; for many pictures, load it once.
    """
    if isinstance(estimator, str | Path):
        estimator = DepthEstimator.from_pretrained(estimator)
    return estimator(image)


@checked
def stretch(values: Float[Tensor, "height width"]) -> Float[Tensor, "height width"]:
    """Map the smallest value to 0 and the largest to 1; a constant map becomes zeros."""
    if not values.numel():
        raise ValueError("A depth map has at least one pixel; this one is empty.")
    low, high = values.min(), values.max()
    if not torch.isfinite(low + high):
        raise ValueError("A depth map must be finite; this one holds NaN or infinity.")
    if high - low <= 1e-6 * max(1.0, float(high.abs())):
        return torch.zeros_like(values)
    return (values - low) / (high - low)


@checked
def control_image(control: Float[Tensor, "height width"]) -> Image.Image:
    """Turn a map in [0, 1] into the RGB picture that ControlNet pipelines take: edges are white, near is bright."""
    if not control.numel() or not torch.isfinite(control).all():
        raise ValueError(
            "A control map holds finite numbers, at least one; this one is empty or holds NaN or infinity."
        )
    grey = (control.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(grey).convert("RGB")


def _preprocessing(location: str, network: torch.nn.Module) -> Callable[[ImageLike], Float[Tensor, "3 h w"]]:
    """Prepare pictures with the network's image processor; without one, stretch to its size and scale to [-1, 1]."""
    folder = Path(location)
    if folder.is_dir() and not (folder / "preprocessor_config.json").is_file():
        backbone = getattr(network.config, "backbone_config", None) or network.config
        size = getattr(backbone, "image_size", None) or network.config.image_size
        return lambda image: to_tensor(resize(image, size, "stretch")) * 2 - 1
    from transformers import AutoImageProcessor

    processor = load_part(AutoImageProcessor, location, dtype=None, backend="pil")

    def prepare(image: ImageLike) -> Float[Tensor, "3 h w"]:
        picture = load_image(image)
        if max(picture.size) > RATIO * min(picture.size):  # it would be enlarged before it is cut, or vanish
            raise ValueError(
                f"A depth network takes pictures whose longer side is at most {RATIO} times the shorter; this one has "
                f"{picture.width}x{picture.height} pixels."
            )
        return processor(picture, return_tensors="pt")["pixel_values"][0]

    return prepare
