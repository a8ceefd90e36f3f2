"""Running the references through the U-Net ahead of the caller's batch, and keeping what they leave for later calls."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from ..latents import alpha_at, conditions
from .processors import Kept, ReferenceDone, Sharing
from .trajectory import Trajectory

Layers = dict[str, Kept]
RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual", "down_intrablock_additional_residuals")


class ReferencePass:
    """Gives the references' keys and values in every shared layer, for a time step and guidance branches.

    The references run in one batch, one row per branch, on the trajectory's latents with the trajectory's text: no
    ControlNet residual, IP-Adapter image or other token of the caller's batch reaches them. The pass ends at the last
    shared layer.
    """

    def __init__(self, unet: nn.Module, trajectory: Trajectory, sharing: Sharing, layers: tuple[str, ...], cache):
        self.unet, self.trajectory, self.sharing, self.layers, self.cache = unet, trajectory, sharing, layers, cache
        if cache is not None:
            cache.claim(unet, trajectory)
        norms_too = any(isinstance(unet.get_submodule(layer), nn.GroupNorm) for layer in layers)
        self.last_layer = next((layer for layer in reversed(layers) if not norms_too or layer == "conv_norm_out"), "")
        if any(hasattr(module, "_diffusers_hook") for module in unet.modules()):
            self.last_layer = ""  # hooks that stream weights must see every layer

    def __call__(
        self,
        forward: Callable,
        sample: Tensor,
        timestep: Tensor | float,
        branches: Sequence[str],
        scheduler,
        kwargs: dict,
    ) -> Layers:
        """Take from the cache, or run ``forward`` (the U-Net's own) on the references.

        ``scheduler`` is that of the running pipeline: its steps, and its noise levels for interpolation.
        """
        time = single_timestep(timestep)
        scale = (kwargs.get("cross_attention_kwargs") or {}).get("scale")  # of a LoRA; everything else is the caller's
        key = (time, tuple(branches), scale, sample.dtype, self.layers)
        if self.cache is not None and key in self.cache:
            return self.cache.get(key, sample.device)
        alpha = alpha_at(scheduler, time) if self.sharing.settings.interpolate else None
        latents = self.trajectory.at(time, alpha).to(sample)
        texts, added = conditions(self.trajectory.embeddings, branches, like=sample)
        sharing = self.sharing
        sharing.phase, sharing.branches, sharing.kept = "reference", len(branches), {}
        sharing.last_layer = self.last_layer if scale in (None, 1) else ""  # a scaled LoRA is unscaled at the end
        condition = kwargs.get("timestep_cond")  # the guidance scale, in models distilled to be told it
        try:
            with without_ip_adapter(self.unet):
                forward(
                    repeat(latents, "references ... -> (branches references) ...", branches=len(branches)),
                    timestep if not isinstance(timestep, Tensor) else timestep.flatten()[0],
                    encoder_hidden_states=texts,
                    timestep_cond=None if condition is None else condition[:1].expand(len(texts), -1),
                    cross_attention_kwargs=None if scale is None else {"scale": scale},
                    added_cond_kwargs=added,
                    return_dict=False,
                )
        except ReferenceDone:
            pass
        finally:
            sharing.phase = "off"
        kept, sharing.kept = sharing.kept, {}
        if self.cache is not None:
            self.cache.put(key, kept, steps=len(scheduler.timesteps))
        return kept


class ReferenceCache:
    """Keys and values of references, kept for the next call with the same references, steps and model.

    They stay on the device if all steps together take at most half of its free memory, and otherwise in the computer's
    memory if they take at most half of what is free there. If neither has room, nothing is kept and a warning says so.
    Pass one object to several ``style_aligned`` blocks to share it.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple, Layers] = {}
        self._owner: tuple | None = None
        self.device: torch.device | None = None

    def __contains__(self, key: tuple) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        """The number of steps kept."""
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """The bytes kept."""
        return sum(_bytes(layers) for layers in self._kept.values())

    def __repr__(self) -> str:
        return f"ReferenceCache({len(self)} steps, {self.nbytes / 2**20:.1f} MiB on {self.device or 'no device yet'})"

    def claim(self, unet: nn.Module, trajectory: Trajectory) -> None:
        """Forget everything if it belongs to other references or another model."""
        parts = (trajectory.latents, trajectory.timesteps, *trajectory.embeddings.values())
        digest = hashlib.blake2b()
        for part in parts:
            digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
        owner = (id(unet), digest.hexdigest())
        if owner != self._owner:
            self._kept, self._owner, self.device = {}, owner, None

    def get(self, key: tuple, device: torch.device) -> Layers:
        """What was kept under ``key``, on ``device``."""
        layers = self._kept[key]
        return layers if self.device == device else _moved(layers, device)

    def put(self, key: tuple, layers: Layers, steps: int) -> None:
        """Keep ``layers`` wherever ``steps`` times as much fits."""
        where = next(iter(layers.values()))[0].device
        if self.device is None:
            self.device = _roomy_device(where, steps * _bytes(layers))
        if self.device.type != "meta":
            self._kept[key] = layers if self.device == where else _moved(layers, self.device)


@contextmanager
def without_ip_adapter(unet: nn.Module) -> Iterator[None]:
    """Switch the U-Net's IP-Adapters off, so that it can be called without their images; restore them afterwards."""
    if getattr(unet.config, "encoder_hid_dim_type", None) != "ip_image_proj":
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


def without_control(kwargs: dict, rows: int, branches: int) -> dict:
    """Remove from a U-Net's arguments what a ControlNet or T2I-Adapter adds to image 0 of each guidance branch."""

    def zeroed(found):
        if isinstance(found, Tensor):
            return zero_first_image(found, rows, branches)
        return type(found)(zero_first_image(each, rows, branches) for each in found)  # the U-Net pops from its lists

    return kwargs | {name: zeroed(kwargs[name]) for name in RESIDUALS if kwargs.get(name) is not None}


def zero_first_image(
    residual: Float[Tensor, "given channels height width"], rows: int, branches: int
) -> Float[Tensor, "rows channels height width"]:
    """Put zeros for image 0 of each guidance branch, and keep the residuals of the other images.

    A residual of one row, which the U-Net would add to all ``rows``, is repeated first.
    """
    every_row = residual.expand(rows, *residual.shape[1:])
    images = rearrange(every_row, "(branches images) ... -> branches images ...", branches=branches)
    freed = torch.cat([torch.zeros_like(images[:, :1]), images[:, 1:]], dim=1)
    return rearrange(freed, "branches images ... -> (branches images) ...")


def single_timestep(timestep: Tensor | float) -> float:
    """The one time step of a U-Net call; raises ``ValueError`` if its images are at several."""
    if not isinstance(timestep, Tensor) or timestep.numel() == 1:
        return float(timestep)
    values = timestep.unique().tolist()
    if len(values) > 1:
        raise ValueError(f"Images aligned with a reference share one time step; this call has {values}.")
    return values[0]


def _bytes(layers: Layers) -> int:
    return sum(tensor.nbytes for kept in layers.values() for tensor in kept)


def _moved(layers: Layers, device: torch.device) -> Layers:
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
