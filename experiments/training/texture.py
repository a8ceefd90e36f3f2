"""Train the reader of textures and slots: it reads back what the world drew a picture from.

    python -m experiments.training.texture

Every scene is in a style draw of its own. Some pictures are softened and roughened a little, as those that come out of
an autoencoder are. What it reads of unseen scenes, and how far off, is printed at the end.
"""

import itertools
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from context_diffusion.commands import run_command
from context_diffusion.scenes import STYLES, TinyScenes
from context_diffusion.scenes.dataset import GROUP
from context_diffusion.scenes.reader import (
    PARAMETERS,
    UNSURE,
    Reader,
    ReaderNetwork,
    parameter_errors,
    slot_map,
    targets,
)

from .data import CACHE, given_up_early, kept, to_tensor
from .draws import Draws
from .loop import train
from .machine import device, processes
from .recipe import Recipe
from .saving import load_weights, save_half

GROUPS = 12_000
UNSEEN = 500


def read_back(groups: int = GROUPS, first_group: int = 0) -> dict[str, np.ndarray]:
    """The first scene of some style draws, with what there is to read; drawn once, into ``build/scenes/``.

    ``pixels`` (n, 128, 128, 3) and ``slots`` (n, 64, 64) uint8, ``style`` (n,), ``numbers`` and ``known`` (n, 5).
    """
    file = CACHE / f"texture-{first_group}-{groups}.npz"
    return kept(file, lambda file: dict(np.load(file)), lambda file: _draw(file, TinyScenes(groups, first_group)))


def _draw(file: Path, dataset: TinyScenes) -> None:
    deaf = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}  # Ctrl-C is for the first alone
    places = range(0, len(dataset), GROUP)
    with given_up_early(ProcessPoolExecutor(**deaf)) as pool:
        rows = pool.map(_row, itertools.repeat(dataset), places, chunksize=64)
        rows = list(tqdm(rows, desc="drawing scenes to read", total=len(places), mininterval=5))
    np.savez(file, **{key: np.stack([row[key] for row in rows]) for key in rows[0]})


def _row(dataset: TinyScenes, index: int) -> dict[str, np.ndarray]:
    drawn = dataset.rendering(index)
    numbers, known = targets(drawn.style)
    return {
        "pixels": drawn.pixels,
        "slots": slot_map(drawn.scene),
        "style": np.array(STYLES.index(drawn.style.name)),
        "numbers": numbers,
        "known": known,
    }


def weathered(batch: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Soften and roughen pictures (n, 3, h, w) a little; neither mirrored nor turned, which would turn the strokes."""
    soft = F.avg_pool2d(batch, 3, 1, 1, count_include_pad=False)
    batch = batch.lerp(soft, 0.6 * draws.rand(1, 1, 1).square())
    return batch + 0.06 * draws.rand(1, 1, 1) * draws.randn(*batch.shape[1:])


def reading_loss(network: ReaderNetwork, pixels: torch.Tensor, truth: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of slots and styles, and the squared error of the numbers that the true style shows."""
    slots, styles, numbers = network(pixels)
    own = numbers.float()[torch.arange(len(pixels)), truth["style"]]
    error = (truth["known"] * (own - truth["numbers"]).square()).sum() / truth["known"].sum().clamp(min=1)
    return (
        F.cross_entropy(slots.float(), truth["slots"].long(), ignore_index=UNSURE)
        + F.cross_entropy(styles.float(), truth["style"])
        + error
    )


def errors(reader: Reader, unseen: int = UNSEEN, styles: Sequence[str] = STYLES) -> dict[str, list[float]]:
    """How wrong the reader is about scenes of some ``styles`` that no training saw, one number for each scene.

    The share of cells in another slot; 1 for another style; and of each parameter that the scene shows, the error in
    deviations over draws, where to guess the mean is 0.87 off.
    """
    arrays = read_back(unseen, TinyScenes.HELD_OUT)
    numbers = np.flatnonzero(np.isin(arrays["style"], [STYLES.index(name) for name in styles]))
    arrays = {key: values[numbers] for key, values in arrays.items()}
    reading, sure = reader(list(arrays["pixels"])), arrays["slots"] != UNSURE
    wrong = reading.slots != arrays["slots"]
    off = {
        "slot": [float(one[inside].mean()) for one, inside in zip(wrong, sure, strict=True)],
        "style": (reading.styles != arrays["style"]).astype(float).tolist(),
        **{name: [] for name in PARAMETERS},
    }
    for row, (number, index) in enumerate(zip(numbers.tolist(), arrays["style"], strict=True)):
        own = {name: values[row : row + 1] for name, values in reading.parameters(STYLES[index]).items()}
        for name, error in parameter_errors(own, TinyScenes.style(TinyScenes.HELD_OUT + number)).items():
            off[name].append(float(error[0]))
    return off


def main() -> None:
    """Train, and print how well unseen scenes are read."""
    recipe = Recipe.from_command_line(__doc__, steps=3000, batch_size=32, learning_rate=3e-3, weight_decay=0.05)
    with processes().main_process_first():
        arrays = {key: torch.from_numpy(value) for key, value in read_back().items()}

    def loss(network: ReaderNetwork, draws: Draws) -> torch.Tensor:
        index = draws.randint(len(arrays["pixels"]))
        truth = {key: arrays[key][index].to(device()) for key in ("slots", "style", "numbers", "known")}
        return reading_loss(network, weathered(to_tensor(arrays["pixels"][index]), draws).to(device()), truth)

    model = ReaderNetwork().to(memory_format=torch.channels_last)
    if recipe.start:
        load_weights(model, Path(recipe.start) / "texture")
    trained = train(
        "texture",
        model,
        loss,
        recipe,
        save=lambda average, folder: save_half(average, folder / "texture"),
        held_out=lambda average: [float(np.mean(off)) for off in errors(Reader(average)).values()],
        save_every=500,
    )
    if processes().is_main_process:
        for name, off in errors(Reader(trained)).items():
            print(f"{name}: {np.mean(off):.3f} off in unseen scenes")


if __name__ == "__main__":
    sys.exit(run_command(main))
