"""Read the folders that diffusers and transformers write, with no weight missing and none left over.

A ``state_dict`` is a dictionary from names to tensors. The published names grew over the years; ours say what a thing
is. ``NAMES`` is the whole translation from theirs to ours, applied from top to bottom to whole parts between dots.
"""

import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checks import is_finite, reason
from . import schedulers

NAMES = [
    # U-Net and autoencoder: stages
    ("down_blocks", "down"),
    ("mid_block", "mid"),
    ("up_blocks", "up"),
    ("resnets", "residual"),
    ("attentions", "attention"),
    ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"),
    ("conv_norm_out", "norm_out"),
    # residual blocks and time
    ("conv_shortcut", "shortcut"),
    ("time_emb_proj", "time_projection"),
    ("time_embedding.linear_1", "time_embedding.linear1"),
    ("time_embedding.linear_2", "time_embedding.linear2"),
    # transformers
    ("transformer_blocks", "blocks"),
    ("attn1", "self_attention"),
    ("attn2", "cross_attention"),
    ("ff.net.0.proj", "feed_forward.expand"),
    ("ff.net.2", "feed_forward.contract"),
    ("to_out.0", "to_out"),
    # the autoencoder's attention, in files from before 2023
    ("query", "to_q"),
    ("key", "to_k"),
    ("value", "to_v"),
    ("proj_attn", "to_out"),
    # text encoder; transformers 4 puts everything under "text_model", transformers 5 does not
    ("text_model.embeddings", "embeddings"),
    ("text_model.encoder", "encoder"),
    ("text_model.final_layer_norm", "final_layer_norm"),
    ("embeddings.token_embedding", "token_embedding"),
    ("embeddings.position_embedding", "position_embedding"),
    ("encoder.layers", "layers"),
    ("self_attn", "attention"),
    ("q_proj", "to_q"),
    ("k_proj", "to_k"),
    ("v_proj", "to_v"),
    ("out_proj", "to_out"),
    ("layer_norm1", "norm1"),
    ("layer_norm2", "norm2"),
    ("mlp.fc1", "mlp.expand"),
    ("mlp.fc2", "mlp.contract"),
    ("final_layer_norm", "final_norm"),
]
NOT_WEIGHTS = ("position_ids",)  # 0, 1, 2, ..., saved as if they had been learned

SCHEDULERS: dict[str, type[schedulers.Scheduler]] = {
    "DDIMScheduler": schedulers.DDIM,
    "DDPMScheduler": schedulers.DDPM,
    "EulerDiscreteScheduler": schedulers.Euler,
}

Model = TypeVar("Model", bound=nn.Module)


def our_name(name: str) -> str:
    """Our name for a published weight.

    >>> our_name("mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias")
    'mid.attention.0.blocks.0.cross_attention.to_out.bias'
    """
    name = f".{name}."
    for theirs, ours in NAMES:
        name = name.replace(f".{theirs}.", f".{ours}.")
    return name.strip(".")


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON file of a model folder."""
    if not path.is_file():
        raise FileNotFoundError(f"Weights are read from a folder written by save_pretrained; {path} is not there.")
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({reason(error)}); download or save it again.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold names and values, {{...}}; it holds a {type(settings).__name__}.")
    return settings


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """All tensors of a folder under their published names, from one safetensors file or from several shards."""
    folder = Path(folder)
    for stem in ("diffusion_pytorch_model", "model"):
        for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
            if (folder / name).is_file():
                return read_files([folder / name])
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            return read_files(folder / shard for shard in sorted(set(read_json(index)["weight_map"].values())))
    raise FileNotFoundError(f"Weights are read from .safetensors files only; {folder} holds none.")


def read_files(paths: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of several safetensors files, in one dictionary."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); download or save it again.") from error
    return tensors


def build(kind: type[Model], config: Mapping[str, Any]) -> Model:
    """An untrained model with the sizes in a ``config.json``; raises ``ValueError`` for options not written here."""
    if odd := [f"{k}={config[k]!r}" for k, v in kind.FIXED.items() if config.get(k, v) != v]:
        raise ValueError(f"{kind.__name__} is written without {', '.join(odd)}, which this configuration asks for.")
    known = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in config.items() if name in known})


def fill(model: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """Fill a model with published weights; ``ValueError`` unless every parameter and every weight finds its match."""
    own = model.state_dict()
    named = {our_name(name): tensor for name, tensor in weights.items() if not name.endswith(NOT_WEIGHTS)}
    for text, names in {"lack": own.keys() - named.keys(), "have no place for": named.keys() - own.keys()}.items():
        if names:
            some = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            subject = "the weights" if text == "lack" else "the model's parameters"
            raise ValueError(
                f"Weights and configuration of a {type(model).__name__} must fit: {subject} {text} {some}."
            )
    for name, tensor in named.items():
        if not is_finite(tensor):
            raise ValueError(f"Weights must be finite: {name} holds NaN or infinity.")
        if tensor.shape == (*own[name].shape, 1, 1):  # a 1x1 convolution where we have a linear layer
            tensor = tensor[..., 0, 0]
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"Weights and configuration of a {type(model).__name__} must fit: {name} is {tuple(tensor.shape)} "
                f"in the file and {tuple(own[name].shape)} by the configuration."
            )
        named[name] = tensor.to(dtype).contiguous()
    model.load_state_dict(named, assign=True)


def load(kind: type[Model], folder: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """Load a trained ``TextEncoder``, ``Autoencoder`` or ``UNet`` from its folder, for drawing (no gradients)."""
    path = Path(folder) / "config.json"
    config = read_json(path)
    try:
        with torch.device("meta"):  # shapes without memory: the parameters come from the file
            model = build(kind, config)
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{path} does not describe a {kind.__name__}: {reason(error)}.") from error
    fill(model, read_weights(folder), dtype)
    return model.eval().requires_grad_(False)


def load_scheduler(folder: str | Path) -> schedulers.Scheduler:
    """The sampler that a folder names, or DDIM on the same schedule if that sampler is not written here."""
    path = Path(folder) / "scheduler_config.json"
    config = read_json(path)
    name = str(config.get("_class_name", ""))
    if name not in SCHEDULERS:
        config = {"clip_sample": False} | config
    try:
        return SCHEDULERS.get(name, schedulers.DDIM).from_config(config)
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{path} does not describe a scheduler: {reason(error)}.") from error
