"""Inversion: an analytic model, diffusers' own inverse scheduler, round trips."""

from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler
from PIL import Image
from tiny import load_tiny_ip_adapter, tiny_scheduler, tiny_sd15, tiny_sdxl

from context_diffusion.alignment.inversion import ddim_invert, ddim_step, invert_latents, noise_levels, to_noise
from context_diffusion.alignment.trajectory import Trajectory
from context_diffusion.latents import alpha_at, conditions


def picture(seed: int = 0, size: int = 32) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@cache
def calm(make, kind: str = "epsilon"):
    """A pipeline whose noise prediction changes slowly with the latent, as a trained one's does."""
    pipe = make(prediction_type=kind, fresh=True)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.05)
    return pipe


def mixture_noise(z: torch.Tensor, timestep: float, alpha: float) -> torch.Tensor:
    """The exact noise prediction where clean data are +-1 with a spread of 0.5, each coordinate alone."""
    var = alpha * 0.5**2 + 1 - alpha
    score = (alpha**0.5 * torch.tanh(alpha**0.5 * z / var) - z) / var
    return -((1 - alpha) ** 0.5) * score


def sample(noise: torch.Tensor, levels) -> torch.Tensor:
    z = noise
    for timestep, alpha, target in zip(levels.timesteps, levels.alphas, levels.targets, strict=True):
        z = ddim_step(z, mixture_noise(z, timestep, alpha), alpha, target)
    return z


def analytic_error(steps: int, iterations: int, **scheduler) -> float:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (2000, 1, 1, 1), generator=generator).double() * 2 - 1
    clean = signs + 0.5 * torch.randn(signs.shape, generator=generator, dtype=torch.float64)
    levels = noise_levels(tiny_scheduler(**scheduler), steps)
    found = invert_latents(mixture_noise, clean, levels, iterations)
    return (sample(found[0], levels) - clean).abs().mean().item()


def test_plain_inversion_of_the_analytic_model_is_of_first_order():
    errors = [analytic_error(steps, 0) for steps in (20, 40, 80)]
    assert errors[0] < 0.05
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 1.7 < coarse / fine < 2.5  # halving the step halves the error


def test_fixed_point_iterations_converge_to_the_exact_inverse():
    errors = [analytic_error(50, iterations) for iterations in (0, 1, 2, 8)]
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 5
    assert errors[3] < 1e-5


@pytest.mark.parametrize("changes", [{"steps_offset": 0}, {"timestep_spacing": "trailing"}, {"set_alpha_to_one": True}])
def test_every_spacing_is_inverted_exactly(changes):
    assert analytic_error(50, 20, **changes) < 1e-5


def test_spacing_that_does_not_divide_the_schedule_is_inverted_exactly():
    assert analytic_error(30, 30, timestep_spacing="trailing") < 1e-5


def test_all_predictions_mean_the_same_noise():
    alpha, (clean, noise) = 0.3, torch.randn(2, 1, 1, 5, 5)
    z = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
    for kind, output in (("epsilon", noise), ("v_prediction", velocity), ("sample", clean)):
        torch.testing.assert_close(to_noise(output, z, alpha, kind), noise)
    with pytest.raises(ValueError, match="prediction_type"):
        to_noise(noise, z, alpha, "flow")


@pytest.mark.parametrize("make", [tiny_sd15, tiny_sdxl])
def test_equals_diffusers_inverse_scheduler(make):
    pipe = calm(make)
    trajectory = ddim_invert(pipe, picture(), "a cat, neon style", num_inference_steps=5, guidance_scale=2.0)
    scheduler = DDIMInverseScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(5)
    texts, added = conditions(trajectory.embeddings, ("uncond", "cond"), like=torch.empty(()))
    z = trajectory.clean
    for k, timestep in enumerate(scheduler.timesteps):
        with torch.no_grad():
            output = pipe.unet(torch.cat([z, z]), timestep, texts, added_cond_kwargs=added).sample
        without, with_text = output.chunk(2)
        z = scheduler.step(without + 2 * (with_text - without), timestep, z).prev_sample
        torch.testing.assert_close(trajectory.latents[-2 - k], z, atol=1e-5, rtol=1e-5)


def test_clean_latent_is_the_scaled_mean_and_repeats():
    pipe = tiny_sd15()
    pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        mean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    torch.testing.assert_close(ddim_invert(pipe, picture(), num_inference_steps=1).clean, mean)


