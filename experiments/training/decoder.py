"""Go on training the decoder alone: the encoder, and so every latent, stays as it is.

    python -m experiments.training.decoder

As Stable Diffusion's ft-MSE decoders: mostly squared error, because that is what PSNR measures. It can run at any time
after ``vae``, also beside or after the U-Net, which never sees the decoder.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from context_diffusion.files import TINY_SCENES

from .data import pictures
from .loop import Recipe, publish_pretrained, train
from .vae import random_crops


def main() -> None:
    """Train and publish."""
    recipe = Recipe.from_command_line(__doc__, steps=8000, batch_size=16, learning_rate=7e-4, seed=1)
    pixels = pictures()["pixels"]
    model = AutoencoderKL.from_pretrained(TINY_SCENES / "vae").float().to(memory_format=torch.channels_last)
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)

    def loss(model: AutoencoderKL, generator: torch.Generator) -> torch.Tensor:
        target = random_crops(pixels, recipe.batch_size, generator).to(model.device)
        with torch.no_grad():
            latents = model.encode(target).latent_dist.mean
        output = model.decode(latents).sample.float()
        return F.mse_loss(output, target) + 0.1 * F.l1_loss(output, target)

    train("decoder", model, loss, recipe, publish=lambda m: publish_pretrained(m, "vae"))


if __name__ == "__main__":
    main()
