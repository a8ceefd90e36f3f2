"""``style_aligned`` on tiny pipelines: the textbook, its invariants, what it leaves behind, what it refuses."""

import math
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny import tiny_sd15, tiny_sdxl

from context_diffusion.attention import ReferenceCache, StyleSettings, style_aligned
from context_diffusion.trajectory import Trajectory, describe_model

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from textbook_style_aligned import TextbookSettings, textbook

PROMPTS = ["a house, neon style", "a boat, neon style", "a cat on green hills, neon style"]
STEPS = 2


@cache
def calm(make):
    """A pipeline that does not blow up rounding: its noise prediction changes slowly with the latent."""
    pipe = make(fresh=True)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.1)
    return pipe


def noise(count: int = len(PROMPTS), size: int = 8) -> torch.Tensor:
    return torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(1))


def draw(pipe, prompts=PROMPTS, *, guidance_scale=5.0, latents=None, **options) -> torch.Tensor:
    latents = noise(len(prompts)) if latents is None else latents
    options = {"num_inference_steps": STEPS, "output_type": "latent", **options}
    return pipe(list(prompts), latents=latents, guidance_scale=guidance_scale, **options).images


@cache
def recorded(make, guidance_scale: float = 5.0, **_) -> Trajectory:
    """The first image of the batch as a trajectory: what the U-Net meets at each step of plain sampling."""
    pipe, latents = calm(make), [noise()[:1]]
    keep = lambda _pipe, _step, _time, tensors: latents.append(tensors["latents"][:1].clone()) or {}  # noqa: E731
    draw(pipe, PROMPTS[:1], guidance_scale=guidance_scale, latents=latents[0], callback_on_step_end=keep)
    encoded = pipe.encode_prompt(PROMPTS[0], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    embeddings = dict(zip(("cond", "uncond", "pooled_cond", "pooled_uncond"), encoded, strict=False))
    if len(encoded) == 4:
        embeddings["time_ids"] = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
    timesteps = pipe.scheduler.timesteps
    products = pipe.scheduler.alphas_cumprod.double()
    alphas = torch.cat([products[timesteps], products[:1]])
    return Trajectory(
        torch.stack(latents), timesteps.float(), alphas, embeddings, (PROMPTS[0],), model=describe_model(pipe)
    )


SETTINGS = {
    "default": {},
    "without adain": {"adain_queries": False, "adain_keys": False},
    "adain on values too": {"adain_values": True},
    "adain only": {"share_attention": False},
    "group norm": {"share_group_norm": True},
    "group norm only": {
        "share_attention": False,
        "adain_queries": False,
        "adain_keys": False,
        "share_group_norm": True,
    },
    "shift": {"score_shift": math.log(2)},
    "scale": {"score_scale": 0.5, "score_shift": math.log(1.5)},
    "full": {"full_attention": True},
}
OFF = {"adain_queries": False, "adain_keys": False, "share_attention": False}


@pytest.mark.parametrize(
    ("make", "name"), [*((tiny_sdxl, name) for name in SETTINGS), (tiny_sd15, "default"), (tiny_sd15, "group norm")]
)
def test_equals_the_textbook(make, name):
    pipe, settings = calm(make), SETTINGS[name]
    with textbook(pipe.unet, TextbookSettings(**settings)):
        expected = draw(pipe)
    with style_aligned(pipe, **settings):
        got = draw(pipe)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    plain = draw(pipe)
    assert (got - plain)[1:].abs().max() > 1e-3  # and it does something
    if name != "full":  # the reference's own picture is untouched
        torch.testing.assert_close(got[0], plain[0], atol=1e-5, rtol=1e-5)


def test_equals_the_textbook_without_guidance():
    pipe = calm(tiny_sdxl)
    with textbook(pipe.unet, TextbookSettings(branches=1, score_shift=0.5)):
        expected = draw(pipe, guidance_scale=1.0)
    with style_aligned(pipe, score_shift=0.5):
        torch.testing.assert_close(draw(pipe, guidance_scale=1.0), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [OFF, {"layers": 0}, {"first_step": STEPS}, {"layers": []}],
    ids=["switches", "no layer", "late", "none"],
)
@pytest.mark.parametrize("outside", [False, True], ids=["row zero", "references"])
def test_sharing_off_is_the_plain_pipeline_bit_for_bit(settings, outside):
    pipe = calm(tiny_sdxl)
    references = recorded(tiny_sdxl) if outside else None
    with style_aligned(pipe, references=references, **settings):
        got = draw(pipe)
    assert torch.equal(got, draw(pipe))


@pytest.mark.parametrize("outside", [False, True], ids=["row zero", "references"])
def test_a_shift_towards_minus_infinity_is_the_plain_pipeline(outside):
    pipe, plain = calm(tiny_sdxl), draw(calm(tiny_sdxl))
    options = {"references": recorded(tiny_sdxl) if outside else None, "adain_queries": False, "adain_keys": False}
    for shift in (-40.0, -math.inf):
        with style_aligned(pipe, score_shift=shift, **options):
            torch.testing.assert_close(draw(pipe), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "guidance_scale"), [*((name, 5.0) for name in SETTINGS if name != "full"), ("group norm", 1.0)]
)
def test_row_zero_is_a_reference_from_outside(name, guidance_scale):
    pipe, settings = calm(tiny_sdxl), SETTINGS[name]
    with style_aligned(pipe, **settings):
        expected = draw(pipe, guidance_scale=guidance_scale)[1:]
    with style_aligned(pipe, references=recorded(tiny_sdxl, guidance_scale), **settings):
        got = draw(pipe, PROMPTS[1:], guidance_scale=guidance_scale, latents=noise()[1:])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_full_attention_with_a_reference_lets_images_see_each_other():
    pipe, trajectory = calm(tiny_sdxl), recorded(tiny_sdxl)
    with style_aligned(pipe, references=trajectory, full_attention=True):
        together = draw(pipe, PROMPTS[1:], latents=noise()[1:])
        alone = draw(pipe, PROMPTS[1:2], latents=noise()[1:2])
    with style_aligned(pipe, references=trajectory):
        torch.testing.assert_close(draw(pipe, PROMPTS[1:2], latents=noise()[1:2]), alone, atol=1e-5, rtol=1e-5)
    assert (together[:1] - alone).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [{}, {"score_shift": 0.7, "share_group_norm": True}])
