import math
from functools import partial

import diffusers
import pytest
import torch

from context_diffusion.from_scratch import DDIM, DDPM, Euler, make_betas, rescale_betas_zero_snr

KINDS = {
    "ddpm": (DDPM, diffusers.DDPMScheduler, {}),
    "ddpm large": (DDPM, diffusers.DDPMScheduler, {"variance_type": "fixed_large"}),
    "ddim": (DDIM, diffusers.DDIMScheduler, {"set_alpha_to_one": False}),
    "ddim eta": (DDIM, diffusers.DDIMScheduler, {}),
    "euler": (Euler, diffusers.EulerDiscreteScheduler, {}),
}
SCHEDULES = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (1e-4, 0.02)}


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Some smooth function of x and t, in place of a U-Net."""
    return torch.tanh(0.7 * x + float(t) / 1000)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_whole_trajectory(kind, spacing, prediction, schedule):
    mine, theirs, extra = KINDS[kind]
    start, end = SCHEDULES[schedule]
    config = {"beta_schedule": schedule, "beta_start": start, "beta_end": end, **extra}
    config |= {"timestep_spacing": spacing, "prediction_type": prediction, "steps_offset": int(spacing == "leading")}
    if mine is not Euler:
        config["clip_sample"] = schedule == "squaredcos_cap_v2"
    reference = theirs(**config)
    scheduler = mine.from_config({**reference.config})
    eta = {"eta": 0.7} if kind == "ddim eta" else {}
    scheduler = mine.like(scheduler, **eta, **({"variance_type": "fixed_large"} if kind == "ddpm large" else {}))

    reference.set_timesteps(7)
    steps = scheduler.steps(7)
    assert [t for t, _ in steps] == pytest.approx(reference.timesteps.tolist())
    noise = torch.randn(2, 3, 4)
    x, y = scheduler.start(noise, steps[0][0]), noise * reference.init_noise_sigma
    first, second = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    # Euler on a cosine schedule begins at 20 000 times as much noise as picture: three digits are left in float32
    tolerance = 1e-2 if (kind, schedule) == ("euler", "squaredcos_cap_v2") and spacing != "leading" else 1e-4
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    random = {} if kind == "euler" else {"generator": second}
    for (t, s), time in zip(steps, reference.timesteps, strict=True):
        close(scheduler.model_input(x, t), reference.scale_model_input(y, time))
        fresh = torch.randn(x.shape, generator=first) if scheduler.stochastic else None
        x, x_0 = scheduler.step(network(scheduler.model_input(x, t), t), x, t, s, fresh)
        y, y_0 = reference.step(network(reference.scale_model_input(y, time), time), time, y, **eta, **random).values()
        scale = max(1, float(y_0.abs().max()))  # at T a cosine schedule divides by nearly nothing
        close(x / scale, y / scale)
        close(x_0 / scale, y_0 / scale)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_trajectory_from_pure_noise(kind, prediction):
    mine, theirs, extra = KINDS[kind]
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, **extra}
    config |= {"timestep_spacing": "trailing", "prediction_type": prediction, "rescale_betas_zero_snr": True}
    reference = theirs(**config if mine is Euler else config | {"clip_sample": False})
    eta = {"eta": 0.7} if kind == "ddim eta" else {}
    scheduler = mine.from_config({**reference.config})
    scheduler = mine.like(scheduler, **eta, **({"variance_type": "fixed_large"} if kind == "ddpm large" else {}))
    reference.set_timesteps(7)
    x = scheduler.start(torch.randn(2, 3, 4), 999)
    y, first, second = x, torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    random = {} if kind == "euler" else {"generator": second}
    tolerance = 5e-3 if kind == "euler" else 1e-4  # Euler begins at 4096 times as much noise as picture
    for (t, s), time in zip(scheduler.steps(7), reference.timesteps, strict=True):
        fresh = torch.randn(x.shape, generator=first) if scheduler.stochastic else None
        x, x_0 = scheduler.step(network(scheduler.model_input(x, t), t), x, t, s, fresh)
        y, y_0 = reference.step(network(reference.scale_model_input(y, time), time), time, y, **eta, **random).values()
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(x_0, y_0, rtol=tolerance, atol=tolerance)


def test_a_rescaled_schedule_ends_in_noise_and_begins_as_before():
    betas = make_betas()
    before, after = torch.cumprod(1 - betas, 0).sqrt(), torch.cumprod(1 - rescale_betas_zero_snr(betas), 0).sqrt()
    assert after[-1] == 0
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after.diff() / after.diff()[0], before.diff() / before.diff()[0])  # one scale for all
    config = diffusers.DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True).config
    assert DDIM.from_config(config).amplitudes(999) == (0.0, 1.0)


def test_a_noise_says_nothing_where_no_picture_is_left():
    alpha_bar = torch.cumprod(1 - rescale_betas_zero_snr(make_betas()), 0)
    x, output = torch.randn(2, 1, 3)
    for kind in (DDIM, DDPM):
        with pytest.raises(ValueError, match="nothing of the picture is left: predict v_prediction or sample"):
            kind(alpha_bar).predict(output, x, 999)
        x_0, noise = kind(alpha_bar, prediction_type="v_prediction").predict(output, x, 999)
        torch.testing.assert_close(torch.stack([x_0, noise]), torch.stack([-output, x]))


@pytest.mark.parametrize("kind", KINDS)
def test_forward_process(kind):
    mine, theirs, extra = KINDS[kind]
    reference = theirs(**extra, steps_offset=1)
    reference.set_timesteps(10)
    x_0, noise = torch.randn(2, 2, 3)
    for time in reference.timesteps[:3]:
        x_t = mine.from_config({**reference.config}).add_noise(x_0, noise, float(time))
        torch.testing.assert_close(x_t, reference.add_noise(x_0, noise, time[None]), rtol=1e-4, atol=1e-4)


# Closed forms, in float64.


def scheduler(kind=DDIM, schedule="scaled_linear", **changes):
    return kind(torch.cumprod(1 - make_betas(schedule), 0), **changes)


def test_cosine_schedule_is_a_cosine():
    alpha_bar = torch.cumprod(1 - make_betas("cosine"), 0)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(alpha_bar[:-1], f[:-1], rtol=1e-10, atol=1e-12)  # the last beta is capped at 0.999
    assert make_betas("cosine").max() == 0.999


def test_linear_schedules_are_linear():
    assert make_betas("linear", 11, 0.1, 0.2).tolist() == pytest.approx([0.1 + 0.01 * i for i in range(11)])
    assert make_betas("scaled_linear", 11, 0.01, 0.04).sqrt().tolist() == pytest.approx(
        [0.1 + 0.01 * i for i in range(11)]
    )


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_one_jump_is_many_small_steps(schedule):
    """q(x_t | x_0) of eq. (4) is what t steps of eq. (2) make of mean and variance."""
    mean, variance = 1.0, 0.0
    for beta in make_betas(schedule).tolist():
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    alpha, sigma = scheduler(schedule=schedule).amplitudes(999)
    assert (alpha, sigma**2) == pytest.approx((mean, variance), rel=1e-9)


def test_prediction_types_say_the_same():
    x_0, noise = torch.randn(2, 5, dtype=torch.float64)
    for t in (0, 400, 999):
        base = scheduler()
        alpha, sigma = base.amplitudes(t)
        x_t = base.add_noise(x_0, noise, t)
        outputs = {"epsilon": noise, "sample": x_0, "v_prediction": alpha * noise - sigma * x_0}
        for prediction_type, output in outputs.items():
            found = scheduler(prediction_type=prediction_type).predict(output, x_t, t)
            torch.testing.assert_close(torch.stack(found), torch.stack([x_0, noise]), rtol=1e-9, atol=1e-9)


def gaussian_noise(base: DDIM, x_t: torch.Tensor, t: float, mean: float, std: float) -> torch.Tensor:
    """The exact E[noise | x_t] where the data are N(mean, std^2)."""
    alpha, sigma = base.amplitudes(t)
    return sigma * (x_t - alpha * mean) / ((alpha * std) ** 2 + sigma**2)


def ddim_error(num_steps: int, mean=0.7, std=0.4) -> float:
    """DDIM's distance to the exact solution on Gaussian data: the number of standard deviations never changes."""
    base = scheduler(timestep_spacing="trailing")
    x = start = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for t, s in base.steps(num_steps):
        x, _ = base.step(gaussian_noise(base, x, t, mean, std), x, t, s)
    alpha, sigma = base.amplitudes(999)
    exact = mean + std * (start - alpha * mean) / math.sqrt((alpha * std) ** 2 + sigma**2)
    return float((x - exact).abs().max())


