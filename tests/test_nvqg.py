"""Swapped attention and negative visual query guidance: against a textbook that spells every row out, in company."""

from functools import cache

import pytest
import torch
from aligning import PROMPTS, STEPS, calm, draw, noise, recorded
from diffusers import ClassifierFreeGuidance, StableDiffusionXLAutoBlocks
from PIL import Image
from tiny import load_tiny_ip_adapter, tiny_control, tiny_sd15, tiny_sdxl

from context_diffusion.alignment.aligner import style_aligned
from context_diffusion.alignment.equations import Reference, swapped_attention
from context_diffusion.alignment.inversion import ddim_invert, noised_reference
from context_diffusion.alignment.networks import late_layers, self_attentions
from context_diffusion.alignment.reference_pass import ReferenceCache
from context_diffusion.alignment.settings import StyleSettings

NVQG = StyleSettings.nvqg(swap_attention="up_blocks")
MAKERS = [tiny_sd15, tiny_sdxl]


class Textbook:
    """Self-attention by the papers' words: rows are (without prompt: image 0, 1, ...; with prompt: image 0, 1, ...).

    Image 0 is the reference. With the prompt, late layers take its keys and values; without it, early ones its query.
    """

    def __init__(self, late: bool, *, both: bool = False):
        self.late, self.both = late, both

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        rows, tokens, width = hidden_states.shape
        images, dim = rows // 2, width // attn.heads
        q, k, v = (layer(hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v))
        out = torch.empty_like(q)
        for row in range(rows):
            with_prompt, reference = row >= images, row - row % images
            q_of, kv_of = row, row
            if self.late and (with_prompt or self.both):
                kv_of = reference
            elif not self.late and not with_prompt and not self.both:
                q_of = reference
            for head in range(attn.heads):
                part = slice(head * dim, (head + 1) * dim)
                scores = torch.einsum("id,jd->ij", q[q_of, :, part], k[kv_of, :, part]) / dim**0.5
                out[row, :, part] = scores.softmax(dim=1) @ v[kv_of, :, part]
        return attn.to_out[0](out)


def by_the_textbook(make, late: str = "up_blocks", **options) -> torch.Tensor:
    pipe = calm(make)
    attentions = self_attentions(pipe.unet)
    found = {name: module.processor for name, module in attentions.items()}
    try:
        for name, module in attentions.items():
            module.set_processor(Textbook(late in name, **options))
        return draw(pipe)
    finally:
        for name, module in attentions.items():
            module.set_processor(found[name])


@pytest.mark.parametrize("make", MAKERS)
def test_nvqg_is_the_textbook(make):
    plain, expected = draw(calm(make)), by_the_textbook(make)
    with style_aligned(calm(make), settings=NVQG):
        got = draw(calm(make))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[0], plain[0], atol=1e-5, rtol=1e-5)
    assert (got[1:] - plain[1:]).abs().max() > 1e-2


@pytest.mark.parametrize("make", MAKERS)
def test_swapping_alone_is_visual_style_prompting_in_both_branches(make):
    off = {"adain_queries": False, "adain_keys": False, "share_attention": False}
    with style_aligned(calm(make), swap_attention="up_blocks", **off):
        got = draw(calm(make))
    torch.testing.assert_close(got, by_the_textbook(make, both=True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", MAKERS)
def test_a_reference_from_outside_is_row_zero(make):
    with style_aligned(calm(make), settings=NVQG):
        expected = draw(calm(make))[1:]
    with style_aligned(calm(make), references=recorded(make), settings=NVQG, cache=True) as aligner:
        first, again = (draw(calm(make), PROMPTS[1:], latents=noise()[1:]) for _ in range(2))
        assert len(aligner.reference_pass.cache) == STEPS
    torch.testing.assert_close(first, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(first, again)


def test_a_cache_without_queries_is_not_taken_for_one_with_them():
    cache, pipe = ReferenceCache(), calm(tiny_sd15)
    with style_aligned(pipe, references=recorded(tiny_sd15), cache=cache):
        draw(pipe)
    with style_aligned(pipe, references=recorded(tiny_sd15), settings=NVQG, cache=cache):
        got = draw(pipe)
    with style_aligned(pipe, references=recorded(tiny_sd15), settings=NVQG):
        assert torch.equal(got, draw(pipe))


def test_each_half_changes_the_pictures_and_without_both_they_are_plain():
    pipe = calm(tiny_sd15)
    plain = draw(pipe)

    def changed(**changes) -> float:
        with style_aligned(pipe, settings=StyleSettings.nvqg(**changes)):
            return float((draw(pipe) - plain).abs().max())

    assert changed(swap_attention=0.0, negative_query=False) == 0
    assert changed(layers=0) == 0
    assert changed(swap_attention=0.0) > 1e-3
    assert changed(negative_query=False) > 1e-3
    assert changed(score_shift=float("-inf"), negative_query=False) < 1e-5  # nobody to attend to: itself


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.25, 0.75)])
def test_several_references_count_by_their_weights(weights):
    pipe, (a, b) = calm(tiny_sd15), two_references()

    def drawn(references, weights=None) -> torch.Tensor:
        with style_aligned(pipe, references=references, weights=weights, settings=NVQG):
            return draw(pipe, latents=noise(size=16))

    got, one, other = drawn([a, b], weights), drawn([a]), drawn([b])
    assert (one - other).abs().max() > 1e-3
    if 1.0 in weights:
        torch.testing.assert_close(got, one if weights[0] else other, atol=1e-5, rtol=1e-5)
    else:
        assert min((got - one).abs().max(), (got - other).abs().max()) > 1e-4


