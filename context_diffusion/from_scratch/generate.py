"""Text to image and image to image: the five components together (Rombach et al. 2022, fig. 3).

prompt --tokenizer, text encoder--> context ─┐
noise (or noised latent of an image) ────────┴─ [ U-Net -> guidance -> scheduler step ] x n --decoder--> image
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..checkpoints import find_device, find_dtype, find_model
from ..images import ImageLike, listed, to_pil, to_tensor
from ..signatures import checked
from .autoencoder import Autoencoder
from .sampling import Context, State, denoise, draw_noise, make_generators
from .schedulers import Scheduler
from .text_encoder import TextEncoder
from .tokenizer import Tokenizer
from .unet import UNet
from .weights import load, load_scheduler

Pictures = ImageLike | Sequence[ImageLike]


@dataclass(frozen=True)
class StableDiffusion:
    """The five components. ``dataclasses.replace(model, scheduler=...)`` changes one."""

    tokenizer: Tokenizer
    text_encoder: TextEncoder
    autoencoder: Autoencoder
    unet: UNet
    scheduler: Scheduler

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "tiny-scenes",
        dtype: str | torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "StableDiffusion":
        """Load a Stable Diffusion 1.x or 2.x folder written by ``save_pretrained``, or the offline model by name."""
        folder, dtype, device = Path(find_model(name).location).expanduser(), find_dtype(dtype), find_device(device)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"Models are read from folders here, and {folder} is not a folder; "
                f"`hf download {folder} --local-dir {folder.name}` makes one called {folder.name}."
            )
        return cls(
            Tokenizer.from_pretrained(folder / "tokenizer"),
            load(TextEncoder, folder / "text_encoder", dtype).to(device),
            load(Autoencoder, folder / "vae", dtype).to(device),
            load(UNet, folder / "unet", dtype).to(device),
            load_scheduler(folder / "scheduler"),
        )

    @property
    def image_size(self) -> int:
        """Height and width, in pixels, of the pictures that the model was trained on."""
        return self.unet.sample_size * self.autoencoder.factor


@checked
def encode_prompt(model: StableDiffusion, prompts: str | Sequence[str]) -> Context:
    """One vector per token of each prompt."""
    return model.text_encoder(model.tokenizer(prompts).to(model.unet.conv_in.weight.device))


def make_context(
    model: StableDiffusion,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str],
    prompt_embeds: Context | None,
    negative_prompt_embeds: Context | None,
    guidance_scale: float,
) -> tuple[Float[Tensor, "all_rows tokens dim"], int]:
    """The rows that ``guided_prediction`` wants, and the number of pictures."""
    positive = encode_prompt(model, prompt) if prompt_embeds is None else prompt_embeds
    if (count := len(positive)) == 0:
        raise ValueError("Give at least one prompt; an empty string counts as one, an empty list does not.")
    if guidance_scale <= 1:
        return positive, count
    if negative_prompt_embeds is None:
        texts = [negative_prompt] * count if isinstance(negative_prompt, str) else negative_prompt
        negative_prompt_embeds = encode_prompt(model, texts)
    if negative_prompt_embeds.shape != positive.shape:
        raise ValueError(
            "Each prompt goes with one negative prompt, so their embeddings must have one shape; "
            f"got {tuple(positive.shape)} and {tuple(negative_prompt_embeds.shape)}."
        )
    both = [negative_prompt_embeds, positive]
    return rearrange(both, "branches batch tokens dim -> (branches batch) tokens dim"), count


def latent_shape(model: StableDiffusion, height: int, width: int) -> tuple[int, int, int]:
    """Channels, height and width of the latent for a picture of this size."""
    factor = model.autoencoder.factor
    return model.unet.in_channels, height // factor, width // factor


def images_to_tensor(images: Pictures) -> Float[Tensor, "batch 3 height width"]:
    """Pictures of one size as a tensor in [-1, 1]."""
    pixels = [to_tensor(image) for image in listed(images)]
    if len(sizes := {tuple(picture.shape[1:]) for picture in pixels}) != 1:
        raise ValueError(f"The images of a batch must have one size; got heights and widths {sorted(sizes)}.")
    return torch.stack(pixels) * 2 - 1


@checked
def tensor_to_images(pixels: Float[Tensor, "batch 3 height width"]) -> list[Image.Image]:
    """A tensor in [-1, 1] as pictures; values outside are clipped."""
    return [to_pil(picture / 2 + 0.5) for picture in pixels]


@torch.no_grad()
@checked
def text_to_image(
    model: StableDiffusion,
    prompt: str | Sequence[str] = "",
    *,
    negative_prompt: str | Sequence[str] = "",
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    seed: int | Sequence[int] = 0,
    prompt_embeds: Context | None = None,
    negative_prompt_embeds: Context | None = None,
    callback: Callable[[State], None] | None = None,
    progress: bool = False,
) -> list[Image.Image]:
    """Draw a picture for every prompt.

    Arguments:
        guidance_scale: w of ``guided_prediction``; at 1 or less the negative prompt has no say, and the work halves.
        seed: the first picture's (each further picture adds 1), or one per picture. A picture depends on no other seed.
        prompt_embeds, negative_prompt_embeds: replace the texts; any number of tokens.
        callback: called with the ``State`` after every step.
    """
    height = model.image_size if height is None else height
    width = model.image_size if width is None else width
    model.autoencoder.check_size(height, width)
    steps = model.scheduler.steps(num_inference_steps)
    context, count = make_context(model, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, guidance_scale)
    generators = make_generators(seed, count)
    noise = draw_noise(latent_shape(model, height, width), generators).to(context)
    x = model.scheduler.start(noise, steps[0][0])
    states = denoise(model.unet, model.scheduler, x, steps, context, guidance_scale, generators)
    return finish(model, states, len(steps), callback, progress)


@torch.no_grad()
@checked
def image_to_image(
    model: StableDiffusion,
    prompt: str | Sequence[str],
    image: Pictures,
    *,
    strength: float = 0.8,
    negative_prompt: str | Sequence[str] = "",
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    seed: int | Sequence[int] = 0,
    prompt_embeds: Context | None = None,
    negative_prompt_embeds: Context | None = None,
    callback: Callable[[State], None] | None = None,
    progress: bool = False,
) -> list[Image.Image]:
    """Draw a picture for every prompt, starting from an image with noise added (Meng et al. 2022, section 3).

    Arguments:
        image: one for all prompts, or one for each.
        strength: the share of the steps to take. 0 returns the image (through the autoencoder); 1 is ``text_to_image``
            and uses nothing of the image. Anything in between takes at least one step.
        others: as in ``text_to_image``.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is the share of the steps to take, from 0 (the image) to 1 (new); got {strength}.")
    pixels = images_to_tensor(image)
    model.autoencoder.check_size(*pixels.shape[-2:])
    steps = model.scheduler.steps(num_inference_steps)
    steps = steps[len(steps) - (max(1, int(num_inference_steps * strength)) if strength else 0) :]
    context, count = make_context(model, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, guidance_scale)
    if len(pixels) not in (1, count):
        raise ValueError(f"Give one image, or one for each of the {count} prompts; got {len(pixels)}.")
    generators = make_generators(seed, count)
    pixels = pixels.expand(count, -1, -1, -1).to(context)
    if not steps:
        return tensor_to_images(model.autoencoder.decode(model.autoencoder.encode(pixels)))
    shape, (start, _) = latent_shape(model, *pixels.shape[-2:]), steps[0]
    if strength < 1:
        x_0 = model.autoencoder.encode(pixels, draw_noise(shape, generators).to(context))
        x = model.scheduler.add_noise(x_0, draw_noise(shape, generators).to(context), start)
    else:
        x = model.scheduler.start(draw_noise(shape, generators).to(context), start)
    states = denoise(model.unet, model.scheduler, x, steps, context, guidance_scale, generators)
    return finish(model, states, len(steps), callback, progress)


def finish(
    model: StableDiffusion,
    states: Iterable[State],
    total: int,
    callback: Callable[[State], None] | None,
    progress: bool,
) -> list[Image.Image]:
    """Run the reverse process to its end and decode the result."""
    for state in tqdm(states, total=total, disable=not progress):
        if callback is not None:
            callback(state)
    return tensor_to_images(model.autoencoder.decode(state.x))
