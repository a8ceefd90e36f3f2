"""The one place that draws: a batch holds what the model draws one by one, whatever the requests are made of."""

import json
import shutil
import time
import traceback
from dataclasses import fields
from inspect import signature

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from worlds import hub_folder, scenes_folder

from context_diffusion import ContextDiffusion, Request
from context_diffusion.checks import check_count, check_number
from context_diffusion.context.contexts import Contexts
from context_diffusion.context.projector import ContextProjector
from context_diffusion.pipelines import load_pipeline

QUERY = Image.new("RGB", (32, 32), "navy")
ImageDraw.Draw(QUERY).ellipse((6, 8, 26, 28), fill="orange")
ROUND = Image.new("RGB", (32, 32), "white")
ImageDraw.Draw(ROUND).rectangle((4, 4, 20, 20), fill="black")
REDS = [Image.effect_noise((64, 64), spread).convert("RGB") for spread in (40, 110)]
STEPS = {"num_inference_steps": 2}


def asked() -> list[Request]:
    """Requests of every kind, mixed; made anew for each test, because a generator is used up."""
    return [
        Request(None, (), "a red house", seed=3, **STEPS),
        Request(QUERY, REDS, "a cat", layout="canny", seed=4, **STEPS),
        Request(None, REDS[:1], seed=5, **STEPS),
        Request(None, (), "a boat", seed=6, **STEPS),
        Request(ROUND, REDS[1:], "a fish", layout="canny", seed=7, **STEPS),
        Request(QUERY, REDS, layout="depth", seed=8, **STEPS),
        Request(QUERY, (), "a tree", seed=9, **STEPS),
        Request(QUERY, (), layout="canny", seed=10, **STEPS),
        Request(QUERY, REDS, "a cat", layout="img2img", seed=11, **STEPS),
        Request(ROUND, REDS, "a boat", layout="img2img", weights=[1, 3], seed=12, **STEPS),
        Request(QUERY, REDS, "a cat", strength=0.5, seed=13, **STEPS),
        Request(QUERY, (), "a cat", strength=0, seed=14, **STEPS),
        Request(None, REDS, "a cat", weights=[3, 1], negative_prompt="a sea", seed=15, **STEPS),
        Request(None, REDS, "a cat", weights=[1, 3], negative_prompt="a tree", seed=15, **STEPS),
        Request(None, REDS, "a cat", guidance_scale=1.0, seed=16, **STEPS),
        Request(None, (), "a cat", width=48, height=32, seed=17, **STEPS),
        Request(None, REDS, "a cat", num_inference_steps=3, guidance_scale=6.0, seed=18),
        Request(QUERY, REDS, "a cat", control_scale=0.3, generator=torch.Generator().manual_seed(19), **STEPS),
    ]


def far(first, second) -> int:
    """Largest difference in grey levels."""
    return int(np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max())


def alone(model: ContextDiffusion, request: Request) -> Image.Image:
    """The same picture from the call."""
    arguments = {field.name: getattr(request, field.name) for field in fields(request)}
    if request.generator is not None:
        arguments["generator"] = [torch.Generator().manual_seed(request.generator.initial_seed())]
    return model(**arguments, progress=False)


