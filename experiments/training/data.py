"""The training pictures, drawn once into a file and held in memory."""

import itertools
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from context_diffusion.files import ROOT, written_whole
from context_diffusion.scenes import TinyScenes, labels
from context_diffusion.scenes.dataset import GROUP

GROUPS = 6000
CACHE = ROOT / "build" / "scenes"


def pictures(groups: int = GROUPS, first_group: int = 0) -> dict:
    """Arrays of ``groups * 4`` pictures: ``pixels`` (n, 128, 128, 3) uint8, ``depth`` (n, 128, 128) uint8,
    ``edges`` (n, 128, 16) packed bits, ``captions``, and the class indices ``object``, ``background``, ``style``.
    """
    file = CACHE / f"{first_group}-{groups}.npz"
    if not file.exists():
        _draw(file, TinyScenes(groups, first_group))
    with np.load(file) as arrays:
        return {key: arrays[key] for key in arrays.files}


def _draw(file: Path, dataset: TinyScenes) -> None:
    columns: dict[str, list] = {}
    with ProcessPoolExecutor() as pool:
        rows = pool.map(_row, itertools.repeat(dataset), range(len(dataset)), chunksize=64)
        for row in tqdm(rows, desc="drawing scenes", total=len(dataset), mininterval=5):
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
    with written_whole(file) as temporary:
        np.savez(temporary, **{key: np.array(values) for key, values in columns.items()})


def _row(dataset: TinyScenes, index: int) -> dict:
    drawn = dataset.rendering(index)
    return {
        "pixels": drawn.pixels,
        "depth": np.round(drawn.depth * 255).astype(np.uint8),
        "edges": np.packbits(drawn.edges, axis=1),
        "captions": drawn.caption,
        **labels(drawn),
    }


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) in [-1, 1], channels last in memory."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def crops(batch: torch.Tensor, side: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    """Random square crops covering ``low`` to ``high`` of the side, some mirrored, light and contrast jittered."""
    n = len(batch)
    scale = low + (high - low) * torch.rand(n, generator=generator)
    shift = (1 - scale)[:, None] * (2 * torch.rand(n, 2, generator=generator) - 1)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * mirror, scale, shift
    cut = F.grid_sample(batch, F.affine_grid(theta, [n, 3, side, side], align_corners=False), align_corners=False)
    gain, lift = 1 + 0.2 * (2 * torch.rand(2, n, 1, 1, 1, generator=generator) - 1)
    return cut * gain + (lift - 1)


def group_mates(index: torch.Tensor, generator: torch.Generator, count: int) -> torch.Tensor:
    """For each picture, ``count`` different others of its style draw; shape (n, count)."""
    order = torch.rand(len(index), GROUP - 1, generator=generator).argsort(dim=1)[:, :count] + 1
    return index[:, None] // GROUP * GROUP + (index[:, None] % GROUP + order) % GROUP
