"""Train the offline depth estimator on the world's exact depth.

    python -m experiments.training.depth

A small ``DPTForDepthEstimation`` (Ranftl et al. 2021) on 64-pixel pictures; nearness in [0, 1], 1 is nearest. Contrast,
colour and mirror are varied so that it reads shape rather than palette.
"""

import torch
import torch.nn.functional as F
from transformers import DPTConfig, DPTForDepthEstimation

from .clip import SIDE, shrink
from .data import pictures
from .loop import Recipe, device, load_published, publish_pretrained, train


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


def main() -> None:
    """Train and publish."""
    recipe = Recipe.from_command_line(__doc__, steps=2500, batch_size=32, learning_rate=1e-3)
    arrays = pictures()
    small = torch.from_numpy(shrink(arrays["pixels"]))
    depth = torch.from_numpy(shrink(arrays["depth"]))

    def loss(model: DPTForDepthEstimation, generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(small), (recipe.batch_size,), generator=generator)
        batch = small[index].permute(0, 3, 1, 2).float() / 127.5 - 1
        gain = 1 + 0.3 * (2 * torch.rand(len(batch), 3, 1, 1, generator=generator) - 1)
        batch = batch * gain + 0.05 * torch.randn(batch.shape, generator=generator)
        target = depth[index].float() / 255
        if torch.rand((), generator=generator) < 0.5:
            batch, target = batch.flip(3), target.flip(2)
        output = model(batch.to(device())).predicted_depth.float()
        target = F.interpolate(target[:, None], output.shape[-2:], mode="area")[:, 0].to(device())
        return F.l1_loss(output, target) + F.mse_loss(output, target)

    model = new_depth_estimator()
    if recipe.warm:
        load_published(model, "depth")
    train("depth", model, loss, recipe, publish=lambda m: publish_pretrained(m, "depth"))


if __name__ == "__main__":
    main()
