"""Drawing in batches is drawing one by one; the orders of each protocol say what they should."""

from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from worlds import scenes_folder

from context_diffusion import ContextDiffusion
from context_diffusion.scenes import OBJECTS, STYLES
from experiments.evaluation.bench import Bench
from experiments.evaluation.context import CONDITIONS, WithoutStatistic, condition_orders
from experiments.evaluation.drawing import Order, draw
from experiments.evaluation.text import text_orders

QUERY = Image.new("RGB", (32, 32), "navy")
ImageDraw.Draw(QUERY).ellipse((6, 8, 26, 28), fill="orange")
ROUND = Image.new("RGB", (32, 32), "white")
ImageDraw.Draw(ROUND).rectangle((4, 4, 20, 20), fill="black")
REDS = tuple(Image.effect_noise((64, 64), spread).convert("RGB") for spread in (40, 110))
ORDERS = [
    Order("a red house", seed=3),
    Order("a cat", REDS, QUERY, "canny", 4),
    Order("", REDS[:1], seed=5),
    Order("a boat", seed=6),
    Order("a fish", REDS[1:], ROUND, "canny", 7),
    Order("", REDS, QUERY, "depth", 8),
    Order("a tree", (), QUERY, "canny", 9),
    Order("", (), QUERY, "canny", 10),
]


@pytest.fixture(scope="module")
def model():
    return ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")


def far(first, second) -> int:
    """Largest difference in grey levels."""
    return int(np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max())


def test_a_batch_holds_what_the_model_draws_one_by_one(model):
    batched = draw(model, ORDERS, steps=2, batch_size=5)
    for order, picture in zip(ORDERS, batched, strict=True):
        alone = model(
            order.query, list(order.contexts), order.prompt, layout=order.layout, seed=order.seed,
            num_inference_steps=2, progress=False,
        )  # fmt: skip
        assert far(picture, alone) <= 1, order
    assert min(far(a, b) for i, a in enumerate(batched) for b in batched[:i]) > 5  # no two of them are the same


def test_a_query_needs_a_layout(model):
    with pytest.raises(ValueError, match="layout='canny' or 'depth' here, not None"):
        draw(model, [Order("a cat", query=QUERY)])


def test_without_the_statistic_token_only_the_last_token_is_zero(model):
    blind = WithoutStatistic(model.contexts.vision, model.contexts.projector)
    full, cut = (contexts.tokens(list(REDS), [0.5, 0.5]) for contexts in (model.contexts, blind))
    assert full[:, -1].abs().min() > 0
    assert cut[:, -1].abs().max() == 0
    torch.testing.assert_close(cut[:, :-1], full[:, :-1])
    other = ContextDiffusion(model.pipeline, model.model, blind)
    order = [Order("", REDS, seed=1)]
    assert far(draw(model, order, steps=2)[0], draw(other, order, steps=2)[0]) > 1


def test_text_protocol_takes_every_object_in_every_style_with_four_consecutive_seeds():
    asked = text_orders()
    assert len(asked) == 480
    cells = {(object, style, order.seed) for object, style, order in asked}
    assert cells == set(product(OBJECTS, STYLES, range(4)))
    for object, style, order in asked:
        assert order.prompt.split(",")[0].split()[1] == object
        assert order.prompt.endswith(f", {style} style")
        assert not order.contexts
        assert order.query is None
    backgrounds = [" ".join(order.prompt.split(",")[0].split()[2:]) for *_, order in asked]
    assert {backgrounds.count(each) for each in set(backgrounds)} == {120}


def test_conditions_differ_in_contexts_and_prompt_alone():
    contexts = [REDS + REDS[:1], REDS[::-1] + REDS[:1]]
    made = {c.name: condition_orders(c, contexts, ["a cat", "a boat"], ["neon", "flat"]) for c in CONDITIONS}
    assert [order.seed for orders in made.values() for order in orders] == [0, 1] * len(CONDITIONS)
    assert {c.name: len(made[c.name][0].contexts) for c in CONDITIONS} == {c.name: c.contexts for c in CONDITIONS}
    assert made["2 contexts"][1].contexts == REDS[::-1]
    assert [order.prompt for order in made["1 context"]] == ["a cat", "a boat"]
    assert [order.prompt for order in made["no context, style named"]] == ["a cat, neon style", "a boat, flat style"]
    assert {order.prompt for order in made["3 contexts, no prompt"]} == {""}


def test_a_missing_part_is_named_with_the_command_that_makes_it():
    bench = Bench(scenes_folder())
    assert bench.has("dino")
    with pytest.raises(FileNotFoundError, match="There is no judge in .*`make train` builds it"):
        _ = bench.judge
