"""Scores read back from what a protocol wrote."""

import numpy as np
import pytest

from experiments.evaluation.recorded import recorded_scores
from experiments.evaluation.results import Results, Unit

UNITS = [Unit(setting, index, seed) for seed in (0, 1) for index in (3, 1, 2) for setting in ("plain", "up, only")]


def written(folder, units=UNITS):
    """A file as the protocols write it: DINO under every setting, leakage under one."""
    scores = {}
    for number, unit in enumerate(units):
        scores[unit] = {"DINO": [number + 0.25, number + 0.5]}
        if unit.setting == "plain":
            scores[unit]["leakage"] = [0.0, 1.0]
    (folder / "style-sets-units.csv").write_text(Results(scores, list).csv(), encoding="utf-8")
    return scores


def test_every_number_comes_back_where_it_belongs(tmp_path):
    scores = written(tmp_path)
    found = recorded_scores("DINO", folder=tmp_path)
    assert list(found) == ["plain", "up, only"]
    for setting, grid in found.items():
        expected = [[np.mean(scores[Unit(setting, index, seed)]["DINO"]) for seed in (0, 1)] for index in (1, 2, 3)]
        np.testing.assert_allclose(grid, expected)


def test_a_setting_without_the_score_is_left_out(tmp_path):
    written(tmp_path)
    assert list(recorded_scores("leakage", folder=tmp_path)) == ["plain"]


def test_a_grid_with_a_hole_is_refused(tmp_path):
    written(tmp_path, [unit for unit in UNITS if unit != Unit("up, only", 2, 1)])
    with pytest.raises(ValueError, match=r"up, only: DINO lacks 1 of 6, the first is set 2, seed 1"):
        recorded_scores("DINO", folder=tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"experiments.evaluation style-sets"):
        recorded_scores("DINO", folder=tmp_path)
    written(tmp_path)
    with pytest.raises(ValueError, match="no score 'FID'; it has DINO, leakage"):
        recorded_scores("FID", folder=tmp_path)
