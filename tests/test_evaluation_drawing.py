"""The requests of each protocol say what they should, and what a condition takes from the contexts is taken."""

from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from worlds import scenes_folder

from context_diffusion import ContextDiffusion, Request
from context_diffusion.scenes import OBJECTS, STYLES
from experiments.evaluation.bench import Bench
from experiments.evaluation.context_palettes import CONDITIONS, WithoutStatistic, condition_requests
from experiments.evaluation.text_to_image import text_requests

REDS = tuple(Image.effect_noise((64, 64), spread).convert("RGB") for spread in (40, 110))


@pytest.fixture(scope="module")
def model():
    return ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")


def far(first, second) -> int:
    """Largest difference in grey levels."""
    return int(np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max())


def test_without_the_statistic_token_only_the_last_token_is_zero(model):
    blind = WithoutStatistic(model.contexts.vision, model.contexts.projector)
    full, cut = (contexts.tokens(list(REDS), [0.5, 0.5]) for contexts in (model.contexts, blind))
    assert full[:, -1].abs().min() > 0
    assert cut[:, -1].abs().max() == 0
    torch.testing.assert_close(cut[:, :-1], full[:, :-1])
    other = ContextDiffusion(model.pipeline, model.model, blind)
    request = [Request(context_images=REDS, seed=1, num_inference_steps=2)]
    assert far(model.draw(request, progress=False)[0], other.draw(request, progress=False)[0]) > 1


def test_text_protocol_takes_every_object_in_every_style_four_times_with_consecutive_seeds():
    asked = text_requests()
    assert len(asked) == 480
    assert [request.seed for *_, request in asked] == list(range(480))
    cells = {(object, style, request.seed % 4) for object, style, request in asked}
    assert cells == set(product(OBJECTS, STYLES, range(4)))
    assert all(len({asked[i + k][:2] for k in range(4)}) == 1 for i in range(0, 480, 4))
    for object, style, request in asked:
        assert request.prompt.split(",")[0].split()[1] == object
        assert request.prompt.endswith(f", {style} style")
        assert not request.context_images
        assert request.query_image is None
    backgrounds = [" ".join(request.prompt.split(",")[0].split()[2:]) for *_, request in asked]
    assert {backgrounds.count(each) for each in set(backgrounds)} == {120}


def test_conditions_differ_in_contexts_and_prompt_alone():
    contexts = [REDS + REDS[:1], REDS[::-1] + REDS[:1]]
    made = {c.name: condition_requests(c, contexts, ["a cat", "a boat"], ["neon", "flat"]) for c in CONDITIONS}
    assert [request.seed for requests in made.values() for request in requests] == [0, 1] * len(CONDITIONS)
    assert {c.name: len(made[c.name][0].context_images) for c in CONDITIONS} == {c.name: c.contexts for c in CONDITIONS}
    assert made["2 contexts"][1].context_images == REDS[::-1]
    assert [one.prompt for one in made["1 context"]] == ["a cat", "a boat"]
    assert [one.prompt for one in made["no context, style named"]] == ["a cat, neon style", "a boat, flat style"]
    assert {one.prompt for one in made["3 contexts, no prompt"]} == {""}


def test_a_missing_part_is_named_with_the_command_that_makes_it():
    bench = Bench(scenes_folder())
    assert bench.has("dino")
    with pytest.raises(FileNotFoundError, match="There is no judge beside .*`make train` builds"):
        _ = bench.judge
