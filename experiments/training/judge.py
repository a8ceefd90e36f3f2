"""Train the judge: a small classifier of object, background and style that scores generated pictures.

    python -m experiments.training.judge

It is trained on real scenes only, independently of CLIP and of the U-Net. Some pictures are blurred or noisy, so that
softness does not count against the content of what it judges. Its accuracy on unseen scenes is printed at the end.
Batch normalization takes each pass by itself: ``--accumulate`` and more processes see the same samples, but normalize
fewer at a time.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from context_diffusion.commands import run_command
from context_diffusion.scenes import TinyScenes
from context_diffusion.scenes.judge import HEADS, shrink, split

from .data import mirror, pictures, to_tensor
from .draws import Draws
from .loop import train
from .machine import device, processes
from .recipe import Recipe
from .saving import load_weights, save_half


def new_judge() -> ResNetForImageClassification:
    """A ResNet of 64-pixel pictures whose 26 logits are the three heads one after the other."""
    names = [name for group in HEADS.values() for name in group]
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    config.downsample_in_first_stage = False
    return ResNetForImageClassification(config).to(memory_format=torch.channels_last)


def augment(batch: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Mirror, soften and roughen some pictures each; (n, 3, 64, 64) in [-1, 1]."""
    batch = mirror(draws, batch)
    soft = F.avg_pool2d(batch, 3, 1, 1, count_include_pad=False)
    batch = torch.where(draws.rand(1, 1, 1) < 0.4, soft, batch)
    return batch + 0.15 * draws.rand(1, 1, 1) * draws.randn(*batch.shape[1:])


@torch.no_grad()
def accuracy(judge: ResNetForImageClassification, groups: int = 250) -> dict[str, float]:
    """How often each head is right on scenes that no training saw."""
    unseen = pictures(groups, TinyScenes.HELD_OUT)
    heads = split(judge(to_tensor(shrink(unseen["pixels"])).to(device())).logits.cpu())
    return {head: float((heads[head].argmax(dim=1).numpy() == unseen[head]).mean()) for head in HEADS}


def main() -> None:
    """Train, and print the accuracy on unseen scenes."""
    recipe = Recipe.from_command_line(__doc__, steps=3000, batch_size=64, learning_rate=2e-3, weight_decay=0.05)
    with processes().main_process_first():
        arrays = pictures()
    small = torch.from_numpy(shrink(arrays["pixels"]))
    labels = {head: torch.from_numpy(arrays[head]) for head in HEADS}

    def loss(model: ResNetForImageClassification, draws: Draws) -> torch.Tensor:
        index = draws.randint(len(small))
        heads = split(model(augment(to_tensor(small[index]), draws).to(device())).logits.float())
        return sum(F.cross_entropy(heads[h], labels[h][index].to(device()), label_smoothing=0.05) for h in HEADS)

    model = new_judge()
    if recipe.start:
        load_weights(model, Path(recipe.start) / "judge")
    judge = train("judge", model, loss, recipe, save=lambda average, folder: save_half(average, folder / "judge"))
    if processes().is_main_process:
        for head, right in accuracy(judge).items():
            print(f"{head}: {right:.1%} of unseen scenes")


if __name__ == "__main__":
    sys.exit(run_command(main))
