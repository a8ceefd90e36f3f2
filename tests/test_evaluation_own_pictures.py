"""Pictures of one's own in every protocol that takes references: what they are asked, what is scored, what is drawn."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from worlds import hub_folder, judged_folder

from experiments.evaluation import harness, units
from experiments.evaluation.bench import Bench
from experiments.evaluation.papers import blends, control_scales
from experiments.evaluation.papers.control_scales import OwnQueries
from experiments.evaluation.papers.mixtures import OwnMixtures
from experiments.evaluation.papers.three_settings import OWN, OwnCases
from experiments.evaluation.styles import methods

TAKERS = harness.TAKERS["references"]
NEEDS_TRUTH = {  # or its like: what nobody knows of other people's pictures
    "object", "style", "leakage", "slot palette", "texture", "passes", "share, CLIP", "share, DINO", "misfit, CLIP",
    "blend score, CLIP", "blend score, DINO",
}  # fmt: skip
STILL_SCORED = {
    "references": {"palette distance", "DINO"}, "methods": {"palette distance", "DINO", "CLIP, prompt"},
    "blends": {"share, palette", "misfit, palette", "weighted DINO", "CLIP, object"},
    "control": {"edge F1", "depth rank correlation", "palette distance"}, "settings": {"edge F1", "palette distance"},
}  # fmt: skip


def write_pictures(folder: Path, *captions: str) -> Path:
    """A folder of small noisy pictures, ``a.png`` and so on, with their captions."""
    folder.mkdir(exist_ok=True)
    lines = ["[captions]"]
    for number, caption in enumerate(captions):
        name = f"{'abcdefgh'[number]}.png"
        write_noise(folder / name, number)
        lines.append(f'"{name}" = "{caption}"')
    (folder / "captions.toml").write_text("\n".join(lines))
    return folder


def write_noise(file: Path, seed: int) -> None:
    """A picture of coloured tiles, wider than high."""
    tiles = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(tiles).resize((45, 30), Image.Resampling.NEAREST).save(file)


def asked(folder: Path, name: str, *arguments: str, model: Path | None = None) -> dict:
    """Run a protocol on its first task and read the record."""
    places = ["--work", str(folder / "work"), "--out", str(folder / "out"), "--limit", "1", "--steps", "1"]
    few = ["--only", methods.PLAIN, "--only", methods.NOISED] if name == "methods" else []
    assert harness.main([name, "--model", str(model or judged_folder()), *places, *few, *arguments]) == 0
    return json.loads((folder / "out" / f"{name}.json").read_text())


def scores_in(record: dict) -> dict[str, set[str]]:
    """The scores of each row."""
    found: dict[str, set[str]] = {}
    for number in record["numbers"]:
        row, _, score = number["name"].rpartition(": ")
        found.setdefault(row, set()).add(score)
    return found


@pytest.fixture
def _short_sweeps(monkeypatch):
    """Sweep fewer weights and scales, to be quick."""
    for name, values in {"WEIGHTS": (0.0, 1.0), "GUIDANCES": (), "THIRDS": (blends.THIRDS[1],)}.items():
        monkeypatch.setattr(blends, name, values)
    monkeypatch.setattr(blends, "SETTINGS", blends.settings())
    monkeypatch.setattr(control_scales, "SCALES", (0.0, 1.0))


@pytest.mark.slow
@pytest.mark.usefixtures("_short_sweeps")
@pytest.mark.parametrize("name", TAKERS)
def test_own_pictures_make_a_table_without_truth_and_others_are_drawn_anew(tmp_path, name):
    """Also by a model whose judge could see: it knows nothing of these pictures."""
    pictures = write_pictures(tmp_path / "pictures", "a hill, ink", "a fox, ink", "an egg, ink")

    def drawn() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.png")}

    first = asked(tmp_path, name, "--references", str(pictures))
    rows = scores_in(first)
    assert not set.union(*rows.values()) & NEEDS_TRUTH and not any("real" in row for row in rows)
    assert STILL_SCORED[name] <= set.union(*rows.values())
    assert f"--references {pictures}" in first["command"]
    assert "pictures: " in first["notes"][0] and "a.png" in first["notes"][0]
    assert "nan" not in "".join(page.read_text().lower() for page in (tmp_path / "out").glob(f"{name}-*.[mct]*"))
    before = drawn()
    again = asked(tmp_path, name, "--references", str(pictures))
    assert drawn() == before and (name == "methods" or again == first)  # methods are clocked each time
    write_noise(pictures / "a.png", 9)
    other = asked(tmp_path, name, "--references", str(pictures))
    assert before.items() <= drawn().items() and len(drawn()) == 2 * len(before)
    assert scores_in(other) == rows and other["numbers"] != first["numbers"]


@pytest.mark.parametrize("name", TAKERS)
def test_a_hub_s_model_is_given_the_toy_world_with_a_word_alone(tmp_path, name, monkeypatch, capsys):
    monkeypatch.setattr(units, "work", lambda *_: None)
    pictures = write_pictures(tmp_path / "pictures", "a hill, ink", "a fox, ink")
    model = hub_folder(adapter=True, control=True)
    for arguments, told in ([], 1), (["--references", str(pictures)], 0):
        harness.main([name, "--model", str(model), "--work", str(tmp_path), "--out", str(tmp_path / "o"), *arguments])
        assert capsys.readouterr().out.count("never saw the toy world") == told


@pytest.mark.parametrize(
    ("names", "captions", "sentence"),
    [
        (["blends"], ["a hill, ink"], "blends mixes at least two pictures; pictures has a.png alone."),
        (["control"], ["a hill, ink"], "from one picture and the layout from another; pictures has a.png alone."),
        (["settings"], ["a hill, ink"], "other pictures of a style"),
        (["settings"], ["a hill, ink", "a fox, ink", "an egg, oil"], "c.png is the only one in 'oil'."),
        (["settings"], ["a hill, ink", "a fox, ink", "an egg"], "c.png is the only one that names none."),
        (["papers"], ["a hill, ink"], "blends mixes at least two pictures"),
    ],
)
def test_what_a_protocol_cannot_do_with_a_folder_is_told_before_anything_is_loaded(
    tmp_path, names, captions, sentence, capsys
):
    pictures, work = write_pictures(tmp_path / "pictures", *captions), tmp_path / "work"
    with pytest.raises(SystemExit) as end:
        harness.main([*names, "--references", str(pictures), "--work", str(work)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and sentence in said and said.count("\n") == 1 and not work.exists()


def test_each_picture_is_mixed_with_the_next_two(tmp_path):
    four = OwnMixtures(write_pictures(tmp_path / "four", "a hill, ink", "a boat, oil", "a cat", "an egg, chalk"))
    assert (four.mixed, four.references) == ([[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]], 3)
    task = four.task(1)
    assert task.prompts == ("a house", "a tree", "a car", "a cup")  # neither boat nor cat, and no style
    assert task.captions == ("a boat, oil", "a cat", "an egg, chalk") and task.seeds == (10, 11, 12, 13)
    two = OwnMixtures(write_pictures(tmp_path / "two", "a hill, ink", "a fox, oil"))
    assert (two.mixed, two.references) == ([[0, 1]], 2)
    known = blends.StyleBlends(Bench(hub_folder(), references=tmp_path / "two"), count=4).settings
    assert {len(weights) for _, weights, _ in known.values()} == {2} and "real" not in {
        one for one, *_ in known.values()
    }


def test_a_picture_lends_its_style_and_the_next_one_its_layout(tmp_path):
    folder = write_pictures(tmp_path / "pictures", "a hill, ink", "a red fox, in snow, oil", "an egg")
    tasks = OwnQueries(folder)
    assert [tasks.task(i).prompts for i in range(3)] == [("a red fox, in snow, ink",), ("an egg, oil",), ("a hill",)]
    for index, (lent, shown) in enumerate(("ab", "bc", "ca")):
        reference, query = (Image.open(folder / f"{name}.png").convert("RGB") for name in (lent, shown))
        assert tasks.task(index).references[0].tobytes() == reference.tobytes()
        assert tasks.query(index).tobytes() == query.tobytes()
    before = tasks.about()
    write_noise(folder / "c.png", 9)
    assert [old != new for old, new in zip(before, OwnQueries(folder).about(), strict=True)] == [False, True, True]


@pytest.mark.parametrize(
    ("captions", "shots", "contexts"),
    [
        (["a hill, ink", "a fox, oil", "an egg, ink", "a cup, oil"], (1,), [[2], [3], [0], [1]]),
        (["a hill", "a fox", "an egg"], (1, 2), [[1, 2], [2, 0], [0, 1]]),
        ([f"{thing}, ink" for thing in ("a hill", "a fox", "an egg", "a cup", "a hat")], (1, 3),
         [[1, 2, 3], [2, 3, 4], [3, 4, 0], [4, 0, 1], [0, 1, 2]]),
    ],
)  # fmt: skip
def test_contexts_are_the_next_pictures_of_the_query_s_style(tmp_path, captions, shots, contexts):
    folder = write_pictures(tmp_path / "pictures", *captions)
    cases = OwnCases(folder)
    assert cases.shots == shots and [cases.contexts(index) for index in range(len(captions))] == contexts
    case = cases.case(OWN, 0)
    expected = [Image.open(folder / f"{'abcdefgh'[i]}.png").convert("RGB").tobytes() for i in contexts[0]]
    assert [one.tobytes() for one in case.contexts] == expected and case.prompt == captions[0]
    assert OwnCases(folder, limit=2).counts[OWN][0] == 2


def test_the_help_says_what_a_folder_is_to_each_protocol(capsys):
    with pytest.raises(SystemExit):
        harness.main(["--help"])
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    for line in ("references, methods each picture is a reference", "blends each is", "control each", "settings each"):
        assert line in said
