"""Train the offline depth estimator on the world's exact depth.

    python -m experiments.training.depth

A small ``DPTForDepthEstimation`` (Ranftl et al. 2021) on 64-pixel pictures; its output is nearness in [0, 1], 1 the
nearest. Contrast and colour vary, and half of the pictures are mirrored, so that it reads shape rather than palette.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import DPTConfig, DPTForDepthEstimation

from context_diffusion.commands import run_command
from context_diffusion.scenes.judge import shrink

from .clip import SIDE
from .data import mirror, pictures, to_tensor
from .draws import Draws
from .loop import train
from .machine import device, processes
from .recipe import Recipe
from .saving import load_weights, save_half


def new_depth_estimator() -> DPTForDepthEstimation:
    """Width 96, 4 layers, 8x8 patches, features of 32 channels."""
    config = DPTConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[32, 48, 64, 96],
        reassemble_factors=[4, 2, 1, 0.5],
        fusion_hidden_size=32,
        readout_type="project",
        is_hybrid=False,
        use_auxiliary_head=False,
    )
    return DPTForDepthEstimation(config)


def examples(pixels: torch.Tensor, depth: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (n, 3, 64, 64), varied, and their nearness (n, 1, 64, 64), from uint8 (n, 64, 64, 3) and (n, 64, 64)."""
    gain = 1 + 0.3 * (2 * draws.rand(3, 1, 1) - 1)
    batch = to_tensor(pixels) * gain + 0.05 * draws.randn(3, SIDE, SIDE)
    both = mirror(draws, torch.cat([batch, depth[:, None].float() / 255], dim=1))
    return both[:, :3], both[:, 3:]


def main() -> None:
    """Train the estimator."""
    recipe = Recipe.from_command_line(__doc__, steps=2500, batch_size=32, learning_rate=1e-3)
    with processes().main_process_first():
        arrays = pictures()
    small, depth = (torch.from_numpy(shrink(arrays[key])) for key in ("pixels", "depth"))

    def loss(model: DPTForDepthEstimation, draws: Draws) -> torch.Tensor:
        index = draws.randint(len(small))
        batch, target = examples(small[index], depth[index], draws)
        output = model(batch.to(device())).predicted_depth.float()
        target = F.interpolate(target, output.shape[-2:], mode="area")[:, 0].to(device())
        return F.l1_loss(output, target) + F.mse_loss(output, target)

    model = new_depth_estimator()
    if recipe.start:
        load_weights(model, Path(recipe.start) / "depth")
    train("depth", model, loss, recipe, save=lambda average, folder: save_half(average, folder / "depth"))


if __name__ == "__main__":
    sys.exit(run_command(main))
