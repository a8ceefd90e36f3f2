"""Read whatever somebody calls an image as 8-bit RGB, or say in one sentence why not.

Files may have any format that Pillow decodes by itself: EXIF rotation is applied; colours are converted to sRGB by the
embedded profile; animations are read as their first frame; palettes, greys, CMYK and 16 bits are converted;
transparency is laid over white. An open animation is read as the frame it is at, and stays there.

Arrays and tensors are (h, w), (h, w, 1 | 3 | 4) or channels first, as tensors usually are. What the largest value is:

- floats: 1; in a PIL image of mode F also 255, if a value is above 1;
- 16-bit pictures in a file, and 32-bit ones: 65535;
- the same in memory (PIL images of the modes I and I;16, arrays of uint16): 65535, or 255 if no value is above 255;
- other integers: 255; bool: True.
"""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from .checks import check_count, reason
from .files import as_path, shown_path

MAX_PIXELS = 100_000_000  # 300 MB as RGB; a phone's 50 megapixels pass, a decompression bomb does not
MAX_BYTES = 16 * MAX_PIXELS  # of a file: as much as four floats for each pixel
FOREIGN = ("EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5")  # Pillow hands these on to other programs, or knows no decoder
PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
DAMAGED = "is damaged or truncated ({reason}); fetch it again."
UNREADABLE = "cannot be read any more ({reason}); open it again, and load it before its file is closed."


def read_image(source: object, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read ``source`` (path, PIL image, array or tensor) as a new, upright RGB image."""
    max_pixels = check_count("max_pixels", max_pixels)
    if isinstance(source, (str, bytes, os.PathLike)):
        return _from_file(source, max_pixels)
    if isinstance(source, Image.Image):
        _check_size(*source.size, max_pixels, "The image")
        return _to_rgb(source, "The image", UNREADABLE, max_pixels)
    if isinstance(source, torch.Tensor):
        return Image.fromarray(_array_to_uint8(_values(source), max_pixels, channels_first=True))
    if isinstance(source, np.ndarray):
        return Image.fromarray(_array_to_uint8(np.asarray(source), max_pixels, channels_first=False))
    raise TypeError(
        f"An image is a path, a PIL image, an array or a tensor; got a {type(source).__name__}"
        + (" (pass several images as context_images)." if isinstance(source, (list, tuple)) else ".")
    )


def _from_file(source: str | bytes | os.PathLike, max_pixels: int) -> Image.Image:
    path = as_path(source, "The path of an image")
    if str(path).startswith(("http:", "https:")):
        raise ValueError(f"Images are read from disk, not from the network; download {path} first.")
    _check_file(path)
    name = shown_path(path)
    with _decoding(name, DAMAGED):
        opened = Image.open(path)
    with opened as image:
        if image.format in FOREIGN:
            raise ValueError(f"{name} is {image.format}, which Pillow does not decode; convert it to PNG or JPEG.")
        _check_size(*image.size, max_pixels, name)
        return _to_rgb(image, name, DAMAGED, max_pixels)


def _check_file(path: Path) -> None:
    """Refuse, without opening it, what is no file of a picture's size: a pipe would never end."""
    name = shown_path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"There is no image file {name} (looked from {Path.cwd()}).") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}; name an image file.") from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{name} is a folder; name an image file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name} is a device or a pipe; name an image file.")
    if not status.st_size:
        raise ValueError(f"{name} is empty (0 bytes), probably because a download or copy failed; fetch it again.")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"{name} has {status.st_size:,} bytes, more than a picture's {MAX_BYTES:,}; make it smaller.")


