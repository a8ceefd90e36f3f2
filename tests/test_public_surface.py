"""Whatever is handed to anything public is used or refused: by a ``raise`` of the library, in one sentence, at once."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from surface_known import KNOWN

TESTS = Path(__file__).parent
LIMIT = 600  # seconds for the whole walk, on a machine that does other things as well


@cache
def walked() -> dict:
    """Walk the surface once, in a process of its own (``tests/surface.py`` says why)."""
    done = subprocess.run([sys.executable, TESTS / "surface.py"], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_wrong_value_is_refused_by_the_library_in_one_sentence_at_once():
    found = walked()
    assert not found["lacking"], (
        f"tests/surface.py has no right value for {'; '.join(found['lacking'])}: add one to EXAMPLES (or INSTANCES), "
        "so that the walk can hand wrong values to the others."
    )
    assert not found["broken"], f"the examples of tests/surface.py do not work: {found['broken']}"
    faults = {place: told for place, told in found["faults"].items() if place not in KNOWN}
    told = [f"{place} given {value}: {why}" for place, values in faults.items() for value, why in values.items()]
    assert not faults, "\n".join([f"{len(told)} of {found['tried']} cases are not refused as they should be:", *told])
    assert found["tried"] > 10_000


@pytest.mark.slow
def test_what_is_mended_leaves_the_list_of_known_faults():
    mended = sorted(KNOWN - set(walked()["faults"]))
    assert not mended, f"these are right now: take them out of tests/surface_known.py: {', '.join(mended)}"
