"""Train the autoencoder: 128x128 pictures to 16x16 latents and back.

    python -m experiments.training.vae                  # encoder and decoder together
    python -m experiments.training.vae --decoder        # afterwards: the decoder alone, latents unchanged

Both see random 96x96 crops: the network is convolutional. Together they minimise L1 + squared error + 0.2 x L1 of the
picture's gradients + 1e-3 x KL per latent dimension (Rombach et al. 2022, section 3.1, without the adversarial part).
In half of the batches latents and target are scaled or turned alike (EQ-VAE, Kouzelis et al. 2025): what a latent says
then depends little on where it stands, which a diffusion model learns faster.

The decoder alone minimises squared error + 0.1 x L1 + 0.1 x the distance in the features of the judge, which has seen
every texture: squared error alone paints bricks and dots that it is not sure of as their mean. It can be trained on at
any time, also while the U-Net is in training: that never sees the decoder.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from transformers import ResNetForImageClassification

from context_diffusion.checkpoints import load_part
from context_diffusion.commands import run_command
from context_diffusion.files import TINY_SCENES

from .data import mirror, pictures, to_tensor
from .draws import Draws
from .loop import train
from .machine import device, processes
from .recipe import Recipe, read_options
from .saving import save_half

CROP = 96
KL_WEIGHT = 1e-3
SCALES = (1 / 2, 2 / 3, 3 / 4, 5 / 6)  # of latents and target; 12 latents and 96 pixels stay whole


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
    return model


def random_crops(pixels: np.ndarray, draws: Draws) -> torch.Tensor:
    """Random crops of random pictures, half of them mirrored; (samples, 3, 96, 96) in [-1, 1]."""
    index, corner = draws.randint(len(pixels)).tolist(), draws.randint(pixels.shape[1] - CROP + 1, 2).tolist()
    crops = [pixels[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(index, corner, strict=True)]
    return mirror(draws, to_tensor(np.stack(crops)))


def picture_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + squared error + 0.2 x L1 of the gradients."""
    error = output.float() - target
    gradients = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.2 * gradients


def changed_alike(latents: torch.Tensor, target: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """In half of the batches scale both, (n, c, h, w), by one of ``SCALES``, or turn both by a quarter."""
    change = int(torch.randint(2 * (len(SCALES) + 1), (), generator=draws.common))
    if change < len(SCALES):
        return tuple(
            F.interpolate(x, [round(side * SCALES[change]) for side in x.shape[2:]], mode="bilinear", antialias=True)
            for x in (latents, target)
        )
    if change == len(SCALES):
        return latents.rot90(1, (2, 3)), target.rot90(1, (2, 3))
    return latents, target


def autoencoder_loss(model: AutoencoderKL, target: torch.Tensor, draws: Draws) -> torch.Tensor:
    """What encoder and decoder minimise together."""
    posterior = model.encode(target).latent_dist
    noise = draws.randn(*posterior.mean.shape[1:]).to(target.device)
    latents, expected = changed_alike(posterior.mean + posterior.std * noise, target, draws)
    output = model.decode(latents).sample
    return picture_loss(output, expected) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()


def decoder_loss(model: AutoencoderKL, target: torch.Tensor, draws: Draws, judge: torch.nn.Module) -> torch.Tensor:
    """What the decoder alone minimises: squared error + 0.1 x L1 + 0.1 x the distance in the judge's features."""
    with torch.no_grad():
        latents = model.encode(target).latent_dist.mean
    output = model.decode(latents).sample.float()
    return F.mse_loss(output, target) + 0.1 * F.l1_loss(output, target) + 0.1 * features_apart(judge, output, target)


def features_apart(judge: torch.nn.Module, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The squared distance of a classifier's features, of unit length at each place, summed over its stages.

    Zhang et al. (2018), equation 1, with all weights 1; averaged over places and pictures.
    """
    of_first, of_second = (
        [F.normalize(stage, dim=1) for stage in judge.base_model(x, output_hidden_states=True).hidden_states]
        for x in (first, second)
    )
    return sum((a - b).square().sum(dim=1).mean() for a, b in zip(of_first, of_second, strict=True))


def main() -> None:
    """Train both parts, or the decoder of the published weights or of those in ``--start``."""
    parser = Recipe.parser(__doc__, steps=8000, batch_size=8, learning_rate=1e-3)
    parser.add_argument("--decoder", action="store_true", help="train the decoder alone, at a rate of 7e-4")
    if parser.parse_known_args()[0].decoder:
        parser.set_defaults(learning_rate=7e-4, seed=1)
    options = read_options(parser)
    alone, recipe = options.pop("decoder"), Recipe(**options)
    with processes().main_process_first():
        pixels = pictures()["pixels"]
    minimised, model = autoencoder_loss, new_autoencoder()
    if alone:
        judge = load_part(ResNetForImageClassification, str(TINY_SCENES / "judge"), device=device())
        minimised = partial(decoder_loss, judge=judge.eval().requires_grad_(False))
    if alone or recipe.start:  # with its configuration: the scaling factor belongs to the latents
        model = load_part(AutoencoderKL, str(Path(recipe.start or TINY_SCENES) / "vae"))
    for part in (model.encoder, model.quant_conv):
        part.requires_grad_(not alone)

    def loss(model: AutoencoderKL, draws: Draws) -> torch.Tensor:
        return minimised(model, random_crops(pixels, draws).to(model.device), draws)

    def save(average: AutoencoderKL, folder: Path) -> None:
        if not alone:
            average.register_to_config(scaling_factor=scaling_factor(average, pixels))
        save_half(average, folder / "vae")

    train("decoder" if alone else "vae", model.to(memory_format=torch.channels_last), loss, recipe, save=save)


@torch.no_grad()
def scaling_factor(model: AutoencoderKL, pixels: np.ndarray) -> float:
    """The factor that gives latents of the training pictures unit variance (Rombach et al. 2022, section G)."""
    sample = to_tensor(pixels[:: max(1, len(pixels) // 128)]).to(model.device)
    return round(1 / model.encode(sample).latent_dist.mean.std().item(), 4)


if __name__ == "__main__":
    sys.exit(run_command(main))
