"""``style_aligned`` asks the pipeline that is running: whichever draws with the U-Net, the reference does not move."""

import inspect
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from aligning import PROMPTS, STEPS, calm, draw, noise, recorded
from diffusers import AutoPipelineForImage2Image, StableDiffusionPAGPipeline, StableDiffusionPipeline
from PIL import Image
from tiny import tiny_pix2pix, tiny_scheduler, tiny_sd15, tiny_sdxl
from worlds import scenes_folder

from context_diffusion import ContextDiffusion, Request
from context_diffusion.alignment.aligner import style_aligned
from context_diffusion.alignment.inversion import ddim_invert
from context_diffusion.alignment.trajectory import Trajectory, describe_model
from context_diffusion.guidance import GUIDED_BRANCHES
from context_diffusion.pipelines import as_pipeline

OFF = {"adain_queries": False, "adain_keys": False, "share_attention": False}
LAYOUTS = ["canny", "depth", "img2img", None]

guided = pytest.mark.parametrize("guidance_scale", [3.0, 1.0], ids=["guided", "unguided"])


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)


def moved(got: torch.Tensor, plain: torch.Tensor) -> list[bool]:
    """Which images are not what they were."""
    apart = (got - plain).abs().amax(dim=(1, 2, 3))
    assert ((apart < 1e-4) | (apart > 1e-3)).all(), f"neither equal nor different: {apart}"
    return (apart > 1e-3).tolist()


@cache
def model() -> ContextDiffusion:
    made = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")
    with torch.no_grad():
        made.pipeline.unet.conv_out.weight.mul_(0.1)
    return made


def latents(guidance_scale: float = 3.0, layout: str | None = None, rows=range(3), batch_size: int = 16, **options):
    """Draw some of three pictures with the query's layout (or no query), and return their last latents."""
    query = {"query_image": picture(7), "layout": layout} if layout else {}
    shared = {"num_inference_steps": 4, "guidance_scale": guidance_scale, **query, **options}
    requests = [Request(context_images=[picture(8)], prompt=PROMPTS[i], seed=i, **shared) for i in rows]
    last = {}

    def keep(pipe, step: int, time, tensors: dict) -> dict:
        last[id(pipe)] = tensors["latents"]
        kept.append(pipe)  # so that no two have one id
        return {}

    kept = []
    model().draw(requests, batch_size=batch_size, callback_on_step_end=keep, progress=False)
    return torch.cat(list(last.values()))


@guided
@pytest.mark.parametrize("layout", LAYOUTS)
def test_context_diffusion_leaves_the_reference_and_changes_the_others(layout, guidance_scale):
    plain = latents(guidance_scale, layout)
    with style_aligned(model().pipeline, control_reference=True):
        assert moved(latents(guidance_scale, layout), plain) == [False, True, True]
    assert torch.equal(latents(guidance_scale, layout), plain)


def test_the_call_with_several_images_leaves_the_first():
    def pictures() -> list[Image.Image]:
        return model()(picture(7), picture(8), "a cat", num_images=3, num_inference_steps=4, seed=0, progress=False)

    plain = pictures()
    with style_aligned(model().pipeline, control_reference=True):
        first, *others = (np.abs(np.subtract(a, b, dtype=float)).max() for a, b in zip(pictures(), plain, strict=True))
    assert first <= 1 and min(others) > 1  # grey levels


@pytest.mark.parametrize("layout", ["canny", "depth"])
def test_the_reference_of_context_diffusion_is_not_steered_by_the_query(layout):
    with style_aligned(model().pipeline):
        got = latents(layout=layout)
    assert moved(got[:1], latents(rows=[0])) == [False]
    assert moved(got[:1], latents(layout=layout, rows=[0])) == [True]


@cache
def reference() -> Trajectory:
    return ddim_invert(model().pipeline, picture(20), "a fish, neon style", num_inference_steps=4)


@guided
@pytest.mark.parametrize("layout", LAYOUTS)
def test_context_diffusion_with_references_draws_each_picture_as_alone(layout, guidance_scale):
    plain = latents(guidance_scale, layout)
    with style_aligned(model().pipeline, references=reference(), **OFF):
        assert torch.equal(latents(guidance_scale, layout), plain)
    with style_aligned(model().pipeline, references=reference()):
        together, alone = (latents(guidance_scale, layout, batch_size=size) for size in (3, 1))
    assert moved(together, alone) == [False] * 3 and moved(together, plain) == [True] * 3
    told = ("uncond", "cond") if guidance_scale > 1 else ("cond",)  # each row sees the reference with its own text
    with style_aligned(model().pipeline, references=reference(), branches=told):
        assert torch.equal(latents(guidance_scale, layout), together)


