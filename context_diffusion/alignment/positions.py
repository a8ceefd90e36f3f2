"""Where the references of a transformer lie: rotary positions, and how loudly a place hears each place of a reference.

A transformer tells its tokens where they are by rotating queries and keys: pair d of a head's channels turns by ``m
omega_d`` at position m (Su et al. 2021, RoFormer, eq. 13). So a query at p and a key at r meet as if turned by their
offset alone, and for features that are all alike the score is a mean of cosines, ``f(r - p) = mean_d s_d cos((r - p)
omega_d)``, with s_d = 1 in the model itself. It is largest at the same place, which is why a reference is copied from
there. Two ways out, and both are done to the references' finished keys, because a rotation on top is a shift:

- "beside" (AlignedGen, Zhang et al. 2025, section 3): turn them once more, as if the reference lay to the right.
- "untwisted" (Mikaeili et al. 2026, Untwisting RoPE): scale high frequencies down and low ones up,
  ``s_d = high + (low - high) d^beta`` with d from 0 (the highest) to 1 (the lowest).

Both change how loud a reference is on the whole; :func:`loudness` says by how much.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from .settings import StyleSettings


@dataclass(frozen=True)
class Rotary:
    """The rotary positions of a kind of transformer.

    ``widths`` are the channels of a head that belong to each axis, in the order of its position ids; ``theta`` is the
    base of the frequencies; ``down`` and ``right`` are the axes of a picture's rows and columns.
    """

    widths: tuple[int, ...]
    theta: float
    down: int
    right: int

    def frequencies(self) -> list[Float[Tensor, " pairs"]]:
        """The frequencies of each axis, ``theta^(-2i/width)``, the highest first."""
        return [self.theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width) for width in self.widths]

    def angles(self, right: float, down: float = 0.0, ahead: float = 0.0) -> Float[Tensor, " pairs"]:
        """By how much each pair turns when a token moves ``right`` and ``down`` in patches, ``ahead`` on axis 0."""
        moved = [ahead] + [0.0] * (len(self.widths) - 1)
        moved[self.right], moved[self.down] = right, down
        return torch.cat([by * omega for by, omega in zip(moved, self.frequencies(), strict=True)])

    def untwisting(self, high: float, low: float, beta: float = 2.0) -> Float[Tensor, " pairs"]:
        """A factor for each pair: from ``high`` at the highest frequency to ``low`` at the lowest, on a picture's axes.

        The other axes are left as they are: between tokens of one picture they do not turn, so scaling them would scale
        content.
        """
        ramps = []
        for axis, width in enumerate(self.widths):
            ramp = torch.linspace(0, 1, width // 2, dtype=torch.float64) ** beta
            ramps.append(high + (low - high) * ramp if axis in (self.down, self.right) else torch.ones_like(ramp))
        return torch.cat(ramps)


@dataclass(frozen=True)
class Placement:
    """What is done to the references' finished keys: each pair of channels turns by an angle and is scaled.

    ``own`` are angles by which the images' own queries and keys turn, where :func:`on_one_frame` says so.
    """

    angles: Float[Tensor, "*of_references pairs"]
    scales: Float[Tensor, " pairs"]
    own: Float[Tensor, "*of_images pairs"] | None = None


def placed(
    rotary: Rotary,
    settings: StyleSettings,
    grid: Sequence[int],
    of_reference: Sequence[int],
    centred: bool,
    done: float,
) -> Placement:
    """Where the settings put a reference, at the same loudness as if it lay on the picture.

    ``grid`` and ``of_reference`` are rows and columns; ``centred`` says whether positions are counted from the middle
    of a picture; ``done`` is how much of the sampling is over, 0 to 1, for scales that change meanwhile.
    """
    rows, columns = (
        _start(theirs, centred) - _start(own, centred) for own, theirs in zip(grid, of_reference, strict=True)
    )
    beside = grid[1] - columns if settings.placement in (None, "beside") else 0  # no two tokens share a place
    angles = rotary.angles(right=beside)
    scales = torch.ones_like(angles)
    if settings.placement == "untwisted":
        high, low = (first + (last - first) * done for first, last in (settings.untwist_high, settings.untwist_low))
        scales = rotary.untwisting(high, low)
    on_top, there = rotary.angles(columns, rows), rotary.angles(columns + beside, rows)
    gain = loudness(rotary, grid, of_reference, on_top) / loudness(rotary, grid, of_reference, there, scales)
    return Placement(angles, gain * scales)


def on_one_frame(
    placement: Placement, rotary: Rotary, own: Int[Tensor, "branches images"], theirs: Int[Tensor, "branches refs"]
) -> Placement:
    """Take back what texts of several lengths do to pictures that are counted on after them, on axis 0.

    ``own`` and ``theirs`` are where the images and the references begin. All are turned to where the first reference
    is: an image with its text, so that nothing changes between these.
    """
    first = theirs[:, :1]
    if (own == first).all() and (theirs == first).all():
        return placement
    step = rotary.angles(right=0, ahead=1)
    of_own, of_theirs = (((first - each)[..., None, None, None] * step) for each in (own, theirs))
    return replace(placement, angles=placement.angles + of_theirs, own=of_own)


def _start(side: int, centred: bool) -> int:
    return side // 2 - side if centred else 0


def turned(
    keys: Float[Tensor, "*rows channels"],
    angles: Float[Tensor, "*of_rows pairs"],
    scales: Float[Tensor, " pairs"] | None = None,
) -> Float[Tensor, "*rows channels"]:
    """Rotate each pair of a head's channels by its angle, and scale it; in float32, as the models do."""
    pairs = rearrange(keys, "... (heads pairs two) -> ... heads pairs two", pairs=angles.shape[-1], two=2)
    scales = torch.ones_like(angles) if scales is None else scales
    cos, sin = ((scales * turn(angles)).to(keys.device, torch.float32) for turn in (torch.cos, torch.sin))
    first, second = pairs.float().unbind(dim=-1)
    rotated = torch.stack([cos * first - sin * second, sin * first + cos * second], dim=-1)
    return rearrange(rotated, "... heads pairs two -> ... (heads pairs two)").to(keys.dtype)


def loudness(
    rotary: Rotary,
    grid: Sequence[int],
    of_reference: Sequence[int],
    angles: Float[Tensor, " pairs"],
    scales: Float[Tensor, " pairs"] | None = None,
) -> float:
    """The mean of f over all pairs of a place of a picture and one of a reference; grids are (rows, columns).

    The mean of ``cos((r - p) omega + angle)`` is the real part of a product of the two grids' mean phases.
    """
    phases = torch.ones_like(angles, dtype=torch.complex128)
    start = 0
    for axis, omega in enumerate(rotary.frequencies()):
        side = {rotary.down: 0, rotary.right: 1}.get(axis)
        if side is not None:
            own, other = (
                torch.exp(1j * torch.arange(sides[side], dtype=torch.float64)[:, None] * omega).mean(dim=0)
                for sides in (grid, of_reference)
            )
            phases[start : start + len(omega)] = own.conj() * other
        start += len(omega)
    heard = (phases * torch.exp(1j * angles.double())).real
    return float((heard if scales is None else heard * scales).mean())
