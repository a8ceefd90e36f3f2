"""Noise schedules, the forward process, and three ways back: DDPM, DDIM, Euler.

Notation: beta_t is the variance added at step t; alpha_bar_t = prod (1 - beta_s) for s <= t is what is left of the
picture; alpha_t = sqrt(alpha_bar_t) and sigma_t = sqrt(1 - alpha_bar_t) are the amplitudes of picture and noise. Time
counts from 0 (almost clean) to T-1 (almost pure noise); a negative time means the end, the picture itself.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import check_count
from ..signatures import checked

Latents = Float[Tensor, "batch ..."]
Time = int | float


@checked
def make_betas(
    schedule: str = "scaled_linear", steps: int = 1000, start: float = 0.00085, end: float = 0.012
) -> Float[Tensor, " steps"]:
    """The variances beta_0 ... beta_{T-1}, in float64.

    ``linear`` (Ho et al. 2020, section 4); ``scaled_linear``: linear in sqrt(beta) (Stable Diffusion); ``cosine``:
    alpha_bar follows cos^2 (Nichol & Dhariwal 2021, eq. 17; ignores ``start`` and ``end``).
    """
    check_count("steps", steps, 1_000_000)
    if not 0 < start <= end < 1:
        raise ValueError(f"Variances grow from start to end, between 0 and 1; got {start} and {end}.")
    if schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    if schedule in ("cosine", "squaredcos_cap_v2"):
        time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    raise ValueError(f"A beta schedule is 'linear', 'scaled_linear' or 'cosine'; got {schedule!r}.")


@checked
def rescale_betas_zero_snr(betas: Float[Tensor, " steps"]) -> Float[Tensor, " steps"]:
    """Stretch a schedule until nothing of the picture is left at its end (Lin et al. 2023, algorithm 1).

    sqrt(alpha_bar) is shifted, so that it ends at 0, and scaled, so that it begins where it did. The last beta is 1.
    """
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return 1 - torch.cat([root[:1], root[1:] / root[:-1]]) ** 2


def check(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless a setting has a known value."""
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(map(repr, known))}; got {value!r}.")


