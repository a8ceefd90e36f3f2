"""Train the offline DINO: a small vision transformer without labels (Caron et al. 2021).

    python -m experiments.training.dino

Student and teacher share an architecture; the teacher is the student's moving average. Two global crops of a picture
(seen by both) and two local crops (seen by the student) must get the same distribution over prototypes; centring and
sharpening keep it from collapsing. No label is used, and two pictures of the same style draw are *not* a positive pair.

Each crop is recoloured apart. Without that, colour is the easiest thing that two crops have in common, and what comes
out is a colour meter: ``python -m experiments.evaluation dino`` says how much palette, texture and content count.
"""

import copy
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from torch import nn
from transformers import ViTConfig, ViTModel

from context_diffusion.commands import run_command
from context_diffusion.scenes.judge import shrink

from .clip import SIDE
from .data import crops, pictures, to_tensor
from .draws import Draws
from .loop import train
from .machine import device, processes
from .recipe import Recipe
from .saving import load_weights, save_half

PROTOTYPES = 512
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.04, 0.1
LOCAL = 32
GREY = 0.2  # of the crops lose all colour


def new_vit() -> ViTModel:
    """Width 128, 4 layers, 8x8 patches of 64-pixel pictures."""
    config = ViTConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
    )
    return ViTModel(config, add_pooling_layer=False)


def recoloured(batch: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Turn the hues of pictures (n, 3, h, w) by up to 90 degrees, halve or double saturation, and make a fifth grey.

    A colour is its grey plus a chroma c, orthogonal to the grey axis g = (1, 1, 1) / sqrt(3). Turning it about that
    axis makes c cos(a) + (g x c) sin(a) of it (Rodrigues).
    """
    angle, strength = math.pi / 2 * (2 * draws.rand(1, 1, 1) - 1), 2 ** (2 * draws.rand(1, 1, 1) - 1)
    strength = torch.where(draws.rand(1, 1, 1) < GREY, 0.0, strength)
    grey = batch.mean(dim=1, keepdim=True)
    chroma = batch - grey
    across = (chroma.roll(1, dims=1) - chroma.roll(2, dims=1)) / math.sqrt(3)
    return grey + strength * (chroma * angle.cos() + across * angle.sin())


class Network(nn.Module):
    """Backbone, projection head and normalized prototypes."""

    def __init__(self, backbone: ViTModel):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.Linear(64, PROTOTYPES, bias=False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits over the prototypes, (batch, 512)."""
        token = self.backbone(pictures, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        point = F.normalize(self.head(token).float())
        with torch.autocast(pictures.device.type, enabled=False):  # the temperatures below need more digits than bf16
            return point @ F.normalize(self.prototypes.weight).T


class Pair(nn.Module):
    """Student, teacher and the running centre of the teacher's outputs."""

    def __init__(self):
        super().__init__()
        self.student = Network(new_vit())
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(PROTOTYPES))
        self.seen: list[torch.Tensor] = []  # the teacher's mean output in each pass of this step

    def loss(self, wide: list[torch.Tensor], narrow: list[torch.Tensor]) -> torch.Tensor:
        """The mean cross-entropy of each crop (n, 3, side, side) under the student with every other wide one's teacher.

        The mean of -sum_k p_k log q_k, p the teacher's softmax at temperature 0.04 about the centre, q the student's
        at 0.1 (Caron et al. 2021, Eq. 3).
        """
        with torch.no_grad():
            taught = self.teacher(torch.cat(wide))
        self.seen.append(taught.mean(dim=0))
        targets = ((taught - self.centre) / TEACHER_TEMPERATURE).softmax(dim=1).chunk(2)
        learned = [*self.student(torch.cat(wide)).chunk(2), *self.student(torch.cat(narrow)).chunk(2)]
        terms = [
            -(target * (logits / STUDENT_TEMPERATURE).log_softmax(dim=1)).sum(dim=1).mean()
            for i, target in enumerate(targets)
            for j, logits in enumerate(learned)
            if i != j
        ]
        return torch.stack(terms).mean()

    @torch.no_grad()
    def follow(self, momentum: float = 0.996) -> None:
        """After a step, move the teacher towards the student, and the centre towards the teacher's mean output."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)
        self.centre.lerp_(reduce(torch.stack(self.seen).mean(dim=0)), 0.1)  # of all passes and processes
        self.seen.clear()


def main() -> None:
    """Train the pair; what is saved is the teacher's backbone."""
    recipe = Recipe.from_command_line(__doc__, steps=2500, batch_size=64, learning_rate=5e-4, weight_decay=0.04)
    with processes().main_process_first():
        small = torch.from_numpy(shrink(pictures()["pixels"]))

    def loss(pair: Pair, draws: Draws) -> torch.Tensor:
        batch = to_tensor(small[draws.randint(len(small))])
        wide = [recoloured(crops(batch, SIDE, 0.4, 1.0, draws), draws).to(device()) for _ in range(2)]
        narrow = [recoloured(crops(batch, LOCAL, 0.2, 0.4, draws), draws).to(device()) for _ in range(2)]
        return pair.loss(wide, narrow)

    pair = Pair()
    if recipe.start:  # head and prototypes are not saved: they start anew
        for network in (pair.student, pair.teacher):
            load_weights(network.backbone, Path(recipe.start) / "dino")
    for network in (pair.student, pair.teacher):
        network.backbone.set_attn_implementation("eager")

    def save(average: Pair, folder: Path) -> None:
        save_half(average.teacher.backbone, folder / "dino")

    train("dino", pair, loss, recipe, save=save, after_step=Pair.follow)


if __name__ == "__main__":
    sys.exit(run_command(main))
