"""The title figures of lessons 03 and 04: `python -m benchmarks.figures_03_04`.

Writes figures/03_stable_diffusion_from_scratch.webp, figures/04_ddim.webp and figures/04_ddim.json (the second one's
numbers). Seeds are fixed and not chosen: the first picture of each is what it is.
"""

import json

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from context_diffusion import from_scratch as fs
from context_diffusion import plotting
from context_diffusion.paths import ROOT

PROMPT = "a boat by the sea, watercolor style"
FIGURES = ROOT / "figures"
STEPS = [5, 10, 20, 40]


def every_step(model: fs.StableDiffusion) -> Figure:
    """Two rows: the guess at the finished picture, and the latent, at every third of twenty steps."""
    states: list[fs.State] = []
    fs.text_to_image(model, PROMPT, num_inference_steps=20, guidance_scale=3.0, seed=5, callback=states.append)
    shown = [states[0], *states[1::3]]

    def pictures(latents: list[torch.Tensor]) -> list:
        return [fs.tensor_to_images(model.autoencoder.decode(x))[0] for x in latents]

    rows = {
        "guess at\nthe end": pictures([state.x_0 for state in shown]),
        "latent": pictures([state.x for state in shown]),
    }
    return plotting.compare(rows, [f"step {state.step + 1}" for state in shown], width=1.2)


# The mixture of two Gaussians of lesson 04, section 3, and its exact noise.
WEIGHT, MU, S = torch.tensor([[0.35, 0.65], [-1.4, 0.9], [0.15, 0.35]], dtype=torch.float64)
SCHEDULER = fs.DDIM(torch.cumprod(1 - fs.make_betas(), 0), timestep_spacing="trailing")


def best_noise(x: torch.Tensor, t: float) -> torch.Tensor:
    """E[noise | x_t = x] on the mixture."""
    alpha, sigma = SCHEDULER.amplitudes(t)
    variance = alpha**2 * S**2 + sigma**2
    log_parts = WEIGHT.log() - variance.log() / 2 - (x[:, None] - alpha * MU) ** 2 / (2 * variance)
    return sigma * (log_parts.softmax(dim=1) * (x[:, None] - alpha * MU) / variance).sum(dim=1)


def paths(start: torch.Tensor, num_steps: int, eta: float = 0.0) -> torch.Tensor:
    """All points on the way from noise to data."""
    sampler, history = fs.DDIM.like(SCHEDULER, eta=eta), [start]
    for t, s in sampler.steps(num_steps):
        x = history[-1]
        history.append(sampler.step(best_noise(x, t), x, t, s, torch.randn_like(x))[0])
    return torch.stack(history)


def mixture_errors(counts: list[int]) -> list[float]:
    """Mean distance of DDIM on the mixture to its own limit, all thousand steps."""
    start = torch.randn(2000, dtype=torch.float64)
    limit = paths(start, 1000)[-1]
    return [float((paths(start, n)[-1] - limit).abs().mean()) for n in counts]


def model_errors(model: fs.StableDiffusion, counts: list[int]) -> list[list[float]]:
    """The same on the trained model, root mean square over the latent, one list for each of four seeds."""

    def latents(num_steps: int) -> torch.Tensor:
        last: list[fs.State] = []
        settings = {"num_inference_steps": num_steps, "guidance_scale": 2.0, "seed": 20}
        fs.text_to_image(model, [PROMPT] * 4, **settings, callback=lambda state: last.append(state))
        return last[-1].x

    limit = latents(160)
    distances = [(latents(n) - limit).square().mean(dim=(1, 2, 3)).sqrt() for n in counts]
    return torch.stack(distances, dim=1).tolist()


def ddim_figure(numbers: dict) -> Figure:
    """Paths with and without dice on the left, errors against steps on the right."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    start = torch.linspace(-2, 2, 12, dtype=torch.float64)
    for axis, eta, title in zip(axes, (0.0, 1.0), ("DDIM", "DDPM"), strict=False):
        axis.plot(paths(start, 50, eta), color=plotting.ACCENT, linewidth=1)
        axis.set(title=title, xlabel="step")
    axes[2].loglog(STEPS, numbers["mixture"], "o-", color=plotting.ACCENT, label="known mixture")
    for i, line in enumerate(numbers["model"]):
        axes[2].loglog(STEPS, line, ".-", color=plotting.SECOND, label="trained model, 4 seeds" if i == 0 else None)
    guide = [numbers["mixture"][0] * 2.5 * STEPS[0] / n for n in STEPS]
    axes[2].loglog(STEPS, guide, "--", color=plotting.GREY, label="order one")
    axes[2].set(title="DDIM's distance to its limit", xlabel="steps", xticks=STEPS, xticklabels=STEPS)
    axes[2].minorticks_off()
    axes[2].legend(fontsize=8)
    plt.close(figure)
    return figure


def main() -> None:
    """Draw and write."""
    torch.manual_seed(0)
    plotting.use_style()
    model = fs.StableDiffusion.from_pretrained()
    plotting.save_figure(every_step(model), FIGURES / "03_stable_diffusion_from_scratch.webp")
    numbers = {"steps": STEPS, "mixture": mixture_errors(STEPS), "model": model_errors(model, STEPS)}
    numbers = {key: np.round(value, 5).tolist() for key, value in numbers.items()}
    plotting.save_figure(ddim_figure(numbers), FIGURES / "04_ddim.webp")
    (FIGURES / "04_ddim.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
