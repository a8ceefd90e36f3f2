"""Images in and out, and **dynamic normalization**: standardize an image by its own statistics, and undo it.

Every function that takes an image accepts a path, a PIL image, a uint8 or float array, a tensor, or what
:func:`load_image_as_tensor` returned (:mod:`context_diffusion.reading` has the rules).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from .checks import LIMITS, check_list
from .files import written_whole
from .reading import MAX_PIXELS, read_image

ImageLike = str | os.PathLike | Image.Image | np.ndarray | Tensor
Fit = Literal["crop", "stretch", "pad"]

MIN_STD = 1 / 255  # one grey level: any lower contrast is quantization noise, and is not amplified


class NormalizedImage(Tensor):
    """A dynamically normalized image, (3, height, width), that carries the statistics it lost.

    ``statistics`` holds six numbers: the means, then the standard deviations, of R, G, B of the image in [0, 1].
    Arithmetic on it returns plain tensors: a changed image must not claim statistics that are no longer its own.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # its stub lacks `func`
    statistics: Tensor

    @staticmethod
    def build(values: Tensor, statistics: Tensor) -> "NormalizedImage":
        """Attach ``statistics`` (6,) to ``values`` (3, h, w) that are already normalized."""
        image = torch.Tensor._make_subclass(NormalizedImage, values.detach().contiguous())
        image.statistics = statistics.detach().clone()
        return image

    def __deepcopy__(self, memo: dict) -> "NormalizedImage":
        return NormalizedImage.build(self.as_subclass(Tensor).clone(), self.statistics)

    def __reduce_ex__(self, protocol) -> tuple:
        return NormalizedImage.build, (self.as_subclass(Tensor).clone(), self.statistics)

    def __repr__(self, *, tensor_contents=None):  # no hints: mypy forgets the keywords of double-underscore methods
        mean, std = rearrange(self.statistics, "(moments rgb) -> moments rgb", moments=2).tolist()
        rounded = [[round(value, 3) for value in row] for row in (mean, std)]
        return f"NormalizedImage({tuple(self.shape)}, mean={rounded[0]}, std={rounded[1]})"