def test_ddim_converges_to_the_closed_form_with_order_one():
    errors = [ddim_error(n) for n in (50, 100, 200)]
    assert errors[-1] < 0.03
    ratios = [a / b for a, b in zip(errors, errors[1:], strict=False)]
    assert ratios == pytest.approx([2, 2], abs=0.3)


def test_ddim_with_eta_one_is_ddpm():
    x_t, output, noise = torch.randn(3, 6, dtype=torch.float64)
    for t, s in [(999, 949), (500, 3), (20, 0)]:
        ddpm, _ = scheduler(DDPM).step(output, x_t, t, s, noise)
        ddim, _ = scheduler(DDIM, eta=1.0).step(output, x_t, t, s, noise)
        torch.testing.assert_close(ddim, ddpm, rtol=1e-9, atol=1e-9)


def test_ddpm_keeps_the_marginals():
    """Stepping x_t ~ q(x_t | x_0) with the right x_0 gives x_s ~ q(x_s | x_0): mean and variance, exactly."""
    t, s = 700, 640
    ddpm = scheduler(DDPM, prediction_type="sample")
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ddpm.amplitudes(t), ddpm.amplitudes(s)
    x_0 = torch.ones(1, dtype=torch.float64)
    zero = torch.zeros_like(x_0)
    mean, _ = ddpm.step(x_0, alpha_t * x_0, t, s, zero)
    of_noise, _ = ddpm.step(zero, zero, t, s, x_0)
    of_x_t, _ = ddpm.step(zero, x_0, t, s, zero)
    assert float(mean) == pytest.approx(alpha_s, rel=1e-9)
    assert float(of_x_t**2 * sigma_t**2 + of_noise**2) == pytest.approx(sigma_s**2, rel=1e-9)


