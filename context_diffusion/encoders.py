"""Sentences and pictures as vectors: CLIP and DINO offline, SigLIP and DINOv2 from the hub, behind one protocol.

The average of several context pictures' vectors is one vector for the style they share (Context Diffusion, "combining
contextual embeddings").
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from .checkpoints import DEFAULT, find_model, find_network, find_part, load_part
from .checks import LIMITS, check_count, check_finite, check_texts, normalized_weights
from .images import ImageLike, dynamic_normalization, listed, resize, to_tensor
from .loading import read_settings
from .signatures import checked


class Encoder(Protocol):
    """What every encoder offers; ``encode_text`` raises ``TypeError`` if the encoder knows only pictures."""

    name: str

    def encode_images(self, images: Iterable[ImageLike]) -> Float[Tensor, "images dim"]:
        """Encode each picture as one vector."""
        ...

    def encode_text(self, texts: str | Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Encode each sentence as one vector, to be compared with a picture's by cosine."""
        ...


def load_encoder(
    name: str | Path = "clip", model: str | Path = DEFAULT, *, device: str | torch.device = "cpu"
) -> "TransformersEncoder":
    """Load an encoder onto a ``device``.

    ``name`` is ``"clip"`` or ``"dino"`` of the ``model`` (or of the hub, if the model has none), ``"siglip"``,
    ``"dinov2"``, a repository id or a folder.

    Pictures are standardized as in the encoder's training, by the fixed numbers in its ``preprocessor_config.json``. If
    its folder has no such file, as offline, pixels are scaled to [-1, 1], and for CLIP normalized dynamically. Raises
    ``ValueError`` for an unknown name, ``FileNotFoundError`` if the weights cannot be found.
    """
    own = isinstance(name, str) and name in ("clip", "dino")
    location = find_part(find_model(model), str(name)) if own else None
    location = location or find_network("encoder", name)
    from transformers import AutoModel

    network = load_part(AutoModel, location, device=device, unused=("pooler.",)).eval().requires_grad_(False)
    tokenizer = _tokenizer(location) if hasattr(network, "get_text_features") else None
    return TransformersEncoder(str(name), network, _preprocessing(location, network), tokenizer)


class TransformersEncoder:
    """An :class:`Encoder` around any vision model of transformers, with text if the model reads it."""

    def __init__(self, name: str, network: torch.nn.Module, preprocess: Callable, tokenizer=None):
        self.name, self.network, self.preprocess, self.tokenizer = name, network, preprocess, tokenizer

    @torch.inference_mode()
    def encode_images(self, images: Iterable[ImageLike]) -> Float[Tensor, "images dim"]:
        """Encode pictures: the projected vector of CLIP and SigLIP, or the class token of a ViT (DINO)."""
        pictures = listed(images)
        if not pictures:
            raise ValueError("There is nothing to encode: pass at least one picture.")
        pixels = torch.stack([self.preprocess(picture) for picture in pictures]).to(self.network.device)
        if hasattr(self.network, "get_image_features"):
            vectors = features(self.network.get_image_features(pixel_values=pixels))
        else:
            vectors = self.network(pixel_values=pixels).last_hidden_state[:, 0]
        return check_finite("An embedding", vectors)

    @torch.inference_mode()
    def encode_text(self, texts: str | Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Encode sentences in the space of the pictures; one longer than the model reads is cut, with a warning."""
        if self.tokenizer is None:
            raise TypeError(f"{self.name!r} encodes pictures only; for text take 'clip' or 'siglip'.")
        texts = check_texts("a sentence", texts)
        length = self.network.config.text_config.max_position_embeddings
        for text in texts:
            warn_if_cut(text, self.tokenizer, "sentence", length, stacklevel=4)
        tokens = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids = tokens["input_ids"].to(self.network.device)  # no mask: CLIP looks back only, SigLIP was trained without
        return check_finite("An embedding", features(self.network.get_text_features(input_ids=ids)))


def warn_if_cut(text: str, tokenizer, name: str = "prompt", most: int | None = None, *, stacklevel: int = 2) -> None:
    """Warn with the words that a text encoder of fixed length, by default the tokenizer's, will not see."""
    most = tokenizer.model_max_length if most is None else most
    ids = tokenizer(text, truncation=False, verbose=False)["input_ids"]
    if len(ids) > most:
        cut = tokenizer.decode(ids[most - 1 : -1])
        warnings.warn(
            f"The {name} is longer than the text encoder's {most} tokens; this is cut: {cut!r}", stacklevel=stacklevel
        )


def features(output) -> Float[Tensor, "batch dim"]:
    """Take the projected vectors from what ``get_image_features`` returns (a plain tensor before transformers 5)."""
    return output if isinstance(output, Tensor) else output.pooler_output


@checked
def average_embeddings(
    embeddings: Float[Tensor, "images ..."], weights: Sequence[float] | None = None
) -> Float[Tensor, "..."]:
    """Average the embeddings of several pictures: ``e = sum_i w_i e_i``, with the weights scaled to sum to 1.

    Context Diffusion, "combining contextual embeddings". Raises ``ValueError`` for invalid weights.

    >>> average_embeddings(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), [3, 1])
    tensor([0.7500, 0.2500])
    """
    if embeddings.ndim == 0 or not len(embeddings):
        raise ValueError("There is nothing to average: pass the embeddings of at least one picture.")
    scaled = embeddings.new_tensor(normalized_weights(weights, len(check_finite("Embeddings", embeddings)), "image"))
    return einsum(scaled, embeddings, "images, images ... -> ...")


@checked
def vision_inputs(
    images: Float[Tensor, "batch 3 height width"], size: int
) -> tuple[Float[Tensor, "batch 3 size size"], Float[Tensor, "batch 6"]]:
    """Shrink pictures in [0, 1] to a vision tower's size, then normalize them dynamically; also return the statistics.

    Training and sampling both go through here, so that the tower sees contexts the same way in both.
    """
    check_count("size", size, LIMITS["height"])
    small = F.adaptive_avg_pool2d(images, size) if min(images.shape[-2:]) >= size else F.interpolate(images, size)
    return dynamic_normalization(small)


def _tokenizer(location: str):
    from transformers import AutoTokenizer

    folder = Path(location)
    inside = (folder / name for name in ("tokenizer.json", "tokenizer_config.json"))
    if folder.is_dir() and not any(file.is_file() for file in inside):
        location = str(folder.parent / "tokenizer")  # an offline CLIP shares its pipeline's tokenizer
    return load_part(AutoTokenizer, location, dtype=None)


def _preprocessing(location: str, network: torch.nn.Module) -> Callable[[ImageLike], Float[Tensor, "3 size size"]]:
    """Choose how pictures are standardized for a network: by its fixed numbers, or as in the offline ones' training."""
    size = getattr(network.config, "vision_config", network.config).image_size
    settings = Path(location) / "preprocessor_config.json"
    if Path(location).is_dir() and not settings.is_file():
        if network.config.model_type == "clip":
            return lambda image: vision_inputs(to_tensor(resize(image, 2 * size))[None], size)[0][0]
        return lambda image: F.avg_pool2d(to_tensor(resize(image, 2 * size)), 2) * 2 - 1
    if settings.is_file():
        numbers = read_settings(settings)
    else:
        from transformers import AutoImageProcessor

        numbers = load_part(AutoImageProcessor, location, dtype=None, backend="pil").to_dict()
    mean, std = (torch.tensor(numbers[key])[:, None, None] for key in ("image_mean", "image_std"))
    return lambda image: (to_tensor(resize(image, size)) - mean) / std
