"""The digest of the code that scores: all that runs while a unit is scored is in it, and what means nothing is not."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from worlds import judged_folder

from context_diffusion.files import ROOT
from experiments.evaluation import scoring
from experiments.evaluation.bench import Bench
from experiments.evaluation.papers import blends, control_scales, references, sets, three_settings
from experiments.evaluation.papers.prompts import load_prompts
from experiments.evaluation.results import Unit
from experiments.evaluation.scoring import bare, code_of_scores, scoring_files
from experiments.evaluation.styles import comparison, methods, scores_realism
from experiments.evaluation.styles.held_out import HELD_OUT

CHECKS_ALONE = {ROOT / "context_diffusion" / "signatures.py"}  # it refuses arguments, and changes none
MADE = {  # protocol, and how many pictures each of its units has
    "style-sets": (lambda bench: sets.StyleSets(bench, load_prompts("tiny-scenes")[:1], seeds=1), 4),
    "references": (lambda bench: references.StyleReferences(bench, count=1), 4),
    "methods": (comparison.StyleMethods, 4),
    "blends": (lambda bench: blends.StyleBlends(bench, count=1), 3),
    "settings": (lambda bench: three_settings.ContextSettings(bench, count=1), 1),
    "control": (lambda bench: control_scales.ControlScales(bench, count=1), 1),
}


def running(work: Callable[[], object]) -> set[Path]:
    """The files of ours whose functions run."""
    found = set()

    def note(frame, event, argument) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    ours = [ROOT / "context_diffusion", ROOT / "experiments"]
    return {Path(name) for name in found if any(Path(name).is_relative_to(folder) for folder in ours)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The sentence is longer")
@pytest.mark.parametrize("name", MADE)
def test_all_that_runs_while_a_unit_is_scored_is_in_the_digest(name, monkeypatch):
    monkeypatch.setattr(scores_realism, "real_scenes", partial(scores_realism.real_scenes, 4))
    make, count = MADE[name]
    protocol = make(Bench(judged_folder(), steps=1, limit=12, test=name == "methods"))
    noise = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    chosen = [*protocol.units()[:2], protocol.units()[-1]]  # the last shows real scenes, where there are any
    if name == "methods":
        chosen = [Unit(methods.PLAIN, index) for index, style in enumerate(protocol.tasks.styles) if style in HELD_OUT]
    ran = running(lambda: [protocol.score(unit, list(map(Image.fromarray, noise))) for unit in chosen])
    assert Path(sys.modules[type(protocol).__module__].__file__) in ran
    assert ran <= {*scoring_files(protocol), *CHECKS_ALONE}


def test_every_pattern_of_the_list_finds_a_file():
    assert all([*ROOT.glob(pattern)] for pattern in scoring.SCORING)


class Scored:
    """What stands for a protocol; its own file is this one."""


def test_code_counts_and_words_about_it_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ROOT", tmp_path)
    monkeypatch.setattr(scoring, "SCORING", ("rulers/*.py",))
    (tmp_path / "rulers").mkdir()
    found = []
    for text in (
        "def far(a, b):\n    return abs(a - b)\n",
        '"""Rulers."""\n\n\ndef far(a, b):\n    """How far."""\n    return abs(\n        a - b  # of two\n    )\n',
        "def far(a, b):\n    return (a - b) ** 2\n",
    ):
        (tmp_path / "rulers" / "ruler.py").write_text(text)
        found.append(code_of_scores(Scored()))
    (tmp_path / "rulers" / "another.py").write_text("TWICE = 2\n")
    found.append(code_of_scores(Scored()))
    assert found[0] == found[1] and len({*found}) == 3


def test_a_function_that_is_only_described_stays_a_function():
    assert bare('class Odd(ValueError):\n    """Odd."""\n') == "class Odd(ValueError):\n    pass"
