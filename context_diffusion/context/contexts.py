"""How context images act on a pipeline: by tokens, by an IP-Adapter, or by colour alone.

Each way is a class with two methods: :meth:`Contexts.inputs`, the keyword arguments that carry prompts and contexts
into an ordinary diffusers pipeline, and :meth:`Contexts.start`, the picture to start from where contexts act by colour.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..checkpoints import Model, load_part
from ..checks import LIMITS, check_finite, check_number, check_path
from ..encoders import average_embeddings, vision_inputs
from ..images import denormalize, dynamic_normalization, resize, to_pil, to_tensor
from ..pipelines import check_same, load_adapter
from .projector import ContextProjector
from .request import CheckedRequest

# what encode_prompt returns, under the names that a pipeline takes; Stable Diffusion XL has all four
EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


class Contexts:
    """Contexts that do not act at all: the prompt is passed as it is."""

    starts = False  # whether ``start`` may give a picture
    strength = 1.0  # of image-to-image from it

    def kind(self, request: CheckedRequest) -> object:
        """What of its contexts the pictures of one batch must have in common; by default nothing."""
        return None

    def inputs(self, pipe, requests: Sequence[CheckedRequest]) -> dict:
        """The prompts of a batch of one kind, and what carries its contexts, as the pipeline names them."""
        negative = [request.negative_prompt for request in requests]
        return {
            "prompt": [request.prompt for request in requests],
            "negative_prompt": negative if any(negative) else None,
        }

    def start(self, request: CheckedRequest) -> Image.Image | None:
        """The picture to start from, if the contexts give one."""
        return None


class TokenContexts(Contexts):
    """Context tokens after the text tokens, in the keys and values of cross-attention (Context Diffusion, section 3).

    A frozen CLIP vision tower sees each context dynamically normalized; the projector averages its patch tokens over
    the contexts and appends one token made of the removed means and deviations.
    """

    def __init__(self, vision: torch.nn.Module, projector: ContextProjector):
        self.vision, self.projector = vision, projector

    @classmethod
    def load(cls, model: Model, device: torch.device, dtype: torch.dtype) -> "TokenContexts":
        """Load the parts ``image_encoder`` and ``context_projector`` beside a pipeline."""
        from transformers import CLIPVisionModel

        folder = Path(model.location)
        vision = load_part(CLIPVisionModel, str(folder / "image_encoder"), dtype)
        projector = load_part(ContextProjector, str(folder / "context_projector"), dtype)
        parts = (part.eval().requires_grad_(False).to(device) for part in (vision, projector))
        return cls(*parts)

    @torch.inference_mode()
    def tokens(self, contexts: Sequence[Image.Image], weights: Sequence[float]) -> Float[Tensor, "1 tokens dim"]:
        """Turn contexts into the tokens that follow the text's."""
        size = self.vision.config.image_size
        weight = next(self.projector.parameters())
        pixels = torch.stack([to_tensor(resize(context, 2 * size)) for context in contexts])
        values, statistics = vision_inputs(pixels, size)
        hidden = self.vision(pixel_values=values.to(weight)).last_hidden_state[:, 1:]  # (images, patches, width)
        shares = torch.tensor([list(weights)]).to(weight)
        return self.projector(self.projector.pool(hidden)[None], statistics[None].to(weight), shares)

    @torch.inference_mode()
    def inputs(self, pipe, requests: Sequence[CheckedRequest]) -> dict:
        """Embed prompts and contexts: text tokens, then context tokens; zeros in the branch without condition."""

        def text(request: CheckedRequest) -> tuple[Tensor, ...]:
            return pipe.encode_prompt(
                request.prompt,
                device=pipe._execution_device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=True,
                negative_prompt=request.negative_prompt or None,
            )

        texts = once(requests, lambda request: (request.prompt, request.negative_prompt), text)
        embeddings = dict(zip(EMBEDDINGS, (torch.cat(rows) for rows in zip(*texts, strict=True)), strict=False))
        if not requests[0].contexts:
            return embeddings
        of_contexts = once(requests, by_contexts, lambda request: self.tokens(request.contexts, request.weights))
        tokens = check_finite("Context tokens", torch.cat(of_contexts)).to(embeddings["prompt_embeds"])
        for name, added in (("prompt_embeds", tokens), ("negative_prompt_embeds", torch.zeros_like(tokens))):
            embeddings[name] = torch.cat([embeddings[name], added], dim=1)
        return embeddings


