"""From any number of pictures to embeddings, one batch in memory at a time, with nothing implicit in between.

The scores of this package take any iterable of pictures (a list, a generator that draws or reads them, a tensor
(n, 3, h, w)) that :func:`context_diffusion.images.load_image` reads, and an embedding function that maps a list of RGB
PIL images to (n, d) numbers. They take ready embeddings too: leave ``encode`` out.

:class:`Preprocess` is the step from PIL image to network, done by Pillow alone: image backends differ by a grey level
or so when they resize, and a score must not depend on which one happens to be installed.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..checks import LIMITS, check_count, shown
from ..images import load_image
from ..signatures import check_fields, checked

Encoder = Callable[[list[Image.Image]], Tensor]
BATCH_SIZE = 32


@dataclass(frozen=True)
class Preprocess:
    """Resize the short side to ``size`` pixels, crop the centre square, scale to [0, 1], standardize each channel.

    x = (pixel / 255 - mean) / std. Called with a list of RGB PIL images, it returns float32 (n, 3, size, size). Pillow
    does the resizing and filters when it shrinks; the long side is rounded down; the crop starts at half the excess,
    rounded down.

    >>> Preprocess(8)([Image.new("RGB", (20, 16), "white")]).shape
    torch.Size([1, 3, 8, 8])
    """

    size: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("size", self.size, LIMITS["width"])
        if not all(self.std):
            raise ValueError(f"std divides the pixels and is not 0; got {self.std}.")

    @checked
    def __call__(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch 3 size size"]:
        """Turn RGB images into what the network takes."""
        if not len(images):
            raise ValueError("There is nothing to prepare: pass at least one picture.")
        pixels = np.stack([np.asarray(self._square(load_image(image)), dtype=np.float32) for image in images])
        mean, std = (np.asarray(numbers, dtype=np.float32) for numbers in (self.mean, self.std))
        standardized = rearrange((pixels / 255 - mean) / std, "batch height width rgb -> batch rgb height width")
        return torch.from_numpy(standardized).contiguous()

    def _square(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        width, height = (self.size * side // short for side in image.size)
        resized = image.resize((width, height), self.resample) if short != self.size else image
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return resized.crop((left, top, left + self.size, top + self.size))


# The published networks' own preprocessing. CLIP: every size of the original models at 224 pixels.
CLIP_PREPROCESS = Preprocess(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# DINO ViT-B/8 and ViT-S/16: ImageNet's statistics, bilinear.
DINO_PREPROCESS = Preprocess(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), Image.Resampling.BILINEAR)


def pictures(images: object) -> Iterator[Image.Image]:
    """Yield every picture of ``images`` as RGB: one picture, a batch tensor or array (n, 3, h, w), or any iterable."""
    one = isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", 4) != 4
    if one or not isinstance(images, Iterable):
        yield load_image(images)  # which explains what an image is, if this is not one
    else:
        for image in images:
            yield from pictures(image)


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of ``size`` items (the last may be shorter), holding one list at a time."""
    check_count("batch_size", size)
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def embed(items: list, encode: Callable[[list], Tensor]) -> Float[Tensor, "batch dim"]:
    """Embed one batch without gradients and check the result: float64 (n, d) on the CPU, finite."""
    with torch.inference_mode():
        return _checked(encode(items), len(items)).clone()


def embeddings(
    images: object, encode: Encoder | None = None, *, batch_size: int = BATCH_SIZE
) -> Iterator[Float[Tensor, "batch dim"]]:
    """Stream the embeddings of ``images`` in batches, float64 on the CPU.

    Without ``encode``, ``images`` already holds embeddings: a tensor (n, d) or an iterable of such batches. Even with
    ``encode``, a tensor (n, d) counts as embeddings, so pictures can be scored against references encoded before.
    Raises ``ValueError`` for embeddings that have the wrong shape or are not finite.
    """
    width = None
    for batch in _streamed(images, encode, batch_size):
        width = same_width(batch, width)
        yield batch


def same_width(rows: Float[Tensor, "batch dim"], width: int | None, what: str = "came after") -> int:
    """Return the width of embeddings, which is the ``width`` of those that ``what`` says, if there are any."""
    if width is not None and rows.shape[1] != width:
        raise ValueError(f"All embeddings have one width; {rows.shape[1]} numbers {what} {width}.")
    return rows.shape[1]


def _streamed(images: object, encode: Encoder | None, batch_size: int) -> Iterator[Float[Tensor, "batch dim"]]:
    known = isinstance(images, (Tensor, np.ndarray)) and images.ndim == 2
    if encode is not None and not known:
        for batch in batched(pictures(images), batch_size):
            yield embed(batch, encode)
    elif isinstance(images, (Tensor, np.ndarray)):
        yield _checked(images, None)
    elif isinstance(images, Iterable) and not isinstance(images, (str, os.PathLike)):
        for batch in images:
            if not isinstance(batch, (Tensor, np.ndarray)):
                raise _not_embeddings(batch)
            yield _checked(batch, None)
    else:
        raise _not_embeddings(images)


def all_embeddings(
    images: object, encode: Encoder | None = None, *, batch_size: int = BATCH_SIZE
) -> Float[Tensor, "n dim"]:
    """Gather :func:`embeddings` into one tensor: meant for a few references, not for many pictures."""
    batches = list(embeddings(images, encode, batch_size=batch_size))
    if not batches:
        raise ValueError("There is no picture to embed: pass at least one.")
    return torch.cat(batches)


def unit_rows(rows: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    """Scale each row to length 1, for cosines."""
    norms = rows.norm(dim=1, keepdim=True)
    if (norms == 0).any():
        where = int((norms[:, 0] == 0).nonzero()[0])
        raise ValueError(
            f"A cosine needs a direction; embedding {where} of the batch is all zeros: check the encoder's weights."
        )
    return rows / norms


def _not_embeddings(found: object) -> TypeError:
    return TypeError(
        f"Without encode, embeddings come as tensors (n, d); this is a {type(found).__name__}: pass "
        "encode=encoder.encode_images to score pictures."
    )


def _checked(features: Tensor | np.ndarray, expected: int | None) -> Float[Tensor, "batch dim"]:
    if not isinstance(features, (Tensor, np.ndarray)):
        raise TypeError(f"An encoder returns a tensor or an array (n, d) of numbers, not {shown(features)}.")
    if isinstance(features, np.ndarray) and features.dtype.kind not in "biuf" or np.iscomplexobj(features):
        raise TypeError(f"Embeddings are real numbers; these are {features.dtype}.")
    features = torch.as_tensor(features).detach().to("cpu", torch.float64)
    if features.ndim != 2 or (expected is not None and len(features) != expected):
        wanted = "(n, d)" if expected is None else f"({expected}, d), one row for each item"
        raise ValueError(f"Embeddings have the shape {wanted}; these have {tuple(features.shape)}.")
    if not features.isfinite().all():
        raise ValueError("Embeddings must be finite; these hold NaN or infinity (half precision overflowing?).")
    return features
