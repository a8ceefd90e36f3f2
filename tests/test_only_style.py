"""References without their subject: the mask from cross-attention, and keys that are scaled inside it."""

import itertools
from functools import cache

import pytest
import torch
from aligning import PROMPTS, STEPS, calm, draw, noise
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from PIL import Image
from tiny import load_tiny_ip_adapter, tiny_sd15, tiny_sdxl

from context_diffusion.alignment.aligner import style_aligned
from context_diffusion.alignment.inversion import noised_reference
from context_diffusion.alignment.networks import self_attentions
from context_diffusion.alignment.reference_pass import ReferenceCache
from context_diffusion.alignment.subject import (
    key_scales,
    subject_map,
    subject_mask,
    subject_tokens,
    token_grid,
    two_means,
)

MAKERS = [tiny_sd15, tiny_sdxl]
LAYERS = ["down_blocks", "mid_block"]


@cache
def references(make, count: int = 1):
    pictures = [Image.linear_gradient("L").resize((32, 32)), Image.radial_gradient("L").resize((32, 32))][:count]
    prompts = ["a cat, neon style", "the red boat"][:count]
    return noised_reference(calm(make), pictures, prompts, num_inference_steps=STEPS)


@cache
def half() -> torch.Tensor:
    """A subject that fills the left half."""
    return (torch.arange(16) < 8).expand(1, 16, 16).clone()


class Seen:
    """Cross-attention that writes its probabilities down."""

    def __init__(self):
        self.found = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        probabilities = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        self.found.append(probabilities)
        return attn.to_out[0]((probabilities @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("layers", LAYERS)
def test_the_map_is_the_mean_of_the_words_probabilities(make, layers):
    pipe, trajectory = calm(make), references(make, 2)
    got = subject_map(pipe, trajectory, ["cat", "red boat"], layers=layers)
    seen, names = Seen(), [n for n, m in pipe.unet.named_modules() if n.endswith("attn2") and layers in n]
    found = {name: pipe.unet.get_submodule(name).processor for name in names}
    text = trajectory.embeddings
    added = None
    if "pooled_cond" in text:
        added = {"text_embeds": text["pooled_cond"], "time_ids": text["time_ids"]}
    try:
        for name in names:
            pipe.unet.get_submodule(name).set_processor(seen)
        with torch.no_grad():
            for latents, time in zip(trajectory.latents, trajectory.timesteps, strict=False):
                pipe.unet(latents, time, encoder_hidden_states=text["cond"], added_cond_kwargs=added)
    finally:
        for name in names:
            pipe.unet.get_submodule(name).set_processor(found[name])
    maps = []
    for probabilities in seen.found:
        side = int(probabilities.shape[2] ** 0.5)
        cat = probabilities[0, :, :, 2].mean(0)  # <start> a cat
        boat = (probabilities[1, :, :, 2] + probabilities[1, :, :, 3]).mean(0)  # <start> the red boat
        maps.append(torch.stack([cat, boat]).view(2, 1, side, side))
    sized = [torch.nn.functional.interpolate(m, size=(16, 16), mode="bilinear")[:, 0] for m in maps]
    torch.testing.assert_close(got, torch.stack(sized).mean(0), atol=1e-5, rtol=1e-5)
    assert len(seen.found) == STEPS * len(names) > 0
    assert got.flatten(1).std(dim=1).min() > 1e-4
    mask = subject_mask(pipe, trajectory, ["cat", "red boat"], layers=layers)
    assert torch.equal(mask, two_means(got))
    assert 0 < mask[0].float().mean() < 1


def test_two_means_is_the_best_of_all_splits():
    values = torch.randn(3, 3, 4)
    for row, got in zip(values.flatten(1), two_means(values).flatten(1), strict=True):

        def spread(inside: torch.Tensor, row=row) -> float:
            return sum(float((part - part.mean()).square().sum()) for part in (row[inside], row[~inside]))

        splits = [torch.tensor([i in chosen for i in range(12)]) for n in range(1, 12)
                  for chosen in itertools.combinations(range(12), n)]  # fmt: skip
        best = min(spread(split) for split in splits)
        assert spread(got) == pytest.approx(best)
        assert row[got].min() > row[~got].max()


def test_a_flat_map_has_no_subject():
    assert not two_means(torch.full((1, 4, 4), 0.3)).any()


def test_the_map_leaves_no_trace_and_needs_no_adapter():
    pipe = tiny_sd15(fresh=True)
    trajectory = noised_reference(pipe, Image.linear_gradient("L").resize((32, 32)), "a cat", num_inference_steps=2)
    without = subject_map(pipe, trajectory, "cat")
    load_tiny_ip_adapter(pipe)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules()]
    torch.testing.assert_close(subject_map(pipe, trajectory, "cat"), without, atol=1e-6, rtol=1e-5)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules()]


