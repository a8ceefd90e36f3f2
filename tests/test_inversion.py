"""Inversion: an analytic model, diffusers' own inverse scheduler, round trips."""

from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler
from PIL import Image
from tiny import load_tiny_ip_adapter, tiny_scheduler, tiny_sd15, tiny_sdxl

from context_diffusion.alignment.inversion import (
    Levels,
    ddim_invert,
    ddim_step,
    invert_latents,
    noise_levels,
    to_noise,
    velocity_step,
)
from context_diffusion.alignment.trajectory import Trajectory
from context_diffusion.latents import alpha_at, conditions

ZERO_SNR = {  # from pure noise, alpha_bar 0, to the picture, alpha_bar 1
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
}


def picture(seed: int = 0, size: int = 32) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@cache
def calm(make, kind: str = "epsilon", zero_snr: bool = False):
    """A pipeline whose noise prediction changes slowly with the latent, as a trained one's does."""
    pipe = make(prediction_type=kind, fresh=True)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.05)
    if zero_snr:
        pipe.scheduler = tiny_scheduler(kind, **ZERO_SNR)
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


def mixture_velocity(z: torch.Tensor, timestep: float, alpha: float) -> torch.Tensor:
    """The exact velocity for the same data: with ``z = sqrt(a) x + sqrt(1 - a) e`` known, e gives x, but for a = 0."""
    if alpha == 0:
        return torch.zeros_like(z)  # minus the mean of the data
    noise = mixture_noise(z, timestep, alpha)
    return (noise - (1 - alpha) ** 0.5 * z) / alpha**0.5


