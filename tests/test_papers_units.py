"""Work on the papers' protocols: interrupted, resumed, split over processes, it ends the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from counting_protocol import Counting
from dying import SIGNALS, contents, died, moments

from context_diffusion.commands import run_command
from experiments.evaluation import units
from experiments.evaluation.results import Unit
from experiments.evaluation.units import Places, digest, share_of_process, work

SCRIPT = Path(__file__).with_name("counting_protocol.py")


def place(protocol: Counting, out: Path) -> tuple[Path, Path]:
    """Where the pictures and the scores of a protocol's first unit are."""
    places, unit = Places(protocol, out), protocol.units()[0]
    return places.pictures(unit), places.scores(unit)


@pytest.fixture
def whole(tmp_path):
    """What one uninterrupted process writes."""
    out = tmp_path / "whole"
    return work(Counting(), out), contents(out)


def test_every_unit_is_drawn_and_scored_once(tmp_path):
    protocol = Counting(count=3)
    results = work(protocol, tmp_path)
    assert protocol.drawn == protocol.scored == protocol.units() == list(results.scores)
    again = Counting(count=3)
    assert work(again, tmp_path).csv() == results.csv()
    assert again.drawn == again.scored == []


def test_more_units_keep_those_that_are_there(tmp_path):
    work(Counting(count=2), tmp_path)
    more = Counting(count=3)
    work(more, tmp_path)
    assert more.drawn == [Unit("plain", 2), Unit("with AdaIN", 2)]


def test_a_new_scorer_reads_the_old_pictures_and_a_new_model_draws_anew(tmp_path):
    first = work(Counting(count=2), tmp_path)
    scorer, model = Counting(count=2, scorer="median"), Counting(count=2, model="two")
    assert work(scorer, tmp_path).scores == first.scores and (len(scorer.drawn), len(scorer.scored)) == (0, 4)
    work(model, tmp_path)
    assert len(model.drawn) == 4


def test_a_corrected_score_is_computed_anew_from_the_old_pictures(tmp_path, monkeypatch):
    work(Counting(count=2), tmp_path)
    monkeypatch.setattr(units, "code_of_scores", lambda protocol: "of another version")
    corrected = Counting(count=2)
    work(corrected, tmp_path)
    assert corrected.drawn == [] and corrected.scored == corrected.units()
    monkeypatch.undo()
    back = Counting(count=2)
    work(back, tmp_path)
    assert back.drawn == back.scored == []


def test_one_more_setting_draws_only_that_one_and_a_changed_one_only_itself(tmp_path):
    settings = {"plain": 0, "with AdaIN": 1}
    first = work(Counting(count=2, settings=settings), tmp_path)
    more = Counting(count=2, settings=settings | {"mine": "a source"})
    found = work(more, tmp_path)
    assert more.drawn == more.scored == [Unit("mine", 0), Unit("mine", 1)]
    assert first.scores.items() <= found.scores.items()
    changed = Counting(count=2, settings=settings | {"mine": "another source"})
    work(changed, tmp_path)
    assert changed.drawn == [Unit("mine", 0), Unit("mine", 1)]
    back = Counting(count=2, settings=settings)
    assert work(back, tmp_path).csv() == first.csv() and back.drawn == []


def test_a_changed_set_is_drawn_anew_under_every_setting_and_no_other_is(tmp_path):
    work(Counting(count=2, sets=["a", "b"]), tmp_path)
    changed = Counting(count=3, sets=["a", "c", "d"])
    work(changed, tmp_path)
    assert {unit.index for unit in changed.drawn} == {1, 2} and len(changed.drawn) == 4
    assert work(Counting(count=3, sets=["a", "c", "d"]), tmp_path).csv() == work(Counting(count=3), tmp_path).csv()


def test_how_long_it_will_take_is_told_after_one_set(tmp_path, capsys):
    work(Counting(count=3), tmp_path)
    assert capsys.readouterr().out == "counting: less than a minute to go\n"


def test_pictures_read_back_are_those_drawn(tmp_path):
    protocol = Counting(count=1)
    results = work(protocol, tmp_path)
    for unit in protocol.units():
        drawn = [picture.tobytes() for picture in Counting().draw(unit)]
        assert [picture.tobytes() for picture in results.pictures(unit)] == drawn


@pytest.mark.parametrize("how", SIGNALS)
def test_a_run_interrupted_at_random_moments_ends_as_an_uninterrupted_one(tmp_path, whole, how):
    out = tmp_path / "stopped"
    statuses = [
        died(lambda: run_command(lambda: bool(work(Counting(pause=0.02), out)) - 1), how, out.exists, moment)
        for moment in moments(how, 4, 0.15)
    ]
    assert set(statuses) <= {0, 130, 143, -how}, "one line, and no error"
    results, files = whole
    resumed = work(Counting(), out)
    assert resumed.csv() == results.csv()
    assert contents(out) == files  # what killed writers left is swept as well


