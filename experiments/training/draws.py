"""Random numbers for training: what sample k draws depends on the seed and on k alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

STRIDE = 1_000_000_007  # between the seeds of two recipes


class Draws:
    """The random numbers of some samples of one step.

    Each sample has a generator of its own, seeded by the recipe's seed and the sample's number in the whole run. So one
    process and eight, or one pass and four accumulated ones, see the same samples; only the order of summation differs.
    What a whole batch shares (:attr:`common`) depends on the seed and the step.

    Args:
        seed: the recipe's seed.
        samples: the numbers of the samples, counted from the start of the run.
        step: the optimizer step that they belong to.
    """

    def __init__(self, seed: int, samples: Sequence[int], step: int):
        self.samples = samples
        self.generators = [torch.Generator().manual_seed(seed * STRIDE + 2 * k) for k in samples]
        self.common = torch.Generator().manual_seed(seed * STRIDE + 2 * step + 1)

    def __len__(self) -> int:
        return len(self.samples)

    def rand(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), float32 (samples, *shape)."""
        return torch.stack([torch.rand(shape, generator=each) for each in self.generators])

    def randn(self, *shape: int) -> Tensor:
        """Standard normal, float32 (samples, *shape)."""
        return torch.stack([torch.randn(shape, generator=each) for each in self.generators])

    def randint(self, high: int, *shape: int) -> Tensor:
        """Whole numbers in [0, high), int64 (samples, *shape)."""
        return torch.stack([torch.randint(high, shape, generator=each) for each in self.generators])

    def strata(self, period: int) -> Tensor:
        """Uniform in [0, 1), float32 (samples,), one in each of ``period`` equal parts for consecutive samples."""
        return (torch.tensor([k % period for k in self.samples]) + self.rand()) / period

    def numpy(self) -> list[np.random.Generator]:
        """A NumPy generator for each sample, for code that takes one."""
        return [np.random.default_rng(seed) for seed in self.randint(2**62).tolist()]