@cache
def two_references():
    pictures = [Image.linear_gradient("L").resize((32, 32)), Image.radial_gradient("L").resize((32, 32))]
    both = noised_reference(calm(tiny_sd15), pictures, ["a cat", "a boat"], num_inference_steps=STEPS)
    return both[0], both[1]


def test_swapped_attention_is_the_definition():
    query = torch.randn(2, 3, 5, 8)
    refs = [Reference(torch.randn(2, 4, 8), torch.randn(2, 4, 8), *each) for each in ((1.0, 0.5), (0.7, -0.2))]
    keys = torch.cat([ref.scale * ref.key for ref in refs], dim=1)
    values = torch.cat([ref.value for ref in refs], dim=1)
    shifts = torch.tensor([0.5] * 4 + [-0.2] * 4)
    expected = torch.empty_like(query)
    for head in (slice(0, 4), slice(4, 8)):
        scores = torch.einsum("gitd,gjd->gitj", query[..., head], keys[..., head]) / 2 + shifts
        expected[..., head] = torch.einsum("gitj,gjd->gitd", scores.softmax(-1), values[..., head])
    torch.testing.assert_close(swapped_attention(query, refs, heads=2), expected, atol=1e-6, rtol=1e-5)
    alone = swapped_attention(query, [refs[0]._replace(shift=3.0)], heads=2)  # a shift of all is no shift
    torch.testing.assert_close(alone, swapped_attention(query, [refs[0]._replace(shift=0.0)], heads=2))


@pytest.mark.parametrize(("ups", "downs", "late"), [(9, 7, 3), (36, 34, 12)], ids=["SD 1.5", "SDXL"])
def test_the_last_sixth_is_the_last_third_of_the_up_blocks(ups, downs, late):
    names = [f"down.{i}" for i in range(downs)] + [f"up.{i}" for i in range(ups)]
    assert late_layers(names, NVQG.nvqg().swap_attention) == names[-late:]
    assert late_layers(names, 0.0) == []
    assert late_layers(names, "down.1") == [name for name in names if "down.1" in name]
    assert late_layers(names, 0.001) == names[-1:]


@pytest.mark.parametrize("outside", [False, True])
def test_it_composes_with_controlnet_and_ip_adapter(outside):
    pipe = tiny_control(fresh=True)
    load_tiny_ip_adapter(pipe)
    pipe.set_ip_adapter_scale(0.6)
    control = [Image.linear_gradient("L").convert("RGB").resize((32, 32))] * 3

    def drawn(prompts=PROMPTS) -> torch.Tensor:
        return draw(
            pipe, prompts, latents=noise(len(prompts), 16), image=control[: len(prompts)], ip_adapter_image=control[0]
        )

    plain = drawn()
    references = noised_reference(pipe, control[0], "a cat", num_inference_steps=STEPS) if outside else None
    with style_aligned(pipe, references=references, settings=NVQG, control_reference=not outside):
        got = drawn()
    assert got.isfinite().all()
    assert (got[1:] - plain[1:]).abs().max() > 1e-3
    if not outside:
        torch.testing.assert_close(got[0], plain[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(drawn(), plain)


def test_a_modular_pipeline_which_runs_one_branch_at_a_time_is_guided_alike():
    classic = tiny_sdxl(fresh=True)
    modular = StableDiffusionXLAutoBlocks().init_pipeline()
    parts = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    modular.update_components(**{part: getattr(classic, part) for part in parts})
    modular.set_progress_bar_config(disable=True)
    with torch.no_grad():
        classic.unet.conv_out.weight.mul_(0.1)
    trajectory = ddim_invert(classic, Image.linear_gradient("L").resize((32, 32)), "a fish", num_inference_steps=2)
    shared = {"negative_prompt": "red", "num_inference_steps": 2, "output_type": "latent", "height": 32, "width": 32}
    with style_aligned(classic, references=trajectory, settings=NVQG):
        expected = classic("a boat", generator=seed(), guidance_scale=modular.guider.guidance_scale, **shared).images
    with style_aligned(modular, references=trajectory, settings=NVQG):
        got = modular(prompt="a boat", generator=seed(), output="images", **shared)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    modular.update_components(guider=ClassifierFreeGuidance(guidance_scale=1.0))
    with style_aligned(modular, references=trajectory, settings=NVQG), pytest.raises(ValueError, match="above 1"):
        modular(prompt="a boat", generator=seed(), output="images", **shared)


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_no_guidance_no_negative_query():
    with style_aligned(calm(tiny_sd15), settings=NVQG), pytest.raises(ValueError, match="guidance_scale above 1"):
        draw(calm(tiny_sd15), guidance_scale=1.0)
    with style_aligned(calm(tiny_sd15), settings=NVQG, negative_query=False):  # swapping needs none
        draw(calm(tiny_sd15), guidance_scale=1.0)


def test_queries_of_another_size_are_refused_before_anything_is_drawn():
    pipe = calm(tiny_sd15)
    sizes = r"one size; their latents are \(16, 16\) and \(8, 8\)"
    with style_aligned(pipe, references=two_references()[0], settings=NVQG), pytest.raises(ValueError, match=sizes):
        draw(pipe)
    with style_aligned(pipe, references=two_references()[0], settings=NVQG, negative_query=False):
        draw(pipe)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"swap_attention": 1.5}, "swap_attention is a fraction"),
        ({"full_attention": True}, "full_attention lets all images see each other"),
        ({"swap_attention": 0.0, "full_attention": True}, "full_attention"),
    ],
)
def test_settings_that_say_nothing_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        StyleSettings.nvqg(**changes)


def test_words_that_no_layer_has_are_refused():
    with (
        pytest.raises(ValueError, match="No self-attention layer has 'top'"),
        style_aligned(tiny_sd15(), swap_attention="top"),
    ):
        pass
