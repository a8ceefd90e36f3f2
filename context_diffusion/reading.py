"""Read whatever somebody calls an image as 8-bit RGB, or say in one sentence why not.

Files may have any format that Pillow knows: EXIF rotation is applied; animations are read as their first frame;
palettes, greys, CMYK and 16 bits are converted; transparency is laid over white. Arrays and tensors are (h, w),
(h, w, 1 | 3 | 4) or channels first, as tensors usually are; their values are uint8, uint16 (0 to 65535), bool, other
integers in 0..255, or floats in [0, 1].
"""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # 300 MB as RGB; a phone's 50 megapixels pass, a decompression bomb does not


def read_image(source: object, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read ``source`` (path, PIL image, array or tensor) as a new, upright RGB image."""
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source), max_pixels)
    if isinstance(source, Image.Image):
        _check_size(*source.size, max_pixels, "The image")
        return _to_rgb(source, "The image")
    if isinstance(source, torch.Tensor):
        tensor = source.detach().cpu()
        array = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        return Image.fromarray(_array_to_uint8(array, max_pixels, channels_first=True))
    if isinstance(source, np.ndarray):
        return Image.fromarray(_array_to_uint8(source, max_pixels, channels_first=False))
    raise TypeError(
        f"An image is a path, a PIL image, an array or a tensor; got a {type(source).__name__}"
        + (" (pass several images as context_images)." if isinstance(source, (list, tuple)) else ".")
    )


def _from_file(path: Path, max_pixels: int) -> Image.Image:
    if str(path).startswith(("http:", "https:")):
        raise ValueError(f"Images are read from disk, not from the network; download {path} first.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name an image file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no image file {path} (looked from {Path.cwd()}).")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty (0 bytes), probably because a download or copy failed; fetch it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit decides
            with Image.open(path) as image:
                _check_size(*image.size, max_pixels, path)
                return _to_rgb(image, path)
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path} has more pixels than the limit of {max_pixels:,}; make it smaller with an image editor."
        ) from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} has no image format that Pillow reads; convert it to PNG or JPEG.") from None
    except (OSError, SyntaxError, EOFError) as error:  # Pillow says SyntaxError for a broken PNG
        raise ValueError(f"{path} is damaged or truncated ({error}); fetch it again.") from error


def _check_size(width: int, height: int, max_pixels: int, what: object) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"{what} has no pixels ({width}x{height}).")
    if width * height > max_pixels:
        raise ValueError(
            f"{what} has {width}x{height} = {width * height:,} pixels, more than the limit of "
            f"{max_pixels:,}; make it smaller, or raise max_pixels of load_image."
        )


def _to_rgb(image: Image.Image, what: object) -> Image.Image:
    if getattr(image, "is_animated", False):
        image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # one channel with 16 or 32 bits, or with floats
        return Image.fromarray(_wide_to_uint8(image, what)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _wide_to_uint8(image: Image.Image, what: object) -> np.ndarray:
    values = np.asarray(image)
    if image.mode == "F":
        return _floats_to_uint8(values, what)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"{what} holds integers from {low} to {high}; 16-bit pixels go from 0 to 65535.")
    return np.round(values / 257).astype(np.uint8)  # 65535 = 255 * 257


def _floats_to_uint8(values: np.ndarray, what: object) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(f"{what} must hold finite numbers; it holds NaN or infinity.")
    low, high = float(values.min()), float(values.max())
    if low < -1e-3 or high > 1 + 1e-3:
        remedy = "divide it by 255" if low >= 0 else "for [-1, 1] pass (x + 1) / 2, for standardized values undo that"
        raise ValueError(f"{what} of floats must lie in [0, 1]; this one goes from {low:.3g} to {high:.3g}: {remedy}.")
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _array_to_uint8(array: np.ndarray, max_pixels: int, *, channels_first: bool) -> np.ndarray:
    """Bring an array of any accepted shape and type to uint8 (h, w, 3); ``channels_first`` settles ambiguous shapes."""
    shape = array.shape
    if array.ndim == 4 and shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array, channels_first = array[..., None], False
    first, last = (array.ndim == 3 and array.shape[axis] in (1, 3, 4) for axis in (0, -1))
    if not first and not last:
        raise ValueError(
            "An image array has the shape (h, w), (h, w, channels) or (channels, h, w) with 1, 3 or 4 channels; "
            f"this one has {shape}."
        )
    if first and (channels_first or not last):
        array = rearrange(array, "channels height width -> height width channels")
    _check_size(array.shape[1], array.shape[0], max_pixels, "The array")
    array = _values_to_uint8(array)
    if array.shape[-1] == 4:
        return np.asarray(_to_rgb(Image.fromarray(array), "The array"))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _values_to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return np.round(array / 257).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        return _floats_to_uint8(array, "An image array")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"An image array holds integers or floats, not {array.dtype}.")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 255:
        raise ValueError(f"An image array of integers must lie in 0..255; this one goes from {low} to {high}.")
    return array.astype(np.uint8)