def damages(folder: Path, pictures: Path, scores: Path):
    """Ways to damage a unit, by name; ``folder`` is of the work, the other two of the unit's pictures and scores."""
    mark, noted, first = (scores.with_suffix(".json"), pictures.with_suffix(".json"), Path(f"{pictures}-0.png"))
    other = json.loads(noted.with_name("001-0.json").read_text())
    for kind, file in (("scores", mark), ("pictures", noted)):
        for name, content in {
            "empty": b"", "cut": file.read_bytes()[:-9], "{}": b"{}", "[]": b"[]", "null": b"null", "words": b"words",
            "binary": b"\xff\xfe", "of another unit": file.with_name("001-0.json").read_bytes(), "deep": b"[" * 100_000,
        }.items():  # fmt: skip
            yield f"{kind} {name}", lambda file=file, content=content: file.write_bytes(content)
        yield f"no {kind}", file.unlink
    for text in ('{"a": [NaN]}', '{"a": ["1"]}', '{"a": 1}', '{"a": [null]}', "[1]", "{}"):
        line = f'{{"unit": "plain/000-0", "scores": {text}}}'
        yield f"scores {text}", lambda line=line: mark.write_text(line)
    yield "picture missing", first.unlink
    yield "picture empty", lambda: first.write_bytes(b"")
    yield "picture cut", lambda: first.write_bytes(first.read_bytes()[:40])
    yield "picture of another unit", lambda: first.write_bytes(first.with_name("001-0-0.png").read_bytes())
    yield "other pictures", lambda: noted.write_text(json.dumps(other | {"unit": "plain/000-0"}))
    for what, file in (("pictures", folder / "about.json"), ("scores", mark.parent.parent / "about.json")):
        yield f"about {what}", lambda file=file: file.write_bytes(b"{")


def test_a_damaged_unit_is_told_and_made_again(tmp_path, whole, capsys):
    results, files = whole
    out = tmp_path / "whole"
    folder, scored = place(Counting(), out)
    capsys.readouterr()
    for name, damage in list(damages(folder, folder / "plain" / "000-0", scored / "plain" / "000-0")):
        damage()
        protocol = Counting()
        assert work(protocol, out).csv() == results.csv(), name
        assert contents(out) == files, name
        assert set(protocol.drawn + protocol.scored) <= {Unit("plain", 0)}, name
        said = capsys.readouterr().out
        assert name.startswith(("no ", "about ")) or ("plain/000-0 is damaged" in said and said.count("\n") == 1), name


@pytest.mark.parametrize("place_of", ["work", "counting", "pictures", "unit", "picture"])
def test_a_file_in_place_of_a_folder_is_a_sentence(tmp_path, place_of):
    folder, _ = place(Counting(), tmp_path / "elsewhere")
    protocol = tmp_path / "work" / "counting"
    file = {
        "work": tmp_path / "work", "counting": protocol, "pictures": protocol / folder.name,
        "unit": protocol / folder.name / "plain", "picture": protocol / folder.name / "plain" / "000-0-0.png",
    }[place_of]  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.mkdir() if place_of == "picture" else file.write_text("words")
    with pytest.raises(ValueError, match=r"The output .*is (not )?a folder") as caught:
        work(Counting(), tmp_path / "work")
    assert str(tmp_path / "work") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_make_the_pictures_of_one(tmp_path, whole, count):
    out = tmp_path / "split"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(count),
        str(SCRIPT),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent.parent)}
    done = subprocess.run([*command, str(out), "0.05"], capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr
    assert "whole" in done.stdout  # the last one has everybody's results
    results, files = whole
    assert contents(out) == files
    assert work(Counting(), out).csv() == results.csv()


def test_each_process_takes_its_part_and_waits_for_nobody(tmp_path, monkeypatch):
    parts = []
    for rank in ("1", "0"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        protocol = Counting(count=3)
        parts.append((work(protocol, tmp_path), protocol.drawn))
    (first, odd), (second, even) = parts
    assert first is None and list(second.scores) == Counting(count=3).units()
    assert not set(odd) & set(even) and len(odd) == len(even) == 3


def test_a_rank_out_of_range_is_a_sentence(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK counts from 0 up to WORLD_SIZE - 1; here RANK=2"):
        share_of_process()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE are whole numbers"):
        share_of_process()


def test_two_units_in_one_place_are_refused(tmp_path):
    protocol = Counting()
    protocol.units = lambda: [Unit("A b", 0), Unit("a B", 0)]
    with pytest.raises(ValueError, match="to one place"):
        work(protocol, tmp_path)


def test_folders_say_what_they_depend_on(tmp_path):
    pictures, scores = place(Counting(), tmp_path)
    assert pictures.name == f"pictures-{digest({'model': 'one'})}" and scores.parent == pictures
    assert '"model": "one"' in (pictures / "about.json").read_text()
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
