"""Weights in and out, as the library loads them: fp16 safetensors, each folder whole."""

import copy
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Give a temporary folder, which takes the place of ``folder`` at the end of the block, or vanishes with it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    before = temporary.with_name(f"{temporary.name}-before")
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.exists():
            folder.rename(before)
        temporary.rename(folder)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_half(model, folder: Path, *processors) -> None:
    """``model.save_pretrained`` in fp16, and those of a tokenizer or other processors into the same folder."""
    half = copy.deepcopy(model).to("cpu", memory_format=torch.contiguous_format).half()
    with folder_written_whole(folder) as temporary:
        for part in (half, *processors):
            part.save_pretrained(temporary)


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Take over all weights of a saved model of the same kind; raises ``FileNotFoundError`` where there are none."""
    if not list(Path(folder).glob("*.safetensors")):
        raise FileNotFoundError(f"Training starts from the weights in {folder}, and there are none.")
    saved = type(model).from_pretrained(folder).float().state_dict()  # maps keys that the file names otherwise
    model.load_state_dict({key: saved[key] for key in model.state_dict() if key in saved})
