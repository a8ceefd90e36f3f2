"""References of another size than the pictures, on a schedule of their own, or after a text of another length."""

import copy
from dataclasses import replace

import pytest
import tiny_transformers as tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
from torch.testing import assert_close

from context_diffusion import flow_invert, noised_reference, style_aligned
from context_diffusion.alignment import networks
from context_diffusion.alignment.positions import Rotary, on_one_frame, placed, turned
from context_diffusion.alignment.settings import StyleSettings

SHIFTING = ["flux", "flux2", "qwen", "z-image"]  # pipelines whose time steps depend on the size of the picture


@pytest.fixture
def pipe(request):
    """A pipeline whose schedule moves with the number of tokens, as in the published models."""
    made = copy.copy(tiny.pipeline(request.param))
    made.scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64
    )
    return made


def size_of(kind: str, rows: int, columns: int) -> dict[str, int]:
    patch = 4 if kind in ("flux", "flux2", "qwen") else 8 if kind == "sd3" else 4
    return {"height": rows * patch, "width": columns * patch}


def picture(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


def drawn(pipe, prompts, **options):
    noise = [torch.Generator().manual_seed(k) for k in range(len(prompts))]
    return pipe(prompt=list(prompts), generator=noise, num_inference_steps=3, output_type="latent", **options).images


@pytest.mark.parametrize("pipe", SHIFTING, indirect=True)
def test_on_a_schedule_of_another_size_levels_in_between_are_on_straight_lines(pipe):
    kind = next(kind for kind in SHIFTING if type(tiny.pipeline(kind)) is type(pipe))
    reference = noised_reference(pipe, picture(0), "a cat", seed=3, num_inference_steps=3, **size_of(kind, 4, 6))
    size = size_of(kind, 8, 6)
    plain = drawn(pipe, ["a dog"], **size)
    with style_aligned(pipe, references=reference), pytest.raises(ValueError, match="interpolate=True"):
        drawn(pipe, ["a dog"], **size)
    with style_aligned(pipe, references=reference, interpolate=True):
        aligned = drawn(pipe, ["a dog"], **size)
    assert aligned.shape == plain.shape and not torch.allclose(aligned, plain, atol=1e-4)


def test_a_line_meets_its_levels_and_what_lies_between_and_beyond():
    pipe = tiny.pipeline("flux")
    size = size_of("flux", 4, 6)
    few, many = (
        noised_reference(pipe, picture(0), "a cat", seed=3, num_inference_steps=steps, **size) for steps in (2, 7)
    )
    for k, time in enumerate(many.timesteps.tolist()):
        assert_close(few.on_line(time), many.latents[k], atol=1e-5, rtol=1e-5)  # one line for all steps
        assert torch.equal(many.on_line(time), many.latents[k])
    assert torch.equal(few.on_line(0.0), few.clean)
    inverted = flow_invert(pipe, picture(0), "a cat", num_inference_steps=3, **size)
    time = float(inverted.timesteps[1:].mean())
    assert_close(inverted.on_line(time), inverted.latents[1:3].mean(dim=0))


def rotated(keys: torch.Tensor, ids: torch.Tensor, network) -> torch.Tensor:
    """(..., tokens, heads, dim) at the places ``ids``, as Z-Image rotates them."""
    phases = network.rope_embedder(ids)
    pairs = torch.view_as_complex(keys.reshape(*keys.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * phases[:, None]).flatten(-2)


def test_pictures_after_texts_of_several_lengths_meet_as_if_on_one_frame():
    network, noise = tiny.network("z-image"), torch.Generator().manual_seed(0)
    places = torch.cartesian_prod(torch.arange(1), torch.arange(3), torch.arange(4))
    query, key = (torch.randn(12, 2, 16, generator=noise) for _ in range(2))

    def at(features, frame):
        moved = places + torch.tensor([frame, 0, 0])
        return rotated(features, moved, network).flatten(-2)[None, None]  # one branch, one image

    rotary = networks.rotary_of(network)
    same = placed(rotary, StyleSettings(placement="same"), (3, 4), (3, 4), False, 0.0)
    moved = on_one_frame(same, rotary, torch.tensor([[33]]), torch.tensor([[1, 17]]))
    found_query = turned(at(query, 33), moved.own)
    found_keys = turned(torch.cat([at(key, 1), at(key, 17)], dim=1), moved.angles)
    expected = at(query, 5) @ at(key, 5).transpose(-1, -2)
    for reference in range(2):
        found = found_query @ found_keys[:, reference : reference + 1].transpose(-1, -2)
        assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert on_one_frame(same, rotary, torch.tensor([[9, 9]]), torch.tensor([[9]])) is same


@pytest.mark.parametrize("branches", [("cond",), ("cond", "uncond")])
def test_texts_of_several_lengths_do_not_move_the_reference_away(branches, monkeypatch):
    """As in a network that counts its texts backwards, so that every picture begins in one place."""
    network, frame = copy.deepcopy(tiny.network("z-image")), 100
    network.rope_embedder.axes_lens, network.rope_embedder.freqs_cis = [128, 64, 64], None
    given = tiny.inputs("z-image", rows=2 * len(branches), grid=(4, 8))  # 32 patches: none are added to fill up
    noise = torch.Generator().manual_seed(1)
    given["cap_feats"] = [torch.randn(words, 24, generator=noise) for words in (5, 40, 70, 33)[: 2 * len(branches)]]
    pipe = ZImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, network)

    def aligned():
        with style_aligned(pipe, branches=branches):
            return tiny.output(network, given)

    plain, found = tiny.output(network, given), aligned()
    assert_close(found[::2], plain[::2], atol=1e-6, rtol=1e-6)  # the references
    theirs = network.patchify_and_embed

    def counted_backwards(*args):
        told = theirs(*args)
        for image, text in zip(told[3], told[4], strict=True):
            by = frame - image[0, 0].item()
            image[:, 0] += by
            text[:, 0] += by
        return told

    monkeypatch.setattr(network, "patchify_and_embed", counted_backwards)
    assert_close(tiny.output(network, given), plain, atol=1e-5, rtol=1e-5)  # all that counts is where from where
    unmoved = replace(networks.Z_IMAGE, frames=None)
    monkeypatch.setitem(networks.TRANSFORMERS, "ZImageTransformer2DModel", unmoved)
    assert_close(aligned(), found, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[1], plain[1], atol=1e-4)


def test_a_text_of_another_length_in_the_trajectory():
    """The same through a pipeline, with references from outside: without care they would lie 32 frames away."""
    pipe = tiny.pipeline("z-image")
    longer = torch.randn(40, 24, generator=torch.Generator().manual_seed(2))
    reference = noised_reference(pipe, picture(0), "a cat", seed=3, num_inference_steps=3, **size_of("z-image", 4, 8))
    rows = {"cond.cap_feats": longer[None], "cond.cap_feats.length": torch.tensor([31])}
    near = replace(reference, embeddings=reference.embeddings | rows)
    far = replace(near, embeddings=near.embeddings | {"cond.cap_feats.length": torch.tensor([40])})
    frames = [networks.Z_IMAGE.frames(networks.arguments_of(each.embeddings, {}, ("cond",))) for each in (near, far)]
    assert frames == [[33], [65]]


def test_bfloat16_keys_are_turned_in_float32():
    rotary = Rotary((4, 4, 8), 256.0, down=1, right=2)
    keys = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = turned(keys.double().float(), rotary.angles(right=7))
    assert torch.equal(turned(keys, rotary.angles(right=7)), exact.bfloat16())


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen"])
def test_packed_latents_of_another_size_than_said_are_refused(kind):
    pipe, latents = tiny.pipeline(kind), torch.zeros(1, 24, 16)
    with pytest.raises(ValueError, match="a sequence of 24 patches.* 3 x 5"):
        flow_invert(pipe, latents=latents, num_inference_steps=1, **size_of(kind, 3, 5))
    assert len(flow_invert(pipe, latents=latents, num_inference_steps=1, **size_of(kind, 4, 6))) == 1


def test_a_mask_that_one_branch_needs_and_the_other_does_not():
    masked = {"uncond.text": torch.ones(1, 3, 2), "uncond.mask": torch.ones(1, 3), "cond.text": torch.zeros(1, 4, 2)}
    told = networks.arguments_of(masked, {"mask": None}, ("cond",))
    assert told["mask"] is None and told["text"].shape == (1, 4, 2)
    assert networks.arguments_of(masked, {"mask": None}, ("uncond",))["mask"].shape == (1, 3)
