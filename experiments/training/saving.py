"""Weights in and out, as the library loads them: fp16 safetensors, each folder whole."""

import copy
import json
from pathlib import Path

import torch
from torch import nn

from context_diffusion.checkpoints import load_part
from context_diffusion.files import folder_written_whole

POOLER = ("pooler.dense",)  # transformers adds one to a ViT that was saved without


def save_half(model, folder: Path, *processors) -> None:
    """``model.save_pretrained`` in fp16, and those of a tokenizer or other processors into the same folder."""
    half = copy.deepcopy(model).to("cpu", memory_format=torch.contiguous_format).half()
    with folder_written_whole(folder) as temporary:
        for part in (half, *processors):
            part.save_pretrained(temporary)
        settings = temporary / "config.json"
        if settings.is_file():  # where the weights came from is a folder of this machine: nobody else's business
            kept = {key: value for key, value in json.loads(settings.read_text()).items() if key != "_name_or_path"}
            settings.write_text(json.dumps(kept, indent=2) + "\n")


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Take over all weights of a saved model of the same kind; raises ``FileNotFoundError`` where there are none."""
    if not list(Path(folder).glob("*.safetensors")):
        raise FileNotFoundError(f"Training starts from the weights in {folder}, and there are none.")
    saved = load_part(type(model), str(folder), unused=POOLER).state_dict()  # maps keys that the file names otherwise
    model.load_state_dict({key: saved[key] for key in model.state_dict() if key in saved})
