import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from from_scratch_folders import folder, ours
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from context_diffusion import from_scratch as fs
from context_diffusion.from_scratch import DDIM, DDPM, Euler

QUICK = {"num_inference_steps": 3, "guidance_scale": 4.0}
SAMPLERS = {"ddim": DDIM, "ddpm": DDPM, "euler": Euler}


def with_sampler(name: str) -> fs.StableDiffusion:
    return replace(ours("sd1"), scheduler=SAMPLERS[name].like(ours("sd1").scheduler))


def last_state(draw, *args, **kwargs) -> fs.State:
    states = []
    draw(*args, callback=states.append, **kwargs)
    return states[-1]


def picture(seed: int = 0, size: int = 32) -> Image.Image:
    torch.manual_seed(seed)
    return fs.tensor_to_images(torch.rand(1, 3, size, size) * 2 - 1)[0]


def same(a: Image.Image, b: Image.Image) -> bool:
    return ImageChops.difference(a, b).getbbox() is None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_depends_on_its_own_seed_only(sampler):
    model = with_sampler(sampler)
    together = last_state(fs.text_to_image, model, ["a cat", "a boat", "a house"], seed=4, **QUICK).x
    alone = last_state(fs.text_to_image, model, "a boat", seed=5, **QUICK).x
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_one_is_text_to_image(sampler):
    model = with_sampler(sampler)
    drawn = last_state(fs.text_to_image, model, "a cat", seed=2, **QUICK).x
    for seed in (0, 1):
        over = last_state(fs.image_to_image, model, "a cat", picture(seed), strength=1, seed=2, **QUICK).x
        assert torch.equal(over, drawn)


def test_strength_zero_returns_the_encoded_image():
    model, states = ours("sd1"), []
    (image,) = fs.image_to_image(model, "a cat", picture(), strength=0, callback=states.append, **QUICK)
    pixels = fs.images_to_tensor(picture())
    expected = model.autoencoder.decode(model.autoencoder.encode(pixels))
    assert not states and same(image, fs.tensor_to_images(expected)[0])


@settings(max_examples=10, deadline=None)
@given(strength=st.floats(0, 1, exclude_min=True, exclude_max=True), num_steps=st.integers(1, 6))
def test_every_strength_between_takes_steps(strength, num_steps):
    states = []
    fs.image_to_image(
        ours("sd1"), "a cat", picture(), strength=strength, num_inference_steps=num_steps, guidance_scale=1,
        callback=states.append,
    )  # fmt: skip
    assert len(states) == max(1, int(strength * num_steps))


def test_more_strength_leaves_less_of_the_image():
    model = ours("sd1")
    latent = model.autoencoder.encode(fs.images_to_tensor(picture()))
    distances = []
    for strength in (0.1, 0.4, 0.8):
        state = last_state(
            fs.image_to_image, model, "a cat", picture(), strength=strength, num_inference_steps=10, guidance_scale=1
        )
        distances.append(float((state.x - latent).norm()))
    assert distances == sorted(distances)


def test_one_picture_per_image_and_prompt():
    model = ours("sd1")
    both = fs.image_to_image(model, ["a cat", "a boat"], [picture(0), picture(1)], strength=0.5, seed=[7, 8], **QUICK)
    second = fs.image_to_image(model, "a boat", picture(1), strength=0.5, seed=8, **QUICK)
    difference = fs.images_to_tensor(both[1]) - fs.images_to_tensor(second)
    assert difference.abs().max() <= 2 / 255 + 1e-6
    assert not same(both[0], both[1])


def test_guidance_is_a_straight_line():
    """At w = 0 the negative prompt alone, at w = 1 the prompt alone, and any other w lies on the line through both."""
    unet, (x, context) = ours("sd1").unet, (torch.randn(2, 4, 8, 8), torch.randn(4, 5, 32))
    negative, positive = unet(x, 30, context[:2]), unet(x, 30, context[2:])
    for w in (0.0, 1.0, 7.5, -2.0):
        expected = negative + w * (positive - negative)
        torch.testing.assert_close(fs.guided_prediction(unet, x, 30, context, w), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fs.guided_prediction(unet, x, 30, context[2:], 7.5), positive, rtol=1e-4, atol=1e-4)


def test_no_guidance_ignores_the_negative_prompt():
    model = ours("sd1")
    arguments = {"num_inference_steps": 2, "guidance_scale": 1.0}
    plain = last_state(fs.text_to_image, model, "a cat", **arguments).x
    assert torch.equal(last_state(fs.text_to_image, model, "a cat", negative_prompt="a boat", **arguments).x, plain)
    assert not torch.equal(last_state(fs.text_to_image, model, "a cat", negative_prompt="a boat", **QUICK).x, plain)


