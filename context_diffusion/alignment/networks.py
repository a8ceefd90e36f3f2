"""What style alignment has to know of a kind of network: where its shared layers are, and how its rows are read.

Everything else is the same for all of them: :mod:`.hooks` watches the layers, :mod:`.equations` does the attention.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Given = dict[str, Any]  # the arguments of a network's call, by name


@dataclass(frozen=True)
class Architecture:
    """A kind of network.

    Args:
        part: the attribute of a pipeline that holds the network.
        sample: the argument that holds the noisy latents, one row per image and guidance branch.
        timestep: the argument that says the time step.
        layers: its self-attention (or joint attention) layers by name, in the order in which they run.
        residuals: the arguments with which a ControlNet or an adapter adds to the rows.
    """

    part: str
    sample: str
    timestep: str
    layers: Callable[[nn.Module], dict[str, nn.Module]]
    residuals: tuple[str, ...]


def by_name(network: nn.Module, args: tuple, kwargs: dict) -> Given:
    """All arguments of a network's call by name."""
    names = list(inspect.signature(type(network).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def self_attentions(unet: nn.Module) -> dict[str, nn.Module]:
    """The self-attention layers of a U-Net by name, in the order of depth: down, middle, up."""
    found = {
        name: module
        for name, module in unet.named_modules()
        if name.endswith("attn1") and hasattr(module, "processor") and not module.is_cross_attention
    }
    depth = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return dict(sorted(found.items(), key=lambda item: depth.get(item[0].split(".")[0], 3)))  # stable within blocks


UNET = Architecture(
    part="unet",
    sample="sample",
    timestep="timestep",
    layers=self_attentions,
    residuals=(
        "down_block_additional_residuals",
        "mid_block_additional_residual",
        "down_intrablock_additional_residuals",
    ),
)


def architecture_of(pipe) -> Architecture:
    """The kind of network that a pipeline draws with; raises ``TypeError`` for one that is not known."""
    if getattr(pipe, "unet", None) is not None:
        return UNET
    raise TypeError(f"style_aligned needs a pipeline with a U-Net (SD 1.x, 2.x, SDXL); got {type(pipe).__name__}.")


def choose_layers(names: Sequence[str], layers: float | str | Sequence[str]) -> list[str]:
    """A fraction of the layers, evenly spaced, or those whose name contains one of the given words."""
    if isinstance(layers, int | float):
        count = max(1, round(layers * len(names))) if layers > 0 else 0
        return [names[int((i + 0.5) * len(names) / count)] for i in range(count)]
    words = [layers] if isinstance(layers, str) else list(layers)
    unused = [word for word in words if not any(word in name for name in names)]
    if unused:
        raise ValueError(f"No self-attention layer has {unused[0]!r} in its name; they are {', '.join(names)}.")
    return [name for name in names if any(word in name for word in words)]


def late_layers(names: Sequence[str], layers: float | str | Sequence[str]) -> list[str]:
    """The last fraction of the layers, one at least, or those whose name contains one of the given words."""
    if not isinstance(layers, int | float):
        return choose_layers(names, layers)
    return list(names[len(names) - max(1, round(layers * len(names))) :]) if layers > 0 else []


def single_timestep(timestep: Tensor | float) -> float:
    """The one time step of a call; raises ``ValueError`` if its images are at several."""
    if not isinstance(timestep, Tensor) or timestep.numel() == 1:
        return float(timestep)
    values = timestep.unique().tolist()
    if len(values) > 1:
        raise ValueError(f"Images aligned with a reference share one time step; this call has {values}.")
    return values[0]
