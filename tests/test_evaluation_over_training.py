"""Scores over training: what is asked for, and what the figure shows."""

import argparse

import pytest

from context_diffusion.metrics import Estimate
from experiments.evaluation.context_palettes import context_cases
from experiments.evaluation.over_training import PANELS, figure, pair


def test_a_model_is_named_by_the_samples_it_saw():
    assert pair("838000=a=b") == (838000, "a=b")
    for wrong in ("838k=folder", "folder", "=folder"):
        with pytest.raises(argparse.ArgumentTypeError, match="SAMPLES=FOLDER"):
            pair(wrong)


def test_the_figure_has_every_score_at_its_samples_and_the_floor_as_a_line():
    def row(shift: float) -> dict[str, Estimate]:
        return {
            name: Estimate(value=shift + i, standard_error=0.1, low=shift + i - 0.2, high=shift + i + 0.2, n=9)
            for i, name in enumerate(sum(PANELS.values(), ()))
        }

    page = figure({100: row(0.0), 300: row(1.0)}, {"palette ratio": row(0.0)["palette ratio"]})
    drawn = [container for axis in page.axes for container in axis.containers]
    assert len(drawn) == len(sum(PANELS.values(), ()))
    for i, container in enumerate(drawn):
        assert container.lines[0].get_xydata().tolist() == [[100.0, i], [300.0, i + 1.0]]
    assert [len(axis.lines) > len(axis.containers) * 3 for axis in page.axes] == [False, True, False]


def test_a_case_has_contexts_of_one_draw_and_rivals_of_others():
    cases = context_cases(2)
    for group, rivals, style in zip(cases.groups, cases.rivals, cases.styles, strict=True):
        assert len({one.style for one in group}) == 1 and group[0].style.name == style
        assert all(one.style.name == style and one.style != group[0].style for rival in rivals for one in rival)
    assert not any(style in said for said, style in zip(cases.said, cases.styles, strict=True))
