"""A trajectory: the latents of one or more references at every noise level of a sampling run, and how they were made.

Level k holds what the model is given at step k of sampling, from noise (level 0) to the clean latent (last level).
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import LIMITS, check_list
from ..files import written_whole
from ..guidance import without_compilation
from ..latents import alpha_at
from ..signatures import check_fields, checked
from .networks import architecture_of

FORMAT = "context_diffusion.trajectory/1"
FACTS = {  # saved with the tensors, and their types in JSON
    "prompts": list,
    "negative_prompt": str | None,
    "guidance_scale": float | int,
    "fixed_point_iterations": int,
    "model": dict,
    "method": str,
    "seed": int | None,
    "shared": dict,
}
TENSORS = ("latents", "timesteps", "alphas")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Latents z_k of references, level by level, on the CPU, with the text they belong to.

    ``method`` says how it was made: "ddim inversion" (:func:`ddim_invert`) or "added noise" (:func:`noised_reference`).
    ``latents`` are the levels, ``timesteps`` the time steps between them, and ``prompts``, ``negative_prompt``,
    ``guidance_scale``, ``fixed_point_iterations`` and ``seed`` are what it was made with.
    ``alphas`` are ``alpha_bar`` at each level (1 is clean, 0 pure noise); ``embeddings`` hold the text of each
    guidance branch ("cond", "uncond"; SDXL adds "pooled_cond", "pooled_uncond", "time_ids"), one row per reference;
    ``model`` is what :func:`describe_model` says of the pipeline that made it. In a transformer's trajectory
    ("flow inversion", or "added noise") the embeddings are called by branch and argument, such as
    "cond.encoder_hidden_states", ``shared`` holds arguments that all references have in common, and ``alphas`` are the
    signal's share of the power, ``(1 - sigma)^2 / ((1 - sigma)^2 + sigma^2)``.
    """

    latents: Float[Tensor, "levels references *latent"]
    timesteps: Float[Tensor, " steps"]
    alphas: Float[Tensor, " levels"]
    embeddings: dict[str, Tensor]
    prompts: tuple[str, ...]
    negative_prompt: str | None = None
    guidance_scale: float = 1.0
    fixed_point_iterations: int = 0
    model: dict = field(default_factory=dict)
    method: str = "ddim inversion"
    seed: int | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ``ValueError`` unless the parts fit together and are finite."""
        check_fields(self)
        steps, rows = len(self.timesteps), len(self.prompts)
        if self.latents.shape[:2] != (steps + 1, rows) or self.alphas.shape != (steps + 1,):
            raise ValueError(
                f"A trajectory of {steps} steps has {steps + 1} levels of latents and of alpha_bar, and a row for each "
                f"of its {rows} prompts; got latents {tuple(self.latents.shape)}, alphas {tuple(self.alphas.shape)}."
            )
        short = [name for name, rows_of in self.embeddings.items() if len(rows_of) != rows]
        if short:
            raise ValueError(f"A trajectory has text for each of its {rows} references; its {short[0]} has not.")
        for name, tensor in {**{name: getattr(self, name) for name in TENSORS}, **self.embeddings}.items():
            if not tensor.isfinite().all():
                raise ValueError(f"A trajectory's {name} are finite; these hold NaN or infinity.")

    def __len__(self) -> int:
        """The number of references."""
        return self.latents.shape[1]

    @property
    def num_inference_steps(self) -> int:
        """The number of steps; there is one more level, the clean one."""
        return len(self.timesteps)

    @property
    def noise(self) -> Float[Tensor, "references *latent"]:  # noqa: F821
        """Level 0: sampling from it with the same prompt and guidance draws the reference again."""
        return self.latents[0]

    @property
    def clean(self) -> Float[Tensor, "references *latent"]:  # noqa: F821
        """The last level: the encoded pictures."""
        return self.latents[-1]

    def __getitem__(self, index: int) -> "Trajectory":
        """One of the references, as a trajectory of its own."""
        index = range(len(self))[index]
        rows = slice(index, index + 1)
        embeddings = {name: rows_of[rows] for name, rows_of in self.embeddings.items()}
        return replace(self, latents=self.latents[:, rows], embeddings=embeddings, prompts=self.prompts[rows])

    @staticmethod
    @checked
    def join(trajectories: Sequence["Trajectory"]) -> "Trajectory":
        """Put the references of several trajectories into one; raises ``ValueError`` if they do not fit together."""
        trajectories = check_list("trajectories", trajectories, LIMITS["references"])
        if not trajectories:
            raise ValueError("At least one reference is needed; the list of trajectories is empty.")
        for each in trajectories:
            if not isinstance(each, Trajectory):
                raise TypeError(f"References are trajectories, as ddim_invert returns them; got {type(each).__name__}.")
        first, *others = trajectories
        for name in ("method", "num_inference_steps", "guidance_scale", "negative_prompt", "fixed_point_iterations"):
            values = [getattr(trajectory, name) for trajectory in trajectories]
            if any(value != values[0] for value in values):
                raise ValueError(f"References used together are made with one {name}; these have {values}.")
        sizes = [tuple(trajectory.latents.shape[2:]) for trajectory in trajectories]
        if len(set(sizes)) > 1:
            raise ValueError(f"References used together have one size; the latents of these are {sizes}.")
        if any(not torch.equal(other.timesteps, first.timesteps) for other in others):
            raise ValueError(
                "References used together visit the same time steps; these were made with different schedulers."
            )
        shapes = [{name: rows.shape[1:] for name, rows in each.embeddings.items()} for each in trajectories]
        if any(each != shapes[0] for each in shapes) or any(not _alike(each.shared, first.shared) for each in others):
            raise ValueError("The texts of these references have several lengths; make the references in one call.")
        for other in others:
            _compare_models(other.model, first.model)
        if not others:
            return first
        names = first.embeddings
        return replace(
            first,
            latents=torch.cat([trajectory.latents for trajectory in trajectories], dim=1),
            embeddings={name: torch.cat([each.embeddings[name] for each in trajectories]) for name in names},
            prompts=sum((trajectory.prompts for trajectory in trajectories), ()),
        )

    @checked
    def at(self, timestep: float, alpha: float | None = None) -> Float[Tensor, "references *latent"]:  # noqa: F821
        """The latents at the time step whose value is ``timestep``.

        If the step's ``alpha_bar`` is given as ``alpha``, a step in between is interpolated: on a segment of the
        trajectory, DDIM keeps one clean latent x and one noise e, so ``z = cos(phi) x + sin(phi) e`` with ``cos(phi)^2
        = alpha_bar``, and two levels give the third. Otherwise such a step raises ``ValueError``.
        """
        near = (self.timesteps - float(timestep)).abs().argmin()
        if (self.timesteps[near] - float(timestep)).abs() < 1e-3:
            return self.latents[near]
        if alpha is None:
            raise ValueError(
                f"Time step {float(timestep):g} is not in the reference's trajectory, which was made with "
                f"{self.num_inference_steps} steps ({_abbreviate(self.timesteps)}): sample with the same number of "
                "steps and the same scheduler, or pass interpolate=True."
            )
        angles = self.alphas.double().sqrt().clamp(-1, 1).acos()
        phi = math.acos(min(1.0, math.sqrt(alpha)))
        segments = (angles[:-1] > angles[1:]).nonzero().flatten().tolist()
        k = next((segment for segment in segments if angles[segment + 1] <= phi), segments[-1])
        high, low = angles[k], angles[k + 1]
        noisy, clean = self.latents[k], self.latents[k + 1]
        return (torch.sin(high - phi) * clean + torch.sin(phi - low) * noisy) / torch.sin(high - low)

    @checked
    def on_line(self, time: float) -> Float[Tensor, "references *latent"]:  # noqa: F821
        """The latents of a flow at any time step: between two levels, and beyond the first, its lines are straight."""
        times = torch.cat([self.timesteps, self.timesteps.new_zeros(1)])
        k = int((self.timesteps > time).sum().clamp(1)) - 1
        share = (time - times[k + 1]) / (times[k] - times[k + 1])
        return torch.lerp(self.latents[k + 1], self.latents[k], float(share))

    def check(self, pipe) -> None:
        """Raise ``ValueError`` unless this was made with the pipeline's model and noise schedule."""
        architecture_of(pipe)
        _compare_models(self.model, describe_model(pipe))
        if not any(name.partition(".")[0] == "cond" for name in self.embeddings):
            raise ValueError('The trajectory holds no text for the branch with the prompt ("cond"); make it again.')
        if getattr(pipe, "unet", None) is None:
            return  # a flow's levels are its time steps, which are compared as they are met
        products = getattr(pipe.scheduler, "alphas_cumprod", None)
        if products is None:
            raise ValueError(
                f"{type(pipe.scheduler).__name__} has no alphas_cumprod; use a scheduler such as DDIMScheduler."
            )
        for timestep, alpha in zip(self.timesteps.tolist(), self.alphas.tolist(), strict=False):
            if abs(alpha_at(pipe.scheduler, timestep) - alpha) > 1e-3:
                raise ValueError(
                    f"The noise schedule differs: at time step {timestep:g} the trajectory has alpha_bar {alpha:.4f}, "
                    f"the pipeline's scheduler {alpha_at(pipe.scheduler, timestep):.4f}; invert with this scheduler."
                )

    def digest(self) -> str:
        """A short name for the latents, time steps and text, by their values."""
        told = self.shared | self.embeddings  # in the order of their names, because a file has another
        texts = (told[name] for name in sorted(told) if isinstance(told[name], Tensor))
        parts = (self.latents, self.timesteps, *texts)
        digest = hashlib.blake2b()
        for part in parts:
            digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @checked
    def save(self, path: str | os.PathLike) -> Path:
        """Write to one safetensors file, under a temporary name first."""
        from safetensors.torch import save_file

        path = Path(path)
        tensors = {"latents": self.latents, "timesteps": self.timesteps, "alphas": self.alphas}
        tensors |= {f"embeddings.{name}": rows for name, rows in self.embeddings.items()}
        tensors |= {f"shared.{name}": value for name, value in self.shared.items() if isinstance(value, Tensor)}
        facts = {name: getattr(self, name) for name in FACTS}
        facts["shared"] = {name: value for name, value in self.shared.items() if not isinstance(value, Tensor)}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with written_whole(path) as temporary:
            save_file(contiguous, temporary, metadata={"format": FORMAT, "made": json.dumps(facts)})
        return path

    @staticmethod
    @checked
    def load(path: str | os.PathLike) -> "Trajectory":
        """Read what :meth:`save` wrote; raise ``FileNotFoundError`` or ``ValueError`` for anything else."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no trajectory at {path}; make one with ddim_invert(...).save(path).")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a whole safetensors file ({error}); invert the reference again."
            ) from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is a safetensors file but not a trajectory saved by Trajectory.save.")
        embeddings = {name[11:]: tensors.pop(name) for name in list(tensors) if name.startswith("embeddings.")}
        try:
            facts = json.loads(metadata["made"])
            wrong = [name for name, value in facts.items() if not isinstance(value, FACTS[name])]
            if wrong:
                raise TypeError(f"its {wrong[0]} is {facts[wrong[0]]!r}")
            facts["prompts"] = tuple(facts["prompts"])
            common = {name[7:]: tensors.pop(name) for name in list(tensors) if name.startswith("shared.")}
            facts["shared"] = facts.get("shared", {}) | common
            return Trajectory(**tensors, embeddings=embeddings, **facts)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is a damaged trajectory ({error}); make the reference again.") from error


def describe_model(pipe) -> dict:
    """What distinguishes one denoiser from another: its shape, what it predicts, and sixteen of its weights."""
    unet = getattr(pipe, "unet", None)
    network = pipe.transformer if unet is None else unet
    weight = next(network.parameters()) if unet is None else unet.conv_in.weight
    sampled = [] if weight.is_meta else weight.detach().flatten()[:: max(1, weight.numel() // 16)][:16].float().tolist()
    facts = {"in_channels": network.config.in_channels, "weights": sampled}
    if unet is None:
        return facts | {"class": type(without_compilation(network)).__name__}
    return facts | {
        "block_out_channels": list(unet.config.block_out_channels),
        "cross_attention_dim": unet.config.cross_attention_dim,
        "prediction_type": pipe.scheduler.config.get("prediction_type", "epsilon"),
    }


def _alike(one: dict, other: dict) -> bool:
    """Whether the arguments that references have in common are the same."""
    same = {name: torch.equal(x, y) if isinstance(x := one[name], Tensor) and isinstance(y := other.get(name), Tensor)
            else _as_saved(x) == _as_saved(other.get(name)) for name in one}  # fmt: skip
    return one.keys() == other.keys() and all(same.values())


def _as_saved(value: Any) -> Any:
    """A value as a file gives it back, with lists for tuples."""
    return [_as_saved(each) for each in value] if isinstance(value, list | tuple) else value


def _compare_models(made_by: dict, used_with: dict) -> None:
    for name in made_by.keys() & used_with.keys() - {"weights"}:
        if made_by[name] != used_with[name]:
            raise ValueError(
                f"The trajectory was made by another model: its {name} is {made_by[name]}, here it is "
                f"{used_with[name]}; invert the reference with the pipeline that will use it."
            )
    ours, theirs = made_by.get("weights"), used_with.get("weights")
    if ours and theirs and any(abs(a - b) > 0.01 * abs(b) + 1e-4 for a, b in zip(ours, theirs, strict=True)):
        raise ValueError(
            "The trajectory was made by a model of the same shape but with other weights; invert the reference with "
            "the pipeline that will use it."
        )


def _abbreviate(timesteps: Tensor) -> str:
    values = [f"{value:g}" for value in timesteps.tolist()]
    return ", ".join(values if len(values) < 6 else [*values[:2], "...", values[-1]])
