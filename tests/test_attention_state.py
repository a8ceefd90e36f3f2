"""``style_aligned`` on tiny pipelines: what it caches and runs, what it leaves behind, what it refuses."""

import math

import pytest
import torch
from aligning import STEPS, calm, draw, noise, recorded
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny import tiny_sd15, tiny_sdxl

from context_diffusion.alignment.aligner import ReferenceCache, StyleSettings, style_aligned
from context_diffusion.alignment.trajectory import Trajectory


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
    for name, module in unet.named_modules():
        hooks = [kind for kind in vars(module) if kind.startswith("_forward") and vars(module)[kind]]
        found.append((name, sorted(vars(module)), [(kind, list(vars(module)[kind])) for kind in hooks]))
    return found


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


def test_processors_set_inside_the_block_are_aligned_or_refused():
    pipe = tiny_sd15(fresh=True)
    with style_aligned(pipe):
        expected = draw(pipe)
        pipe.unet.set_attn_processor(AttnProcessor2_0())
        assert torch.equal(draw(pipe), expected)
        pipe.enable_attention_slicing()  # its attention is not PyTorch's own
        with pytest.raises(RuntimeError, match="replaced inside"):
            draw(pipe)
        pipe.disable_attention_slicing()
        assert torch.equal(draw(pipe), expected)


def test_attention_computed_in_other_ways_is_aligned_too_and_comes_back():
    pipe = tiny_sd15(fresh=True)
    with style_aligned(pipe):
        expected = draw(pipe)
    pipe.enable_attention_slicing()
    sliced = dict(pipe.unet.attn_processors)
    with style_aligned(pipe):
        assert torch.allclose(draw(pipe), expected, atol=1e-4)
    assert pipe.unet.attn_processors == sliced


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