def test_a_velocity_climbs_to_pure_noise_and_comes_back_exactly():
    levels = noise_levels(tiny_scheduler("v_prediction", **ZERO_SNR), 50)
    assert (levels.alphas[0], levels.targets[-1]) == (0.0, 1.0)
    clean = torch.randn(2000, 1, 1, 1, dtype=torch.float64)

    def returned(noise: torch.Tensor) -> torch.Tensor:
        z = noise
        for timestep, alpha, target in zip(levels.timesteps, levels.alphas, levels.targets, strict=True):
            z = velocity_step(z, mixture_velocity(z, timestep, alpha), alpha, target)
        return z

    def inverted(clean: torch.Tensor, iterations: int) -> torch.Tensor:
        return invert_latents(mixture_velocity, clean, levels, iterations, velocity=True)[0]

    errors = [(returned(inverted(clean, k)) - clean).abs().mean().item() for k in (0, 1, 3, 20)]
    assert 1e-3 < errors[0] < 0.1 and errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3 and errors[3] < 1e-6
    noise = torch.randn(2000, 1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(inverted(returned(noise), 20), noise, atol=1e-5, rtol=0)


def test_where_both_work_velocity_and_noise_find_the_same_latents():
    levels = noise_levels(tiny_scheduler(), 50)
    clean = torch.randn(200, 1, 1, 1, dtype=torch.float64)
    by_noise = invert_latents(mixture_noise, clean, levels, 60)
    by_velocity = invert_latents(mixture_velocity, clean, levels, 60, velocity=True)
    torch.testing.assert_close(by_velocity, by_noise, atol=1e-8, rtol=0)


def test_a_velocity_step_is_that_of_diffusers_at_both_ends_and_between():
    scheduler = tiny_scheduler("v_prediction", **ZERO_SNR)
    scheduler.set_timesteps(5)
    levels = noise_levels(scheduler, 5)
    for timestep, alpha, target in zip(scheduler.timesteps, levels.alphas, levels.targets, strict=True):
        z, velocity = torch.randn(2, 1, 4, 8, 8)
        expected = scheduler.step(velocity, timestep, z).prev_sample
        torch.testing.assert_close(velocity_step(z, velocity, alpha, target), expected, atol=1e-6, rtol=1e-6)
    clean, noise = torch.randn(2, 1, 4, 8, 8)
    assert torch.equal(velocity_step(noise, -clean, 0.0, 1.0), clean)  # v = -x in pure noise, and e in the picture
    assert torch.equal(velocity_step(clean, noise, 1.0, 0.0), noise)
    assert torch.equal(ddim_step(clean, noise, 1.0, 0.0), noise)


def test_steps_along_the_same_prediction_are_the_same_step():
    alpha, (clean, noise) = 0.3, torch.randn(2, 1, 1, 5, 5)
    z = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
    for target in (0.0, 0.1, 0.7, 1.0):
        expected = target**0.5 * clean + (1 - target) ** 0.5 * noise
        torch.testing.assert_close(velocity_step(z, velocity, alpha, target), expected)
        torch.testing.assert_close(ddim_step(z, noise, alpha, target), expected)


def test_a_noise_prediction_does_not_climb_to_pure_noise():
    z, levels = torch.randn(1, 1, 4, 4), noise_levels(tiny_scheduler(**ZERO_SNR), 4)
    with pytest.raises(ValueError, match="says nothing about the picture; predict the velocity"):
        ddim_step(z, z, 0.0, 0.5)
    for refused in (
        lambda: invert_latents(mixture_noise, z, levels),
        lambda: ddim_invert(calm(tiny_sd15, "epsilon", True), picture(), num_inference_steps=4),
        lambda: ddim_invert(calm(tiny_sd15, "sample", True), picture(), num_inference_steps=4),
    ):
        with pytest.raises(ValueError, match=r"At time step 999 alpha_bar is 0 .*'v_prediction'"):
            refused()


def test_one_step_from_pure_noise_cannot_be_climbed():
    with pytest.raises(ValueError, match="take 2 steps or more"):
        ddim_invert(calm(tiny_sd15, "v_prediction", True), picture(), num_inference_steps=1)
    with pytest.raises(ValueError, match="take 2 steps or more"):
        invert_latents(mixture_velocity, torch.randn(1, 1, 4, 4), Levels((999.0,), (0.0,), (1.0,)), velocity=True)


def test_alpha_bar_is_exact_at_whole_steps_and_monotonic_between():
    scheduler = tiny_scheduler("v_prediction", **ZERO_SNR)
    scheduler.alphas_cumprod[0] = 1.0
    assert (alpha_at(scheduler, 999), alpha_at(scheduler, 0)) == (0.0, 1.0)
    between = [alpha_at(scheduler, step) for step in (0, 0.2, 0.9, 1, 997.5, 998, 998.3, 998.9, 999)]
    assert between == sorted(between, reverse=True) and len(set(between)) == len(between)


def test_all_predictions_mean_the_same_noise():
    alpha, (clean, noise) = 0.3, torch.randn(2, 1, 1, 5, 5)
    z = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
    for kind, output in (("epsilon", noise), ("v_prediction", velocity), ("sample", clean)):
        torch.testing.assert_close(to_noise(output, z, alpha, kind), noise)
    assert torch.equal(to_noise(velocity, noise, 0.0, "v_prediction"), noise)
    assert torch.equal(to_noise(noise, clean, 1.0, "v_prediction"), noise)
    with pytest.raises(ValueError, match="prediction_type"):
        to_noise(noise, z, alpha, "flow")


@pytest.mark.parametrize(
    ("make", "kind", "zero_snr"),
    [
        (tiny_sd15, "epsilon", False),
        (tiny_sdxl, "epsilon", False),
        (tiny_sdxl, "v_prediction", False),
        (tiny_sd15, "v_prediction", True),
    ],
)
def test_equals_diffusers_inverse_scheduler(make, kind, zero_snr):
    pipe = calm(make, kind, zero_snr)
    trajectory = ddim_invert(pipe, picture(), "a cat, neon style", num_inference_steps=5, guidance_scale=2.0)
    scheduler = DDIMInverseScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == trajectory.timesteps.flip(0).tolist()
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


@pytest.mark.parametrize(
    ("make", "kind", "zero_snr"),
    [(tiny_sd15, "epsilon", False), (tiny_sdxl, "v_prediction", False), (tiny_sd15, "v_prediction", True)],
)
def test_step_k_of_sampling_meets_latent_k(make, kind, zero_snr):
    pipe = calm(make, kind, zero_snr)
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


@pytest.mark.parametrize("changes", [{}, ZERO_SNR], ids=["Stable Diffusion", "zero SNR"])
def test_interpolation_follows_a_ddim_step_of_another_length(changes):
    clean, noise = torch.randn(2, 1, 4, 4, 4)
    scheduler = tiny_scheduler(**changes)
    levels = noise_levels(scheduler, 4)
    alphas = [*levels.alphas, levels.targets[-1]]
    latents = torch.stack([a**0.5 * clean + (1 - a) ** 0.5 * noise for a in alphas])
    t = Trajectory(latents, torch.tensor(levels.timesteps), torch.tensor(alphas, dtype=torch.float64), {}, ("",))
    for timestep in (990, 700, 333.5, 2):
        alpha = alpha_at(scheduler, timestep)
        expected = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
        torch.testing.assert_close(t.at(timestep, alpha).float(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(t.at(levels.timesteps[0], alphas[0]), latents[0])
    with pytest.raises(ValueError, match="700 is not in the reference's trajectory, which was made with 4 steps"):
        t.at(700)
