"""The model card says what the records say, and no more."""

import json

from experiments.publishing.card import score_table


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
