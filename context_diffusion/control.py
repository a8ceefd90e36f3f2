"""Layout as a picture: Canny edges and depth maps, the inputs of a ControlNet."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from .checkpoints import DEFAULT, find_model, find_part, load_part
from .images import ImageLike, load_image, resize, to_tensor

LAYOUTS = ("canny", "depth")


def canny_map(
    image: ImageLike, low: float = 100, high: float = 200, *, blur: float = 0.0
) -> Float[Tensor, "height width"]:
    """Find edges after Canny (1986): float32, 1 on an edge and 0 elsewhere, of the image's own size.

    ``low`` and ``high`` are the hysteresis thresholds on the gradient of 8-bit grey levels (0 to about 1442): an edge
    starts above ``high`` and is followed down to ``low``. ``blur`` is the standard deviation, in pixels, of a Gaussian
    before it: raise it where texture gives more edges than shape. Raises ``ValueError`` unless 0 <= low <= high.
    """
    import cv2

    if not 0 <= low <= high < float("inf"):
        raise ValueError(f"Canny's thresholds need 0 <= low <= high; got low={low}, high={high}.")
    if not 0 <= blur < float("inf"):
        raise ValueError(f"blur is a standard deviation in pixels, 0 or more; got {blur}.")
    grey = np.asarray(load_image(image).convert("L"))
    if blur:
        grey = cv2.GaussianBlur(grey, (0, 0), blur)
    return torch.from_numpy(cv2.Canny(grey, low, high).astype(np.float32) / 255)


class DepthEstimator:
    """A depth network (DPT, Depth Anything) with its preprocessing; call it with an image.

    ``DepthEstimator.from_pretrained()`` takes the offline one; give a model's name, a folder or a repository id.
    """

    def __init__(self, network: torch.nn.Module, preprocess: Callable[[ImageLike], Float[Tensor, "3 h w"]]):
        self.network, self.preprocess = network, preprocess

    @classmethod
    def from_pretrained(cls, name: str | Path = DEFAULT, *, device: str | torch.device = "cpu") -> "DepthEstimator":
        """Load the depth estimator beside a model of the table, or one by folder or repository id."""
        from transformers import AutoModelForDepthEstimation

        folder = Path(name)
        if (folder / "config.json").is_file():
            location = str(folder)
        else:
            model = find_model(name)
            location = find_part(model, "depth") or (None if Path(model.location).is_dir() else str(name))
        if location is None:
            raise ValueError(f"{name} has no depth estimator beside it (depth/); name one, e.g. 'sd15' for the hub's.")
        network = load_part(AutoModelForDepthEstimation, location).eval().requires_grad_(False).to(device)
        return cls(network, _preprocessing(location, network))

    @torch.inference_mode()
    def __call__(self, image: ImageLike) -> Float[Tensor, "height width"]:
        """Estimate nearness: float32 in [0, 1], 1 is nearest, of the image's own size; no unit, no fixed zero.

        The network's output (inverse depth) is stretched so that the farthest point is 0 and the nearest 1; a picture
        in which everything is equally far gives zeros.
        """
        picture = load_image(image)
        pixels = self.preprocess(picture)[None].to(self.network.device)
        raw = self.network(pixel_values=pixels).predicted_depth.float()
        size = (picture.height, picture.width)
        full = torch.nn.functional.interpolate(raw[:, None], size, mode="bicubic", antialias=True)
        return stretch(full[0, 0].cpu())


def depth_map(image: ImageLike, estimator: DepthEstimator | None = None) -> Float[Tensor, "height width"]:
    """Estimate depth with the offline estimator, or a given one: float32 in [0, 1], 1 is nearest."""
    return (estimator or DepthEstimator.from_pretrained())(image)


def stretch(values: Float[Tensor, "height width"]) -> Float[Tensor, "height width"]:
    """Map the least value to 0 and the largest to 1; a constant map becomes zeros."""
    low, high = values.min(), values.max()
    if not torch.isfinite(low + high):
        raise ValueError("A depth map must be finite; this one holds NaN or infinity.")
    if high - low <= 1e-6 * max(1.0, float(high.abs())):
        return torch.zeros_like(values)
    return (values - low) / (high - low)


def control_image(control: Float[Tensor, "height width"]) -> Image.Image:
    """Turn a map in [0, 1] into the RGB picture that ControlNet pipelines take: white edges, near is bright."""
    grey = (control.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(grey).convert("RGB")


def _preprocessing(location: str, network: torch.nn.Module) -> Callable[[ImageLike], Float[Tensor, "3 h w"]]:
    """Choose a depth network's input: its image processor where it has one, else its size and values in [-1, 1]."""
    folder = Path(location)
    if folder.is_dir() and not (folder / "preprocessor_config.json").is_file():
        backbone = getattr(network.config, "backbone_config", None) or network.config
        size = getattr(backbone, "image_size", None) or network.config.image_size
        return lambda image: to_tensor(resize(image, size, "stretch")) * 2 - 1
    from transformers import AutoImageProcessor

    processor = load_part(AutoImageProcessor, location, dtype=None, backend="pil")
    return lambda image: processor(load_image(image), return_tensors="pt")["pixel_values"][0]
