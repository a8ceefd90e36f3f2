"""Muon for the matrices and inner convolutions of a network, AdamW for the rest."""

from collections.abc import Iterable, Iterator

import torch
from einops import rearrange
from torch import Tensor, nn

# Layers at the rim, whose weights map to or from few channels; arXiv 2510.19376 leaves them to AdamW too.
RIM = ("conv_in", "conv_out", "position", "time_embedding", "embeddings")


class Muon(torch.optim.Muon):
    """``torch.optim.Muon`` on weights of any shape: each is optimised as the matrix (outputs, everything else).

    ``torch.optim.Muon`` takes two-dimensional parameters only. A view shares the weight's memory, so an update of the
    view is one of the weight. The order of a matrix's columns does not matter to orthogonalisation, but gradient and
    weight need the same one.
    """

    def __init__(self, weights: Iterable[nn.Parameter], **options):
        self.weights = list(weights)
        self.patterns = [matrix_pattern(weight) for weight in self.weights]
        super().__init__([nn.Parameter(matrix_view(weight.data)) for weight in self.weights], **options)

    def step(self, closure=None):
        """One update from the gradients of the weights."""
        matrices = [matrix for group in self.param_groups for matrix in group["params"]]
        for weight, pattern, matrix in zip(self.weights, self.patterns, matrices, strict=True):
            matrix.grad = None if weight.grad is None else rearrange(weight.grad, pattern)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the weights."""
        for weight in self.weights:
            weight.grad = None
        super().zero_grad(set_to_none)


def matrix_pattern(weight: Tensor) -> str:
    """The pattern that joins a weight's axes as they lie in memory: (outputs, inputs x kernel) or channels last."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        return "outputs inputs height width -> outputs (height width inputs)"
    return "outputs ... -> outputs (...)"


def matrix_view(weight: Tensor) -> Tensor:
    """(outputs, inputs, *kernel) as a matrix in the same memory; raises ``ValueError`` where there is no such view."""
    matrix = rearrange(weight, matrix_pattern(weight))
    if matrix.data_ptr() != weight.data_ptr():
        raise ValueError(f"A weight of shape {tuple(weight.shape)} and strides {weight.stride()} has no matrix view.")
    return matrix


def is_matrix(name: str, weight: Tensor) -> bool:
    """Say whether Muon takes this weight."""
    return weight.ndim >= 2 and not any(part in name for part in RIM)


def new_optimizers(
    model: nn.Module, kind: str, rate: float, decay: float, beta2: float
) -> Iterator[torch.optim.Optimizer]:
    """AdamW alone (``kind="adamw"``), or Muon for what :func:`is_matrix` and AdamW for the rest (``"muon"``).

    Both take the same rate: Muon's update is scaled to the size of AdamW's, 0.2 sqrt(longer side) (Liu et al. 2025).
    """
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if kind == "muon":
        matrices = [weight for name, weight in named if is_matrix(name, weight)]
        yield Muon(matrices, lr=rate, weight_decay=decay, ns_steps=4, adjust_lr_fn="match_rms_adamw")
        named = [(name, weight) for name, weight in named if not is_matrix(name, weight)]
    yield torch.optim.AdamW([w for _, w in named], rate, betas=(0.9, beta2), weight_decay=decay, fused=True)