@pytest.mark.parametrize(("make", "kind"), [(tiny_sd15, "epsilon"), (tiny_sdxl, "v_prediction")])
def test_step_k_of_sampling_meets_latent_k(make, kind):
    pipe = calm(make, kind)
    trajectory = ddim_invert(pipe, picture(), "a cat", num_inference_steps=4, fixed_point_iterations=16)
    met = [trajectory.noise]
    pipe(
        "a cat",
        latents=trajectory.noise,
        guidance_scale=1.0,
        num_inference_steps=4,
        output_type="latent",
        callback_on_step_end=lambda _pipe, _step, _time, tensors: met.append(tensors["latents"]) or {},
    )
    assert [t.item() for t in pipe.scheduler.timesteps] == trajectory.timesteps.tolist()
    assert trajectory.latents.diff(dim=0).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3  # neighbours can be told apart
    torch.testing.assert_close(torch.stack(met), trajectory.latents, atol=1e-4, rtol=0)


def test_fixed_point_improves_the_round_trip_of_a_pipeline():
    pipe, errors = calm(tiny_sdxl), []
    for iterations in (0, 3):
        t = ddim_invert(pipe, picture(), "a cat", num_inference_steps=5, fixed_point_iterations=iterations)
        again = pipe("a cat", latents=t.noise, guidance_scale=1.0, num_inference_steps=5, output_type="latent").images
        errors.append((again - t.clean).abs().mean().item())
    assert errors[1] < errors[0] / 10


def test_references_in_one_batch_are_inverted_as_alone():
    pipe, prompts = calm(tiny_sdxl), ["a cat", "a boat, neon style"]
    both = ddim_invert(pipe, [picture(0), picture(1)], prompts, num_inference_steps=3, guidance_scale=2.0)
    alone = ddim_invert(pipe, picture(1), prompts[1], num_inference_steps=3, guidance_scale=2.0)
    assert len(both) == 2
    torch.testing.assert_close(both[1].latents, alone.latents, atol=1e-5, rtol=1e-5)
    joined = Trajectory.join([both[0], alone])
    torch.testing.assert_close(joined.latents, both.latents, atol=1e-5, rtol=1e-5)
    assert joined.prompts == both.prompts


def test_latents_in_are_latents_found():
    pipe = tiny_sd15()
    first = ddim_invert(pipe, picture(size=48), "a cat", num_inference_steps=2, height=48, width=32)
    assert first.clean.shape[-2:] == (24, 16)
    again = ddim_invert(pipe, latents=first.clean[0], prompt="a cat", num_inference_steps=2)
    torch.testing.assert_close(again.latents, first.latents)


def test_half_precision_vae_is_used_in_float32_and_given_back():
    pipe = tiny_sdxl(fresh=True)
    expected = ddim_invert(pipe, picture(), "a cat", num_inference_steps=2)
    pipe.to(torch.float16)
    before = {name: weight.clone() for name, weight in pipe.vae.state_dict().items()}
    trajectory = ddim_invert(pipe, picture(), "a cat", num_inference_steps=2)
    assert all(torch.equal(weight, before[name]) for name, weight in pipe.vae.state_dict().items())
    assert pipe.vae.dtype == torch.float16
    assert trajectory.latents.dtype == torch.float32
    torch.testing.assert_close(trajectory.latents, expected.latents, atol=3e-2, rtol=0)


def test_an_ip_adapter_has_no_part_in_inversion_and_is_left_as_it_was():
    expected = ddim_invert(tiny_sdxl(), picture(), "a cat", num_inference_steps=2)
    pipe = tiny_sdxl(fresh=True)
    load_tiny_ip_adapter(pipe)
    pipe.set_ip_adapter_scale(0.7)
    torch.testing.assert_close(ddim_invert(pipe, picture(), "a cat", num_inference_steps=2).latents, expected.latents)
    adapters = [module for module in pipe.unet.modules() if hasattr(module, "to_k_ip")]
    assert adapters and all(adapter.scale == [0.7] for adapter in adapters)
    assert "process_encoder_hidden_states" not in vars(pipe.unet)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"])
def test_trajectory_lies_on_the_steps_of_the_pipelines_own_scheduler(name):
    pipe = tiny_sd15(fresh=True)
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    trajectory = ddim_invert(pipe, picture(), "a cat", num_inference_steps=4)
    pipe("a boat", num_inference_steps=4, output_type="latent")
    for timestep in pipe.scheduler.timesteps:
        assert trajectory.at(float(timestep)).shape == trajectory.clean.shape
    trajectory.check(pipe)


def test_interpolation_follows_a_ddim_step_of_another_length():
    clean, noise = torch.randn(2, 1, 4, 4, 4)
    scheduler = tiny_scheduler()
    levels = noise_levels(scheduler, 4)
    alphas = [*levels.alphas, levels.targets[-1]]
    latents = torch.stack([a**0.5 * clean + (1 - a) ** 0.5 * noise for a in alphas])
    t = Trajectory(latents, torch.tensor(levels.timesteps), torch.tensor(alphas, dtype=torch.float64), {}, ("",))
    for timestep in (990, 700, 333.5, 2):
        alpha = alpha_at(scheduler, timestep)
        expected = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
        torch.testing.assert_close(t.at(timestep, alpha).float(), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="700 is not in the reference's trajectory, which was made with 4 steps"):
        t.at(700)