def test_embeddings_instead_of_texts():
    model = ours("sd1")
    text = {"prompt": "a cat", "negative_prompt": "a boat"}
    drawn = last_state(fs.text_to_image, model, **text, **QUICK).x
    embeds = {
        "prompt_embeds": fs.encode_prompt(model, "a cat"), "negative_prompt_embeds": fs.encode_prompt(model, "a boat"),
    }  # fmt: skip
    assert torch.equal(last_state(fs.text_to_image, model, **embeds, **QUICK).x, drawn)
    longer = {name: torch.cat([tokens, torch.randn(1, 17, 32)], 1) for name, tokens in embeds.items()}
    assert (last_state(fs.text_to_image, model, **longer, **QUICK).x - drawn).abs().max() > 1e-3


def test_states_tell_the_way():
    model, states = ours("sd1"), []
    (image,) = fs.text_to_image(model, "a cat", callback=states.append, height=32, width=48, **QUICK)
    assert [state.step for state in states] == [0, 1, 2]
    assert [state.t for state in states] == [s for _, s in model.scheduler.steps(3)]
    assert image.size == (48, 32) and states[0].x.shape == (1, 4, 16, 24)
    assert same(image, fs.tensor_to_images(model.autoencoder.decode(states[-1].x))[0])


def test_recording_attention():
    model = ours("sd1")
    drawn = last_state(fs.text_to_image, model, "a boat", **QUICK).x
    with fs.record_cross_attention(model.unet) as maps:
        recorded = last_state(fs.text_to_image, model, "a boat", **QUICK).x
    assert torch.equal(recorded, drawn)
    assert len(maps) == 4  # one layer down, one in the middle, two up
    assert {name: tuple(calls[0].shape) for name, calls in maps.items()} == {
        "down.0.attention.0.blocks.0.cross_attention": (2, 4, 16, 16, 16),
        "mid.attention.0.blocks.0.cross_attention": (2, 4, 8, 8, 16),
        "up.1.attention.0.blocks.0.cross_attention": (2, 4, 16, 16, 16),
        "up.1.attention.1.blocks.0.cross_attention": (2, 4, 16, 16, 16),
    }
    for calls in maps.values():
        assert len(calls) == 3
        for call in calls:
            torch.testing.assert_close(call.sum(-1), torch.ones(call.shape[:-1]))
    words = fs.word_maps(maps)
    assert words.shape == (16, 16, 16)
    torch.testing.assert_close(words.sum(0), torch.ones(16, 16))


def test_recorded_attention_is_the_attention_used():
    layer = ours("sd1").unet.mid.attention[0].blocks[0].cross_attention
    x, context = torch.randn(2, 6, 64), torch.randn(2, 9, 32)
    by_hand = layer.weights(x, context) @ layer.split(layer.to_v(context))
    by_hand = layer.to_out(by_hand.transpose(1, 2).flatten(2))
    torch.testing.assert_close(by_hand, layer(x, context), rtol=1e-4, atol=1e-5)


def test_recording_leaves_nothing_behind():
    unet = ours("sd1").unet
    with pytest.raises(RuntimeError, match="stop"), fs.record_cross_attention(unet):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    with pytest.raises(ValueError, match="No attention was recorded"):
        fs.word_maps({})


def test_bad_input():
    model = ours("sd1")
    for strength, sentence in ((-0.1, "is the share"), (1.5, "is the share"), (float("nan"), "is a finite number")):
        with pytest.raises(ValueError, match=f"strength {sentence}"):
            fs.image_to_image(model, "a cat", picture(), strength=strength)
    with pytest.raises(ValueError, match="must be 1 to 1000.*got 0"):
        fs.text_to_image(model, "a cat", num_inference_steps=0)
    with pytest.raises(ValueError, match="multiples of 2.*got 33 x 32"):
        fs.text_to_image(model, "a cat", height=33)
    with pytest.raises(ValueError, match="multiples of 2.*got 0 x 32"):
        fs.text_to_image(model, "a cat", height=0)
    with pytest.raises(ValueError, match="at least one prompt"):
        fs.text_to_image(model, [])
    with pytest.raises(ValueError, match="multiples of 2.*got 31 x 31"):
        fs.image_to_image(model, "a cat", picture(size=31))
    with pytest.raises(ValueError, match="one for each of the 2 prompts; got 3"):
        fs.text_to_image(model, ["a", "b"], seed=[1, 2, 3])
    with pytest.raises(ValueError, match="one for each of the 1 prompts; got 2"):
        fs.image_to_image(model, "a cat", [picture(), picture()])
    with pytest.raises(ValueError, match="must have one size"):
        fs.image_to_image(model, "a cat", [picture(), picture(size=16)])
    with pytest.raises(ValueError, match="have one shape"):
        fs.text_to_image(model, prompt_embeds=torch.zeros(1, 33, 32))
    with pytest.raises(ValueError, match="16 positions; it was given 17 tokens"):
        model.text_encoder(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="skip must be 0 to 1"):
        model.text_encoder(torch.zeros(1, 5, dtype=torch.long), skip=2)


def test_uses_neither_diffusers_nor_transformers():
    """The whole way from folder to picture in a process of its own, where those two must not turn up."""
    code = f"""
import sys
from context_diffusion import from_scratch as fs
fs.text_to_image(fs.StableDiffusion.from_pretrained({str(folder("sd1"))!r}), "a cat", num_inference_steps=1)
assert not {{"diffusers", "transformers", "tokenizers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
