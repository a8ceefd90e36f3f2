"""A ControlNet steers the pictures of a transformer, and not the reference that is the first of them."""

import pytest
import tiny_transformers as tiny
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch.testing import assert_close

from context_diffusion import style_aligned

GIVEN = {  # the argument of each transformer, and how many tokens it adds to
    "flux": ("controlnet_block_samples", 24),
    "sd3": ("block_controlnet_hidden_states", 24),
    "qwen": ("controlnet_block_samples", 24),
    "z-image": ("controlnet_block_samples", 64),  # patches and words, each filled up to a multiple of 32
}


class Around(DiffusionPipeline):
    """A pipeline that is not running."""

    def __init__(self, network):
        super().__init__()
        self.register_modules(transformer=network, scheduler=FlowMatchEulerDiscreteScheduler())


def residuals(kind: str, rows: int):
    name, tokens = GIVEN[kind]
    noise = torch.Generator().manual_seed(5)
    found = [torch.randn(rows, tokens, 32, generator=noise) for _ in range(2)]
    return {name: dict(enumerate(found)) if kind == "z-image" else found}


@pytest.mark.parametrize("branches", [("cond",), ("uncond", "cond")])
@pytest.mark.parametrize("kind", GIVEN)
def test_the_reference_in_the_batch_is_not_steered(kind, branches):
    network, rows = tiny.network(kind), 2 * len(branches)
    given = tiny.inputs(kind, rows)
    control = residuals(kind, rows)
    free, steered = tiny.output(network, given), tiny.output(network, given | control)
    assert not torch.allclose(free, steered, atol=1e-3)
    with style_aligned(Around(network), branches=branches):
        found = tiny.output(network, given | control)
        without = tiny.output(network, given)
    assert_close(found[::2], free[::2], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(found[1::2], without[1::2], atol=1e-3)
    with style_aligned(Around(network), branches=branches, control_reference=True):
        found = tiny.output(network, given | control)
    assert_close(found[::2], steered[::2], atol=1e-6, rtol=1e-6)