@contextmanager
def _decoding(what: str, sentence: str) -> Iterator[None]:
    """Let a decoder raise anything: it becomes one ``sentence`` on ``what``. Its warnings are on metadata: hidden."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError:
        raise ValueError(f"{what} has no image format that Pillow reads; convert it to PNG or JPEG.") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{what} has more pixels than the limit of {MAX_PIXELS:,}; make it smaller.") from None
    except Exception as error:  # SyntaxError, struct.error, IndexError, MemoryError, RecursionError, ...
        raise ValueError(f"{what} {sentence.format(reason=reason(error))}") from error


def _check_size(width: int, height: int, max_pixels: int, what: str) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"{what} has no pixels ({width}x{height}).")
    if width * height > max_pixels:
        raise ValueError(
            f"{what} has {width}x{height} = {width * height:,} pixels, more than the limit of "
            f"{max_pixels:,}; make it smaller, or raise max_pixels of load_image."
        )


def _to_rgb(image: Image.Image, what: str, sentence: str, max_pixels: int) -> Image.Image:
    in_memory = image.format is None
    with _decoding(what, sentence):
        image = ImageOps.exif_transpose(image)  # a copy, of an animation's present frame
        if image.mode in PREMULTIPLIED:
            image = image.convert(PREMULTIPLIED[image.mode])
    _check_size(*image.size, max_pixels, what)  # an icon may hold a larger picture than it says
    if image.mode.startswith(("I", "F")):  # one channel with 16 or 32 bits, or with floats
        image = _wide_to_grey(image, what, in_memory)
    with _decoding(what, sentence):
        image, fault = _to_srgb(image, image.info.get("icc_profile"))
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        picture = image.convert("RGB") if image.mode != "RGB" else image
    picture.info.pop("icc_profile", None)  # it no longer holds; and nobody is to convert twice
    if fault:
        warnings.warn(f"{what} has a broken colour profile ({fault}); its colours are taken as sRGB.", stacklevel=5)
    return picture


def _to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """Convert the colours from an ICC ``profile`` to sRGB, and keep alpha; or say why the profile is of no use."""
    if not profile or image.mode == "LAB":  # absolute colours, which Pillow converts by itself
        return image, None
    try:
        mode, transform = _way_to_srgb(profile, image.mode)
        if transform is None:
            return image, None
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        image = transform.apply(image.convert(mode))
    except Exception as error:  # a foreign decoder as well, but what it decodes can be done without
        return image, reason(error)
    if alpha is not None:
        image.putalpha(alpha)
    return image, None


@lru_cache(maxsize=16)
def _way_to_srgb(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Build the transform from a profile to sRGB and say in which mode it takes an image of ``mode``.

    It is ``None`` where it leads nowhere, because the profile is that of sRGB itself.
    """
    source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    if mode != "CMYK":
        mode = "L" if mode in ("1", "L", "LA") and source.profile.xcolor_space.strip() == "GRAY" else "RGB"
    transform = ImageCms.buildTransform(source, srgb, mode, "RGB")
    if mode == "RGB":
        levels = np.stack(np.meshgrid(*[np.arange(0, 256, 17, dtype=np.uint8)] * 3), -1)  # 16 of each channel
        cube = Image.fromarray(rearrange(levels, "r g b rgb -> (r g) b rgb"))
        if np.abs(np.asarray(transform.apply(cube), dtype=int) - np.asarray(cube)).max() <= 1:
            return mode, None
    return mode, transform


def _wide_to_grey(image: Image.Image, what: str, in_memory: bool) -> Image.Image:
    """Bring a channel of more than 8 bits to 8, whatever its range; a transparent level becomes white."""
    values = np.asarray(image)
    if image.mode == "F":
        above_one = np.isfinite(values).all() and 1 + 1e-3 < values.max() <= 255 and values.min() >= 0
        grey = np.round(values).astype(np.uint8) if above_one else _floats_to_uint8(values, what)
    else:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ValueError(f"{what} holds integers from {low} to {high}; 16-bit pixels go from 0 to 65535.")
        grey = _sixteen_to_eight(values, in_memory)
        if isinstance(key := image.info.get("transparency"), int):
            grey[values == key] = 255
    picture = Image.fromarray(grey)
    picture.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return picture


def _sixteen_to_eight(values: np.ndarray, in_memory: bool) -> np.ndarray:
    if in_memory and values.max() <= 255:
        return values.astype(np.uint8)
    return np.round(values / 257).astype(np.uint8)  # 65535 = 255 * 257


def _floats_to_uint8(values: np.ndarray, what: object) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(f"{what} must hold finite numbers; it holds NaN or infinity.")
    low, high = float(values.min()), float(values.max())
    if low < -1e-3 or high > 1 + 1e-3:
        remedy = "divide it by 255" if low >= 0 else "for [-1, 1] pass (x + 1) / 2, for standardized values undo that"
        raise ValueError(f"{what} of floats must lie in [0, 1]; this one goes from {low:.3g} to {high:.3g}: {remedy}.")
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _values(tensor: torch.Tensor) -> np.ndarray:
    """Take the numbers out of a tensor of any device, layout and type that has some."""
    try:
        tensor = tensor.detach().cpu().to_dense()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except Exception as error:  # meta, quantized, nested, wrapped by a transform, ...: torch raises a kind for each
        raise TypeError(f"An image tensor holds plain numbers; this one gives none ({reason(error)}).") from error


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
        return np.asarray(_to_rgb(Image.fromarray(array), "The array", UNREADABLE, max_pixels))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _values_to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return _sixteen_to_eight(array, in_memory=True)
    if np.issubdtype(array.dtype, np.floating):
        return _floats_to_uint8(array, "An image array")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"An image array holds integers or floats, not {array.dtype}.")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 255:
        raise ValueError(f"An image array of integers must lie in 0..255; this one goes from {low} to {high}.")
    return array.astype(np.uint8)
