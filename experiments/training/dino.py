"""Train the offline DINO: a small vision transformer without labels (Caron et al. 2021).

    python -m experiments.training.dino

Student and teacher share an architecture; the teacher is the student's moving average. Two global crops (teacher and
student) and two local crops (student) of a picture must get the same distribution over prototypes; centring and
sharpening keep it from collapsing. No label is used; a second picture of the same style draw is *not* a positive pair.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from transformers import ViTConfig, ViTModel

from .clip import SIDE, shrink
from .data import crops, pictures
from .loop import Recipe, device, load_published, publish_pretrained, train

PROTOTYPES = 512
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 0.04, 0.1
LOCAL = 32


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

    @torch.no_grad()
    def follow(self, teacher_logits: torch.Tensor, momentum: float = 0.996) -> None:
        """Move the teacher towards the student, and the centre towards the teacher's mean output."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)
        self.centre.lerp_(teacher_logits.mean(dim=0), 0.1)


def main() -> None:
    """Train and publish the teacher's backbone."""
    recipe = Recipe.from_command_line(__doc__, steps=2500, batch_size=64, learning_rate=5e-4, weight_decay=0.04)
    small = torch.from_numpy(shrink(pictures()["pixels"]))

    def loss(pair: Pair, generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(small), (recipe.batch_size,), generator=generator)
        batch = small[index].permute(0, 3, 1, 2).float() / 127.5 - 1
        views = [crops(batch, SIDE, 0.5, 1.0, generator).to(device()) for _ in range(2)]
        views += [crops(batch, LOCAL, 0.25, 0.5, generator).to(device()) for _ in range(2)]
        with torch.no_grad():
            taught = pair.teacher(torch.cat(views[:2]))
            targets = ((taught - pair.centre) / TEACHER_TEMPERATURE).softmax(dim=1).chunk(2)
        learned = [*pair.student(torch.cat(views[:2])).chunk(2), *pair.student(torch.cat(views[2:])).chunk(2)]
        terms = [
            -(target * (logits / STUDENT_TEMPERATURE).log_softmax(dim=1)).sum(dim=1).mean()
            for i, target in enumerate(targets)
            for j, logits in enumerate(learned)
            if i != j
        ]
        pair.follow(taught)
        return torch.stack(terms).mean()

    pair = Pair()
    if recipe.warm:  # head and prototypes are not published: they start anew
        load_published(pair.student.backbone, "dino")
        load_published(pair.teacher.backbone, "dino")
    for network in (pair.student, pair.teacher):
        network.backbone.set_attn_implementation("eager")
    train("dino", pair, loss, recipe, publish=lambda pair: publish_pretrained(pair.teacher.backbone, "dino"))


if __name__ == "__main__":
    main()
