import inspect

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers import CLIPVisionModel
from worlds import hub_folder, scenes_folder

from context_diffusion import ContextDiffusion, load_image_as_tensor
from context_diffusion.checks import check_size
from context_diffusion.context.projector import ContextProjector
from context_diffusion.context.request import image_seeds, warn_if_cut
from context_diffusion.control import canny_map, control_image
from context_diffusion.images import dynamic_normalization, to_tensor

QUERY = Image.new("RGB", (32, 32), "navy")
ImageDraw.Draw(QUERY).ellipse((6, 8, 26, 28), fill="orange")
REDS = [Image.effect_noise((64, 64), spread).convert("RGB") for spread in (40, 110)]
BLUE = Image.new("RGB", (64, 64), "blue")
FAST = {"num_inference_steps": 2, "seed": 5, "progress": False}


@pytest.fixture(scope="module")
def model():
    return ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def far(first, second) -> int:
    """Largest difference in grey levels."""
    return int(np.abs(pixels(first) - pixels(second)).max())


# --- what the call means ---------------------------------------------------------------------------------


def by_hand(contexts, weights, prompt, query=None, guidance=3.0) -> Image.Image:
    """The same picture from diffusers and transformers alone, step by step."""
    folder = scenes_folder()
    vision = CLIPVisionModel.from_pretrained(folder / "image_encoder")
    projector = ContextProjector.from_pretrained(folder / "context_projector")
    parts = {"safety_checker": None, "requires_safety_checker": False}
    pipe = StableDiffusionPipeline.from_pretrained(folder, **parts)
    text = pipe.tokenizer([prompt, ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        positive, negative = pipe.text_encoder(text)[0].chunk(2)
        if contexts:
            small = torch.stack([torch.nn.functional.avg_pool2d(to_tensor(image), 2) for image in contexts])
            values, statistics = dynamic_normalization(small)
            patches = vision(values).last_hidden_state[:, 1:].reshape(len(contexts), 4, 2, 4, 2, -1)
            pooled = patches.mean((2, 4)).flatten(1, 2)
            tokens = projector(pooled[None], statistics[None], torch.tensor([weights]))
            assert tokens.shape[1] == 17
            positive = torch.cat([positive, tokens], 1)
            negative = torch.cat([negative, torch.zeros_like(tokens)], 1)
    options = {"prompt_embeds": positive, "negative_prompt_embeds": negative, "guidance_scale": guidance}
    seed = torch.Generator().manual_seed(5)
    if query is not None:
        from diffusers import ControlNetModel

        controlnet = ControlNetModel.from_pretrained(folder / "controlnet-canny")
        pipe = StableDiffusionControlNetPipeline(
            **pipe.components, controlnet=controlnet, requires_safety_checker=False
        )
        options["image"] = control_image(canny_map(query))
    return pipe(num_inference_steps=2, generator=seed, height=32, width=32, **options).images[0]


@pytest.mark.parametrize(
    ("query", "contexts", "prompt"),
    [(None, [], "a red house"), (None, REDS, ""), (None, REDS, "a cat"), (QUERY, REDS, "a cat"), (QUERY, [], "a cat")],
)
def test_call_is_the_plain_pipeline_on_text_and_context_tokens(model, query, contexts, prompt):
    picture = model(query, contexts, prompt, guidance_scale=3.0, **FAST)
    assert far(picture, by_hand(contexts, [0.5, 0.5], prompt, query)) <= 1


def test_each_input_changes_the_picture(model):
    strong = FAST | {"guidance_scale": 8.0}
    base = model(QUERY, REDS, "a cat", **strong)
    for other in (
        model(None, REDS, "a cat", **strong),
        model(QUERY, [BLUE], "a cat", **strong),
        model(QUERY, REDS, "a green boat", **strong),
        model(QUERY, REDS, "a cat", negative_prompt="a fish", **strong),
        model(QUERY, REDS, "a cat", control_scale=0.0, **strong),
        model(QUERY, REDS, "a cat", layout="depth", **strong),
        model(QUERY, REDS, "a cat", layout="img2img", **strong),
        model(QUERY, REDS, "a cat", weights=[1, 4], **strong),
    ):
        assert far(base, other) > 2


def test_control_scale_0_is_no_query_and_weight_0_is_no_context(model):
    assert far(model(QUERY, REDS, "a cat", control_scale=0.0, **FAST), model(None, REDS, "a cat", **FAST)) <= 1
    assert far(model(None, REDS, weights=[0, 2], **FAST), model(None, REDS[1], **FAST)) <= 1


def test_order_of_contexts_does_not_matter_but_their_weights_follow_them(model):
    forwards = model(None, [*REDS, BLUE], weights=[1, 2, 3], **FAST)
    assert far(forwards, model(None, [BLUE, *REDS[::-1]], weights=[3, 2, 1], **FAST)) <= 1


def test_the_palette_of_a_constant_context_acts_through_the_statistic_token(model):
    green = Image.new("RGB", (64, 64), "green")  # after normalization the same zeros as blue
    normal = [dynamic_normalization(to_tensor(image))[0] for image in (BLUE, green)]
    torch.testing.assert_close(*normal, atol=1e-3, rtol=0)
    assert far(model(None, BLUE, **FAST), model(None, green, **FAST)) > 1


SCHEDULERS = (DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_context_acts_by_its_tokens_under_any_scheduler(kind):
    model = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")
    model.pipeline.scheduler = kind.from_config(model.pipeline.scheduler.config)
    assert far(model(None, BLUE, "a cat", **FAST), model(prompt="a cat", **FAST)) > 1


def test_the_seed_documents_example_runs(model, tmp_path):
    for number, image in enumerate((QUERY, *REDS, BLUE)):
        image.save(tmp_path / f"{number}.jpg")
    query_image = load_image_as_tensor(tmp_path / "0.jpg")
    context_images = [load_image_as_tensor(tmp_path / f"{number}.jpg") for number in (1, 2, 3)]
    image = model(query_image, context_images, "A stylized forest.", num_inference_steps=2, progress=False)
    assert image.size == (32, 32) and np.asarray(image).shape == (32, 32, 3)


# --- seeds, batches, callbacks ---------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"layout": "img2img"}, {"strength": 0.6}])
def test_a_picture_depends_on_its_seed_and_not_on_its_batch(model, extra):
    batch = model(QUERY, REDS, "a cat", num_images=3, **FAST | extra)
    alone = model(QUERY, REDS, "a cat", **FAST | extra | {"seed": 7})
    assert far(batch[2], alone) <= 1 and far(batch[1], alone) > 2
    assert [image.info["seed"] for image in batch] == [5, 6, 7]


def test_the_seed_of_a_random_picture_is_in_its_info(model):
    options = {"num_inference_steps": 2, "progress": False}
    first = model(prompt="a cat", **options)
    assert far(first, model(prompt="a cat", seed=first.info["seed"], **options)) == 0
    assert first.info["seed"] != model(prompt="a cat", **options).info["seed"]


def test_generators_are_used_as_in_diffusers(model):
    options = {"num_inference_steps": 2, "progress": False}
    listed = model(prompt="a cat", generator=[torch.Generator().manual_seed(5)], **options)
    assert far(listed, model(prompt="a cat", **FAST)) == 0
    twice = [model(prompt="a cat", generator=torch.Generator().manual_seed(1), num_images=2, **options) for _ in "ab"]
    assert far(twice[0][1], twice[1][1]) == 0 and far(twice[0][0], twice[0][1]) > 2


def test_callback_sees_every_step_and_can_change_the_latents(model):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), tuple(tensors["latents"].shape)))

    plain = model(prompt="a cat", **FAST)
    assert far(model(prompt="a cat", callback_on_step_end=look, **FAST), plain) == 0
    assert [step for step, _, _ in seen] == [0, 1] and seen[0][2] == (1, 4, 16, 16)
    zeros = lambda pipe, step, timestep, tensors: {"latents": 0 * tensors["latents"]}  # noqa: E731
    assert far(model(prompt="a cat", callback_on_step_end=zeros, **FAST), plain) > 2