FOLDERS = {
    "tokens": lambda: scenes_folder(),
    "adapter": lambda: hub_folder(adapter=True, control=True),
    "adapter xl": lambda: hub_folder(True, adapter=True, control=True),
    "colour": lambda: hub_folder(control=True),
    "colour xl, no control": lambda: hub_folder(True),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_batch_holds_what_the_model_draws_one_by_one(name):
    model = ContextDiffusion.from_pretrained(FOLDERS[name](), device="cpu")
    known = ("canny", "depth", "img2img") if name == "tokens" else ("canny", "img2img") if "no" not in name else ()
    requests = [request for request in asked() if request.layout in (None, *known)]
    batched = model.draw(requests, batch_size=5, progress=False)
    for request, picture in zip(requests, batched, strict=True):
        assert far(picture, alone(model, request)) <= 1, request
        assert picture.info["seed"] == request.seed
    different = [batch for batch in batched if batch.size == (32, 32)]
    assert min(far(a, b) for i, a in enumerate(different) for b in different[:i]) > 0  # no two of them are the same


def test_batches_are_as_large_as_the_pipeline_allows_and_no_larger():
    model = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")
    rows = []
    handle = model.pipeline.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    try:
        model.draw([Request(prompt=f"{n} boats", seed=n, **STEPS) for n in range(7)], batch_size=3, progress=False)
    finally:
        handle.remove()
    assert rows == [6, 6, 6, 6, 2, 2]  # two branches of guidance, two steps


def test_a_bad_request_is_told_before_any_picture_is_drawn():
    model = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")
    called = []
    handle = model.pipeline.unet.register_forward_pre_hook(lambda *_: called.append(1))
    try:
        with pytest.raises(ValueError, match="strength must be finite and between 0 and 1"):
            model.draw([Request(prompt="a cat", **STEPS), Request(QUERY, strength=2.0)])
        with pytest.raises(ValueError, match="'img2img'; got 'cany'; did you mean 'canny'"):
            model.draw([Request(QUERY, layout="cany")])
        with pytest.raises(ValueError, match="layout='depth' says how the query acts; pass query_image as well"):
            model.draw([Request(prompt="a cat", layout="depth")])
        with pytest.raises(ValueError, match="seed or generator, not both"):
            model.draw([Request(prompt="a cat", seed=1, generator=torch.Generator())])
        with pytest.raises(ValueError, match="batch_size must be finite and at least 1"):
            model.draw([Request(prompt="a cat")], batch_size=0)
    finally:
        handle.remove()
    assert not called
    assert model.draw([]) == []


def test_a_request_has_the_arguments_of_the_call_and_their_defaults():
    call = {name: p.default for name, p in signature(ContextDiffusion.__call__).parameters.items() if name != "self"}
    one = {field.name: field.default for field in fields(Request)}
    assert set(call) - set(one) == {"num_images", "callback_on_step_end", "progress"}
    assert {name: call[name] for name in one} == one


def test_every_way_of_contexts_offers_the_same_methods():
    for kind in Contexts.__subclasses__():
        for method in ("kind", "inputs", "start"):
            assert signature(getattr(kind, method)) == signature(getattr(Contexts, method)), (kind, method)


def test_requests_that_share_a_generator_are_refused_and_so_is_what_is_no_request():
    model = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")
    shared = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="a generator of its own"):
        model.draw([Request(prompt="a cat", generator=shared), Request(prompt="a boat", generator=shared)])
    with pytest.raises(TypeError, match=r"draw takes requests, such as cd\.Request.*'a cat'"):
        model.draw(iter(["a cat"]))
    (one,) = model.draw(Request(prompt="a cat", seed=3, **STEPS), progress=False)
    assert far(one, model(prompt="a cat", seed=3, progress=False, **STEPS)) == 0


def test_pictures_of_equal_bytes_and_other_sizes_are_other_contexts():
    model = ContextDiffusion.from_pretrained(hub_folder(adapter=True), device="cpu")
    model.contexts.scale = 1.0
    tall = Image.effect_noise((32, 128), 90).convert("RGB")
    wide = Image.frombytes("RGB", (128, 32), tall.tobytes())
    requests = [Request(None, [context], "a cat", seed=1, **STEPS) for context in (tall, wide)]
    for request, picture in zip(requests, model.draw(requests, progress=False), strict=True):
        assert far(picture, alone(model, request)) <= 1


def test_less_than_one_step_from_the_contexts_colours_returns_them():
    model = ContextDiffusion.from_pretrained(hub_folder(), device="cpu")
    mean = model(None, [REDS[0]], strength=0.1, progress=False, **STEPS)
    assert far(mean, REDS[0].resize((32, 32), Image.Resampling.BICUBIC)) <= 64 and mean.info["prompt"] == ""


