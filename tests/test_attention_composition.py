"""``style_aligned`` with ControlNet, IP-Adapter, image-to-image, inpainting, guiders and blends, all at once too."""

from functools import cache

import numpy as np
import pytest
import torch
from aligning import draw
from diffusers import ClassifierFreeGuidance, ModularPipeline, PerturbedAttentionGuidance
from PIL import Image
from tiny import (
    load_tiny_ip_adapter,
    tiny_control_img2img,
    tiny_img2img,
    tiny_inpaint,
    tiny_scheduler,
    tiny_sd15,
    tiny_sdxl,
)

from context_diffusion.alignment.aligner import ReferenceCache, style_aligned
from context_diffusion.alignment.blending import blend_trajectories
from context_diffusion.alignment.inversion import ddim_invert

PROMPTS = ["a house, neon style", "a boat, neon style", "a cat, neon style"]


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)


def seeds(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


@cache
def everything():
    """ControlNet, image-to-image and IP-Adapter on one tiny SDXL."""
    pipe = tiny_control_img2img(xl=True, fresh=True)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.1)
    load_tiny_ip_adapter(pipe)
    pipe.set_ip_adapter_scale(0.6)
    return pipe


def draw_everything(prompts=PROMPTS, control: int = 7, adapter: int = 8, scale: float = 0.8) -> torch.Tensor:
    return everything()(
        list(prompts),
        image=[picture(i) for i in range(len(prompts))],
        control_image=[picture(control + i) for i in range(len(prompts))],
        ip_adapter_image=picture(adapter),
        controlnet_conditioning_scale=scale,
        strength=0.7,
        num_inference_steps=4,
        generator=seeds(len(prompts)),
        output_type="latent",
    ).images


@cache
def inverted(count: int = 1):
    pictures = [picture(20 + i) for i in range(count)]
    return ddim_invert(everything(), pictures, "a fish, neon style", num_inference_steps=4)


def test_all_at_once_leaves_the_reference_and_changes_the_others():
    plain = draw_everything()
    with style_aligned(everything(), share_attention=False, adain_queries=False, adain_keys=False):
        assert torch.equal(draw_everything(), plain)
    with style_aligned(everything(), score_shift=0.5, control_reference=True):
        aligned = draw_everything()
    torch.testing.assert_close(aligned[0], plain[0], atol=1e-5, rtol=1e-5)
    for i in (1, 2):
        assert (aligned[i] - plain[i]).abs().max() > 1e-3
    assert torch.equal(draw_everything(), plain)


def test_all_at_once_with_a_reference_from_outside():
    plain = draw_everything()
    with style_aligned(everything(), references=inverted(), score_shift=0.5, share_group_norm=True):
        together = draw_everything()
        first = draw_everything(PROMPTS[:1])
    assert ((together - plain).abs().amax(dim=(1, 2, 3)) > 1e-3).all()
    torch.testing.assert_close(together[:1], first, atol=1e-5, rtol=1e-5)


def kept_of(**conditions) -> list[torch.Tensor]:
    kept = ReferenceCache()
    with style_aligned(everything(), references=inverted(), cache=kept):
        out = draw_everything(**conditions)
    return [out, *(tensor for step in kept._kept.values() for layer in step.values() for tensor in layer)]


def test_no_control_and_no_adapter_image_reaches_the_reference():
    out, *kept = kept_of()
    for conditions in ({"control": 30}, {"adapter": 31}, {"scale": 0.1}):
        other, *same = kept_of(**conditions)
        assert (out - other).abs().max() > 1e-3
        assert len(kept) > 0 and all(torch.equal(a, b) for a, b in zip(kept, same, strict=True))


