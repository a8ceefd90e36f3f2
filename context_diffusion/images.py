"""Images in and out, and **dynamic normalization**: standardize an image by its own statistics, and undo it.

Every function that takes an image accepts a path, a PIL image, a uint8 or float array, a tensor, or what
:func:`load_image_as_tensor` returned (:mod:`context_diffusion.reading` has the rules).
"""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from .checks import LIMITS, check_choice, check_count, check_list, plain, reason, shown
from .files import as_path, check_output, shown_path, written_whole
from .reading import MAX_PIXELS, read_image
from .signatures import checked

ImageLike = str | os.PathLike | Image.Image | np.ndarray | Tensor
Fit = Literal["crop", "stretch", "pad"]

# What Pillow writes in 24-bit colour and in the picture's own size (icons are shrunk).
FORMATS = {
    "PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "DIB", "JPEG2000", "MPO", "QOI", "PPM", "TGA", "PCX", "SGI",
    "IM", "DDS", "PDF", "EPS",
}  # fmt: skip
MIN_STD = 1 / 255  # one grey level: any lower contrast is quantization noise, and is not amplified


class NormalizedImage(Tensor):
    """A dynamically normalized image, (3, height, width), that carries the statistics it lost.

    ``statistics`` holds six numbers: the means, then the standard deviations, of R, G, B of the image in [0, 1].
    Arithmetic on it returns plain tensors: a changed image must not claim statistics that are no longer its own.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # its stub lacks `func`
    statistics: Tensor

    @staticmethod
    @checked
    def build(values: Float[Tensor, "3 height width"], statistics: Float[Tensor, "6"]) -> "NormalizedImage":
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
    """Read a ``source``, any kind of image, as 8-bit RGB in PIL: upright, in sRGB, transparency over white.

    Of an animated file this is the first frame, of an open animation the frame it is at. An image of more than
    ``max_pixels`` is refused. Raises ``FileNotFoundError``, ``ValueError`` or ``TypeError`` with one sentence that says
    what to do.

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
    everything and distorts it; ``"pad"`` keeps everything, undistorted, and fills up with white. Raises ``TypeError``
    or ``ValueError`` for another size or fit, and what :func:`load_image` raises.
    """
    width, height = _sides(size)
    check_choice("fit", fit, get_args(Fit))
    picture = load_image(image)
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
    half_w, half_h = width / max(ratios) / 2, height / max(ratios) / 2
    centre_x, centre_y = picture.width / 2, picture.height / 2
    box = (
        max(0.0, centre_x - half_w),
        max(0.0, centre_y - half_h),
        min(float(picture.width), centre_x + half_w),
        min(float(picture.height), centre_y + half_h),
    )
    return picture.resize((width, height), Image.Resampling.LANCZOS, box=box)


def _sides(size: object) -> tuple[int, int]:
    """Take a size as width and height, of which a picture can be made."""
    given = plain(size)
    sides = list(given) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else [given, given]
    if len(sides) != 2:
        raise ValueError(f"size is one side of a square, or width and height; got {shown(size)}.")
    width, height = (check_count("a side of size", side, MAX_PIXELS) for side in sides)
    check_count("width times height", width * height, MAX_PIXELS)
    return width, height


def to_tensor(image: ImageLike) -> Float[Tensor, "3 height width"]:
    """Turn an image into a float32 tensor in [0, 1], channels first."""
    array = np.array(load_image(image), dtype=np.float32) / 255
    return rearrange(torch.from_numpy(array), "height width rgb -> rgb height width").contiguous()


@checked
def to_pil(values: Float[Tensor, "3 height width"]) -> Image.Image:
    """Turn a tensor in [0, 1] into a PIL image; values outside are clipped, because sampling overshoots a little."""
    if not torch.isfinite(values).all():
        raise ValueError("An image tensor must be finite; this one holds NaN or infinity.")
    array = (values.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(rearrange(array, "rgb height width -> height width rgb").cpu().numpy())


@checked
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
    if not images.numel():
        raise ValueError(f"Dynamic normalization needs pixels; this shape has none: {tuple(images.shape)}.")
    if not torch.isfinite(images).all():
        raise ValueError("Dynamic normalization needs finite pixels; these hold NaN or infinity.")
    over = (-2, -1) if per == "channel" else (-3, -2, -1)
    mean = images.mean(dim=over, keepdim=True)
    std = images.std(dim=over, keepdim=True, correction=0)
    values = (images - mean) / std.clamp(min=MIN_STD)
    shape = (*images.shape[:-2], 1, 1)
    both = [mean.expand(shape), std.expand(shape)]
    return values, rearrange(both, "moments ... rgb 1 1 -> ... (moments rgb)")


@checked
def denormalize(
    values: Float[Tensor, "*batch 3 height width"], statistics: Float[Tensor, "*batch 6"] | None = None
) -> Float[Tensor, "*batch 3 height width"]:
    """Undo :func:`dynamic_normalization` of ``values``: ``x = x' * max(std, 1/255) + mean``, floats around [0, 1].

    What :func:`load_image_as_tensor` returned knows its own ``statistics``. Passing *another image's* moves that
    image's palette over: adaptive instance normalization (AdaIN) on pixels.
    """
    if statistics is None:
        if not isinstance(values, NormalizedImage) or not hasattr(values, "statistics"):
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
    images: ImageLike | Iterable[ImageLike],
    columns: int | None = None,
    *,
    gap: int = 2,
    background: str = "white",
) -> Image.Image:
    """Put images into one, row by row, ``gap`` pixels of the colour ``background`` apart; the first sets the cell size.

    Without ``columns``, a row holds all images, at most 8. Raises ``ValueError`` or ``TypeError`` for an empty list and
    for what is no number or colour.
    """
    pictures = [load_image(image) for image in listed(images)]
    if not pictures:
        raise ValueError("An image grid needs at least one image; the list is empty.")
    columns = min(len(pictures), 8) if columns is None else check_count("columns", columns, LIMITS["images"])
    gap, fill = check_count("gap", gap, LIMITS["width"], low=0), _colour(background)
    width, height = (side + gap for side in pictures[0].size)
    check_count("the number of pixels of the grid", width * columns * height * -(-len(pictures) // columns), MAX_PIXELS)
    edge = (0, 0, gap, gap)  # each cell brings the gap to its right and below it
    cells = [ImageOps.expand(resize(picture, pictures[0].size, "pad"), edge, fill) for picture in pictures]
    cells += [Image.new("RGB", cells[0].size, fill)] * (-len(cells) % columns)
    sheet = Image.fromarray(
        rearrange(
            np.stack([np.asarray(cell) for cell in cells]),
            "(rows columns) height width rgb -> (rows height) (columns width) rgb",
            columns=columns,
        )
    )
    return sheet.crop((0, 0, sheet.width - gap, sheet.height - gap))


def _colour(name: str) -> tuple[int, ...]:
    try:
        return ImageColor.getrgb(name)[:3]
    except Exception as error:
        raise ValueError(f"A colour is a name or #rrggbb, such as 'white' or '#1f6f8b'; got {shown(name)}.") from error


def save_image(image: ImageLike, path: str | os.PathLike, **options) -> Path:
    """Write an image under a temporary name, then rename it, so an interrupted run leaves nothing half-written.

    The suffix of ``path`` decides the format; ``options`` go to ``PIL.Image.save`` (``quality=90``, ``pnginfo=...``).
    Returns the path; raises ``ValueError`` for one that cannot be written (:func:`check_picture_path`) or for options
    that the format does not know, ``OSError`` if the disk is full.
    """
    target = _picture_path(path, "The output")
    picture = load_image(image)
    with written_whole(target) as temporary:
        try:
            _encode(picture, temporary, options)
        except Exception as error:
            if isinstance(error, OSError) and error.errno:  # of the disk, not of the encoder
                raise
            given = f" with {shown(options)}" if options else ""
            raise ValueError(f"{shown_path(target)} cannot be encoded{given}: {reason(error)}.") from error
    return target


def _encode(picture: Image.Image, path: Path, options: dict) -> None:
    if Image.registered_extensions()[path.suffix.lower()] != "JPEG2000":
        return picture.save(path, **options)
    buffer = io.BytesIO()  # because that encoder never ends on a full disk
    buffer.name = str(path)
    picture.save(buffer, **options)
    path.write_bytes(buffer.getvalue())


def check_picture_path(path: object, what: str = "The output") -> Path:
    """Return the path of a picture that can be written, or say why not: its suffix, or :func:`files.check_output`."""
    return _picture_path(check_output(path, what=what), what)


def _picture_path(path: object, what: str) -> Path:
    target = as_path(path, what)
    if Image.registered_extensions().get(target.suffix.lower()) not in FORMATS:
        name = shown_path(target.name)
        raise ValueError(f"The suffix of {name!r} names no image format that can be written; use .png, .jpg or .webp.")
    return target
