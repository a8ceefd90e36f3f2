"""Work on the papers' protocols: interrupted, resumed, split over processes, it ends the same."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from counting_protocol import Counting

from experiments.evaluation.results import Unit
from experiments.evaluation.units import digest, place, share_of_process, work

SCRIPT = Path(__file__).with_name("counting_protocol.py")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


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


def test_pictures_read_back_are_those_drawn(tmp_path):
    protocol = Counting(count=1)
    results = work(protocol, tmp_path)
    for unit in protocol.units():
        drawn = [picture.tobytes() for picture in Counting().draw(unit)]
        assert [picture.tobytes() for picture in results.pictures(unit)] == drawn


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_interrupted_at_random_moments_ends_as_an_uninterrupted_one(tmp_path, whole, how):
    out, moments = tmp_path / "stopped", random.Random(how)
    command = [sys.executable, str(SCRIPT), str(out), "0.05"]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        deadline = time.monotonic() + 60
        while not list(out.rglob("*.png")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)  # until it is past its imports
        time.sleep(moments.uniform(0, 0.4))
        process.send_signal(how)
        process.communicate(timeout=60)
    results, files = whole
    resumed = work(Counting(), out)
    left = {name for name in contents(out) if Path(name).name.startswith(".")}  # a killed process cannot clean up
    assert resumed.csv() == results.csv()
    assert {name: data for name, data in contents(out).items() if name not in left} == files
    assert how == signal.SIGKILL or not left or how == signal.SIGTERM


def test_two_processes_make_the_pictures_of_one(tmp_path, whole):
    out = tmp_path / "split"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
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