def test_attention_that_is_not_seen_is_refused():
    pipe = tiny_sd15(fresh=True)
    trajectory = noised_reference(pipe, Image.linear_gradient("L").resize((32, 32)), "a cat", num_inference_steps=2)
    pipe.unet.set_attn_processor(AttnProcessor())
    with pytest.raises(RuntimeError, match="choose AttnProcessor2_0"):
        subject_map(pipe, trajectory, "cat")
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    assert subject_map(pipe, trajectory, "cat").isfinite().all()


def test_tokens_of_a_word_are_found_wherever_it_stands():
    tokenizer = tiny_sd15().tokenizer
    assert subject_tokens(tokenizer, "a cat, a red cat", "cat") == [2, 6]
    assert subject_tokens(tokenizer, "a cat, a red cat", "red cat") == [5, 6]
    with pytest.raises(ValueError, match=r"word of the reference's prompt; 'boat' is not in 'a cat'"):
        subject_tokens(tokenizer, "a cat", "boat")
    with pytest.raises(ValueError, match="is not in"):
        subject_tokens(tokenizer, "a cat", "")
    with pytest.raises(ValueError, match="is not in"):  # where the model no longer reads
        subject_tokens(tokenizer, "a " * 20 + "cat", "cat")


def test_the_grid_of_tokens_is_the_latents_halved():
    assert token_grid(16, 16, 64) == (8, 8)
    assert token_grid(10, 6, 15) == (5, 3)
    assert token_grid(9, 5, 15) == (5, 3)  # odd sizes round up, as strided convolutions do
    with pytest.raises(ValueError, match="no halving"):
        token_grid(16, 16, 65)


def test_a_key_on_the_edge_is_scaled_by_the_part_that_is_covered():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, :3] = True
    torch.testing.assert_close(key_scales(mask, 0.5, 16)[0, :4, 0], torch.tensor([0.5, 0.5, 0.5, 1.0]))
    torch.testing.assert_close(key_scales(mask, 0.5, 4)[0, :, 0], torch.tensor([0.75, 0.875, 1.0, 1.0]))


