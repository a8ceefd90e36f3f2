"""``style_aligned`` with ControlNet on tiny pipelines of both layouts: whom the residuals reach, and whom never."""

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from aligning import PROMPTS, calm, draw, noise, recorded
from tiny import tiny_control_img2img, tiny_controlnet, tiny_sd15, tiny_sdxl

from context_diffusion.alignment.aligner import ReferenceCache, style_aligned
from context_diffusion.alignment.networks import UNET
from context_diffusion.alignment.reference_pass import without_control, zero_first_image
from context_diffusion.pipelines import as_pipeline

SIDE = 16  # pixels of the hints: latents are 8 x 8
OFF = {"adain_queries": False, "adain_keys": False, "share_attention": False}

layouts = pytest.mark.parametrize("xl", [False, True], ids=["SD", "SDXL"])


@cache
def pipeline(xl: bool, nets: int = 1):
    """The calm tiny pipeline with one or two ControlNets, whose zero convolutions are filled."""
    controlnets = [tiny_controlnet(xl, fresh=True) for _ in range(nets)]
    for number, controlnet in enumerate(controlnets):
        generator = torch.Generator().manual_seed(number)
        for weight in controlnet.controlnet_cond_embedding.parameters():
            torch.nn.init.normal_(weight, std=0.3, generator=generator)
    base = calm(tiny_sdxl if xl else tiny_sd15)
    return as_pipeline(base, controlnet=controlnets[0] if nets == 1 else controlnets)


def hints(seed: int = 0, count: int = len(PROMPTS)) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def steered(pipe, seed: int = 0, prompts=PROMPTS, scale: float | list = 0.8, **options) -> torch.Tensor:
    """Draw with one hint for each prompt and ControlNet."""
    nets = getattr(pipe.controlnet, "nets", None)
    image = hints(seed, len(prompts)) if nets is None else [hints(seed + i, len(prompts)) for i in range(len(nets))]
    if hasattr(pipe, "text_encoder_2"):
        options |= {"original_size": (32, 32), "target_size": (32, 32)}
    return draw(pipe, prompts, **{"image": image, "controlnet_conditioning_scale": scale} | options)