class AdapterContexts(Contexts):
    """An IP-Adapter: image tokens in attention layers of their own, from the weighted average of CLIP embeddings."""

    def __init__(self, scale: float = 0.6):
        self.scale = check_number("scale", scale, 0, LIMITS["control_scale"])

    @classmethod
    def load(cls, pipe, root: str, file: str = "") -> "AdapterContexts":
        """Load an IP-Adapter into ``pipe``: the one in the folder ``root``, or ``file`` in the repository ``root``."""
        if file:
            subfolder, name = file.rsplit("/", 1)
            encoder = "models/image_encoder"
        else:
            root = check_path("the folder of an IP-Adapter", root)
            names = sorted(path.name for path in Path(root).glob("*.safetensors"))
            if len(names) != 1:
                raise ValueError(f"{root} must hold one .safetensors file and image_encoder/; it holds {names}.")
            subfolder, name, encoder = "", names[0], "image_encoder"
        load_adapter(pipe, root, subfolder, name, encoder)
        return cls()

    def kind(self, request: CheckedRequest) -> object:
        """The contexts themselves: diffusers repeats the embeddings of an IP-Adapter for every prompt of a batch."""
        return by_contexts(request)

    @torch.inference_mode()
    def inputs(self, pipe, requests: Sequence[CheckedRequest]) -> dict:
        """Average the contexts' embeddings; without contexts the adapter's layers are scaled to nothing."""
        first = requests[0]
        images = first.contexts or [Image.new("RGB", (64, 64))]
        (both,) = pipe.prepare_ip_adapter_image_embeds([images], None, pipe._execution_device, 1, True)
        of_images = rearrange(both, "branches images ... -> images branches 1 ...")
        mean = average_embeddings(of_images, first.weights or None)  # (uncond and cond, 1, ...)
        pipe.set_ip_adapter_scale(0.0 if not first.contexts else self.scale if first.prompt else 1.0)
        text = super().inputs(pipe, requests)
        return text | {"ip_adapter_image_embeds": [mean if first.guided else mean[1:]]}


class ColourContexts(Contexts):
    """No trained part at all: the picture starts from the query in the contexts' colours (image to image)."""

    starts = True
    strength = 0.9

    def start(self, request: CheckedRequest) -> Image.Image | None:
        """Paint the query with the contexts' mean and deviation per channel (AdaIN on pixels), or average contexts."""
        if not request.contexts:
            return None
        pixels = torch.stack([to_tensor(resize(context, request.size)) for context in request.contexts])
        if request.query is None:
            return to_pil(average_embeddings(pixels, request.weights))
        statistics = average_embeddings(dynamic_normalization(pixels)[1], request.weights)
        values, _ = dynamic_normalization(to_tensor(resize(request.query, request.size)))
        return to_pil(denormalize(values, statistics))


def check_projector_fits(contexts: TokenContexts, unet: torch.nn.Module, model: Model) -> None:
    """Refuse a projector that was trained for another vision tower or another U-Net."""
    own, vision, folder = contexts.projector.config, contexts.vision.config, f"{model.location}/context_projector"
    check_same(folder, "vision_width", own.vision_width, "the image_encoder's width is", vision.hidden_size)
    check_same(folder, "patches", own.patches, "the image_encoder's are", vision.image_size // vision.patch_size)
    check_same(
        folder, "cross_attention_dim", own.cross_attention_dim, "the U-Net's is", unet.config.cross_attention_dim
    )


Made = TypeVar("Made")


def once(
    requests: Sequence[CheckedRequest], key: Callable[[CheckedRequest], object], make: Callable[[CheckedRequest], Made]
) -> list[Made]:
    """``[make(request) for request in requests]``, where requests of one key share what is made.

    What is made of one request does not depend on the batch, to the last bit.
    """
    keys = [key(request) for request in requests]
    made: dict[object, Made] = {}
    for own, request in zip(keys, requests, strict=True):
        if own not in made:
            made[own] = make(request)
    return [made[own] for own in keys]


def by_contexts(request: CheckedRequest) -> tuple:
    """The key of a request's contexts and their weights."""
    return tuple(map(by_pixels, request.contexts)), request.weights


def by_pixels(image: Image.Image | None) -> tuple | None:
    """The key of a picture, or of none."""
    return None if image is None else (image.size, image.tobytes())