@dataclass(frozen=True, eq=False)
class Scheduler:
    """What the three samplers share: the schedule, the forward process, and how to read the network's prediction."""

    alpha_bar: Float[Tensor, " steps"]
    prediction_type: str = "epsilon"  # or "v_prediction", "sample"
    timestep_spacing: str = "leading"  # or "trailing", "linspace"
    steps_offset: int = 0
    final_alpha_bar: float = 1.0
    clip: float | None = None  # bound on the predicted clean picture; None in latent space

    FIXED: ClassVar[dict] = {"trained_betas": None, "thresholding": False}
    DEFAULTS: ClassVar[dict] = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "clip_sample": True}
    stochastic: ClassVar[bool] = False

    def __post_init__(self):
        check("prediction_type", self.prediction_type, ("epsilon", "v_prediction", "sample"))
        check("timestep_spacing", self.timestep_spacing, ("leading", "trailing", "linspace"))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Scheduler":
        """Build a sampler from the dictionary in a folder's ``scheduler_config.json``."""
        config = cls.DEFAULTS | dict(config)
        if odd := [f"{k}={config[k]!r}" for k, v in cls.FIXED.items() if config.get(k, v) != v]:
            raise ValueError(f"{cls.__name__} is written without {', '.join(odd)}, which this configuration asks for.")
        steps = config.get("num_train_timesteps", 1000)
        betas = make_betas(config["beta_schedule"], steps, config["beta_start"], config["beta_end"])
        if config.get("rescale_betas_zero_snr", False):
            betas = rescale_betas_zero_snr(betas)
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        names = [field.name for field in dataclasses.fields(cls)[1:]]
        settings = {name: config[name] for name in names if name in config}
        settings["clip"] = config.get("clip_sample_range", 1.0) if config["clip_sample"] else None
        if not config.get("set_alpha_to_one", True):
            settings["final_alpha_bar"] = float(alpha_bar[0])
        return cls(alpha_bar, **settings)

    @classmethod
    def like(cls, other: "Scheduler", **changes) -> "Scheduler":
        """Build this sampler on another's schedule: ``DDPM.like(model.scheduler)``, ``DDIM.like(ddim, eta=1.0)``."""
        shared = {field.name: getattr(other, field.name) for field in dataclasses.fields(Scheduler)}
        return cls(**shared | changes)

    def amplitudes(self, t: Time) -> tuple[float, float]:
        """(alpha_t, sigma_t): how much picture and how much noise x_t holds."""
        alpha_bar = float(self.alpha_bar[int(t)]) if t >= 0 else self.final_alpha_bar
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)

    def add_noise(self, x_0: Latents, noise: Latents, t: Time) -> Latents:
        """The forward process in one jump (Ho et al. 2020, eq. 4): x_t = alpha_t x_0 + sigma_t noise."""
        alpha, sigma = self.amplitudes(t)
        return alpha * x_0 + sigma * noise

    def start(self, noise: Latents, t: Time) -> Latents:
        """Where sampling begins: x_T is noise alone."""
        return noise

    def model_input(self, x: Latents, t: Time) -> Latents:
        """What the network gets to see of x_t."""
        return x

    def predict(self, output: Latents, x_t: Latents, t: Time) -> tuple[Latents, Latents]:
        """(x_0, epsilon) from the network's output, whichever of the three it was trained to predict.

        v = alpha_t epsilon - sigma_t x_0 (Salimans & Ho 2022, section 4) makes (x_0, epsilon) -> (x_t, v) a rotation,
        since alpha_t^2 + sigma_t^2 = 1; so the way back is the transposed rotation. Raises ``ValueError`` for a
        predicted noise where alpha_t is 0: x_t is the noise then, and says nothing about x_0.
        """
        alpha, sigma = self.amplitudes(t)
        if alpha == 0 and self.prediction_type == "epsilon":
            raise ValueError(f"At t = {t} nothing of the picture is left: predict v_prediction or sample, not epsilon.")
        if self.prediction_type == "epsilon":
            x_0, epsilon = (x_t - sigma * output) / alpha, output
        elif self.prediction_type == "v_prediction":
            x_0, epsilon = alpha * x_t - sigma * output, sigma * x_t + alpha * output
        else:
            x_0, epsilon = output, (x_t - alpha * output) / sigma
        return (x_0 if self.clip is None else x_0.clamp(-self.clip, self.clip)), epsilon

    def timesteps(self, num_steps: int) -> list[Time]:
        """The times to visit, from noise to picture (Lin et al. 2023, table 2 names the three spacings)."""
        total = len(self.alpha_bar)
        if not 1 <= num_steps <= total:
            raise ValueError(f"num_inference_steps must be 1 to {total}, the steps of training; got {num_steps}.")
        if self.timestep_spacing == "leading":
            return [i * (total // num_steps) + self.steps_offset for i in reversed(range(num_steps))]
        if self.timestep_spacing == "trailing":
            return [round(total - i * total / num_steps) - 1 for i in range(num_steps)]
        return [float(t) for t in np.linspace(0, total - 1, num_steps)[::-1]]

    def steps(self, num_steps: int) -> list[tuple[Time, Time]]:
        """The jumps (t, next t) of one whole run; the last one lands at -1, the picture."""
        times = [round(t) for t in self.timesteps(num_steps)]
        return list(zip(times, [*times[1:], -1], strict=True))


@dataclass(frozen=True, eq=False)
class DDPM(Scheduler):
    """Ancestral sampling (Ho et al. 2020, algorithm 2): a random step from the posterior q(x_s | x_t, x_0)."""

    variance_type: str = "fixed_small"  # the posterior's variance; or "fixed_large": beta itself
    stochastic: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check("variance_type", self.variance_type, ("fixed_small", "fixed_large"))

    def step(self, output: Latents, x_t: Latents, t: Time, s: Time, noise: Latents) -> tuple[Latents, Latents]:
        """(x_s, predicted x_0), for s earlier than t (Ho et al. 2020, eq. 6 and 7)."""
        x_0, _ = self.predict(output, x_t, t)
        bar_t = self.amplitudes(t)[0] ** 2
        bar_s = self.amplitudes(s)[0] ** 2 if s >= 0 else 1.0
        beta = 1 - bar_t / bar_s  # of the jump
        mean = math.sqrt(bar_s) * beta / (1 - bar_t) * x_0 + math.sqrt(1 - beta) * (1 - bar_s) / (1 - bar_t) * x_t
        variance = beta if self.variance_type == "fixed_large" else beta * (1 - bar_s) / (1 - bar_t)
        return (mean + math.sqrt(variance) * noise if t > 0 else mean), x_0


@dataclass(frozen=True, eq=False)
class DDIM(Scheduler):
    """Denoising diffusion implicit models (Song et al. 2021): fewer steps, and no fresh noise unless asked for."""

    eta: float = 0.0  # 0: deterministic; 1: as random as DDPM

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta goes from 0 (no fresh noise) to 1 (as much as in DDPM); got {self.eta}.")

    @property
    def stochastic(self) -> bool:
        """Whether a step needs fresh noise."""
        return self.eta > 0

    def steps(self, num_steps: int) -> list[tuple[Time, Time]]:
        """The jumps (t, next t), each T // num_steps long, as diffusers implements it."""
        jump = len(self.alpha_bar) // num_steps if num_steps else 0
        return [(round(t), round(t) - jump) for t in self.timesteps(num_steps)]

    def step(
        self, output: Latents, x_t: Latents, t: Time, s: Time, noise: Latents | None = None
    ) -> tuple[Latents, Latents]:
        """(x_s, predicted x_0), for s earlier than t (Song et al. 2021, eq. 12 and 16)."""
        x_0, epsilon = self.predict(output, x_t, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.amplitudes(t), self.amplitudes(s)
        spread = self.eta * sigma_s / sigma_t * math.sqrt(1 - (alpha_t / alpha_s) ** 2)  #       eq. (16)
        x_s = alpha_s * x_0 + math.sqrt(sigma_s**2 - spread**2) * epsilon  #                     eq. (12)
        return (x_s + spread * noise if spread > 0 else x_s), x_0


@dataclass(frozen=True, eq=False)
class Euler(Scheduler):
    """Euler's method on the probability-flow equation (Karras et al. 2022, algorithm 1 without its second-order part).

    Its variable is y = x / alpha = x_0 + ratio * epsilon, with ratio = sigma / alpha: noise is added, nothing shrinks.
    Then dy / d ratio = epsilon, and a step follows a straight line. Written in terms of x it is DDIM, term by term.
    """

    DEFAULTS: ClassVar[dict] = Scheduler.DEFAULTS | {"clip_sample": False, "timestep_spacing": "linspace"}
    FIXED: ClassVar[dict] = Scheduler.FIXED | {
        "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
        "interpolation_type": "linear", "timestep_type": "discrete", "final_sigmas_type": "zero",
    }  # fmt: skip

    def ratio(self, t: Time) -> float:
        """Noise relative to picture, sigma_t / alpha_t; linear between whole times, 0 at the end."""
        alpha_bar = self.alpha_bar.masked_fill(self.alpha_bar == 0, 2**-24)  # as in diffusers: y must stay finite
        ratios = torch.sqrt((1 - alpha_bar) / alpha_bar)
        return float(np.interp(t, np.arange(len(ratios)), ratios.numpy())) if t >= 0 else 0.0

    def amplitudes(self, t: Time) -> tuple[float, float]:
        """(alpha_t, sigma_t), also between whole times."""
        alpha = 1 / math.sqrt(1 + self.ratio(t) ** 2)
        return alpha, self.ratio(t) * alpha

    def add_noise(self, x_0: Latents, noise: Latents, t: Time) -> Latents:
        """y_t = x_0 + ratio noise."""
        return x_0 + self.ratio(t) * noise

    def start(self, noise: Latents, t: Time) -> Latents:
        """Noise as large as at time t; with leading steps a little larger, to give the network's input variance 1."""
        ratio = self.ratio(t)
        return noise * (math.sqrt(ratio**2 + 1) if self.timestep_spacing == "leading" else ratio)

    def model_input(self, x: Latents, t: Time) -> Latents:
        """Back to x_t = alpha_t y_t."""
        return self.amplitudes(t)[0] * x

    def steps(self, num_steps: int) -> list[tuple[Time, Time]]:
        """The jumps (t, next t); times need not be whole numbers."""
        times = self.timesteps(num_steps)
        return list(zip(times, [*times[1:], -1], strict=True))

    def step(
        self, output: Latents, x_t: Latents, t: Time, s: Time, noise: Latents | None = None
    ) -> tuple[Latents, Latents]:
        """(y_s, predicted x_0), for s earlier than t (Karras et al. 2022, algorithm 1, line 5)."""
        x_0, epsilon = self.predict(output, self.model_input(x_t, t), t)
        return x_t + (self.ratio(s) - self.ratio(t)) * epsilon, x_0
