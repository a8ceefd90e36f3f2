"""One folder, two implementations: every network and the finished picture must agree."""

import diffusers
import pytest
import torch
from from_scratch_folders import LAYOUTS, folder, ours, theirs

from context_diffusion import from_scratch as fs

TOLERANCE = 1e-4
PROMPTS = ["a boat among hills, watercolor style", "a red cat!"]
pytestmark = [pytest.mark.parametrize("layout", LAYOUTS), pytest.mark.filterwarnings("ignore:The text encoder reads")]


def agree(a: torch.Tensor, b: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert b.std() > 1e-3, "the reference is constant: this comparison would prove nothing"
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_text_encoder(layout):
    model, pipe = ours(layout), theirs(layout)
    length = model.tokenizer.max_length
    ids = pipe.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    expected = pipe.text_encoder(ids.input_ids, output_hidden_states=True)
    agree(fs.encode_prompt(model, PROMPTS), expected.last_hidden_state)
    before_last = pipe.text_encoder.final_layer_norm(expected.hidden_states[-2])
    agree(model.text_encoder(ids.input_ids, skip=1), before_last)


@torch.no_grad()
def test_autoencoder(layout):
    model, pipe = ours(layout), theirs(layout)
    factor = model.autoencoder.factor
    images = torch.rand(2, 3, 4 * factor, 6 * factor) * 2 - 1
    posterior = pipe.vae.encode(images).latent_dist
    mean, std = model.autoencoder.posterior(images)
    agree(mean, posterior.mean)
    torch.testing.assert_close(std, posterior.std, rtol=TOLERANCE, atol=TOLERANCE)
    agree(model.autoencoder.encode(images), posterior.mean * pipe.vae.config.scaling_factor)
    latents = torch.randn(2, model.unet.in_channels, 4, 6)
    agree(model.autoencoder.decode(latents), pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample)


@torch.no_grad()
@pytest.mark.parametrize("extra", [0, 17], ids=["text only", "17 more tokens"])
@pytest.mark.parametrize("size", [(16, 16), (11, 14)], ids=["square", "odd"])
def test_unet(layout, size, extra):
    model, pipe = ours(layout), theirs(layout)
    x = torch.randn(2, model.unet.in_channels, *size)
    context = torch.randn(2, model.tokenizer.max_length + extra, model.unet.context_width)
    t = torch.tensor([3, 941])
    agree(model.unet(x, t, context), pipe.unet(x, t, context).sample)


@torch.no_grad()
def test_unet_in_bfloat16(layout):
    """Both round after every layer, to 8 bits: 3 % of the output's spread is what that leaves."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder(layout) / "unet", torch_dtype=torch.bfloat16)
    unet = unet.to(torch.bfloat16)
    mine = fs.StableDiffusion.from_pretrained(folder(layout), dtype=torch.bfloat16).unet
    x = torch.randn(2, mine.in_channels, 16, 16).bfloat16()
    context = torch.randn(2, 16, mine.context_width).bfloat16()
    expected = unet(x, 500, context).sample
    result = mine(x, 500, context)
    assert result.dtype == torch.bfloat16
    assert (result - expected).abs().max() < 0.03 * expected.abs().max()


def diffusers_latents(pipe, seeds, **arguments) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(generator=generators, output_type="latent", num_inference_steps=4, **arguments).images


def test_text_to_image(layout):
    model, pipe, states = ours(layout), theirs(layout), []
    arguments = {"prompt": PROMPTS, "negative_prompt": ["a house", ""], "guidance_scale": 5.0}
    size = {"height": 32, "width": 48}  # the library wants multiples of 8, whatever the autoencoder
    images = fs.text_to_image(model, **arguments, **size, num_inference_steps=4, seed=[3, 9], callback=states.append)
    agree(states[-1].x, diffusers_latents(pipe, [3, 9], **arguments, **size))
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 9)]
    expected = pipe(generator=generators, num_inference_steps=4, output_type="pil", **arguments, **size).images
    for image, picture in zip(images, expected, strict=True):
        difference = torch.tensor(list(image.tobytes())) - torch.tensor(list(picture.tobytes()))
        assert difference.abs().max() <= 1  # grey levels: rounding may fall to either side


def test_image_to_image(layout):
    model, states = ours(layout), []
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**theirs(layout).components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    side = 4 * model.autoencoder.factor
    image = fs.tensor_to_images(torch.rand(1, 3, side, side) * 2 - 1)[0]
    fs.image_to_image(model, PROMPTS, image, strength=0.6, num_inference_steps=4, seed=[3, 9], callback=states.append)
    expected = diffusers_latents(pipe, [3, 9], prompt=PROMPTS, image=[image, image], strength=0.6)
    assert len(states) == 2
    agree(states[-1].x, expected)