@guided
@pytest.mark.parametrize("make", [tiny_sd15, tiny_sdxl])
def test_a_pipeline_from_the_same_parts_says_how_it_is_guided(make, guidance_scale):
    pipe = make(fresh=True)  # has never made a call, so it cannot say
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.1)
    other = AutoPipelineForImage2Image.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)

    def sample(rows: slice = slice(None)) -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(i) for i in range(3)][rows]
        options = {"num_inference_steps": 4, "strength": 0.6, "generator": seeds, "output_type": "latent"}
        return other(PROMPTS[rows], image=[picture(1)] * len(seeds), guidance_scale=guidance_scale, **options).images

    plain, trajectory = sample(), ddim_invert(pipe, picture(20), "a fish", num_inference_steps=4)
    with style_aligned(pipe):
        assert moved(sample(), plain) == [False, True, True]
    with style_aligned(pipe, references=trajectory, **OFF):
        assert torch.equal(sample(), plain)
    with style_aligned(pipe, references=trajectory):
        together, alone = sample(), torch.cat([sample(slice(i, i + 1)) for i in range(3)])
    assert moved(together, alone) == [False] * 3 and moved(together, plain) == [True] * 3
    told = ("uncond", "cond") if guidance_scale > 1 else ("cond",)
    with style_aligned(pipe, references=trajectory, branches=told):
        assert torch.equal(sample(), together)


def test_what_another_call_was_guided_by_does_not_matter():
    pipe, plain = calm(tiny_sd15), draw(calm(tiny_sd15), guidance_scale=1.0)
    other = as_pipeline(pipe)
    draw(pipe, guidance_scale=5.0)
    with style_aligned(pipe):
        assert moved(draw(other, guidance_scale=1.0), plain) == [False, True, True]


def test_of_two_calls_the_inner_one_is_asked():
    pipe = calm(tiny_sd15)
    other = as_pipeline(pipe)
    other.scheduler = tiny_scheduler()
    with style_aligned(pipe):
        guided, unguided, met = draw(pipe), draw(other, guidance_scale=1.0), []

        def within(*_) -> dict:
            met.append(draw(other, guidance_scale=1.0))
            return {}

        assert torch.equal(draw(pipe, callback_on_step_end=within), guided)
    assert len(met) == STEPS and all(torch.equal(each, unguided) for each in met)


def edited(guidance_scale: float, rows: slice = slice(None)) -> torch.Tensor:
    """What InstructPix2Pix makes of one picture by several prompts."""
    options = {"num_inference_steps": STEPS, "latents": noise(3, size=16)[rows], "output_type": "latent"}
    images = [picture(1)] * len(PROMPTS[rows])
    return calm(tiny_pix2pix)(PROMPTS[rows], image=images, guidance_scale=guidance_scale, **options).images


@guided
def test_instruct_pix2pix_leaves_the_reference_of_its_three_branches(guidance_scale):
    plain = edited(guidance_scale)
    with style_aligned(calm(tiny_pix2pix)):
        assert moved(edited(guidance_scale), plain) == [False, True, True]


@guided
def test_instruct_pix2pix_with_references_draws_each_picture_as_alone(guidance_scale):
    pipe, plain = calm(tiny_pix2pix), edited(guidance_scale)
    steps, embeddings = pipe.scheduler.timesteps, {name: torch.randn(1, 16, 32) for name in ("cond", "uncond")}
    alphas = torch.cat([pipe.scheduler.alphas_cumprod[steps], torch.ones(1)]).double()
    latents = torch.randn(STEPS + 1, 1, 8, 16, 16)  # of a reference, and of the picture it was made from
    trajectory = Trajectory(latents, steps.float(), alphas, embeddings, ("a fish",), model=describe_model(pipe))
    with style_aligned(pipe, references=trajectory, **OFF):
        assert torch.equal(edited(guidance_scale), plain)
    with style_aligned(pipe, references=trajectory):
        together = edited(guidance_scale)
        alone = torch.cat([edited(guidance_scale, slice(i, i + 1)) for i in range(3)])
    assert moved(together, alone) == [False] * 3 and moved(together, plain) == [True] * 3