@pytest.mark.parametrize("strength", [0, 0.0, 0.4])
def test_less_than_one_step_of_strength_returns_the_query(model, strength):
    images = model(QUERY, REDS, "a cat", strength=strength, num_images=2, **FAST)
    assert [far(image, QUERY) for image in images] == [0, 0]


def test_less_strength_stays_nearer_to_the_query(model):
    start = model.pipeline.vae  # what a random VAE makes of the query is the zero of this scale
    with torch.no_grad():
        latents = start.encode(to_tensor(QUERY)[None] * 2 - 1).latent_dist.mode()
        image = start.decode(latents).sample[0] / 2 + 0.5
    kept = (image.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    drawn = [
        model(QUERY, [], "a cat", layout="img2img", strength=s, num_inference_steps=10, seed=1, progress=False)
        for s in (0.1, 0.9)
    ]
    weak, strong = (np.abs(pixels(image) - kept).mean() for image in drawn)
    assert weak < strong


def test_guidance_without_any_condition_costs_nothing(model):
    calls = []
    handle = model.pipeline.unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    try:
        model(QUERY, guidance_scale=8.0, **FAST)
        model(QUERY, [BLUE], guidance_scale=8.0, **FAST)
    finally:
        handle.remove()
    assert calls == [1, 1, 2, 2]


def test_a_size_of_ones_own(model):
    assert model(prompt="a cat", width=48, height=32, **FAST).size == (48, 32)
    assert model(QUERY, width=48, height=32, **FAST).size == (48, 32)


# --- hub-shaped models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("xl", [False, True])
def test_without_control_and_adapter_the_query_starts_in_the_contexts_colours(xl):
    model = ContextDiffusion.from_pretrained(hub_folder(xl), device="cpu")
    dim = Image.effect_noise((32, 32), 20).convert("RGB")
    request = {"num_inference_steps": 10, "seed": 1, "progress": False, "strength": 0.1}
    seen = []
    encode = model.pipeline.vae.encode
    model.pipeline.vae.encode = lambda x, **kw: seen.append(x) or encode(x, **kw)
    try:
        model(QUERY, [dim], "a cat", **request)
        model(QUERY, [], "a cat", **request)
    finally:
        del model.pipeline.vae.encode
    recoloured, query = ((x[0] / 2 + 0.5).float() for x in seen)
    wanted = dynamic_normalization(to_tensor(dim))[1]
    torch.testing.assert_close(dynamic_normalization(recoloured)[1], wanted, atol=0.03, rtol=0)
    torch.testing.assert_close(query, to_tensor(QUERY), atol=1e-5, rtol=0)
    edges = dynamic_normalization(recoloured)[0].flatten(), dynamic_normalization(query)[0].flatten()
    assert torch.corrcoef(torch.stack(edges))[0, 1] > 0.98  # the layout is still the query's
    assert far(model(None, [dim, BLUE], **request), model(None, [dim, BLUE], weights=[1, 9], **request)) > 2


@pytest.mark.parametrize("xl", [False, True])
def test_an_ip_adapter_carries_the_weighted_average_of_the_contexts(xl):
    model = ContextDiffusion.from_pretrained(hub_folder(xl, adapter=True, control=True), device="cpu")
    plain = ContextDiffusion.from_pretrained(hub_folder(xl, control=True), device="cpu")
    options = FAST | {"guidance_scale": 5.0}
    both = model(QUERY, REDS, "a cat", **options)
    assert far(both, model(QUERY, REDS[:1], "a cat", **options)) > 1
    assert far(model(QUERY, REDS, "a cat", weights=[1, 0], **options), model(QUERY, REDS[:1], "a cat", **options)) <= 1
    assert far(both, plain(QUERY, [], "a cat", **options)) > 1
    assert far(model(QUERY, [], "a cat", **options), plain(QUERY, [], "a cat", **options)) <= 1
    assert far(model(None, REDS, guidance_scale=1.0, **FAST), model(None, REDS[:1], guidance_scale=1.0, **FAST)) > 1


def test_a_controlnet_beside_a_hub_model_gives_layout_and_colour_gives_style():
    model = ContextDiffusion.from_pretrained(hub_folder(control=True), device="cpu")
    picture = model(QUERY, REDS, "a cat", **FAST)
    assert far(picture, model(QUERY, REDS, "a cat", control_scale=0.0, **FAST)) > 0
    with pytest.raises(ValueError, match="no ControlNet for 'depth'"):
        model(QUERY, layout="depth", **FAST)


# --- bad input -------------------------------------------------------------------------------------------

BAD = {
    "nothing": ({}, ValueError, "at least one of query_image, context_images and prompt"),
    "missing file": ({"query_image": "no.png"}, FileNotFoundError, r"no\.png"),
    "bad context": ({"context_images": [BLUE, np.zeros((2, 2, 9))]}, ValueError, "1, 3 or 4 channels"),
    "weights": ({"context_images": [BLUE], "weights": [1, 2]}, ValueError, "one weight for each"),
    "orphan weights": ({"prompt": "a", "weights": [1]}, ValueError, r"0 context image\(s\), 1 weight"),
    "negative": ({"context_images": [BLUE, BLUE], "weights": [1, -1]}, ValueError, "not negative"),
    "strength": ({"query_image": QUERY, "strength": 1.5}, ValueError, "strength must be finite and between 0 and 1"),
    "nan": ({"prompt": "a", "guidance_scale": float("nan")}, ValueError, "guidance_scale must be finite"),
    "control": ({"query_image": QUERY, "control_scale": -1.0}, ValueError, "control_scale"),
    "steps": ({"prompt": "a", "num_inference_steps": 0}, ValueError, "between 1 and 1000"),
    "many steps": ({"prompt": "a", "num_inference_steps": 1001}, ValueError, "between 1 and 1000"),
    "images": ({"prompt": "a", "num_images": 0}, ValueError, "num_images"),
    "both": ({"prompt": "a", "seed": 1, "generator": torch.Generator()}, ValueError, "not both"),
    "seed": ({"prompt": "a", "seed": -1}, ValueError, "seed"),
    "list": ({"prompt": "a", "generator": [torch.Generator()] * 2}, ValueError, "one generator for each"),
    "size": ({"prompt": "a", "width": 50}, ValueError, "multiple of 8 .* got 50, take 48"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_get_one_sentence_before_any_step(model, name):
    arguments, error, sentence = BAD[name]
    steps = []
    handle = model.pipeline.unet.register_forward_pre_hook(lambda *_: steps.append(1))
    try:
        with pytest.raises(error, match=sentence):
            model(**arguments)
    finally:
        handle.remove()
    assert not steps


def test_a_long_prompt_warns_with_what_is_cut(model):
    with pytest.warns(UserWarning, match="16 tokens; this is cut: 'red house'"):
        warn_if_cut("a cat " * 7 + "red house", model.pipeline.tokenizer)
    with pytest.warns(UserWarning, match="negative prompt is longer"):
        model(prompt="a cat", negative_prompt="sea " * 20, **FAST)


@given(st.integers(1, 4096), st.sampled_from([8, 16, 64]))
@settings(deadline=None)
def test_the_size_offered_instead_is_allowed(side, multiple):
    if side % multiple == 0:
        check_size(side, side, multiple)
    else:
        with pytest.raises(ValueError, match=f"multiple of {multiple}") as caught:
            check_size(multiple, side, multiple)
        check_size(multiple, int(str(caught.value).rstrip(".").split()[-1]), multiple)


def test_seeds_are_consecutive_and_a_generator_draws_its_own():
    assert image_seeds(3, None, 3) == [3, 4, 5]
    drawn = [image_seeds(None, torch.Generator().manual_seed(9), 4) for _ in "ab"]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 4


def test_the_call_has_the_arguments_a_diffusers_user_expects():
    names = set(inspect.signature(ContextDiffusion.__call__).parameters)
    assert names >= {"prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "generator", "strength"}
