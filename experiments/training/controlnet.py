"""Train a ControlNet (Zhang et al. 2023) on a copy of the U-Net's encoder; the U-Net itself stays as it is.

    python -m experiments.training.controlnet --kind canny
    python -m experiments.training.controlnet --kind depth

The query of a sample is the layout of its target. For Canny it is the same scene drawn in *another* style (half of them
flat, a fifth line art, the others any) whose edges are found as at sampling; for depth it is the exact depth. Only the
ControlNet is in the checkpoint: a resumed run takes the U-Net as it is then.
"""

import sys

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tqdm.auto import tqdm

from context_diffusion.context.projector import ContextProjector
from context_diffusion.control import canny_map
from context_diffusion.files import TINY_SCENES, written_whole
from context_diffusion.scenes import Scene, Style, render
from context_diffusion.scenes.dataset import GROUP

from .data import CACHE, pictures
from .features import features
from .loop import Recipe, device, load_published, publish_pretrained, train
from .unet import condition, new_scheduler, noised

GROUPS = 3000
QUERY_STYLES = {"flat": 0.5, "line art": 0.2}  # the others: any style


def query_edges(groups: int = GROUPS) -> np.ndarray:
    """Canny edges of the first pictures' layouts in other styles, packed bits (n, 128, 16)."""
    file = CACHE / f"canny-{groups}.npy"
    if not file.exists():
        generator, rows = np.random.default_rng(0), []
        for i in tqdm(range(groups * GROUP), desc="drawing queries", mininterval=5):
            name = generator.choice([*QUERY_STYLES, ""], p=[*QUERY_STYLES.values(), 1 - sum(QUERY_STYLES.values())])
            style = Style.draw(500_000_000 + i, **({"name": str(name)} if name else {}))
            drawn = render(Scene.draw(i // GROUP * 1000 + i % GROUP), style, i)
            rows.append(np.packbits(canny_map(drawn.image).numpy() > 0.5, axis=1))
        with written_whole(file) as temporary:
            np.save(temporary, np.stack(rows))
    return np.load(file)


def controls(kind: str) -> torch.Tensor:
    """Control maps of the first pictures, uint8 (n, 128, 128), 255 on an edge or nearest."""
    if kind == "canny":
        return torch.from_numpy(np.unpackbits(query_edges(), axis=2) * 255)
    depth = torch.from_numpy(pictures()["depth"][: GROUPS * GROUP]).float()
    low, high = depth.amin(dim=(1, 2), keepdim=True), depth.amax(dim=(1, 2), keepdim=True)
    return ((depth - low) / (high - low).clamp(min=1) * 255).byte()


def frozen_parts() -> tuple[UNet2DConditionModel, ContextProjector]:
    """The trained U-Net and projector, which no step changes."""
    unet = UNet2DConditionModel.from_pretrained(TINY_SCENES / "unet")
    projector = ContextProjector.from_pretrained(TINY_SCENES / "context_projector")
    return tuple(part.to(device(), torch.float32).requires_grad_(False) for part in (unet, projector))


def main() -> None:
    """Train and publish the ControlNet named by ``--kind``."""
    kind = sys.argv.pop(sys.argv.index("--kind") + 1) if "--kind" in sys.argv else ""
    if kind not in ("canny", "depth"):
        raise SystemExit("Say which ControlNet to train: --kind canny or --kind depth.")
    sys.argv.remove("--kind")
    recipe = Recipe.from_command_line(__doc__, steps=4000, batch_size=32, learning_rate=7e-4, ema=0.998)
    data, maps, scheduler = features(), controls(kind), new_scheduler()
    unet, projector = frozen_parts()
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64, 96))
    if recipe.warm:
        load_published(controlnet, f"controlnet-{kind}")
    for network in (unet, controlnet):
        network.set_attn_processor(AttnProcessor())  # on a CPU the fused attention has a slow backward pass
        network.to(memory_format=torch.channels_last)

    def loss(model: ControlNetModel, generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(maps), (recipe.batch_size,), generator=generator)
        tokens = condition(data, projector, index, generator)
        noisy, timestep, noise, weight = noised(data, index, scheduler, generator, device())
        control = (maps[index].float() / 255).to(device())[:, None].expand(-1, 3, -1, -1)
        down, mid = model(noisy, timestep, tokens, control, return_dict=False)
        output = unet(
            noisy, timestep, tokens, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
        return (weight * (output.float() - noise).square().mean(dim=(1, 2, 3))).mean()

    train(
        f"controlnet-{kind}", controlnet.requires_grad_(True), loss, recipe,
        publish=lambda model: publish_pretrained(model, f"controlnet-{kind}"), publish_every=500,
    )  # fmt: skip


if __name__ == "__main__":
    main()
