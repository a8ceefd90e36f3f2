"""StyleAligned from scratch: its simplest properties; ``alignment`` is compared with it in test_attention_pipelines."""

import math

import pytest
import torch
from aligning import PROMPTS, calm, draw, noise
from tiny import tiny_sd15, tiny_sdxl

from context_diffusion.from_scratch import TextbookSettings, textbook
from context_diffusion.from_scratch.style_aligned import textbook_adain, textbook_attention

OFF = {"adain_queries": False, "adain_keys": False, "share_attention": False}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def aligned(make, prompts=PROMPTS, latents=None, **settings) -> torch.Tensor:
    with textbook(calm(make).unet, TextbookSettings(**settings)):
        return draw(calm(make), prompts, latents=latents)


@pytest.mark.parametrize("make", [tiny_sd15, tiny_sdxl])
def test_sharing_off_is_the_plain_pipeline_bit_for_bit(make):
    assert torch.equal(aligned(make, **OFF), draw(calm(make)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adain_values": True},
        {"score_shift": math.log(2)},
        {"score_scale": 0.5},
        OFF | {"share_group_norm": True},
    ],
    ids=str,
)
def test_the_reference_is_untouched_and_the_others_are_not(settings):
    plain, got = draw(calm(tiny_sd15)), aligned(tiny_sd15, **settings)
    torch.testing.assert_close(got[0], plain[0], **CLOSE)
    assert all((got[i] - plain[i]).abs().max() > 1e-3 for i in (1, 2))


def test_a_shift_of_minus_infinity_hides_the_reference():
    got = aligned(tiny_sd15, adain_queries=False, adain_keys=False, score_shift=-math.inf)
    torch.testing.assert_close(got, draw(calm(tiny_sd15)), **CLOSE)


@pytest.mark.parametrize("settings", [{}, {"full_attention": True}, {"share_group_norm": True}], ids=str)
def test_copies_of_the_reference_have_nothing_to_learn_from_it(settings):
    latents, prompts = noise(1).repeat(3, 1, 1, 1), PROMPTS[:1] * 3
    plain = draw(calm(tiny_sd15), prompts, latents=latents)
    torch.testing.assert_close(aligned(tiny_sd15, prompts, latents, **settings), plain, **CLOSE)


def test_full_attention_treats_the_images_as_equals():
    order = [2, 0, 1]
    together = aligned(tiny_sd15, full_attention=True)
    shuffled = aligned(tiny_sd15, [PROMPTS[i] for i in order], noise()[order], full_attention=True)
    torch.testing.assert_close(shuffled, together[order], **CLOSE)
    assert (together - draw(calm(tiny_sd15))).abs().max() > 1e-3


def test_adain_gives_every_image_the_statistics_of_the_first():
    x = torch.randn(3, 2, 50, 4) * (0.5 + torch.rand(3, 2, 1, 4)) + torch.randn(3, 2, 1, 4)
    y = textbook_adain(x)
    torch.testing.assert_close(y[0], x[0], **CLOSE)
    for statistic in (torch.mean, torch.std):
        expected = statistic(x[:1], dim=2).expand(3, 2, 4)
        torch.testing.assert_close(statistic(y, dim=2), expected, atol=1e-4, rtol=1e-4)


def test_a_shift_by_log_2_counts_the_reference_twice():
    query, key, value = torch.randn(3, 2, 2, 5, 4)
    ours, theirs = slice(0, 3), slice(3, 5)
    twice = [torch.cat([x[:, :, ours], x[:, :, theirs], x[:, :, theirs]], dim=2) for x in (key, value)]
    got = textbook_attention(query, key, value, own=3, scale=1.0, shift=math.log(2))
    expected = torch.nn.functional.scaled_dot_product_attention(query, *twice)
    torch.testing.assert_close(got[1:], expected[1:])


def test_the_block_restores_the_very_objects_it_found():
    unet = calm(tiny_sd15).unet
    before = unet.attn_processors
    with pytest.raises(RuntimeError, match="stop"), textbook(unet, TextbookSettings(share_group_norm=True)):
        assert unet.attn_processors.keys() == before.keys()
        assert any(unet.attn_processors[name] is not before[name] for name in before)
        raise RuntimeError("stop")
    assert all(unet.attn_processors[name] is before[name] for name in before)
    assert not any("forward" in module.__dict__ for module in unet.modules())