@pytest.mark.parametrize("name", GUIDED_BRANCHES)
def test_the_table_says_what_the_source_of_the_pipeline_does(name):
    kind = getattr(diffusers, name)
    source, branches = inspect.getsource(kind), GUIDED_BRANCHES[name]
    assert isinstance(kind.do_classifier_free_guidance, property)
    if "LatentConsistency" in name:  # is never guided by a second branch
        assert "do_classifier_free_guidance" in source and "torch.cat([latents] *" not in source
        return
    if name.startswith("ZImage"):  # lists of pictures and of prompts, those without the prompt last
        assert "latents_typed.repeat(2, 1, 1, 1)" in source
        assert "prompt_embeds_model_input = prompt_embeds + negative_prompt_embeds" in source
        return
    assert f"torch.cat([latents] * {len(branches)}) if self.do_classifier_free_guidance" in source
    said = {"uncond, noise_pred_text = noise_pred.chunk(2)": ("uncond", "cond")}
    said["text, noise_pred_image, noise_pred_uncond = noise_pred.chunk(3)"] = ("cond", "uncond", "uncond")
    assert [order for line, order in said.items() if line in source] == [branches]


def test_a_pipeline_of_unknown_layout_is_refused_until_told():
    pipe = calm(tiny_sd15)
    perturbed = StableDiffusionPAGPipeline(**pipe.components, requires_safety_checker=False, pag_applied_layers="mid")
    perturbed.set_progress_bar_config(disable=True)
    plain = draw(perturbed, pag_scale=0.0)
    with style_aligned(pipe), pytest.raises(ValueError, match=r"StableDiffusionPAGPipeline.__call__ .* pass branches="):
        draw(perturbed, pag_scale=0.0)
    with style_aligned(pipe, branches=("uncond", "cond")):
        assert moved(draw(perturbed, pag_scale=0.0), plain) == [False, True, True]


def test_a_method_of_ones_own_is_refused_until_told_and_what_it_calls_is_known():
    class Mine(StableDiffusionPipeline):
        def __call__(self, *args, own: bool = False, **kwargs):
            if own:
                return self.unet(noise(2), 500, encoder_hidden_states=torch.ones(2, 16, 32)).sample
            return super().__call__(*args, **kwargs)

    pipe = calm(tiny_sd15)
    mine = Mine(**pipe.components, requires_safety_checker=False)
    mine.set_progress_bar_config(disable=True)
    with style_aligned(pipe):
        assert torch.equal(draw(mine), draw(pipe))
        with pytest.raises(ValueError, match="Mine.__call__ .* pass branches="):
            mine(own=True)


def test_a_loop_of_ones_own_names_the_branches():
    pipe, call = calm(tiny_sd15), (noise(4), 500, torch.randn(4, 16, 32))
    with style_aligned(pipe), pytest.raises(ValueError, match=r"No diffusers pipeline is calling.* pass branches="):
        pipe.unet(*call)
    with torch.no_grad():
        plain = pipe.unet(*call).sample
        for branches, expected in ((("uncond", "cond"), [False, True] * 2), ("cond", [False, True, True, True])):
            with style_aligned(pipe, branches=branches):
                assert moved(pipe.unet(*call).sample, plain) == expected


@pytest.mark.parametrize("branches", [(), ("conditional",), "both"])
def test_branches_have_two_names(branches):
    with pytest.raises(ValueError, match="'cond' .*or 'uncond'"), style_aligned(calm(tiny_sd15), branches=branches):
        pass


def test_steps_are_counted_and_interpolated_by_the_scheduler_that_runs():
    pipe, trajectory = tiny_sd15(fresh=True), recorded(tiny_sd15)  # no step set
    pipe.unet.load_state_dict(calm(tiny_sd15).unet.state_dict())
    other = as_pipeline(pipe)
    other.scheduler = tiny_scheduler()
    for settings in ({"first_step": 1}, {"references": trajectory, "interpolate": True, "last_step": 2, "cache": True}):
        with style_aligned(other, **settings):
            expected = draw(other, num_inference_steps=4)
        with style_aligned(pipe, **settings):
            assert torch.equal(draw(other, num_inference_steps=4), expected)
        assert any(moved(expected, draw(other, num_inference_steps=4)))


def test_a_pipeline_with_another_noise_schedule_is_refused():
    pipe = calm(tiny_sd15)
    other = as_pipeline(pipe)
    other.scheduler = tiny_scheduler(beta_schedule="linear")
    with style_aligned(pipe, references=recorded(tiny_sd15)), pytest.raises(ValueError, match="noise schedule differs"):
        draw(other)


@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "in place"])
def test_a_compiled_unet_is_the_same_unet(wrapped):
    pipe = tiny_sd15(fresh=True)
    pipe.unet.load_state_dict(calm(tiny_sd15).unet.state_dict())
    plain, other = draw(pipe), as_pipeline(pipe)
    if wrapped:
        other.unet = torch.compile(pipe.unet, backend="eager")
    else:
        other.unet.compile(backend="eager")
    assert not any(moved(draw(other), plain))
    for given, running in ((pipe, other), (other, pipe)):
        with style_aligned(given):
            assert moved(draw(running), plain) == [False, True, True]
    assert not any(moved(draw(other), plain))