def test_numbers_of_numpy_are_numbers_and_none_says_nothing():
    assert check_count("seed", np.int64(3), low=0) == 3 and check_number("scale", np.float32(3), 0) == 3
    with pytest.raises(TypeError, match="seed is a whole number, not 1.5"):
        check_count("seed", 1.5, low=0)
    model = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")
    plain = model(prompt="a cat", seed=3, progress=False, **STEPS)
    assert far(plain, model(prompt="a cat", negative_prompt=None, seed=3, progress=False, **STEPS)) == 0


def test_diffusers_own_callbacks_see_the_tensors_they_ask_for():
    from diffusers.callbacks import PipelineCallback

    class Look(PipelineCallback):
        tensor_inputs = ("latents", "prompt_embeds")
        seen = ()

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.seen = (*self.seen, sorted(callback_kwargs))
            return callback_kwargs

    model = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")
    look = Look(cutoff_step_ratio=1.0)
    drawn = model(None, REDS, "a cat", seed=3, callback_on_step_end=look, progress=False, **STEPS)
    assert look.seen == (["latents", "prompt_embeds"],) * 2
    assert far(drawn, model(None, REDS, "a cat", seed=3, progress=False, **STEPS)) == 0


def test_the_folder_of_a_row_is_that_row():
    from context_diffusion.checkpoints import find_model
    from context_diffusion.files import TINY_SCENES

    assert find_model(TINY_SCENES) is find_model("tiny-scenes")


def test_a_controlnet_is_saved_loaded_and_switched_as_diffusers_own(tmp_path):
    from diffusers import ControlNetModel, StableDiffusionControlNetImg2ImgPipeline, StableDiffusionControlNetPipeline

    from context_diffusion.pipelines import load_pipeline

    pipe = load_pipeline("tiny-scenes", control="canny", device="cpu")
    assert type(pipe.controlnet) is ControlNetModel
    switched = StableDiffusionControlNetImg2ImgPipeline.from_pipe(pipe)
    assert switched.controlnet is pipe.controlnet
    pipe.save_pretrained(tmp_path)
    again = StableDiffusionControlNetPipeline.from_pretrained(tmp_path)
    weights = again.controlnet.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in pipe.controlnet.state_dict().items())