class Textbook:
    """Self-attention of each row to itself and to reference keys, scaled where ``factor`` says, one head at a time."""

    def __init__(self, kept: dict, factor):
        self.kept, self.factor = kept, factor

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        q, k, v = (layer(hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v))
        if id(attn) not in self.kept:  # the references' own pass, which comes first
            self.kept[id(attn)] = (k, v)
            refs = [(k[:0], v[:0])] * len(q)
        else:
            key, value = self.kept[id(attn)]
            images = len(q) // len(key)
            factor = self.factor(key.shape[1])
            refs = [(factor[:, None] * key[row // images], value[row // images]) for row in range(len(q))]
        out, dim = torch.empty_like(q), q.shape[-1] // attn.heads
        for row, (key, value) in enumerate(refs):
            keys = torch.cat([k[row], key.reshape(-1, k.shape[-1])])
            values = torch.cat([v[row], value.reshape(-1, k.shape[-1])])
            for head in range(attn.heads):
                part = slice(head * dim, (head + 1) * dim)
                out[row, :, part] = (q[row, :, part] @ keys[:, part].T / dim**0.5).softmax(dim=1) @ values[:, part]
        return attn.to_out[0](out)


def left_half(scale: float):
    def factor(tokens: int) -> torch.Tensor:
        side = int(tokens**0.5)
        return torch.where(torch.arange(tokens) % side < side / 2, scale, 1.0)

    return factor


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_keys_inside_the_subject_are_scaled(scale):
    pipe, trajectory = calm(tiny_sd15), references(tiny_sd15)
    text, time = trajectory.embeddings, trajectory.timesteps[0]
    samples = noise(6, 16)
    states = torch.cat([text["uncond"].expand(3, -1, -1), text["cond"].expand(3, -1, -1)])
    found = {name: module.processor for name, module in self_attentions(pipe.unet).items()}
    textbook = Textbook({}, left_half(scale))
    off = {"adain_queries": False, "adain_keys": False, "branches": ("uncond", "cond")}
    with torch.no_grad():
        with style_aligned(pipe, references=trajectory, subject=half(), subject_scale=scale, **off):
            got = pipe.unet(samples, time, encoder_hidden_states=states).sample
        with style_aligned(pipe, references=trajectory, **off):
            unscaled = pipe.unet(samples, time, encoder_hidden_states=states).sample
        try:
            for module in self_attentions(pipe.unet).values():
                module.set_processor(textbook)
            both = torch.cat([text["uncond"], text["cond"]])
            pipe.unet(trajectory.latents[0].repeat(2, 1, 1, 1), time, encoder_hidden_states=both)
            expected = pipe.unet(samples, time, encoder_hidden_states=states).sample
        finally:
            for name, module in self_attentions(pipe.unet).items():
                module.set_processor(found[name])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (got - unscaled).abs().max() > 1e-4


def aligned(make=tiny_sd15, **options) -> torch.Tensor:
    pipe = calm(make)
    with style_aligned(pipe, references=references(make), **options):
        return draw(pipe, latents=noise(size=16))


@pytest.mark.parametrize("make", MAKERS)
def test_a_scale_of_one_and_an_empty_mask_change_nothing(make):
    plain = aligned(make)
    torch.testing.assert_close(aligned(make, subject="cat", subject_scale=1.0), plain, atol=1e-6, rtol=1e-5)
    empty = torch.zeros_like(half())
    torch.testing.assert_close(aligned(make, subject=empty, subject_scale=0.1), plain, atol=1e-6, rtol=1e-5)
    assert (aligned(make, subject="cat", subject_scale=0.1) - plain).abs().max() > 1e-4


def test_a_word_is_its_mask():
    pipe = calm(tiny_sd15)
    mask = subject_mask(pipe, references(tiny_sd15), "cat")
    by_word = aligned(subject="cat", subject_scale=0.3)
    assert torch.equal(by_word, aligned(subject=mask, subject_scale=0.3))


def test_a_mask_everywhere_is_a_score_scale():
    everywhere = torch.ones_like(half())
    got = aligned(subject=everywhere, subject_scale=0.4)
    torch.testing.assert_close(got, aligned(score_scale=0.4), atol=1e-5, rtol=1e-4)


def test_a_cache_holds_keys_as_they_are():
    cache = ReferenceCache()
    first = aligned(subject=half(), subject_scale=0.3, cache=cache)
    assert torch.equal(aligned(cache=cache), aligned())
    assert torch.equal(aligned(subject=half(), subject_scale=0.3, cache=cache), first)


def test_every_reference_has_a_subject_of_its_own():
    pipe, trajectory = calm(tiny_sd15), references(tiny_sd15, 2)

    def drawn(mask: torch.Tensor, which=trajectory, **options) -> torch.Tensor:
        with style_aligned(pipe, references=which, subject=mask, subject_scale=0.2, **options):
            return draw(pipe, latents=noise(size=16))

    masks = torch.cat([half(), ~half()])
    torch.testing.assert_close(drawn(masks, weights=[1.0, 0.0]), drawn(half(), trajectory[0]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(drawn(masks, weights=[0.0, 1.0]), drawn(~half(), trajectory[1]), atol=1e-5, rtol=1e-5)
    assert (drawn(masks) - drawn(masks.flip(0))).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"subject": "cat"}, ValueError, "pass both"),
        ({"subject_scale": 0.5}, ValueError, "pass both"),
        ({"subject": "cat", "subject_scale": -1}, ValueError, "subject_scale multiplies keys"),
        ({"subject": "boat", "subject_scale": 0.5}, ValueError, "'boat' is not in 'a cat, neon style'"),
        ({"subject": ["cat", "cat"], "subject_scale": 0.5}, ValueError, "one per reference; got 2 for 1"),
        ({"subject": torch.ones(1, 8, 8, dtype=torch.bool), "subject_scale": 0.5}, ValueError, r"\(1, 16, 16\)"),
        ({"subject": torch.ones(1, 16, 16), "subject_scale": 0.5}, ValueError, "boolean"),
        ({"subject": "cat", "subject_scale": 0.5, "share_attention": False}, ValueError, "where attention is shared"),
    ],
)
def test_what_would_do_nothing_or_cannot_be_done_is_refused(options, error, says):
    with pytest.raises(error, match=says):
        aligned(**options)


def test_a_subject_needs_references_and_a_network_at_rest():
    pipe = calm(tiny_sd15)
    with (
        pytest.raises(ValueError, match="pass references"),
        style_aligned(pipe, subject="cat", subject_scale=0.5),
    ):
        draw(pipe, PROMPTS)
    with style_aligned(pipe), pytest.raises(RuntimeError, match="before the style_aligned block"):
        subject_mask(pipe, references(tiny_sd15), "cat")
