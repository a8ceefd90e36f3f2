"""The model card says what the records say, and no more."""

import json
import re
from importlib.util import find_spec

import pytest

from context_diffusion.files import ROOT
from experiments.evaluation.harness import OFFLINE
from experiments.publishing import card, fusion_card
from experiments.publishing.card import schedule, score_table


def test_every_recorded_number_is_a_row_with_its_aim(tmp_path):
    numbers = [
        {
            "name": "object accuracy",
            "value": 0.51234,
            "low": 0.46,
            "high": 0.56,
            "n": 480,
            "at_least": 0.9,
            "met": False,
        },
        {"name": "palette ratio", "value": 0.4, "low": 0.3, "high": 0.5, "n": 40, "at_most": 0.5, "met": True},
        {"name": "seconds", "value": 2.0, "low": None, "high": None, "n": 1},
    ]
    (tmp_path / "text.json").write_text(json.dumps({"numbers": numbers}))
    rows = score_table(tmp_path).splitlines()[2:]
    assert rows == [
        "| text | object accuracy | 0.512 | 0.46 to 0.56 | 480 | at least 0.9: **missed** |",
        "| text | palette ratio | 0.4 | 0.3 to 0.5 | 40 | at most 0.5: met |",
        "| text | seconds | 2 |  | 1 |  |",
    ]


@pytest.mark.parametrize("written", [card.card, fusion_card.card])
def test_commands_and_files_that_a_card_names_are_there(written):
    text = written()
    commands = re.findall(r"python -m (experiments[a-z_.]*)", text)
    assert commands and all(find_spec(name) for name in commands)
    assert all((ROOT / path).exists() for path in re.findall(r"`((?:figures|data)/[^`]*)`", text))


def test_each_offline_score_is_in_one_of_the_two_cards():
    rows = [set(re.findall(r"^\| (\w+) \|", made(), re.MULTILINE)) for made in (card.card, fusion_card.card)]
    first, second = (found & set(OFFLINE) for found in rows)
    assert first | second == set(OFFLINE) and not first & second


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": False, "beta_end": 0.012}, "noise .* ends at 0.012"),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "beta_end": 0.02}, "v .* in pure noise"),
    ],
)
def test_the_card_says_what_the_saved_scheduler_says(tmp_path, settings, words):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    assert re.search(words, schedule(tmp_path), re.DOTALL)