@pytest.fixture
def untyped(monkeypatch):
    """Our own sentences, not the type checker's."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


WRONG = {
    "prompt": (3, b"a", 2.5, "\ud800", "a" * 10**6, {"a": 1}),
    "negative_prompt": (3, ["a"], b"a"),
    "query_image": (3, {}, ["a.png"]),
    "context_images": ([None], 3, {"a": 1}),
    "weights": ("12", {1: 2}, [True, True], [], {1, 2}, 3, [10**400, 1], [np.nan, 1]),
    "layout": (3, "cany", ["canny"], np.array(["canny"])),
    "strength": (True, "0.5", np.nan, 10**400),
    "control_scale": (10**400, -1, True, np.inf, 10**6),
    "guidance_scale": (10**400, "3", np.bool_(True), 10**6, [3]),
    "num_inference_steps": (True, 2.5, 10**6, "3", 0),
    "seed": (True, -1, 2**63, 1.5, "3"),
    "generator": (3, "a", [3], [None], []),
    "num_images": (10**9, 10**400, True, 0, 2.0),
    "height": (0, 10**7, 33, True, "32"),
    "width": (-8, 2**40, 8.5),
    "callback_on_step_end": (3, "a", int, lambda: None),
    "progress": ("no", None, np.nan, 1),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_argument_is_refused_in_one_sentence_before_any_work(untyped, name):
    model = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")
    called = []
    model.pipeline.unet.register_forward_pre_hook(lambda *_: called.append(1))
    for value in WRONG[name]:
        given = {"query_image": QUERY, "context_images": REDS, "prompt": "a cat", "progress": False, **STEPS}
        start = time.monotonic()
        with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
            model(**given | {name: value})
        said = str(caught.value)
        assert "\n" not in said and len(said) < 400, said
        assert "context_diffusion" in traceback.extract_tb(caught.value.__traceback__)[-1].filename, said
        assert time.monotonic() - start < 2
    assert not called


def test_numbers_out_of_arrays_draw_the_same_picture(untyped):
    model = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")
    plain = model(
        None, REDS, "a cat", seed=3, num_inference_steps=2, guidance_scale=2.0, weights=[1, 3], progress=False
    )
    numbers = {"seed": np.int64(3), "num_inference_steps": torch.tensor(2), "guidance_scale": np.array(2.0)}
    sizes = {"width": np.int32(32), "height": np.array(32), "weights": torch.tensor([1, 3]), "num_images": np.int8(1)}
    assert far(plain, model(None, REDS, "a cat", progress=np.False_, **numbers, **sizes)) == 0
    assert far(plain, model.draw(Request(None, iter(REDS), "a cat", **numbers, weights=np.array([1.0, 3.0])))[0]) == 0
    assert far(model(None, REDS, None, seed=3, **STEPS), model(None, REDS, "", seed=3, **STEPS)) == 0


@pytest.mark.parametrize("name", ["tokens", "colour"])
def test_strength_without_a_picture_to_start_from_is_refused(name):
    model = ContextDiffusion.from_pretrained(FOLDERS[name](), device="cpu")
    with pytest.raises(ValueError, match="strength says how much of the query is drawn anew; pass query_image"):
        model(prompt="a cat", strength=0.5, **STEPS)
    if name == "tokens":  # only contexts that act by colour give a picture
        with pytest.raises(ValueError, match="pass query_image as well"):
            model(None, REDS, "a cat", strength=0.5, **STEPS)


def test_the_pictures_of_one_call_have_a_limit_together():
    model = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")
    with pytest.raises(ValueError, match="width times height times num_images must be finite and between 1 and"):
        model(prompt="a cat", width=1024, height=1024, num_images=65)


def test_the_scale_of_an_ip_adapter_is_the_users_after_drawing():
    model = ContextDiffusion.from_pretrained(hub_folder(adapter=True), device="cpu")
    model.pipeline.set_ip_adapter_scale(0.25)
    adapters = [module for module in model.pipeline.unet.modules() if hasattr(module, "to_k_ip")]
    model(None, REDS, "a cat", progress=False, **STEPS)
    assert adapters and all(adapter.scale == [0.25] for adapter in adapters)
    with pytest.raises(RuntimeError, match="stop"):
        model(None, REDS, "a cat", callback_on_step_end=stopping, progress=False, **STEPS)
    assert all(adapter.scale == [0.25] for adapter in adapters)


def stopping(pipe, step, timestep, tensors):
    raise RuntimeError("stop")


def test_a_callback_that_returns_something_else_is_told():
    model = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")
    with pytest.raises(TypeError, match="returns a dictionary of tensors, or None, not 3"):
        model(prompt="a cat", callback_on_step_end=lambda *_: 3, progress=False, **STEPS)


def test_context_tokens_act_in_stable_diffusion_xl(tmp_path):
    shutil.copytree(hub_folder(True), tmp_path / "xl")
    for part in ("image_encoder", "context_projector"):
        shutil.copytree(scenes_folder() / part, tmp_path / "xl" / part)
    unet = json.loads((tmp_path / "xl" / "unet" / "config.json").read_text())
    width = {"cross_attention_dim": unet["cross_attention_dim"], "vision_width": 32}
    ContextProjector(**width).save_pretrained(tmp_path / "xl" / "context_projector")
    model = ContextDiffusion.from_pretrained(tmp_path / "xl", device="cpu")
    for start in ({}, {"query_image": QUERY, "strength": 0.8}):
        plain = model(prompt="a cat", seed=3, progress=False, **STEPS, **start)
        assert far(plain, model(prompt="a cat", context_images=REDS, seed=3, progress=False, **STEPS, **start)) > 0
    alone = load_pipeline(tmp_path / "xl", device="cpu")
    alone.set_progress_bar_config(disable=True)
    options = {"generator": torch.Generator().manual_seed(3), "guidance_scale": 7.5, "width": 32, "height": 32, **STEPS}
    assert far(model(prompt="a cat", seed=3, progress=False, **STEPS), alone("a cat", **options).images[0]) <= 1
