"""Train the U-Net and the context projector together.

    python -m experiments.training.unet --minutes 120                # goes on from where it stands
    python -m experiments.training.unet --finish 8000                # the last stretch: the rate falls to zero

The network predicts the velocity (Salimans and Ho 2022) on a schedule whose last step is pure noise (Lin et al. 2023),
so that nothing of a picture's palette hides in the noise that sampling starts from. Its error is weighted by
``(min(SNR, 5) + 1) / (SNR + 1)``: min-SNR (Hang et al. 2023), but not zero at the last step. Each batch takes its time
steps evenly, one from each of 32 equal stretches of the schedule.

Its cross-attention reads text tokens, then 16 context tokens and a statistic token of one to three *other* pictures of
the same style draw. The text is dropped in 15 % of the samples. A quarter of the batches have no context tokens; in the
others one sample of six has zeros instead, the null context of guidance. A described background is drawn twice as often
as a plain one.

``build/training/unet/`` is complete: beside the two networks lie their scheduler and the encoders that they have
learned to read, so that it can be the ``--start`` of another run, or of a ControlNet's.
"""

import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from context_diffusion.checkpoints import load_part
from context_diffusion.commands import run_command
from context_diffusion.context.projector import ContextProjector
from context_diffusion.files import TINY_SCENES, folder_written_whole
from context_diffusion.scenes import BACKGROUNDS, TinyScenes
from context_diffusion.scenes.dataset import GROUP

from .data import GROUPS
from .draws import Draws
from .features import ENCODERS, features
from .loop import train
from .machine import processes
from .recipe import Recipe
from .saving import load_weights, save_half

HELD_OUT_GROUPS, HELD_OUT_DRAWS = 128, 3
BANDS = 5  # of noise, in the held-out loss
TEXT_DROP = 0.15
NO_CONTEXT = 0.25
NULL_CONTEXT = 1 / 6
MIN_SNR = 5.0
MOST_WEIGHT = 30.0
STRATA = 32


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas, rescaled to zero terminal SNR (Lin et al. 2023, algorithm 1); sampling begins there."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # trailing steps have none, but diffusers' pipelines warn of any other
    )


def new_unet() -> UNet2DConditionModel:
    """Three levels (16x16, 8x8, 4x4); attention everywhere but on the way down at 16x16. SD 1.x layout."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=12,
        out_channels=12,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=(2, 4, 6),  # in this class the number of heads: 32 channels each
        norm_num_groups=16,
    )


class Denoiser(nn.Module):
    """U-Net and context projector as one module, so that one optimizer and one average hold both."""

    def __init__(self, unet: UNet2DConditionModel, projector: ContextProjector):
        super().__init__()
        self.unet, self.projector = unet, projector


def group_mates(index: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """For each picture the three others of its style draw in random order, and weights that keep one to three."""
    order = draws.rand(GROUP - 1).argsort(dim=1) + 1
    count = draws.randint(GROUP - 1)[:, None] + 1
    return index[:, None] // GROUP * GROUP + (index[:, None] % GROUP + order) % GROUP, (
        torch.arange(GROUP - 1) < count
    ).float()


def condition(data: dict, projector: ContextProjector, index: Tensor, draws: Draws) -> Tensor:
    """Cross-attention tokens of a batch, (batch, 32 or 49, 128), with text and contexts dropped as the module says."""
    caption = torch.where(draws.rand() < TEXT_DROP, len(data["text"]) - 1, data["caption"][index])
    text = data["text"][caption].to(projector.device)
    mates, weights = group_mates(index, draws)
    present = draws.rand(1, 1) >= NULL_CONTEXT
    if torch.rand((), generator=draws.common) < NO_CONTEXT:
        return text
    seen = (data[key][mates].to(projector.device) for key in ("pooled", "statistics"))
    context = projector(*seen, weights.to(projector.device))
    return torch.cat([text, (context * present.to(context.device)).to(text.dtype)], dim=1)


def noised(latents: Tensor, scheduler: DDIMScheduler, timestep: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, what the network must predict of them, and the weight of each sample's squared error.

    Where the scheduler asks for the velocity, the weight is (min(SNR, 5) + 1) / (SNR + 1). Where it asks for the noise,
    it is min(SNR, 5) / SNR times 1 / alpha_bar, the latter at most 30: at high noise, where the palette is decided, a
    small error of the noise is a large error of the picture. SNR = alpha_bar / (1 - alpha_bar). Raises ``ValueError``
    for any other prediction type.
    """
    alpha = scheduler.alphas_cumprod[timestep]
    snr = alpha / (1 - alpha)
    noisy, kind = scheduler.add_noise(latents, noise, timestep), scheduler.config.prediction_type
    if kind == "v_prediction":
        return noisy, scheduler.get_velocity(latents, noise, timestep), (snr.clamp(max=MIN_SNR) + 1) / (snr + 1)
    if kind == "epsilon":
        return noisy, noise, (MIN_SNR / snr).clamp(max=1) * (1 / alpha).clamp(max=MOST_WEIGHT)
    raise ValueError(f"Training knows the prediction types 'v_prediction' and 'epsilon'; the scheduler has {kind!r}.")


