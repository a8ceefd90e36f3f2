"""How far ``from_scratch`` is from diffusers, and how fast, on one model folder.

    python -m experiments.benchmarks.from_scratch

Differences are the largest absolute ones, in float32; times are medians of interleaved rounds in this one run.
"""

import statistics
import sys
import time

import diffusers
import numpy as np
import torch

from context_diffusion import from_scratch as fs
from context_diffusion.checkpoints import find_model
from context_diffusion.checks import check_count
from context_diffusion.commands import Parser, run_command

PROMPT = "a boat among hills, watercolor style"


@torch.no_grad()
def differences(model: fs.StableDiffusion, pipe: diffusers.StableDiffusionPipeline, steps: int) -> dict[str, float]:
    """The largest absolute difference of every component, of the final latents and of the picture in [0, 1]."""
    size = model.image_size
    ids = model.tokenizer(PROMPT)
    images = torch.rand(1, 3, size, size) * 2 - 1
    latents = torch.randn(1, model.unet.in_channels, model.unet.sample_size, model.unet.sample_size)
    context = model.text_encoder(ids)
    mean, std = model.autoencoder.posterior(images)
    posterior = pipe.vae.encode(images).latent_dist
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    noise = pipe.unet(latents, 500, context).sample
    final = []
    image = fs.text_to_image(model, PROMPT, num_inference_steps=steps, seed=7, callback=final.append)[0]
    settings = {"prompt": PROMPT, "num_inference_steps": steps}
    expected = pipe(**settings, generator=torch.Generator().manual_seed(7), output_type="latent").images
    picture = pipe(**settings, generator=torch.Generator().manual_seed(7), output_type="np").images[0]
    pairs = {
        "text encoder": (context, pipe.text_encoder(ids).last_hidden_state),
        "encoder, mean": (mean, posterior.mean),
        "encoder, std": (std, posterior.std),
        "decoder": (model.autoencoder.decode(latents), decoded),
        "U-Net": (model.unet(latents, 500, context), noise),
        f"latents after {steps} steps": (final[-1].x, expected),
        "picture (8 bits)": (torch.from_numpy(np.array(image)) / 255, torch.from_numpy((picture * 255).round() / 255)),
    }
    return {name: float((a - b).abs().max()) for name, (a, b) in pairs.items()}


def seconds(draw) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    draw()
    return time.perf_counter() - start


def main() -> None:
    """Print both tables."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-scenes", help="a name or a folder")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name, most in (("steps", 1000), ("rounds", 1000)):
        check_count(f"--{name}", getattr(options, name), most)
    torch.manual_seed(0)
    folder = find_model(options.model).location
    model = fs.StableDiffusion.from_pretrained(folder)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipe.to(torch.float32).set_progress_bar_config(disable=True)
    for name, difference in differences(model, pipe, options.steps).items():
        print(f"{name:26s} {difference:.1e}")
    ratios, times = [], []
    for _ in range(options.rounds + 1):
        mine = seconds(lambda: fs.text_to_image(model, PROMPT, num_inference_steps=options.steps))
        theirs = seconds(lambda: pipe(PROMPT, num_inference_steps=options.steps))
        ratios.append(mine / theirs)
        times.append(mine)
    print(f"one picture, {options.steps} steps: {statistics.median(times[1:]):.2f} s")
    print(f"of diffusers' time: {statistics.median(ratios[1:]):.2f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
