"""Stable Diffusion and StyleAligned in plain PyTorch, to be read in an evening.

Read in this order: ``tokenizer``, ``text_encoder`` (with ``attention``), ``autoencoder`` (with ``blocks``), ``unet``,
``schedulers``, ``sampling``, ``generate``. ``weights`` reads the folders that diffusers and transformers write;
``attention_maps`` shows what cross-attention looks at; ``style_aligned`` makes a batch share its style.

    from context_diffusion import from_scratch as fs

    model = fs.StableDiffusion.from_pretrained("data/checkpoints/tiny-scenes")
    image = fs.text_to_image(model, "a boat among hills, watercolor style", seed=1)[0]
"""

from .attention_maps import record_cross_attention, word_maps
from .autoencoder import Autoencoder
from .generate import StableDiffusion, encode_prompt, image_to_image, images_to_tensor, tensor_to_images, text_to_image
from .sampling import State, denoise, draw_noise, guided_prediction, make_generators
from .schedulers import DDIM, DDPM, Euler, Scheduler, make_betas, rescale_betas_zero_snr
from .style_aligned import TextbookSettings, textbook
from .text_encoder import TextEncoder
from .tokenizer import Tokenizer
from .unet import UNet

__all__ = [
    "DDIM", "DDPM", "Autoencoder", "Euler", "Scheduler", "StableDiffusion", "State", "TextEncoder", "TextbookSettings",
    "Tokenizer", "UNet", "denoise", "draw_noise", "encode_prompt", "guided_prediction", "image_to_image",
    "images_to_tensor", "make_betas", "make_generators", "record_cross_attention",
    "rescale_betas_zero_snr", "tensor_to_images", "text_to_image", "textbook", "word_maps",
]  # fmt: skip