def drawn(data: dict, index: Tensor, scheduler: DDIMScheduler, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy latents, time steps, targets and weights of the pictures ``index``."""
    latents = data["latents"][index].float()
    steps = scheduler.config.num_train_timesteps
    timestep = (draws.strata(STRATA) * steps).long().clamp(max=steps - 1)
    noisy, target, weight = noised(latents, scheduler, timestep, draws.randn(*latents.shape[1:]))
    return noisy, timestep, target, weight


def weighted_error(output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The mean over the samples of weight times squared error."""
    return (weight * (output.float() - target).square().mean(dim=(1, 2, 3))).mean()


def held_out_loss(data: dict, scheduler: DDIMScheduler, denoiser: Denoiser) -> list[float]:
    """The unweighted loss in five bands of noise, the lowest first: fixed pictures, contexts and noise."""
    total, number = torch.zeros(BANDS), torch.zeros(BANDS)
    pictures, size = len(data["latents"]), 64
    for first in range(0, HELD_OUT_DRAWS * pictures, size):
        samples = range(first, min(first + size, HELD_OUT_DRAWS * pictures))
        draws = Draws(1, samples, first // size)
        index = torch.tensor(samples) % pictures
        tokens = condition(data, denoiser.projector, index, draws)
        noisy, timestep, target, _ = drawn(data, index, scheduler, draws)
        output = denoiser.unet(noisy.to(tokens.device), timestep.to(tokens.device), tokens).sample.float().cpu()
        band = timestep * BANDS // scheduler.config.num_train_timesteps
        total.index_add_(0, band, (output - target).square().mean(dim=(1, 2, 3)))
        number.index_add_(0, band, torch.ones(len(band)))
    return (total / number).tolist()


def main() -> None:
    """Train, from the last checkpoint, from the folder ``--start``, or from nothing."""
    recipe = Recipe.from_command_line(
        __doc__, steps=100_000, batch_size=32, learning_rate=1e-3, optimizer="muon", schedule="constant"
    )
    parts = Path(recipe.start or TINY_SCENES)
    with processes().main_process_first():
        data, unseen = features(parts, GROUPS), features(parts, HELD_OUT_GROUPS, TinyScenes.HELD_OUT)
    plain = data["background"] == BACKGROUNDS.index("plain")
    often = torch.cat([torch.arange(len(plain)), torch.arange(len(plain))[~plain]])
    scheduler, model = new_scheduler(), Denoiser(new_unet(), ContextProjector())
    if recipe.start:
        load_weights(model.unet, parts / "unet")
        load_weights(model.projector, parts / "context_projector")
    model.unet.set_attn_processor(AttnProcessor())  # on a CPU the fused attention has a slow backward pass
    model.unet.to(memory_format=torch.channels_last)

    def loss(model: Denoiser, draws: Draws) -> Tensor:
        index = often[draws.randint(len(often))]
        tokens = condition(data, model.projector, index, draws)
        noisy, timestep, target, weight = (x.to(tokens.device) for x in drawn(data, index, scheduler, draws))
        return weighted_error(model.unet(noisy, timestep, tokens).sample, target, weight)

    def save(average: Denoiser, folder: Path) -> None:
        save_half(average.unet, folder / "unet")
        save_half(average.projector, folder / "context_projector")
        with folder_written_whole(folder / "scheduler") as temporary:
            scheduler.save_pretrained(temporary)
        for name, kind in ENCODERS.items():
            save_half(load_part(kind, str(parts / name)), folder / name)

    train("unet", model, loss, recipe, save=save, held_out=lambda average: held_out_loss(unseen, scheduler, average))


if __name__ == "__main__":
    sys.exit(run_command(main))