@pytest.mark.parametrize("xl", [False, True])
def test_image_to_image_that_starts_late_meets_the_right_levels(xl):
    pipe = tiny_img2img(xl)
    trajectory = ddim_invert(pipe, picture(20), "a fish", num_inference_steps=6)
    met, original = [], type(trajectory).at

    def at(self, timestep, alpha=None):
        met.append((timestep, original(self, timestep, alpha)))
        return met[-1][1]

    options = {"image": picture(1), "strength": 0.5, "num_inference_steps": 6, "output_type": "latent"}
    with pytest.MonkeyPatch.context() as patch, style_aligned(pipe, references=trajectory):
        patch.setattr(type(trajectory), "at", at)
        pipe(PROMPTS[:1], generator=seeds(1), **options)
    assert [timestep for timestep, _ in met] == trajectory.timesteps[3:].tolist()
    assert all(torch.equal(z, trajectory.latents[3 + k]) for k, (_, z) in enumerate(met))


def test_a_reference_inverted_to_pure_noise_is_row_zero():
    pipe = tiny_sd15(prediction_type="v_prediction", fresh=True)
    pipe.scheduler = tiny_scheduler(
        "v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", set_alpha_to_one=True
    )
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.05)
    inverted = {"num_inference_steps": 4, "fixed_point_iterations": 16}
    trajectory = ddim_invert(pipe, picture(20), PROMPTS[0], **inverted)
    assert (trajectory.alphas[0], trajectory.alphas[-1]) == (0, 1)
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
    latents = torch.cat([trajectory.noise, torch.randn(2, 4, 16, 16)])
    plain = pipe(PROMPTS, latents=latents, **options).images
    with style_aligned(pipe):
        expected = pipe(PROMPTS, latents=latents, **options).images
    with style_aligned(pipe, references=trajectory):
        got = pipe(PROMPTS[1:], latents=latents[1:], **options).images
    torch.testing.assert_close(expected[:1], trajectory.clean, atol=1e-4, rtol=0)
    torch.testing.assert_close(got, expected[1:], atol=1e-4, rtol=0)
    assert ((got - plain[1:]).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("xl", [False, True])
def test_inpainting(xl):
    pipe = tiny_inpaint(xl)
    mask = Image.fromarray(np.uint8(np.arange(32) > 15) * np.full((32, 1), 255, dtype=np.uint8))
    options = {"mask_image": [mask] * 2, "num_inference_steps": 2, "strength": 1.0, "output_type": "latent"}
    options |= {"image": [picture(0), picture(1)], "height": 32, "width": 32}

    def draw() -> torch.Tensor:
        return pipe(PROMPTS[:2], generator=seeds(2), **options).images

    plain = draw()
    with style_aligned(pipe):
        aligned = draw()
    assert (aligned[0] - plain[0]).abs().max() < 1e-3 < (aligned[1] - plain[1]).abs().max()
    change = (aligned[1] - plain[1]).abs().amax(dim=0)
    assert change[:, :7].max() < 1e-5  # what the mask keeps is kept


def test_an_ip_adapter_may_come_and_go_inside_the_block():
    pipe = tiny_sdxl(fresh=True)
    with style_aligned(pipe):
        expected = draw(pipe)
        load_tiny_ip_adapter(pipe)
        pipe.unload_ip_adapter()
        assert torch.equal(draw(pipe), expected)
    assert torch.equal(draw(pipe), draw(pipe))


def within_modular(pipe, guider, call) -> torch.Tensor:
    """Call the U-Net from a modular pipeline of the same parts, for the branch that is next."""

    class Block:
        inputs = ()

        def __call__(self, components, state):
            components.guider.prepare_models(components.unet)
            state.set("noise", call())
            return components, state

    running = ModularPipeline.__new__(ModularPipeline)
    running.unet, running.scheduler, running.guider, running._blocks = pipe.unet, pipe.scheduler, guider, Block()
    return running(output="noise")


def test_a_guider_that_calls_once_per_branch_gives_the_same_noise():
    pipe = everything()
    pipe.unet.set_attn_processor(dict(pipe.unet.attn_processors))
    sample, timestep = torch.randn(2, 4, 16, 16), inverted().timesteps[1].int()
    texts = {branch: torch.randn(2, 16, 64) for branch in ("uncond", "cond")}
    added = {
        "text_embeds": torch.randn(2, 32),
        "time_ids": torch.full((2, 6), 32.0),
        "image_embeds": [torch.randn(2, 1, 32)],
    }

    def predict(rows: int, text: torch.Tensor) -> torch.Tensor:
        extra = {"text_embeds": added["text_embeds"].repeat(rows, 1), "time_ids": added["time_ids"].repeat(rows, 1)}
        extra["image_embeds"] = [added["image_embeds"][0].repeat(rows, 1, 1)]
        batch = sample.repeat(rows, 1, 1, 1)
        with torch.no_grad():
            return pipe.unet(batch, timestep, encoder_hidden_states=text, added_cond_kwargs=extra).sample

    with style_aligned(pipe, references=inverted(), branches=("uncond", "cond")):
        together = predict(2, torch.cat([texts["uncond"], texts["cond"]]))
    guider = ClassifierFreeGuidance()
    with style_aligned(pipe, references=inverted()):
        cond = within_modular(pipe, guider, lambda: predict(1, texts["cond"]))
        uncond = within_modular(pipe, guider, lambda: predict(1, texts["uncond"]))
    torch.testing.assert_close(torch.cat([uncond, cond]), together, atol=1e-5, rtol=1e-5)
    assert (cond - uncond).abs().max() > 1e-3
    perturbed = PerturbedAttentionGuidance(perturbed_guidance_layers=0)
    with style_aligned(pipe), pytest.raises(ValueError, match=r"PerturbedAttentionGuidance .*\(pred_cond_skip\)"):
        within_modular(pipe, perturbed, lambda: predict(1, texts["cond"]))


def test_a_modular_pipeline_is_aligned_as_the_classic_one():
    from diffusers import StableDiffusionXLAutoBlocks

    classic = tiny_sdxl(fresh=True)
    with torch.no_grad():
        classic.unet.conv_out.weight.mul_(0.1)
    modular = StableDiffusionXLAutoBlocks().init_pipeline()
    parts = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    modular.update_components(**{part: getattr(classic, part) for part in parts})
    modular.set_progress_bar_config(disable=True)
    trajectory = ddim_invert(classic, picture(20), "a fish", num_inference_steps=2)
    options = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}
    scale = modular.guider.guidance_scale

    def both() -> list[torch.Tensor]:
        shared = {"prompt": PROMPTS[:2], "negative_prompt": ["red", "red"], **options}
        drawn = classic(generator=seeds(2), guidance_scale=scale, **shared).images
        return [drawn, modular(generator=seeds(2), output="images", **shared)]

    plain = both()
    with style_aligned(classic, references=trajectory):
        expected = classic(
            PROMPTS[:2], negative_prompt=["red", "red"], generator=seeds(2), guidance_scale=scale, **options
        )
    with style_aligned(modular, references=trajectory):
        got = modular(
            prompt=PROMPTS[:2], negative_prompt=["red", "red"], generator=seeds(2), output="images", **options
        )
    torch.testing.assert_close(plain[1], plain[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got, expected.images, atol=1e-4, rtol=1e-4)
    assert (got - plain[0]).abs().max() > 1e-3


@pytest.mark.parametrize("blend", ["slerp", "linear"])
def test_latents_blended_in_the_call_are_latents_blended_before(blend):
    pipe = tiny_sd15()
    both = ddim_invert(pipe, [picture(0), picture(1)], ["a cat", "a boat"], num_inference_steps=2)
    latents = torch.randn(1, 4, 16, 16)

    def draw(**options) -> torch.Tensor:
        with style_aligned(pipe, **options):
            return pipe(PROMPTS[0], latents=latents, num_inference_steps=2, output_type="latent").images

    got = draw(references=both, weights=[0.3, 0.7], blend=blend)
    assert torch.equal(got, draw(references=blend_trajectories(pipe, [both], [0.3, 0.7], blend)))
    assert (got - draw(references=both, weights=[0.3, 0.7])).abs().max() > 1e-3


def test_inversion_inside_the_block_is_refused():
    with style_aligned(tiny_sd15()), pytest.raises(RuntimeError, match="before the style_aligned block"):
        ddim_invert(tiny_sd15(), picture(0))
