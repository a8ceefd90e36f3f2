"""Publish trained weights: from ``build/training/NAME/`` to where the library finds them.

    python -m experiments.publishing.weights unet controlnet-canny --dry-run       # says what it would do
    python -m experiments.publishing.weights unet controlnet-canny
    python -m experiments.publishing.weights unet --source FOLDER                  # weights that lie elsewhere

Whole folders of averaged fp16 weights take the place of those in ``data/checkpoints/``; the run's record, its curve
and the lines that it wrote go to ``figures/training/``.

The U-Net brings along its scheduler and the encoders that it has learned to read, including the whole autoencoder:
publish a decoder that was trained on since then after it. A new U-Net needs new ControlNets, for they are copies of it.
CLIP's towers come with CLIP only where no U-Net is published yet, for a U-Net has learned to read those beside it.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from context_diffusion.checks import hint
from context_diffusion.commands import Parser, run_command
from context_diffusion.files import ROOT, check_output, check_output_folder, folder_written_whole, written_whole

from ..training.features import ENCODERS
from ..training.unet import new_scheduler

FOLDERS = {  # run -> model and its folders
    "vae": ("tiny-scenes", ("vae",)),
    "decoder": ("tiny-scenes", ("vae",)),
    "clip": ("tiny-scenes", ("clip",)),
    "unet": ("tiny-scenes", ("unet", "context_projector")),
    "controlnet-canny": ("tiny-scenes", ("controlnet-canny",)),
    "controlnet-depth": ("tiny-scenes", ("controlnet-depth",)),
    "depth": ("tiny-scenes", ("depth",)),
    "dino": ("tiny-scenes", ("dino",)),
    "judge": ("tiny-scenes", ("judge",)),
    "texture": ("tiny-scenes", ("texture",)),
    "captioner": ("tiny-fusion", ("captioner",)),
    "speech": ("tiny-fusion", ("speech",)),
    "music": ("tiny-fusion", ("music",)),
}
TOWERS = ("text_encoder", "image_encoder", "tokenizer")


def copies(name: str, source: Path | None = None, root: Path = ROOT) -> list[tuple[Path, Path]]:
    """What publishing a run copies: pairs of folders or files, from and to.

    ``source`` is the run's folder, by default ``build/training/NAME``. Raises ``ValueError`` for a name that no run has
    and ``FileNotFoundError`` where a folder is missing.
    """
    if name not in FOLDERS:
        raise ValueError(f"There is no run {name!r}; there are {', '.join(FOLDERS)}{hint(name, FOLDERS)}")
    source = source or root / "build" / "training" / name
    model, folders = FOLDERS[name]
    target = root / "data" / "checkpoints" / model
    if name == "clip" and not (target / "unet").is_dir():
        folders += TOWERS
    if missing := [folder for folder in folders if not any((source / folder).glob("*"))]:  # not there, or empty
        raise FileNotFoundError(f"{source} holds no {' and no '.join(missing)}; train {name} first.")
    if name == "unet":
        folders += tuple(folder for folder in ("scheduler", *ENCODERS) if (source / folder).is_dir())
    records = [source / f"{name}.json", source / f"{name}.png", *sorted(source.glob(f"{name}*.jsonl"))]
    return [
        *((source / folder, target / folder) for folder in folders),
        *((file, root / "figures" / "training" / file.name) for file in records if file.is_file()),
    ]


def publish(names: Sequence[str], source: Path | None = None, root: Path = ROOT, *, dry_run: bool = False) -> None:
    """Copy the weights and records of some runs, after all of them were found; with ``dry_run`` say only what."""
    planned = {name: copies(name, source, root) for name in names}
    for origin, target in (pair for pairs in planned.values() for pair in pairs):  # all of it, before any is copied
        if origin.is_dir():
            check_output_folder(target, "What is published")
        else:
            check_output(target, what="What is published")
    for name, pairs in planned.items():
        for origin, target in pairs:
            print(f"{name}: {_short(origin, root)} -> {_short(target, root)}")
            if not dry_run:
                _copy(origin, target)
        if name == "unet":
            target = pairs[0][1].parent
            saved = any(origin.name == "scheduler" for origin, _ in pairs)
            print(f"{name}: {'' if saved else 'a new scheduler, '}model_index.json -> {_short(target, root)}")
            if not dry_run:
                publish_index(target, with_scheduler=not saved)


def publish_index(root: Path, *, with_scheduler: bool = False) -> None:
    """Write ``model_index.json``, which makes a folder an ordinary Stable Diffusion pipeline.

    ``with_scheduler`` writes the scheduler that training uses now, for a U-Net whose run did not yet keep its own.
    """
    if with_scheduler:
        with folder_written_whole(root / "scheduler") as temporary:
            new_scheduler().save_pretrained(temporary)
    parts = {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        **dict.fromkeys(["safety_checker", "feature_extractor", "image_encoder"], [None, None]),
    }
    index = {"_class_name": "StableDiffusionPipeline", **parts, "requires_safety_checker": False}
    with written_whole(root / "model_index.json") as temporary:
        temporary.write_text(json.dumps(index, indent=2) + "\n")


def _copy(origin: Path, target: Path) -> None:
    if origin.is_dir():
        with folder_written_whole(target) as temporary:
            shutil.copytree(origin, temporary, dirs_exist_ok=True)
    else:
        with written_whole(target) as temporary:
            shutil.copyfile(origin, temporary)


def _short(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def main() -> None:
    """Publish the runs named on the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=FOLDERS, help=", ".join(FOLDERS))
    parser.add_argument("--source", type=Path, help="the folder with the weights (default: build/training/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be copied, and copy nothing")
    asked = parser.parse_args()
    publish(asked.names, asked.source, dry_run=asked.dry_run)


if __name__ == "__main__":
    sys.exit(run_command(main))
