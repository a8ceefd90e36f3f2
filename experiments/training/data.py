"""The training pictures, drawn once into a file and held in memory."""

import itertools
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from tqdm.auto import tqdm

from context_diffusion.checks import reason
from context_diffusion.files import ROOT, check_output, written_whole
from context_diffusion.scenes import TinyScenes, labels

from .draws import Draws

GROUPS = 12_000
CACHE = ROOT / "build" / "scenes"

Kept = TypeVar("Kept")


def pictures(groups: int = GROUPS, first_group: int = 0) -> dict:
    """The pictures of some style draws, four of each, as arrays; drawn once, into ``build/scenes/``.

    ``pixels`` (n, 128, 128, 3) uint8, ``depth`` (n, 128, 128) uint8, ``edges`` (n, 128, 16) packed bits, ``captions``,
    and the class indices ``object``, ``background``, ``style``.
    """
    return kept(
        CACHE / f"{first_group}-{groups}.npz", _arrays, lambda file: _draw(file, TinyScenes(groups, first_group))
    )


def kept(file: Path, read: Callable[[Path], Kept], make: Callable[[Path], None]) -> Kept:
    """Read what is made once and kept in ``build/``; a file that is damaged is said, and made again.

    ``make`` writes to the path that it is given. Raises ``ValueError`` where nothing can be written, before any work.
    """
    if file.exists():
        try:
            return read(file)
        except Exception as error:  # the decoders of cut files raise anything
            tqdm.write(f"{file} is damaged ({reason(error)}): it is made again.")
    check_output(file, what="What is made once")
    with written_whole(file) as temporary:
        make(temporary)
    return read(file)


@contextmanager
def given_up_early(pool: Executor) -> Iterator[Executor]:
    """Use a pool of workers; an interrupt waits for what has begun, and not for all that was asked for."""
    with pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return {key: arrays[key] for key in arrays.files}


def _draw(file: Path, dataset: TinyScenes) -> None:
    columns: dict[str, list] = {}
    deaf = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}  # Ctrl-C is for the first alone
    with given_up_early(ProcessPoolExecutor(**deaf)) as pool:
        rows = pool.map(_row, itertools.repeat(dataset), range(len(dataset)), chunksize=64)
        for row in tqdm(rows, desc="drawing scenes", total=len(dataset), mininterval=5):
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
    np.savez(file, **{key: np.array(values) for key, values in columns.items()})


def _row(dataset: TinyScenes, index: int) -> dict:
    drawn = dataset.rendering(index)
    return {
        "pixels": drawn.pixels,
        "depth": np.round(drawn.depth * 255).astype(np.uint8),
        "edges": np.packbits(drawn.edges, axis=1),
        "captions": drawn.caption,
        **labels(drawn),
    }


def to_tensor(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) in [-1, 1], channels last in memory."""
    return rearrange(torch.as_tensor(pixels), "n h w c -> n c h w").float().div_(127.5).sub_(1)


def mirror(draws: Draws, batch: torch.Tensor) -> torch.Tensor:
    """Mirror half of the pictures (n, channels, h, w), left to right."""
    return torch.where(draws.rand(1, 1, 1) < 0.5, batch.flip(3), batch)


@torch.autocast("cpu", enabled=False)  # a grid in bf16 is a fraction of a pixel off
def crops(batch: torch.Tensor, side: int, low: float, high: float, draws: Draws) -> torch.Tensor:
    """Random square crops covering ``low`` to ``high`` of the side, some mirrored, light and contrast jittered."""
    n = len(batch)
    scale = low + (high - low) * draws.rand()
    shift = (1 - scale)[:, None] * (2 * draws.rand(2) - 1)
    mirrored = torch.where(draws.rand() < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * mirrored, scale, shift
    cut = F.grid_sample(batch, F.affine_grid(theta, [n, 3, side, side], align_corners=False), align_corners=False)
    gain, lift = (1 + 0.2 * (2 * draws.rand(2, 1, 1, 1) - 1)).unbind(dim=1)
    return cut * gain + (lift - 1)