def load_image(source: object, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a ``source``, any kind of image, as 8-bit RGB in PIL: upright, first frame only, transparency over white.

    Raises ``FileNotFoundError``, ``ValueError`` or ``TypeError`` with one sentence that says what to do; an image of
    more than ``max_pixels`` is refused.

    >>> load_image(np.zeros((4, 6), dtype=np.uint8)).size
    (6, 4)
    """
    if isinstance(source, NormalizedImage):
        return to_pil(denormalize(source))
    return read_image(source, max_pixels=max_pixels)


def listed(images: object) -> list:
    """Make a list of one image, of a batch (four axes), or of any iterable of images; what is none of them stays one.

    Raises ``ValueError`` for more than :data:`checks.LIMITS` allows.
    """
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | bytes | Mapping) or not isinstance(images, Iterable):
        return [images]
    return check_list("a list of images", images, LIMITS["images"])


def resize(image: ImageLike, size: int | tuple[int, int], fit: Fit = "crop") -> Image.Image:
    """Bring an image to ``size`` pixels (one side of a square, or width and height).

    ``fit="crop"`` keeps the proportions and cuts off what protrudes, centred (as CLIP does); ``"stretch"`` keeps
    everything and distorts it; ``"pad"`` keeps everything, undistorted, and fills up with white.
    """
    picture = load_image(image)
    width, height = (size, size) if isinstance(size, int) else size
    if min(width, height) < 1:
        raise ValueError(f"An image needs at least 1x1 pixels; the size asked for is {width}x{height}.")
    if picture.size == (width, height):
        return picture
    if fit == "stretch":
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    ratios = (width / picture.width, height / picture.height)
    if fit == "pad":
        inner = [max(1, round(side * min(ratios))) for side in picture.size]
        canvas = Image.new("RGB", (width, height), "white")
        small = picture.resize(inner, Image.Resampling.LANCZOS)
        canvas.paste(small, ((width - inner[0]) // 2, (height - inner[1]) // 2))
        return canvas
    if fit != "crop":
        raise ValueError(f"fit is 'crop', 'stretch' or 'pad', not {fit!r}.")
    half_w, half_h = width / max(ratios) / 2, height / max(ratios) / 2
    centre_x, centre_y = picture.width / 2, picture.height / 2
    box = (
        max(0.0, centre_x - half_w),
        max(0.0, centre_y - half_h),
        min(float(picture.width), centre_x + half_w),
        min(float(picture.height), centre_y + half_h),
    )
    return picture.resize((width, height), Image.Resampling.LANCZOS, box=box)


def to_tensor(image: ImageLike) -> Float[Tensor, "3 height width"]:
    """Turn an image into a float32 tensor in [0, 1], channels first."""
    array = np.array(load_image(image), dtype=np.float32) / 255
    return rearrange(torch.from_numpy(array), "height width rgb -> rgb height width").contiguous()


def to_pil(values: Float[Tensor, "3 height width"]) -> Image.Image:
    """Turn a tensor in [0, 1] into a PIL image; values outside are clipped, because sampling overshoots a little."""
    if not torch.isfinite(values).all():
        raise ValueError("An image tensor must be finite; this one holds NaN or infinity.")
    array = (values.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(rearrange(array, "rgb height width -> height width rgb").cpu().numpy())


def dynamic_normalization(
    images: Float[Tensor, "*batch 3 height width"], per: Literal["channel", "image"] = "channel"
) -> tuple[Float[Tensor, "*batch 3 height width"], Float[Tensor, "*batch 6"]]:
    """Standardize each image by its own statistics: ``x' = (x - mean) / max(std, 1/255)``.

    Context Diffusion, "dynamic image normalization". ``images`` are float in [0, 1]. The six statistics are the means
    of R, G, B, then their (population) standard deviations, each over the pixels of one channel, or over all pixels of
    the image (``per="image"``: the same number three times). A constant image becomes zeros.

    >>> values, statistics = dynamic_normalization(torch.rand(2, 3, 8, 8))
    >>> bool(values.mean().abs() < 1e-5), tuple(statistics.shape)
    (True, (2, 6))
    """
    if per not in ("channel", "image"):
        raise ValueError(f"per is 'channel' or 'image', not {per!r}.")
    if not torch.isfinite(images).all():
        raise ValueError("Dynamic normalization needs finite pixels; these hold NaN or infinity.")
    over = (-2, -1) if per == "channel" else (-3, -2, -1)
    mean = images.mean(dim=over, keepdim=True)
    std = images.std(dim=over, keepdim=True, correction=0)
    values = (images - mean) / std.clamp(min=MIN_STD)
    shape = (*images.shape[:-2], 1, 1)
    both = [mean.expand(shape), std.expand(shape)]
    return values, rearrange(both, "moments ... rgb 1 1 -> ... (moments rgb)")


def denormalize(
    values: Float[Tensor, "*batch 3 height width"], statistics: Float[Tensor, "*batch 6"] | None = None
) -> Float[Tensor, "*batch 3 height width"]:
    """Undo :func:`dynamic_normalization` of ``values``: ``x = x' * max(std, 1/255) + mean``, floats around [0, 1].

    What :func:`load_image_as_tensor` returned knows its own ``statistics``. Passing *another image's* moves that
    image's palette over: adaptive instance normalization (AdaIN) on pixels.
    """
    if statistics is None:
        if not isinstance(values, NormalizedImage):
            raise ValueError(
                "denormalize needs the statistics that normalization removed: pass them, or pass what "
                "load_image_as_tensor returned (arithmetic on it gives a plain tensor without statistics)."
            )
        statistics = values.statistics
    mean, std = rearrange(statistics.to(values), "... (moments rgb) -> moments ... rgb 1 1", moments=2)
    return values.as_subclass(Tensor) * std.clamp(min=MIN_STD) + mean


def load_image_as_tensor(source: ImageLike, size: int | tuple[int, int] = 224, fit: Fit = "crop") -> NormalizedImage:
    """Read an image, resize it to 224x224 and normalize each channel by its own mean and standard deviation.

    ``source`` is any kind of image; ``size`` and ``fit`` are those of :func:`resize`. Returns a float32 tensor
    (3, 224, 224) with mean 0 and standard deviation 1 in each channel, which carries the six removed ``statistics``. It
    is accepted wherever an image is, and :func:`denormalize` undoes it. For models that draw more than 224 pixels, pass
    the path itself or a larger ``size``.
    """
    values, statistics = dynamic_normalization(to_tensor(resize(source, size, fit)))
    return NormalizedImage.build(values, statistics)


def image_grid(
    images: Sequence[ImageLike], columns: int | None = None, *, gap: int = 2, background: str = "white"
) -> Image.Image:
    """Put images into one, row by row, ``gap`` pixels of the colour ``background`` apart; the first sets the cell size.

    Without ``columns``, a row holds all images, at most 8.
    """
    if not len(images):
        raise ValueError("An image grid needs at least one image; the list is empty.")
    columns = min(len(images), 8) if columns is None else columns
    if columns < 1 or gap < 0:
        raise ValueError(f"A grid needs at least one column and a gap of 0 or more; got {columns} and {gap}.")
    pictures = [load_image(image) for image in images]
    edge = (0, 0, gap, gap)  # each cell brings the gap to its right and below it
    cells = [ImageOps.expand(resize(picture, pictures[0].size, "pad"), edge, background) for picture in pictures]
    cells += [Image.new("RGB", cells[0].size, background)] * (-len(cells) % columns)
    sheet = Image.fromarray(
        rearrange(
            np.stack([np.asarray(cell) for cell in cells]),
            "(rows columns) height width rgb -> (rows height) (columns width) rgb",
            columns=columns,
        )
    )
    return sheet.crop((0, 0, sheet.width - gap, sheet.height - gap))


def save_image(image: ImageLike, path: str | os.PathLike, **options) -> Path:
    """Write an image under a temporary name, then rename it, so an interrupted run leaves nothing half-written.

    The suffix of ``path`` decides the format; ``options`` go to ``PIL.Image.save`` (``quality=90``, ``pnginfo=...``).
    Returns the path; raises ``ValueError`` for a suffix that names no image format.
    """
    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"The suffix of {path.name!r} names no image format; use .png, .jpg or .webp.")
    picture = load_image(image)
    with written_whole(path) as temporary:
        picture.save(temporary, **options)
    return path