def test_the_batch_does_not_change_an_image(settings):
    pipe = calm(tiny_sd15)
    with style_aligned(pipe, references=recorded(tiny_sd15), **settings):
        together = draw(pipe)
        for i, prompt in enumerate(PROMPTS):
            alone = draw(pipe, [prompt], latents=noise()[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("outside", [False, True], ids=["row zero", "references"])
def test_guidance_off_is_the_conditional_half_of_guidance_on(outside):
    pipe, trajectory = calm(tiny_sd15), recorded(tiny_sd15)
    draw(pipe)
    text, empty = (torch.randn(3, 16, 32) for _ in range(2))
    timestep = pipe.scheduler.timesteps[1]
    options = {"references": trajectory if outside else None, "score_shift": 0.5}
    with torch.no_grad(), style_aligned(pipe, branches=("uncond", "cond"), **options):
        both = pipe.unet(torch.cat([noise(), noise()]), timestep, encoder_hidden_states=torch.cat([empty, text])).sample
    with torch.no_grad(), style_aligned(pipe, branches=("cond",), **options):
        one = pipe.unet(noise(), timestep, encoder_hidden_states=text).sample
    torch.testing.assert_close(one, both[3:], atol=1e-5, rtol=1e-5)


def test_several_images_per_prompt_share_one_reference():
    pipe = calm(tiny_sd15)
    with style_aligned(pipe):
        got = draw(pipe, PROMPTS[:2], latents=noise(4), num_images_per_prompt=2)
        expected = draw(pipe, [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], latents=noise(4))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_reference_may_have_another_size():
    pipe = calm(tiny_sd15)
    with style_aligned(pipe, references=recorded(tiny_sd15)):
        got = draw(pipe, PROMPTS[:1], latents=noise(1, size=12), height=24, width=24)
    assert (got - draw(pipe, PROMPTS[:1], latents=noise(1, size=12), height=24, width=24)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    pipe = calm(tiny_sdxl)
    with style_aligned(pipe, references=recorded(tiny_sdxl), score_shift=0.5, share_group_norm=True):
        expected = draw(pipe)
    half = tiny_sdxl(fresh=True)
    half.unet.load_state_dict(pipe.unet.state_dict())
    half.to(dtype)
    with style_aligned(half, references=recorded(tiny_sdxl), score_shift=0.5, share_group_norm=True):
        got = draw(half, latents=noise().to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=0.1, rtol=0.1)


def test_steps_outside_the_range_are_plain():
    pipe = calm(tiny_sd15)

    def path(**settings) -> list[torch.Tensor]:
        met = []
        keep = lambda _pipe, _step, _time, tensors: met.append(tensors["latents"]) or {}  # noqa: E731
        with style_aligned(pipe, **settings):
            draw(pipe, callback_on_step_end=keep)
        return met

    plain, all_steps, late, early = path(**OFF), path(), path(first_step=1), path(last_step=0)
    assert torch.equal(late[0], plain[0]) and not torch.allclose(late[1], plain[1], atol=1e-4)
    assert torch.equal(early[0], all_steps[0]) and not torch.allclose(early[1], all_steps[1], atol=1e-4)


@pytest.mark.parametrize("layers", [0.5, "up_blocks", ["mid_block"]])
def test_fewer_layers_share_less(layers):
    pipe = calm(tiny_sdxl)
    with style_aligned(pipe, layers=layers) as aligner:
        some = draw(pipe)
    assert 0 < len(aligner.attentions) < 8
    with style_aligned(pipe):
        every = draw(pipe)
    assert (some - draw(pipe)).abs().max() > 1e-3
    assert (some - every).abs().max() > 1e-3


def test_weights_of_several_references():
    pipe, first = calm(tiny_sd15), recorded(tiny_sd15)
    embeddings = {name: rows.flip(1) for name, rows in first.embeddings.items()}
    second = Trajectory(first.latents.flip(-1) * 0.9, first.timesteps, first.alphas, embeddings, ("a cat",))

    def with_references(references, weights=None) -> torch.Tensor:
        with style_aligned(pipe, references=references, weights=weights, score_shift=0.3):
            return draw(pipe)

    one, both = with_references(first), with_references([first, second], [0.5, 0.5])
    assert (both - one).abs().max() > 1e-3
    for references, weights, expected in (
        ([first, second], [1, 0], one),
        ([first, first], [0.3, 0.7], one),
        ([second, first, second], [0.25, 0.5, 0.25], both),
        ([first, second], None, both),
    ):
        torch.testing.assert_close(with_references(references, weights), expected, atol=2e-5, rtol=1e-5)
    assert (with_references([first, second], [0.9, 0.1]) - one).norm() < (both - one).norm()


def count_calls(module: torch.nn.Module) -> tuple[list, object]:
    calls = []
    return calls, module.register_forward_hook(lambda *_: calls.append(1))


def test_a_cached_reference_is_not_run_again_and_changes_nothing():
    pipe, trajectory, cache_ = calm(tiny_sdxl), recorded(tiny_sdxl), ReferenceCache()
    with style_aligned(pipe, references=trajectory):
        expected = draw(pipe)
    calls, hook = count_calls(pipe.unet.conv_in)
    try:
        with style_aligned(pipe, references=trajectory, cache=cache_):
            assert torch.equal(draw(pipe), expected)
            assert len(calls) == 2 * STEPS
            assert torch.equal(draw(pipe), expected)
            assert len(calls) == 3 * STEPS
        with style_aligned(pipe, references=trajectory, cache=cache_, score_shift=1.0):  # settings do not matter
            draw(pipe)
        assert len(calls) == 4 * STEPS
        tokens, layers = 16, 8  # a quarter of 8 x 8 on the lower level, 64 channels, K and V, two branches, floats
        assert cache_.nbytes >= STEPS * layers * tokens * 64 * 2 * 2 * 4
        assert "cpu" in repr(cache_)
        other = Trajectory(**{**vars(trajectory), "latents": trajectory.latents + 0.1})
        with style_aligned(pipe, references=other, cache=cache_):
            assert not torch.allclose(draw(pipe), expected, atol=1e-5)
        assert len(calls) == 6 * STEPS
    finally:
        hook.remove()


def test_the_reference_pass_ends_at_the_last_shared_layer():
    pipe = calm(tiny_sdxl)
    first, hook_in = count_calls(pipe.unet.conv_in)
    last, hook_out = count_calls(pipe.unet.conv_out)
    try:
        with style_aligned(pipe, references=recorded(tiny_sdxl)):
            draw(pipe)
    finally:
        hook_in.remove()
        hook_out.remove()
    assert (len(first), len(last)) == (2 * STEPS, STEPS)


def footprint(unet) -> list:
    """Every object that style alignment could leave behind or replace."""
    found = [(name, id(processor)) for name, processor in unet.attn_processors.items()]
    return found + [(name, sorted(vars(module).keys())) for name, module in unet.named_modules()]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("outside", [False, True], ids=["row zero", "references"])
def test_what_was_there_is_put_back(error, outside):
    pipe = calm(tiny_sdxl)
    before, plain = footprint(pipe.unet), draw(pipe)

    def stop(*_):
        raise error

    try:
        with style_aligned(pipe, references=recorded(tiny_sdxl) if outside else None, share_group_norm=True):
            assert footprint(pipe.unet) != before
            draw(pipe, callback_on_step_end=stop if error else None)
    except (ValueError, KeyboardInterrupt) as caught:
        assert type(caught) is error
    assert footprint(pipe.unet) == before
    assert torch.equal(draw(pipe), plain)


def test_a_forward_that_a_hook_put_there_is_put_back():
    pipe = tiny_sd15(fresh=True)
    original = pipe.unet.forward
    hooked = lambda *args, **kwargs: original(*args, **kwargs)  # noqa: E731
    pipe.unet.forward = hooked
    with style_aligned(pipe):
        draw(pipe)
    assert vars(pipe.unet)["forward"] is hooked


def test_nested_use_is_refused_and_the_outer_block_survives():
    pipe = calm(tiny_sd15)
    with style_aligned(pipe):
        expected = draw(pipe)
        with pytest.raises(RuntimeError, match="do not nest"), style_aligned(pipe):
            pass
        assert torch.equal(draw(pipe), expected)


def test_processors_replaced_inside_the_block_are_noticed():
    pipe = tiny_sd15(fresh=True)
    with style_aligned(pipe):
        pipe.unet.set_attn_processor(AttnProcessor2_0())
        with pytest.raises(RuntimeError, match="replaced inside"):
            draw(pipe)


def test_a_processor_of_another_method_is_refused():
    class Other:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    pipe = tiny_sd15(fresh=True)
    name = next(name for name in pipe.unet.attn_processors if "attn1" in name)
    pipe.unet.get_submodule(name.removesuffix(".processor")).set_processor(Other())
    with pytest.raises(ValueError, match=r"processor of its own \(Other\)"), style_aligned(pipe):
        pass


def test_another_number_of_steps_is_refused_or_interpolated():
    pipe, trajectory = calm(tiny_sd15), recorded(tiny_sd15)
    with style_aligned(pipe, references=trajectory), pytest.raises(ValueError, match="made with 2 steps"):
        draw(pipe, num_inference_steps=4)
    with style_aligned(pipe, references=trajectory, interpolate=True):
        got = draw(pipe, num_inference_steps=4)
    assert got.isfinite().all() and not torch.allclose(got, draw(pipe, num_inference_steps=4), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"references": []}, ValueError, "list of trajectories is empty"),
        ({"references": ["cat.png"]}, TypeError, "ddim_invert returns them; got str"),
        ({"weights": [1.0]}, ValueError, "pass references="),
        ({"blend": "mean"}, ValueError, "'attention', 'linear', 'slerp'; got 'mean'"),
        ({"cache": True}, ValueError, "outside the batch"),
        ({"layers": 1.5}, ValueError, "fraction from 0 to 1"),
        ({"layers": "attic"}, ValueError, "'attic' in its name"),
        ({"first_step": 3, "last_step": 1}, ValueError, "got 3 to 1"),
        ({"score_shift": math.nan}, ValueError, "finite"),
        ({"score_scale": [1.0, 2.0]}, ValueError, "one per reference; got 2 for 1"),
        ({"full_attention": True, "score_shift": 1.0}, ValueError, "no image is the reference"),
    ],
)
def test_bad_arguments_are_refused_before_anything_changes(options, error, sentence):
    pipe = calm(tiny_sd15)
    before = footprint(pipe.unet)
    with pytest.raises(error, match=sentence), style_aligned(pipe, **options):
        pass
    assert footprint(pipe.unet) == before


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="another model"), style_aligned(tiny_sd15(), references=recorded(tiny_sdxl)):
        pass
    with pytest.raises(TypeError, match="U-Net"), style_aligned(object()):
        pass
    pipe = calm(tiny_sd15)
    with style_aligned(pipe, branches=("uncond", "cond")), pytest.raises(ValueError, match="3 rows cannot be split"):
        pipe.unet(noise(), 1, encoder_hidden_states=torch.randn(3, 16, 32))


def test_settings_can_be_kept_and_changed():
    pipe, settings = calm(tiny_sd15), StyleSettings(score_shift=0.5)
    with style_aligned(pipe, settings=settings, layers=0.5) as aligner:
        assert (aligner.settings.score_shift, aligner.settings.layers) == (0.5, 0.5)
