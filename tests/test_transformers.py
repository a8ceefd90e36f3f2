"""``style_aligned`` on transformers, one call of the network at a time: the textbook's, and never silently off."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from textbook_transformers import textbook
from tiny_transformers import COLUMNS, KINDS, ROWS, inputs, network, output, some_rows
from torch.testing import assert_close

from context_diffusion.alignment import style_aligned

GRID = (ROWS, COLUMNS)
ROTARY = tuple(kind for kind in KINDS if kind != "sd3")


def piped(net) -> SimpleNamespace:
    """What stands for a pipeline in a loop of one's own."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    return SimpleNamespace(transformer=net, scheduler=scheduler, unet=None)


def aligned(kind: str, given=None, branches=("cond",), net=None, **settings) -> torch.Tensor:
    net = network(kind) if net is None else net
    with torch.no_grad(), style_aligned(piped(net), branches=branches, **settings):
        return output(net, inputs(kind) if given is None else given)


def plain(kind: str, given=None) -> torch.Tensor:
    with torch.no_grad():
        return output(network(kind), inputs(kind) if given is None else given)


def by_the_book(kind: str, **how) -> torch.Tensor:
    given = inputs(kind)
    reference, targets = some_rows(given, slice(0, 1)), some_rows(given, slice(1, None))
    shared = textbook(kind, network(kind), targets, reference, GRID, GRID, **how)
    return torch.cat([plain(kind, reference), shared])


HOW = {
    "as it is": ({}, {}),
    "values too": ({"adain_values": True}, {"adain_values": True}),
    "queries alone": ({"adain_keys": False}, {"adain_keys": False}),
    "louder": ({"score_scale": 1.3, "score_shift": 0.7}, {"scale": 1.3, "shift": 0.7}),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", KINDS)
def test_aligned_as_in_the_textbook(kind, how):
    ours, theirs = HOW[how]
    found, expected = aligned(kind, **ours), by_the_book(kind, **theirs)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert ((found - plain(kind))[1:].abs().flatten(1).amax(dim=1) > 1e-3).all()


@pytest.mark.parametrize("placement", ["beside", "same", "untwisted"])
@pytest.mark.parametrize("kind", ROTARY)
def test_placed_as_in_the_textbook(kind, placement):
    # the time is 700: of ten steps from 1000, the fourth; scales have run a third of their way
    steps = piped(None).scheduler.timesteps.tolist()
    done = min(range(10), key=lambda k: abs(steps[k] - 700)) / 9
    scales = {"high": 0.25 + 0.5 * done, "low": 1.0 + 0.4 * done}
    found = aligned(kind, placement=placement)
    assert_close(found, by_the_book(kind, placement=placement, **scales), atol=1e-5, rtol=1e-5)


def test_placements_differ():
    for kind in ROTARY:
        beside, same, untwisted = (aligned(kind, placement=each) for each in ("beside", "same", "untwisted"))
        assert min((beside - same).abs().max(), (same - untwisted).abs().max()) > 1e-4
        assert torch.equal(beside, aligned(kind))
