"""What style alignment has to know of a kind of network: where its shared layers are, and how its rows are read.

Everything else is the same for all of them: :mod:`.hooks` watches the layers, :mod:`.equations` does the attention.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..guidance import without_compilation
from .positions import Rotary

Given = dict[str, Any]  # the arguments of a network's call, by name
LENGTH = ".length"  # of the rows of a list that is kept as one padded tensor


@dataclass(frozen=True)
class Architecture:
    """A kind of network.

    Args:
        part: the attribute of a pipeline that holds the network.
        sample: the argument that holds the noisy latents, one row per image and guidance branch.
        timestep: the argument that says the time step.
        layers: its self-attention (or joint attention) layers by name, in the order in which they run.
        processors: kinds of processor whose attention is PyTorch's ``scaled_dot_product_attention``.
        residuals: the arguments with which a ControlNet or an adapter adds to the rows.
        default: the layers that are shared unless settings say which: those whose name begins so.
        grid: rows and columns of patches of a call's images; ``None`` where the sequence holds nothing but the image.
        image_first: whether the image's tokens stand before the text's in the joint sequence.
        rotary: its rotary positions, where it has them.
        centred: whether these are counted from the middle of a picture.
        frames: where each image of a call begins on axis 0, if it is counted on after its text.
        time: the scheduler's time step, from the argument.
        separate: whether pipelines run its branches of guidance in calls of their own, instead of stacking them.
        per_image: the other arguments that have a row for each image.
        argument: the time step as the network is told it, from the scheduler's.
        sign: of the velocity in what the network returns.
        told_guidance: whether the network is told a scale of guidance (those distilled to need no second branch).
        one_branch: options with which a pipeline runs the branch with the prompt alone.
        pack: latents as the network wants them, from those of the VAE; ``video`` VAEs take frames.
    """

    part: str
    sample: str
    timestep: str
    layers: Callable[[nn.Module], dict[str, nn.Module]]
    processors: frozenset[str]
    residuals: tuple[str, ...]
    default: str = ""
    grid: Callable[[nn.Module, Given], tuple[int, int]] | None = None
    image_first: bool = False
    rotary: Callable[[nn.Module], Rotary] | None = None
    centred: bool = False
    frames: Callable[[Given], list[int]] | None = None
    time: Callable[[float], float] = float
    separate: bool = False
    per_image: tuple[str, ...] = ()
    argument: Callable[[float], float] = float
    sign: float = 1.0
    told_guidance: bool = False
    one_branch: Given = field(default_factory=dict)
    pack: Callable[[Any, Tensor], Tensor] = lambda pipe, latents: latents
    video: bool = False

    def rows(self, latents: Tensor) -> Tensor | list[Tensor]:
        """Latents as the network takes them: one tensor, or a list of pictures of one frame."""
        return list(latents.unsqueeze(2).unbind()) if self.sample == "x" else latents

    def called(self, network: nn.Module, latents: Tensor, timestep: Tensor, given: Given) -> Tensor:
        """The velocity of latents, with everything else that the network is given."""
        device = latents.device
        on_device = {name: _moved(value, device) for name, value in given.items()}
        rows = {self.sample: self.rows(latents.to(network.dtype)), self.timestep: timestep.expand(len(latents))}
        if getattr(network.config, "encoder_hid_dim_type", None) == "ip_image_proj":  # IP-Adapters want pictures
            how = on_device.get("joint_attention_kwargs") or {}
            on_device["joint_attention_kwargs"] = how | {"ip_hidden_states": []}
        found = network(**on_device, **rows, return_dict=False)[0]
        return self.sign * (torch.stack(found).squeeze(2) if isinstance(found, list) else found)

    def scheduler_time(self, given: Given, scheduler) -> float:
        """The scheduler's time step of a call: of what was converted and rounded on its way, the nearest."""
        time = self.time(single_timestep(given[self.timestep]))
        if self.part == "unet":
            return time
        return min((float(step) for step in scheduler.timesteps), key=lambda step: abs(step - time), default=time)

    def grid_of(self, network: nn.Module, latents: Tensor, embeddings: dict[str, Tensor], shared: Given):
        """Rows and columns of patches of references, from what is kept of them."""
        if self.grid is None:
            raise TypeError("Only the pictures of a transformer have a grid of patches.")
        told = arguments_of(embeddings, shared, ("cond",))
        return self.grid(network, told | {self.sample: self.rows(latents)})

    def begins(self, given: Given, branches: int) -> Int[Tensor, "branches images"] | None:
        """Where the images of a call begin on axis 0, where that differs."""
        return None if self.frames is None else torch.tensor(self.frames(given)).view(branches, -1)

    def image_tokens(self, grid: tuple[int, int] | None, length: int) -> slice:
        """Where the image's tokens stand among ``length`` tokens of a layer, which may hold the text's as well."""
        if grid is None:
            return slice(None)
        return slice(0, math.prod(grid)) if self.image_first else slice(length - math.prod(grid), length)