@contextmanager
def published(controlnet, branches: int):
    """The field's way: run the ControlNet on the targets alone, and put zero tensors where the reference is."""
    forward = controlnet.forward

    def targets(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([half[1:] for half in rows.chunk(branches)])

    def with_zeros(residual: torch.Tensor) -> torch.Tensor:
        halves = residual.chunk(branches)
        return torch.cat([part for half in halves for part in (torch.zeros_like(residual[:1]), half)])

    def run(sample, timestep, encoder_hidden_states, controlnet_cond, added_cond_kwargs=None, **options):
        several = isinstance(controlnet_cond, list)
        down, middle = forward(
            targets(sample), timestep, targets(encoder_hidden_states),
            [targets(hint) for hint in controlnet_cond] if several else targets(controlnet_cond),
            added_cond_kwargs=added_cond_kwargs and {name: targets(rows) for name, rows in added_cond_kwargs.items()},
            **options,
        )  # fmt: skip
        return [with_zeros(residual) for residual in down], with_zeros(middle)

    controlnet.forward = run
    try:
        yield
    finally:
        del controlnet.forward


@layouts
@pytest.mark.parametrize(("nets", "guidance_scale"), [(1, 5.0), (2, 5.0), (2, 1.0)])
def test_one_call_is_the_published_concatenation_with_zeros(xl, nets, guidance_scale):
    pipe = pipeline(xl, nets)
    options = {"scale": 0.8 if nets == 1 else [0.8, 0.5], "guidance_scale": guidance_scale}
    assert (steered(pipe, **options) - steered(pipe, seed=9, **options)).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    with style_aligned(pipe, score_shift=0.5):
        got = steered(pipe, **options)
    with style_aligned(pipe, score_shift=0.5, control_reference=True):
        with published(pipe.controlnet, 2 if guidance_scale > 1 else 1):
            expected = steered(pipe, **options)
        everybody = steered(pipe, **options)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert ((got - everybody).abs().amax(dim=(1, 2, 3)) > 1e-3).all()  # it matters, to those who look at it too


@layouts
@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_the_reference_is_what_it_is_without_any_controlnet(xl, guidance_scale):
    pipe = pipeline(xl)
    bare = as_pipeline(pipe)
    sizes = {"original_size": (32, 32), "target_size": (32, 32)} if xl else {}
    with style_aligned(bare):
        plain = draw(bare, guidance_scale=guidance_scale, **sizes)
    with style_aligned(pipe):
        for options in ({}, {"seed": 9, "scale": 2.0}, {"guess_mode": True}):
            got = steered(pipe, guidance_scale=guidance_scale, **options)
            assert torch.equal(got[0], plain[0])
            assert ((got - plain)[1:].abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@layouts
@pytest.mark.parametrize("settings", [{"score_shift": 0.5}, {"share_group_norm": True, **OFF}])
def test_row_zero_is_a_reference_from_outside(xl, settings):
    pipe = pipeline(xl)
    trajectory = recorded(tiny_sdxl if xl else tiny_sd15)  # drawn with no ControlNet
    with style_aligned(pipe, **settings):
        expected = steered(pipe)[1:]
    with style_aligned(pipe, references=trajectory, **settings):
        got = steered(pipe, prompts=PROMPTS[1:], image=hints()[1:], latents=noise()[1:])  # as there
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@layouts
def test_no_residual_reaches_a_reference_from_outside(xl):
    pipe = pipeline(xl, nets=2)
    trajectory, kept = recorded(tiny_sdxl if xl else tiny_sd15), {}
    for seed, scale in ((0, [0.8, 0.5]), (5, [0.8, 0.5]), (0, [0.0, 2.0])):
        cache = ReferenceCache()
        with style_aligned(pipe, references=trajectory, cache=cache):
            out = steered(pipe, seed, scale=scale)
        layers = (layer for step in cache._kept.values() for layer in step.values())
        kept[seed, *scale] = [out, *(tensor for layer in layers for tensor in layer)]
    (first, *same), *others = kept.values()
    assert same
    for out, *tensors in others:
        assert (out - first).abs().amax(dim=(1, 2, 3)).min() > 1e-3
        assert all(torch.equal(a, b) for a, b in zip(same, tensors, strict=True))


@pytest.mark.parametrize(("xl", "outside"), [(False, False), (True, True)], ids=["SD, row zero", "SDXL, references"])
def test_control_ends_and_begins_with_its_window(xl, outside):
    pipe = pipeline(xl)
    trajectory = recorded(tiny_sdxl if xl else tiny_sd15) if outside else None

    def path(**options) -> list[torch.Tensor]:
        met = []
        keep = lambda _pipe, _step, _time, tensors: met.append(tensors["latents"]) or {}  # noqa: E731
        with style_aligned(pipe, references=trajectory, interpolate=True):
            steered(pipe, num_inference_steps=4, callback_on_step_end=keep, **options)
        return met

    never, always = path(scale=0.0), path()
    late, early = path(control_guidance_start=0.5), path(control_guidance_end=0.5)
    for step in (0, 1):
        assert torch.equal(late[step], never[step]) and torch.equal(early[step], always[step])
    for step in (2, 3):
        assert (late[step] - never[step])[1:].abs().max() > 1e-3
        assert (early[step] - always[step])[1:].abs().max() > 1e-3


@layouts
def test_several_controlnets_add_up_each_with_its_scale_and_window(xl):
    one, both = pipeline(xl), pipeline(xl, nets=2)
    with style_aligned(both):
        first = steered(both, scale=[0.8, 0.0])
        halves = steered(both, scale=[0.8, 0.7], control_guidance_start=[0.0, 0.5], control_guidance_end=[0.5, 1.0])
        together = steered(both, scale=[0.8, 0.7])
    with style_aligned(one):
        torch.testing.assert_close(first, steered(one), atol=1e-5, rtol=1e-5)
    assert torch.equal(first[0], together[0]) and torch.equal(first[0], halves[0])
    for a, b in ((first, together), (halves, together), (first, halves)):
        assert ((a - b)[1:].abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@layouts
def test_image_to_image_frees_the_reference_too(xl):
    pipe = tiny_control_img2img(xl)
    start = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))

    def sample(seed: int) -> torch.Tensor:
        control = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        seeds = [torch.Generator().manual_seed(i) for i in range(3)]
        options = {"control_image": control, "strength": 0.6, "generator": seeds, "output_type": "latent"}
        return pipe(PROMPTS, image=start, num_inference_steps=4, **options).images

    with style_aligned(pipe):
        one, other = sample(4), sample(5)
    assert torch.equal(one[0], other[0])
    assert ((one - other)[1:].abs().amax(dim=(1, 2, 3)) > 1e-3).all()
    with style_aligned(pipe, control_reference=True):
        assert (sample(4)[0] - one[0]).abs().max() > 1e-3


@layouts
@pytest.mark.parametrize("settings", [OFF, {"layers": 0}])
def test_where_nothing_is_shared_nobody_is_the_reference(xl, settings):
    pipe = pipeline(xl)
    plain = steered(pipe)
    with style_aligned(pipe, **settings):
        assert torch.equal(steered(pipe), plain)


def test_where_all_see_each_other_all_are_steered():
    pipe = pipeline(xl=False)
    with style_aligned(pipe, full_attention=True):
        one = steered(pipe)
        with published(pipe.controlnet, 2):
            other = steered(pipe)
    assert (one - other).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_a_reference_drawn_alone_is_that_of_the_batch():
    pipe = pipeline(xl=False)
    with style_aligned(pipe):
        together = steered(pipe)
        alone = steered(pipe, prompts=PROMPTS[:1], latents=noise()[:1])
    torch.testing.assert_close(alone, together[:1], atol=1e-5, rtol=1e-5)


def test_what_an_adapter_adds_does_not_reach_the_reference_either():
    pipe = calm(tiny_sd15)
    text, added = torch.randn(3, 16, 32), [torch.randn(3, 32, 8, 8), torch.randn(1, 64, 4, 4)]

    def predict(**more) -> torch.Tensor:
        with torch.no_grad():
            return pipe.unet(noise(), 500, encoder_hidden_states=text, **more).sample

    with style_aligned(pipe, branches=("cond",)):
        plain = predict()
        got = predict(down_intrablock_additional_residuals=[each.clone() for each in added])
    assert torch.equal(got[0], plain[0]) and (got - plain)[1:].abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_zeros_are_for_the_first_image_of_each_branch_and_for_nothing_else():
    rows = torch.arange(1.0, 7).view(6, 1, 1, 1)
    zeroed = zero_first_image(rows, rows=6, branches=2)
    assert zeroed.flatten().tolist() == [0, 2, 3, 0, 5, 6]
    assert rows.flatten().tolist() == [1, 2, 3, 4, 5, 6]  # the caller's own are not written over
    one_for_all = zero_first_image(rows[:1], rows=4, branches=2)
    assert one_for_all.flatten().tolist() == [0, 1, 0, 1]
    text = torch.randn(6, 2, 3)
    kwargs = {"mid_block_additional_residual": rows, "encoder_hidden_states": text, "return_dict": False}
    changed = without_control(kwargs, UNET.residuals, 6, 2)
    assert changed.keys() == kwargs.keys() and changed["encoder_hidden_states"] is text
    assert torch.equal(changed["mid_block_additional_residual"], zeroed)


def test_steering_a_reference_from_outside_is_refused():
    pipe, trajectory = calm(tiny_sd15), recorded(tiny_sd15)
    with (
        pytest.raises(ValueError, match="references= are never steered"),
        style_aligned(pipe, references=trajectory, control_reference=True),
    ):
        pass
