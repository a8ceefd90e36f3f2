"""``style_aligned`` on tiny pipelines: equal to the textbook, and its invariants."""

import math

import pytest
import torch
from aligning import PROMPTS, STEPS, calm, draw, noise, recorded
from tiny import tiny_sd15, tiny_sdxl

from context_diffusion.alignment.aligner import style_aligned
from context_diffusion.alignment.trajectory import Trajectory
from context_diffusion.from_scratch.style_aligned import TextbookSettings, textbook

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
