"""Running the references through the U-Net ahead of the caller's batch, and keeping what they leave for later calls."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.weak import WeakIdRef

from ..latents import alpha_at, conditions
from .hooks import RUNNING, Call, Kept, ReferenceDone
from .networks import Architecture, Given, arguments_of
from .trajectory import Trajectory

Layers = dict[str, Kept]
LORA_SCALES = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
Shelf = dict[tuple, Layers]  # what a cache keeps for one owner, by step


class ReferencePass:
    """Gives the references' keys and values in every shared layer, for a time step and guidance branches.

    The references run in one batch, one row per branch, on the trajectory's latents with the trajectory's text: no
    ControlNet residual, IP-Adapter image or other token of the caller's batch reaches them. The pass ends at the last
    shared layer, unless hooks of others, such as those that stream weights, must see every layer.
    """

    def __init__(
        self,
        network: nn.Module,
        architecture: Architecture,
        trajectory: Trajectory,
        layers: tuple[str, ...],
        cache,
        queries: tuple[str, ...] = (),
    ):
        self.network, self.architecture, self.trajectory = network, architecture, trajectory
        self.layers, self.cache = layers, cache
        self.queries = queries  # the layers that keep queries too: a cache without them is of no use to this pass
        self.owner = trajectory.digest() if cache is not None else ""
        norms_too = any(isinstance(network.get_submodule(layer), nn.GroupNorm) for layer in layers)
        self.last_layer = next((layer for layer in reversed(layers) if not norms_too or layer == "conv_norm_out"), "")
        if architecture.grid is not None:
            self.grid = architecture.grid_of(network, trajectory.latents[0], trajectory.embeddings, trajectory.shared)

    def __call__(
        self, call: Call, given: Given, time: float, branches: Sequence[str], scheduler, interpolates: bool
    ) -> Layers:
        """Take from the cache, or run the network on the references; ``given`` are the arguments of the caller's call.

        ``time`` is the scheduler's time step; ``scheduler`` is that of the running pipeline: its steps, and its noise
        levels for interpolation.
        """
        sample = given[self.architecture.sample][0]
        condition = given.get("timestep_cond")  # the guidance scale, in models distilled to be told it
        scale = lora_scale(given)
        told = None if condition is None else tuple(condition[0].tolist())
        cast = torch.is_autocast_enabled(sample.device.type) and torch.get_autocast_dtype(sample.device.type)
        skipped = tuple(given.get("skip_layers") or ())
        key = (time, tuple(branches), scale, told, sample.dtype, cast, self.layers, self.queries, skipped)
        if self.architecture.grid is not None:
            call.grid, call.frames = self.grid, self._frames(branches)
        if self.cache is not None:
            shelf = self.cache.shelf(self.network, self.owner)
            if key in shelf:
                return _moved(shelf[key], sample.device)
        latents = self._latents(time, scheduler, interpolates).to(sample)
        rows = repeat(latents, "references ... -> (branches references) ...", branches=len(branches))
        streams = any(
            hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook") for module in self.network.modules()
        )
        whole = streams or scale not in (None, 1)  # a scaled LoRA is unscaled at the end
        call.phase, call.last_layer = "reference", "" if whole else self.last_layer
        try:
            if self.architecture.grid is None:
                self._run_unet(call, rows, given, branches, scale)
            else:
                self._run_transformer(rows, given, branches, scale)
        except ReferenceDone:
            pass
        finally:
            call.phase = "plain"
        if self.cache is not None:
            self.cache.put(shelf, key, call.kept, steps=len(scheduler.timesteps))
        return call.kept

    def _frames(self, branches: Sequence[str]) -> Tensor | None:
        if self.architecture.frames is None:  # nothing of the texts is copied at every step then
            return None
        told = arguments_of(self.trajectory.embeddings, self.trajectory.shared, branches)
        return self.architecture.begins(told, len(branches))

    def _latents(self, time: float, scheduler, interpolates: bool) -> Tensor:
        if not interpolates:
            return self.trajectory.at(time)
        if self.architecture.grid is not None:
            return self.trajectory.on_line(time)
        return self.trajectory.at(time, alpha_at(scheduler, time))

    def _run_unet(self, call: Call, rows: Tensor, given: Given, branches: Sequence[str], scale: float | None) -> None:
        added: dict | None
        texts, added = conditions(self.trajectory.embeddings, branches, like=rows)
        if has_ip_adapter(self.network):  # which wants pictures, and will say nothing
            pictures = given["added_cond_kwargs"]["image_embeds"]
            pictures = [pictures.unsqueeze(1)] if isinstance(pictures, Tensor) else pictures
            added = (added or {}) | {
                "image_embeds": [each[:1].expand(len(texts), *each.shape[1:]) for each in pictures]
            }
        timestep, condition = given["timestep"], given.get("timestep_cond")
        with silent_adapters(self.network, call):
            self.network(
                rows,
                timestep if not isinstance(timestep, Tensor) else timestep.flatten()[0],
                encoder_hidden_states=texts,
                timestep_cond=None if condition is None else condition[:1].expand(len(texts), -1),
                cross_attention_kwargs=None if scale is None else {"scale": scale},
                added_cond_kwargs=added,
                return_dict=False,
            )

    def _run_transformer(self, rows: Tensor, given: Given, branches: Sequence[str], scale: float | None) -> None:
        told = arguments_of(self.trajectory.embeddings, self.trajectory.shared, branches)
        if scale is not None:
            told |= {name: {"scale": scale} for name in LORA_SCALES if name in given}
        if given.get("skip_layers"):  # SD3 guides away from itself without these
            told["skip_layers"] = given["skip_layers"]
        self.architecture.called(self.network, rows, given[self.architecture.timestep].flatten()[:1], told)


def lora_scale(given: Given) -> float | None:
    """The scale of a LoRA in a call's arguments; everything else there is the caller's."""
    return next((given[name]["scale"] for name in LORA_SCALES if "scale" in (given.get(name) or {})), None)


def state_of(network: nn.Module) -> tuple:
    """What the output of a network depends on beside its inputs: weights, processors, LoRAs with their scales, FreeU.

    Weights are told apart by identity, by PyTorch's count of changes in place, and by their first and last number: a
    LoRA that is fused into them and unloaded changes neither of the others.
    """
    weights: list[Tensor] = []
    settings: list = []
    for module in network.modules():
        weights += (weight for weight in module._parameters.values() if weight is not None)
        own = vars(module)  # looking here is ten times faster than hasattr, which this would ask at every step
        if isinstance(scaling := own.get("scaling"), dict):  # a LoRA layer of peft
            settings.append(
                (dict(scaling), list(module.active_adapters), module.disable_adapters, list(module.merged_adapters))
            )
        if "b1" in own:  # a block of the U-Net under FreeU
            settings.append((module.s1, module.s2, module.b1, module.b2))
        if "processor" in own or "processor" in module._modules:
            settings.append(type(module.processor))
    known = [(WeakIdRef(weight), -1 if weight.is_inference() else weight._version) for weight in weights]
    ends: dict[torch.device, list[Tensor]] = {}
    for weight in weights:
        if type(weight.data) is Tensor and weight.is_floating_point() and weight.numel() and not weight.is_meta:
            ends.setdefault(weight.device, []).append(weight.detach().as_strided((2,), (weight.numel() - 1,)))
    numbers = [torch.cat(each).tolist() for each in ends.values()]
    return (*known, *numbers, *settings)


class ReferenceCache:
    """Keys and values of references, kept for the next call with the same references, steps and model.

    They stay on the device if all steps together take at most half of its free memory, and otherwise in the computer's
    memory if they take at most half of what is free there. If neither has room, nothing is kept and a warning says so.
    Pass one object to several ``style_aligned`` blocks to share it.
    """

    def __init__(self) -> None:
        self._owned: tuple[tuple, Shelf] = ((), {})  # one object, because threads may share the cache
        self.device: torch.device | None = None

    @property
    def _kept(self) -> Shelf:
        return self._owned[1]

    def __len__(self) -> int:
        """The number of steps kept."""
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """The bytes kept."""
        return sum(_bytes(layers) for layers in self._kept.values())

    def __repr__(self) -> str:
        return f"ReferenceCache({len(self)} steps, {self.nbytes / 2**20:.1f} MiB on {self.device or 'no device yet'})"

    def shelf(self, network: nn.Module, references: str) -> Shelf:
        """What is kept of these references in the network as it is now; what belongs to others is forgotten."""
        owner = (WeakIdRef(network), references, state_of(network))
        last, shelf = self._owned
        if owner != last:
            shelf = {}
            self._owned, self.device = (owner, shelf), None
        return shelf

    def put(self, shelf: Shelf, key: tuple, layers: Layers, steps: int) -> None:
        """Put ``layers`` on the shelf, wherever ``steps`` times as much fits."""
        where = next(iter(layers.values()))[0].device
        device = self.device = self.device or _roomy_device(where, steps * _bytes(layers))
        if device.type != "meta":
            shelf[key] = _moved(layers, device)


def has_ip_adapter(network: nn.Module) -> bool:
    """Whether IP-Adapters are loaded into a U-Net."""
    return getattr(network.config, "encoder_hid_dim_type", None) == "ip_image_proj"


@contextmanager
def silent_adapters(network: nn.Module, call: Call) -> Iterator[None]:
    """Let IP-Adapters add nothing to a call: the tokens that they attend to are zeros, and so is what they find.

    Nothing of the network changes meanwhile for other threads.
    """
    if not has_ip_adapter(network):
        yield
        return

    def silence(module: nn.Module, args: tuple, tokens: list[Tensor]) -> list[Tensor] | None:
        return [torch.zeros_like(each) for each in tokens] if RUNNING.get() is call else None

    hook = network.encoder_hid_proj.register_forward_hook(silence)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def without_ip_adapter(unet: nn.Module) -> Iterator[None]:
    """Switch the U-Net's IP-Adapters off, so that it can be called without their images; restore them afterwards."""
    if not has_ip_adapter(unet):
        yield
        return
    adapters = [module for module in unet.modules() if hasattr(module, "to_k_ip") and hasattr(module, "scale")]
    scales = [adapter.scale for adapter in adapters]
    count = len(scales[0])
    for adapter in adapters:
        adapter.scale = [0.0] * count
    unet.process_encoder_hidden_states = lambda encoder_hidden_states, **_: (encoder_hidden_states, [None] * count)
    try:
        yield
    finally:
        del unet.process_encoder_hidden_states
        for adapter, scale in zip(adapters, scales, strict=True):
            adapter.scale = scale


