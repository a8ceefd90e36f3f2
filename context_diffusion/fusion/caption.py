"""Pictures as words: BLIP (Li et al. 2022), offline or from the hub."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checkpoints import find_network, load_part
from ..encoders import vision_inputs
from ..images import ImageLike, listed, load_image, resize, to_tensor
from ..metrics.inputs import batched
from ..signatures import check_fields, checked
from .description import Description

OFFLINE = "tiny-fusion"
MAX_WORDS = 40  # most tokens in a caption
BATCH_SIZE = 32


class Captioner:
    """A captioning network with its tokenizer and preprocessing; call it with a picture.

    >>> caption = Captioner.from_pretrained()  # doctest: +SKIP
    >>> caption("boat.png").text  # doctest: +SKIP
    'a boat among hills, flat style'
    """

    def __init__(self, network: torch.nn.Module, tokenizer, preprocess: Callable[[ImageLike], Float[Tensor, "3 h w"]]):
        self.network, self.tokenizer, self.preprocess = network, tokenizer, preprocess

    @classmethod
    @checked
    def from_pretrained(cls, name: str | Path = OFFLINE, *, device: str | torch.device = "cpu") -> "Captioner":
        """Load ``"tiny-fusion"`` (offline), ``"blip"`` (hub), or a BLIP by its folder or repository id.

        Raises ``ValueError`` for an unknown name, ``FileNotFoundError`` if the weights cannot be found.
        """
        from transformers import AutoTokenizer, BlipForConditionalGeneration

        location = find_network("captioner", name)
        network = load_part(BlipForConditionalGeneration, location, device=device).eval().requires_grad_(False)
        tokenizer = load_part(AutoTokenizer, location, dtype=None)
        return cls(network, tokenizer, _preprocessing(location, network))

    def __call__(self, image: ImageLike) -> Description:
        """Say what one picture shows; raises what ``load_image`` raises."""
        return self.describe_all([image])[0]

    @torch.inference_mode()
    def describe_all(self, images: Iterable[ImageLike]) -> list[Description]:
        """Say what each picture shows, always taking the likeliest next word.

        The confidence is the geometric mean of the tokens' probabilities, exp(1/n sum_k log p_k), the end included.
        """
        said = []
        for batch in batched(listed(images), BATCH_SIZE):
            pixels = torch.stack([self.preprocess(image) for image in batch]).to(self.network.device)
            longest = min(MAX_WORDS, self.network.config.text_config.max_position_embeddings - 1)
            written = self.network.generate(
                pixel_values=pixels, max_new_tokens=longest, do_sample=False, num_beams=1, output_scores=True,
                return_dict_in_generate=True,
            )  # fmt: skip
            tokens = written.sequences[:, 1:]  # the first is the start
            logits = torch.stack(written.scores, dim=1).float()
            sure = confidence(logits, tokens, self.network.config.text_config.sep_token_id)
            texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            said += [
                Description(text.replace(" ,", ",").strip(), value, f"caption of {_name(image)}")
                for text, value, image in zip(texts, sure.tolist(), batch, strict=True)
            ]
        return said


@dataclass(frozen=True)
class ImageSource:
    """A picture as a source of words: any ``image``, and a ``captioner``, which is a :class:`Captioner` or its name."""

    image: ImageLike
    captioner: Captioner | str | Path = OFFLINE

    def __post_init__(self) -> None:
        check_fields(self)

    def describe(self) -> Description:
        """Caption the picture; raises what ``load_image`` and :meth:`Captioner.from_pretrained` raise."""
        picture = load_image(self.image)  # first: a wrong path costs no loading
        captioner = self.captioner if isinstance(self.captioner, Captioner) else _loaded(str(self.captioner))
        said = captioner(picture)
        return Description(said.text, said.confidence, f"caption of {_name(self.image)}")


def confidence(
    logits: Float[Tensor, "texts length words"], tokens: Int[Tensor, "texts length"], end: int
) -> Float[Tensor, " texts"]:
    """Geometric mean of the probabilities of the written ``tokens``, up to and including each text's first ``end``."""
    chosen = logits.log_softmax(dim=-1).gather(-1, tokens[..., None])[..., 0]
    ends = (tokens == end).int()
    counted = (ends.cumsum(dim=1) - ends == 0).float()
    return (torch.where(counted > 0, chosen, 0.0).sum(dim=1) / counted.sum(dim=1)).exp().clamp(max=1.0)


@cache
def _loaded(name: str) -> Captioner:
    return Captioner.from_pretrained(name)


def _name(image: ImageLike) -> str:
    return Path(image).name if isinstance(image, (str, os.PathLike)) else "a picture"


def _preprocessing(location: str, network: torch.nn.Module) -> Callable[[ImageLike], Float[Tensor, "3 h w"]]:
    """Prepare pictures with the captioner's image processor; the offline one has none and normalizes dynamically."""
    folder = Path(location)
    if folder.is_dir() and not (folder / "preprocessor_config.json").is_file():
        side = network.config.vision_config.image_size
        return lambda image: vision_inputs(to_tensor(resize(image, 2 * side))[None], side)[0][0]
    from transformers import AutoImageProcessor

    processor = load_part(AutoImageProcessor, location, dtype=None, backend="pil")
    return lambda image: processor(load_image(image), return_tensors="pt")["pixel_values"][0]
