"""Train the judge: a small classifier of object, background and style that scores generated pictures.

    python -m experiments.training.judge

It is trained on real scenes only, apart from CLIP and from the U-Net, with blurs and noise as augmentation so that a
slightly soft picture is not held against its content. Its accuracy on unseen scenes is printed at the end.
"""

import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from context_diffusion.scenes import TinyScenes
from context_diffusion.scenes.judge import HEADS, shrink, split

from .data import pictures
from .loop import Recipe, device, load_published, publish_pretrained, train


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


def augment(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror, soften and roughen; (n, 3, 64, 64) in [-1, 1]."""
    if torch.rand((), generator=generator) < 0.5:
        batch = batch.flip(3)
    if torch.rand((), generator=generator) < 0.4:
        batch = F.avg_pool2d(batch, 3, 1, 1, count_include_pad=False)
    level = 0.15 * torch.rand(len(batch), 1, 1, 1, generator=generator)
    return batch + level * torch.randn(batch.shape, generator=generator)


def main() -> None:
    """Train, publish and print the accuracy on unseen scenes."""
    recipe = Recipe.from_command_line(__doc__, steps=3000, batch_size=64, learning_rate=2e-3, weight_decay=0.05)
    arrays = pictures()
    small = torch.from_numpy(shrink(arrays["pixels"]))
    labels = {head: torch.from_numpy(arrays[head]) for head in HEADS}

    def loss(model: ResNetForImageClassification, generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(small), (recipe.batch_size,), generator=generator)
        batch = augment(small[index].permute(0, 3, 1, 2).float() / 127.5 - 1, generator)
        heads = split(model(batch.to(device())).logits.float())
        return sum(F.cross_entropy(heads[h], labels[h][index].to(device()), label_smoothing=0.05) for h in HEADS)

    model = new_judge()
    if recipe.warm:
        load_published(model, "judge")
    judge = train("judge", model, loss, recipe, publish=lambda m: publish_pretrained(m, "judge"))
    unseen = pictures(250, TinyScenes.HELD_OUT)
    with torch.no_grad():
        batch = torch.from_numpy(shrink(unseen["pixels"])).permute(0, 3, 1, 2).float() / 127.5 - 1
        heads = split(judge(batch.to(device())).logits.cpu())
    for head in HEADS:
        right = (heads[head].argmax(dim=1) == torch.from_numpy(unseen[head])).float().mean()
        print(f"{head}: {right:.1%} of {len(batch)} unseen scenes")


if __name__ == "__main__":
    main()