def by_name(network: nn.Module, args: tuple, kwargs: dict) -> Given:
    """All arguments of a network's call by name."""
    names = list(inspect.signature(type(network).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def arguments_of(embeddings: dict[str, Tensor], shared: Given, branches: Sequence[str]) -> Given:
    """What a transformer is given for references, their rows once for each branch; padded rows become lists again."""
    missing = [branch for branch in branches if not any(name.startswith(f"{branch}.") for name in embeddings)]
    if missing:
        raise ValueError(f"The trajectory has no text for the guidance branch {missing[0]!r}; make it from prompts.")
    told: Given = dict(shared)
    known = [key.partition(".") for key in embeddings if not key.endswith(LENGTH)]
    for name in (name for branch, _, name in known if branch == branches[0]):  # a text may need no mask
        parts = [embeddings[f"{branch}.{name}"] for branch in branches]
        if f"{branches[0]}.{name}{LENGTH}" not in embeddings:
            told[name] = torch.cat(parts)
            continue
        lengths = torch.cat([embeddings[f"{branch}.{name}{LENGTH}"] for branch in branches]).tolist()
        told[name] = [
            row[:length] for row, length in zip((row for rows in parts for row in rows), lengths, strict=True)
        ]
    return told


def rows_of(value: Tensor | list, name: str) -> dict[str, Tensor]:
    """An argument with a row for each image as tensors: a list of rows of several lengths is padded."""
    if isinstance(value, Tensor):
        return {name: value.cpu()}
    lengths = torch.tensor([len(row) for row in value])
    return {
        name: torch.nn.utils.rnn.pad_sequence([row.cpu() for row in value], batch_first=True),
        name + LENGTH: lengths,
    }


def self_attentions(unet: nn.Module) -> dict[str, nn.Module]:
    """The self-attention layers of a U-Net by name, in the order of depth: down, middle, up."""
    found = {
        name: module
        for name, module in unet.named_modules()
        if name.endswith("attn1") and hasattr(module, "processor") and not module.is_cross_attention
    }
    depth = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return dict(sorted(found.items(), key=lambda item: depth.get(item[0].split(".")[0], 3)))  # stable within blocks


def joint_attentions(*names: str) -> Callable[[nn.Module], dict[str, nn.Module]]:
    """The attention layers called ``names`` in the blocks of a transformer, text refiners left out."""

    def found(network: nn.Module) -> dict[str, nn.Module]:
        return {
            name: module
            for name, module in network.named_modules()
            if name.rpartition(".")[2] in names and hasattr(module, "processor") and "refiner" not in name
        }

    return found


def rotary_of(network: nn.Module) -> Rotary:
    """The rotary positions of FLUX and its kin: ids are (picture, row, column, ...)."""
    config = network.config
    widths = config.get("axes_dims_rope") or config.get("axes_dims")
    embedder = getattr(network, "pos_embed", None) or network.rope_embedder
    return Rotary(tuple(widths), float(embedder.theta), down=1, right=2)


def _grid_of_ids(network: nn.Module, given: Given) -> tuple[int, int]:
    ids = given["img_ids"] if given["img_ids"].ndim == 2 else given["img_ids"][0]
    if (ids[:, 0] != ids[0, 0]).any():
        raise ValueError("Style alignment knows one picture in the sequence; this call gives the model others to edit.")
    rows, columns = (ids[:, 1:3].amax(dim=0) - ids[:, 1:3].amin(dim=0) + 1).long().tolist()
    return rows, columns


def _grid_of_shapes(network: nn.Module, given: Given) -> tuple[int, int]:
    pictures = [[row] if isinstance(row[0], int) else row for row in given["img_shapes"]]  # of each row of the batch
    shapes = {tuple(each) for row in pictures for each in row}
    if len(shapes) > 1 or any(len(row) > 1 for row in pictures) or next(iter(shapes))[0] > 1:
        raise ValueError("Style alignment knows one picture in the sequence; this call gives the model others to edit.")
    return next(iter(shapes))[1:]


def _grid_of_latents(network: nn.Module, given: Given) -> tuple[int, int]:
    patch = network.config.patch_size
    return tuple(side // patch for side in given["hidden_states"].shape[-2:])


def _grid_of_list(network: nn.Module, given: Given) -> tuple[int, int]:
    patch = given.get("patch_size", 2)
    return tuple(side // patch for side in given["x"][0].shape[-2:])


def _after_text(given: Given) -> list[int]:
    """Where an image begins on axis 0 after its text, which is padded to a multiple of 32 tokens and begins at 1."""
    return [1 + 32 * math.ceil(len(text) / 32) for text in given["cap_feats"]]


def _packed_for_flux2(pipe, latents: Tensor) -> Tensor:
    """Patches of 2 x 2 as channels, normalized by the statistics that the VAE keeps, then as a sequence."""
    patches, norm = pipe._patchify_latents(latents), pipe.vae.bn
    mean, var = (x.view(1, -1, 1, 1).to(patches) for x in (norm.running_mean, norm.running_var))
    return pipe._pack_latents((patches - mean) / (var + pipe.vae.config.batch_norm_eps).sqrt())


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(each, device) for each in value]
    return value.to(device) if isinstance(value, Tensor) else value


UNET = Architecture(
    part="unet",
    sample="sample",
    timestep="timestep",
    layers=self_attentions,
    processors=frozenset({"AttnProcessor2_0", "FusedAttnProcessor2_0"}),
    residuals=(
        "down_block_additional_residuals",
        "mid_block_additional_residual",
        "down_intrablock_additional_residuals",
    ),
)
FLUX = Architecture(
    part="transformer",
    sample="hidden_states",
    timestep="timestep",
    layers=joint_attentions("attn"),
    processors=frozenset({"FluxAttnProcessor", "FluxIPAdapterAttnProcessor"}),
    residuals=("controlnet_block_samples", "controlnet_single_block_samples"),
    default="single_transformer_blocks.",  # AlignedGen: none of the double-stream blocks
    grid=_grid_of_ids,
    rotary=rotary_of,
    time=lambda t: 1000 * t,
    separate=True,
    per_image=("encoder_hidden_states", "pooled_projections", "guidance"),
    argument=lambda t: t / 1000,
    told_guidance=True,
    pack=lambda pipe, latents: pipe._pack_latents(latents, *latents.shape),
)
FLUX2 = replace(
    FLUX,
    processors=frozenset({"Flux2AttnProcessor", "Flux2ParallelSelfAttnProcessor"}),
    residuals=(),
    per_image=("encoder_hidden_states", "guidance", "img_ids", "txt_ids"),
    pack=_packed_for_flux2,
)
SD3 = Architecture(
    part="transformer",
    sample="hidden_states",
    timestep="timestep",
    layers=joint_attentions("attn", "attn2"),
    processors=frozenset({"JointAttnProcessor2_0", "FusedJointAttnProcessor2_0"}),
    residuals=("block_controlnet_hidden_states",),
    grid=_grid_of_latents,
    image_first=True,
    per_image=("encoder_hidden_states", "pooled_projections"),
    one_branch={"guidance_scale": 1.0},
)
QWEN = Architecture(
    part="transformer",
    sample="hidden_states",
    timestep="timestep",
    layers=joint_attentions("attn"),
    processors=frozenset({"QwenDoubleStreamAttnProcessor2_0"}),
    residuals=("controlnet_block_samples",),
    grid=_grid_of_shapes,
    rotary=rotary_of,
    centred=True,
    time=lambda t: 1000 * t,
    separate=True,
    per_image=("encoder_hidden_states", "encoder_hidden_states_mask", "guidance"),
    argument=lambda t: t / 1000,
    one_branch={"true_cfg_scale": 1.0},
    pack=lambda pipe, latents: pipe._pack_latents(latents, *latents.shape[:2], *latents.shape[-2:]),
    video=True,
)
Z_IMAGE = Architecture(
    part="transformer",
    sample="x",
    timestep="t",
    layers=joint_attentions("attention"),
    processors=frozenset({"ZSingleStreamAttnProcessor"}),
    residuals=("controlnet_block_samples",),
    default="layers.",
    grid=_grid_of_list,
    image_first=True,
    rotary=rotary_of,
    frames=_after_text,
    time=lambda t: 1000 * (1 - t),
    per_image=("cap_feats",),
    argument=lambda t: 1 - t / 1000,
    sign=-1.0,
    one_branch={"guidance_scale": 0.0},  # its guidance begins at 0, not at 1
)
TRANSFORMERS = {
    "FluxTransformer2DModel": FLUX,
    "Flux2Transformer2DModel": FLUX2,
    "SD3Transformer2DModel": SD3,
    "QwenImageTransformer2DModel": QWEN,
    "ZImageTransformer2DModel": Z_IMAGE,
}


def architecture_of(pipe) -> Architecture:
    """The kind of network that a pipeline draws with; raises ``TypeError`` for one that is not known."""
    if getattr(pipe, "unet", None) is not None:
        return UNET
    network = getattr(pipe, "transformer", None)
    kinds = [] if network is None else [each.__name__ for each in type(without_compilation(network)).__mro__]
    kind = next((each for each in kinds if each in TRANSFORMERS), None)
    if kind is None:
        raise TypeError(
            "style_aligned needs a pipeline with a U-Net (SD 1.x, 2.x, SDXL) or with one of the transformers "
            f"{', '.join(TRANSFORMERS)}; got {type(pipe).__name__}" + (f" with {kinds[0]}." if kinds else ".")
        )
    return TRANSFORMERS[kind]


def choose_layers(names: Sequence[str], layers: float | str | Sequence[str]) -> list[str]:
    """A fraction of the layers, evenly spaced, or those whose name contains one of the given words."""
    if isinstance(layers, int | float):
        count = max(1, round(layers * len(names))) if layers > 0 else 0
        return [names[int((i + 0.5) * len(names) / count)] for i in range(count)]
    words = [layers] if isinstance(layers, str) else list(layers)
    unused = [word for word in words if not any(_named(word, name) for name in names)]
    if unused:
        raise ValueError(f"No self-attention layer has {unused[0]!r} in its name; they are {', '.join(names)}.")
    return [name for name in names if any(_named(word, name) for word in words)]


def _named(word: str, name: str) -> bool:
    """Whether a part of a layer's name begins with a word, such as "up_blocks", "up_blocks.1" or "mid"."""
    return f".{word}" in f".{name}"


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