def test_euler_is_ddim_in_other_coordinates():
    ddim, euler = scheduler(DDIM), scheduler(Euler)
    x = torch.randn(8, dtype=torch.float64)
    y = x / ddim.amplitudes(981)[0]
    for t, s in [(981, 700), (700, 20), (20, -1)]:
        x, _ = ddim.step(network(x, t), x, t, s)
        y, _ = euler.step(network(euler.model_input(y, t), t), y, t, s)
        torch.testing.assert_close(euler.amplitudes(s)[0] * y, x, rtol=1e-9, atol=1e-9)


def test_steps_end_at_the_picture():
    for kind in (DDPM, DDIM, Euler):
        for num_steps in (1, 3, 50, 1000):
            steps = scheduler(kind).steps(num_steps)
            assert len(steps) == num_steps and steps[-1][1] < 0
            assert all(0 <= t <= 999 and s < t for t, s in steps)


@pytest.mark.parametrize("kind", [DDPM, DDIM, Euler])
def test_bad_input(kind):
    for num_steps in (0, -1, 1001):
        with pytest.raises(ValueError, match=f"must be 1 to 1000.*got {num_steps}"):
            scheduler(kind).steps(num_steps)
    with pytest.raises(ValueError, match="'linear', 'scaled_linear' or 'cosine'; got 'quadratic'"):
        make_betas("quadratic")
    with pytest.raises(ValueError, match="without thresholding=True"):
        kind.from_config({"thresholding": True})
    with pytest.raises(ValueError, match="'epsilon', 'v_prediction', 'sample'; got 'flow'"):
        scheduler(kind, prediction_type="flow")
    with pytest.raises(ValueError, match="'leading', 'trailing', 'linspace'; got 'even'"):
        scheduler(kind, timestep_spacing="even")


def test_bad_randomness():
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="eta goes from 0"):
            scheduler(DDIM, eta=eta)
    with pytest.raises(ValueError, match="'fixed_small', 'fixed_large'; got 'learned_range'"):
        scheduler(DDPM, variance_type="learned_range")