def without_control(kwargs: dict, residuals: Sequence[str], rows: int, branches: int) -> dict:
    """Remove from a network's arguments what a ControlNet or T2I-Adapter adds to image 0 of each guidance branch."""

    def zeroed(found):
        if isinstance(found, Tensor):
            return zero_first_image(found, rows, branches)
        if isinstance(found, dict):  # by layer
            return {layer: zeroed(each) for layer, each in found.items()}
        return type(found)(zero_first_image(each, rows, branches) for each in found)  # the U-Net pops from its lists

    return kwargs | {name: zeroed(kwargs[name]) for name in residuals if kwargs.get(name) is not None}


def zero_first_image(residual: Float[Tensor, "*given"], rows: int, branches: int) -> Float[Tensor, "*every_row"]:
    """Put zeros for image 0 of each guidance branch, and keep the residuals of the other images.

    A residual of one row, which the U-Net would add to all ``rows``, is repeated first.
    """
    every_row = residual.expand(rows, *residual.shape[1:])
    images = rearrange(every_row, "(branches images) ... -> branches images ...", branches=branches)
    freed = torch.cat([torch.zeros_like(images[:, :1]), images[:, 1:]], dim=1)
    return rearrange(freed, "branches images ... -> (branches images) ...")


def _bytes(layers: Layers) -> int:
    return sum(tensor.nbytes for kept in layers.values() for tensor in kept)


def _moved(layers: Layers, device: torch.device) -> Layers:
    if next(iter(layers.values()))[0].device == device:
        return layers
    return {name: tuple(x.to(device, non_blocking=True) for x in kept) for name, kept in layers.items()}


def _roomy_device(device: torch.device, needed: int) -> torch.device:
    import psutil

    if device.type == "cuda" and needed <= torch.cuda.mem_get_info(device)[0] / 2:
        return device
    available = psutil.virtual_memory().available
    if needed <= available / 2:
        return torch.device("cpu")
    warnings.warn(
        f"References are not cached: their keys and values over all steps take {needed / 2**30:.1f} GiB, more than "
        f"half of the {available / 2**30:.1f} GiB of free memory; share fewer layers or run fewer steps.",
        stacklevel=2,
    )
    return torch.device("meta")
