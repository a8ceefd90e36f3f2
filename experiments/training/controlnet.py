"""Train a ControlNet (Zhang et al. 2023), a copy of the U-Net's encoder; the U-Net itself stays as it is.

    python -m experiments.training.controlnet --kind canny
    python -m experiments.training.controlnet --kind depth --start build/training/unet

The U-Net, its scheduler (which says what is predicted), its projector and its encoders come from the folder
``--start``, by default the published one. If that folder was named and has a ControlNet of this kind, the run begins
with it, otherwise with the copy.

The query of a sample is the layout of its target. For Canny it is the same scene drawn in *another* style (half of them
flat, a fifth line art, the others any), whose edges are found as they are in sampling; for depth it is the exact depth.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from einops import repeat
from torch import Tensor
from tqdm.auto import tqdm

from context_diffusion.checkpoints import load_part
from context_diffusion.commands import run_command
from context_diffusion.context.projector import ContextProjector
from context_diffusion.control import canny_map
from context_diffusion.files import TINY_SCENES
from context_diffusion.scenes import Scene, Style, render
from context_diffusion.scenes.dataset import GROUP

from .data import CACHE, GROUPS, kept, pictures
from .draws import Draws
from .features import features
from .loop import train
from .machine import device, processes
from .recipe import Recipe, read_options
from .saving import load_weights, save_half
from .unet import condition, drawn, weighted_error

LAYOUTS = 3000 * GROUP  # those of the first pictures
QUERY_STYLES = {"flat": 0.5, "line art": 0.2}  # the others: any style


def query_edges(count: int = LAYOUTS) -> np.ndarray:
    """Canny edges of the first pictures' layouts in other styles, packed bits (count, 128, 16)."""
    return kept(CACHE / f"canny-{count}.npy", np.load, lambda file: np.save(file, _edges(count)))


def _edges(count: int) -> np.ndarray:
    generator, rows = np.random.default_rng(0), []
    for i in tqdm(range(count), desc="drawing queries", mininterval=5):
        name = generator.choice([*QUERY_STYLES, ""], p=[*QUERY_STYLES.values(), 1 - sum(QUERY_STYLES.values())])
        style = Style.draw(500_000_000 + i, **({"name": str(name)} if name else {}))
        drawn = render(Scene.draw(i // GROUP * 1000 + i % GROUP), style, i)
        rows.append(np.packbits(canny_map(drawn.image).numpy() > 0.5, axis=1))
    return np.stack(rows)


def controls(kind: str) -> torch.Tensor:
    """Control maps of the first pictures, uint8 (n, 128, 128), 255 on an edge or where the scene is nearest."""
    if kind == "canny":
        return torch.from_numpy(np.unpackbits(query_edges(), axis=2) * 255)
    depth = torch.from_numpy(pictures()["depth"][:LAYOUTS])
    low, high = depth.amin(dim=(1, 2), keepdim=True), depth.amax(dim=(1, 2), keepdim=True)
    return ((depth - low) * (255 / (high - low).clamp(min=1))).byte()


def frozen_parts(parts: Path) -> tuple[UNet2DConditionModel, ContextProjector]:
    """The trained U-Net and projector in ``parts``, which no step changes."""
    kinds = {"unet": UNet2DConditionModel, "context_projector": ContextProjector}
    return tuple(
        load_part(kind, str(parts / name), device=device()).requires_grad_(False) for name, kind in kinds.items()
    )


def new_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A trainable copy of the U-Net's encoder; control maps are halved three times on their way in."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64, 96)).requires_grad_(True)


def main() -> None:
    """Train the ControlNet named by ``--kind``."""
    parser = Recipe.parser(__doc__, steps=1500, batch_size=32, learning_rate=1e-3, optimizer="muon", ema=0.995)
    parser.add_argument("--kind", choices=("canny", "depth"), required=True, help="what its control maps show")
    options = read_options(parser)
    kind, recipe = options.pop("kind"), Recipe(**options)
    name, parts = f"controlnet-{kind}", Path(recipe.start or TINY_SCENES)
    with processes().main_process_first():
        data, maps = features(parts, GROUPS), controls(kind)
    scheduler = load_part(DDIMScheduler, str(parts / "scheduler"), None)
    unet, projector = frozen_parts(parts)
    controlnet = new_controlnet(unet)
    if recipe.start and (parts / name).is_dir():
        load_weights(controlnet, parts / name)
    for network in (unet, controlnet):
        network.set_attn_processor(AttnProcessor())  # on a CPU the fused attention has a slow backward pass
        network.to(memory_format=torch.channels_last)

    def loss(model: ControlNetModel, draws: Draws) -> Tensor:
        index = draws.randint(len(maps))
        tokens = condition(data, projector, index, draws)
        noisy, timestep, target, weight = (x.to(tokens.device) for x in drawn(data, index, scheduler, draws))
        control = repeat(maps[index].to(tokens.device).float() / 255, "n height width -> n rgb height width", rgb=3)
        down, mid = model(noisy, timestep, tokens, control, return_dict=False)
        output = unet(
            noisy, timestep, tokens, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
        return weighted_error(output, target, weight)

    train(name, controlnet, loss, recipe, save=lambda average, folder: save_half(average, folder / name))


if __name__ == "__main__":
    sys.exit(run_command(main))
