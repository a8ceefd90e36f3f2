"""References of a transformer blended into one, and made as they were."""

import pytest
import tiny_transformers as tiny
import torch
from torch.testing import assert_close

from context_diffusion import flow_invert, noised_reference, style_aligned
from context_diffusion.alignment import blend_trajectories


def made(kind: str, method: str, picture: int, rows: int = 4, columns: int = 6):
    pipe = tiny.pipeline(kind)
    pixels = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(picture))
    options = {"height": 2 * pipe.vae_scale_factor * rows, "width": 2 * pipe.vae_scale_factor * columns}
    if method == "added noise":
        return noised_reference(pipe, pixels, "a cat", seed=2, num_inference_steps=2, **options)
    return flow_invert(pipe, pixels, "a cat", num_inference_steps=2, fixed_point_iterations=1, **options)


@pytest.mark.parametrize("method", ["added noise", "flow inversion"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_blend_of_equals_is_the_same_and_one_of_two_lies_between(kind, method):
    pipe, (one, other) = tiny.pipeline(kind), (made(kind, method, picture) for picture in (0, 1))
    same = blend_trajectories(pipe, [one, one], blend="slerp")
    assert same.method == method and same.prompts == one.prompts
    assert_close(same.latents, one.latents, atol=1e-5, rtol=1e-5)
    blended = blend_trajectories(pipe, [one, other], [0.25, 0.75], blend="linear")
    assert_close(blended.clean, 0.25 * one.clean + 0.75 * other.clean, atol=1e-6, rtol=1e-6)


def test_style_aligned_blends_as_it_does_for_a_unet():
    pipe, references = tiny.pipeline("flux"), [made("flux", "added noise", picture) for picture in (0, 1)]
    blended = blend_trajectories(pipe, references, blend="slerp")

    def drawn(**options):
        with style_aligned(pipe, **options):
            return pipe("a dog", height=16, width=24, num_inference_steps=2, output_type="latent",
                        generator=torch.Generator().manual_seed(0)).images  # fmt: skip

    assert_close(drawn(references=references, blend="slerp"), drawn(references=blended))
    assert not torch.allclose(drawn(references=references), drawn(references=blended), atol=1e-6)
