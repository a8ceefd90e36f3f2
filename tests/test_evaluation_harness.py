"""Every protocol runs through to its written report on tiny random models, or refuses before it draws anything."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from worlds import hub_folder, judged_folder, scenes_folder

from context_diffusion import ContextDiffusion, Request
from context_diffusion.checkpoints import MODELS, Model
from experiments.evaluation import harness
from experiments.evaluation.bench import Bench
from experiments.evaluation.papers import blends, control_scales, three_settings
from experiments.evaluation.papers.scorers import fingerprint
from experiments.evaluation.results import Unit

WITH_JUDGE = ("reconstruction", "clip", "text", "layout", "context", "domain", "finetuned")  # offline, by a folder


def evaluate(folder: Path, model: Path, *arguments: str) -> int:
    """Run the command on a model, with one step of sampling."""
    places = ["--work", str(folder / "work"), "--out", str(folder / "out")]
    return harness.main([*arguments, "--model", str(model), "--steps", "1", *places])


def record(folder: Path, name: str) -> dict:
    """What a protocol recorded; every file that goes with it is there and whole."""
    out = folder / "out"
    found = json.loads((out / f"{name}.json").read_text())
    assert found["protocol"] == name and found["steps"] == 1
    assert found["numbers"] and all(number["value"] is not None for number in found["numbers"])
    for picture in found["pictures"]:
        Image.open(out / picture).load()
    return found


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "out").iterdir()}


@pytest.fixture
def _short_sweeps(monkeypatch):
    """Sweep fewer weights and scales, to be quick."""
    for name, values in {"WEIGHTS": (0.0, 1.0), "GUIDANCES": (1.5,), "THIRDS": (blends.THIRDS[1],)}.items():
        monkeypatch.setattr(blends, name, values)
    monkeypatch.setattr(blends, "SETTINGS", blends.settings())
    monkeypatch.setattr(control_scales, "SCALES", (0.0, 1.0))


@pytest.mark.slow
@pytest.mark.usefixtures("_short_sweeps")
@pytest.mark.parametrize("name", harness.PAPERS)
def test_one_set_or_query_makes_a_whole_report(tmp_path, name):
    model = judged_folder()
    assert evaluate(tmp_path, model, name, "--limit", "1") == 0
    found = record(tmp_path, name)
    assert found["command"].endswith(f"{name} --model {model} --limit 1 --steps 1")
    assert found["pictures"] and found["claims"] and not any("lack of weights" in note for note in found["notes"])
    with (tmp_path / "out" / f"{name}-units.csv").open() as file:
        assert {line["index"] for line in csv.DictReader(file)} == {"0"}
    assert {f"{name}-scores.{end}" for end in ("md", "csv", "tex")} <= files(tmp_path)
    assert "nan" not in (tmp_path / "out" / f"{name}-scores.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_JUDGE)
def test_an_offline_score_makes_a_whole_report(tmp_path, name):
    assert evaluate(tmp_path, judged_folder(), name, "--quick") == 0
    found = record(tmp_path, name)
    assert found["pictures"] or name == "clip"


@pytest.mark.slow
@pytest.mark.usefixtures("_short_sweeps")
@pytest.mark.parametrize("xl", [False, True])
def test_a_plain_pipeline_is_scored_by_what_can_be_had(tmp_path, xl, capsys):
    names = ("style-sets", "references", "blends")
    assert evaluate(tmp_path, hub_folder(xl), *names, "--limit", "1") == 0
    said = capsys.readouterr().out
    for part in ("clip", "dino", "judge"):
        assert f"scores by {part} are left out." in said
    for name in names:
        found = record(tmp_path, name)
        assert any(note.startswith("not scored, for lack of weights: ") for note in found["notes"])
        scores = {number["name"].rpartition(": ")[2] for number in found["numbers"]}
        assert scores & {"palette distance", "share, palette"} and not scores & {"DINO", "weighted DINO", "object"}


@pytest.mark.parametrize("xl", [False, True])
@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("settings", "no controlnet-canny and no context_projector or ip-adapter"),
        ("control", "no controlnet-canny or controlnet-depth"),
    ],
)
def test_what_a_protocol_needs_and_cannot_have_is_said_before_anything_is_drawn(tmp_path, xl, name, missing, capsys):
    assert evaluate(tmp_path, hub_folder(xl), name, "--limit", "1") == 1
    said = capsys.readouterr().out
    assert f"{name}: not run. There is {missing} beside " in said and f"not run: {name}" in said
    assert said.count("not run.") == 1 and not list(tmp_path.rglob("*"))


@pytest.mark.slow
@pytest.mark.usefixtures("_short_sweeps")
@pytest.mark.parametrize("xl", [False, True])
def test_a_pipeline_with_adapter_and_controlnet_is_measured_like_any_other(tmp_path, xl):
    names = ("style-sets", "settings", "control")
    assert evaluate(tmp_path, hub_folder(xl, adapter=True, control=True), *names, "--limit", "1") == 0
    for name in names:
        record(tmp_path, name)
    rows = (tmp_path / "out" / "control-scores.csv").read_text()
    assert "canny 1, aligned" in rows and "depth" not in rows  # it has no ControlNet for depth


def test_a_protocol_that_cannot_run_does_not_keep_the_next_from_running(tmp_path, capsys):
    assert evaluate(tmp_path, hub_folder(), "style-sets", "control", "text", "--limit", "1") == 1
    assert "not run: text, control" in capsys.readouterr().out
    assert "style-sets.json" in files(tmp_path)


def test_a_file_that_a_protocol_lost_is_no_missing_part(tmp_path, monkeypatch):
    monkeypatch.setattr(three_settings, "run", lambda bench: (tmp_path / "lost").read_text())
    with pytest.raises(FileNotFoundError):
        harness.run("settings", Bench(scenes_folder()), tmp_path)


def test_of_two_processes_each_does_its_own_offline_scores(tmp_path, monkeypatch):
    taken = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(harness, "run", lambda name, *_, rank=rank: taken.setdefault(name, []).append(rank) or True)
        assert harness.main(["offline", "control", "--out", str(tmp_path)]) == 0
    assert taken.pop("control") == ["0", "1"]
    assert set(map(tuple, taken.values())) == {("0",), ("1",)} and set(taken) == set(harness.OFFLINE)


def test_control_measures_the_models_own_controlnet():
    bench = Bench(scenes_folder(), steps=2)
    (drawn,) = control_scales.ControlScales(bench, count=1).draw(Unit("canny 1.5, plain", 0))
    query, (_, style) = control_scales.query_of(0), control_scales.reference(0)
    request = Request(query.image, (), f"a {query.scene.object}, {style} style", layout="canny", control_scale=1.5,
                      seed=0, num_inference_steps=2)  # fmt: skip
    (picture,) = ContextDiffusion.from_pretrained(scenes_folder()).draw([request], progress=False)
    assert drawn.tobytes() == picture.tobytes()


def test_a_measurement_takes_no_fallback(tmp_path, monkeypatch, capsys):
    model = Model(
        "promised", str(hub_folder(control=True)), 0, "MIT", parts={"ip-adapter": "owner/none"}, adapter_file="a/b"
    )
    monkeypatch.setitem(MODELS, "promised", model)
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert harness.main(["settings", "--model", "promised", "--limit", "1", *places]) == 1
    assert "settings: not run. owner/none is not on this disk" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.png"))


def test_a_folders_fingerprint_is_of_its_weights_and_settings(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"0")
    first = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert fingerprint(tmp_path) == first
    (tmp_path / "config.json").write_text('{"beta_end": 0.02}')
    second = fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert len({first, second, fingerprint(tmp_path)}) == 3
    assert fingerprint("owner/name") == "owner/name"
