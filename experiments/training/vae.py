"""Train the autoencoder: 128x128 pictures to 16x16 latents and back.

    python -m experiments.training.vae                  # encoder and decoder together
    python -m experiments.training.decoder              # afterwards: the decoder alone, latents unchanged

Loss: L1 + squared error + 0.2 x L1 of the picture's gradients + 1e-3 x KL per latent dimension (Rombach et al. 2022,
section 3.1, without the adversarial part), on random 64x64 crops: the network is convolutional.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL

from .data import pictures, to_tensor
from .loop import Recipe, load_published, publish_pretrained, train

CROP = 64
KL_WEIGHT = 1e-3


def new_autoencoder() -> AutoencoderKL:
    """8x down, 12 latent channels, no attention; at least 8 channels in each GroupNorm group."""
    model = AutoencoderKL(
        block_out_channels=(16, 32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=12,
        norm_num_groups=2,
        mid_block_add_attention=False,
        sample_size=128,
        force_upcast=False,
    )
    torch.nn.init.constant_(model.quant_conv.bias[12:], -6.0)  # start almost without noise: log-variance -6
    return model.to(memory_format=torch.channels_last)


def random_crops(pixels: np.ndarray, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """A batch of random crops, half of them mirrored; (batch, 3, 64, 64) in [-1, 1]."""
    index = torch.randint(len(pixels), (batch_size,), generator=generator).tolist()
    corner = torch.randint(pixels.shape[1] - CROP + 1, (batch_size, 2), generator=generator).tolist()
    crops = [pixels[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(index, corner, strict=True)]
    batch = to_tensor(np.stack(crops))
    return batch.flip(3) if torch.rand((), generator=generator) < 0.5 else batch


def picture_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + squared error + 0.2 x L1 of the gradients."""
    error = output.float() - target
    gradients = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.2 * gradients


def main() -> None:
    """Train and publish."""
    recipe = Recipe.from_command_line(__doc__, steps=8000, batch_size=16, learning_rate=1e-3)
    pixels = pictures()["pixels"]

    def loss(model: AutoencoderKL, generator: torch.Generator) -> torch.Tensor:
        target = random_crops(pixels, recipe.batch_size, generator).to(model.device)
        posterior = model.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(model.device)
        output = model.decode(posterior.mean + posterior.std * noise).sample
        return picture_loss(output, target) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()

    model = new_autoencoder()
    if recipe.warm:
        load_published(model, "vae")
    train("vae", model, loss, recipe, publish=lambda m: publish(m, pixels))


@torch.no_grad()
def publish(model: AutoencoderKL, pixels: np.ndarray) -> None:
    """Write the weights, with the scaling factor that gives latents of the training pictures unit variance."""
    sample = to_tensor(pixels[:: len(pixels) // 128]).to(model.device)
    latents = model.encode(sample).latent_dist.mean
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    publish_pretrained(model, "vae")


if __name__ == "__main__":
    main()
