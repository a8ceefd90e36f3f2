"""The manifest of figures: what is listed, when a figure is out of date, and whether a rebuilt one is the same."""

import itertools
import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.publishing import manifest
from experiments.publishing.entries import MANIFEST, choose, input_files, read_manifest, unlisted
from experiments.publishing.manifest import LOCK, difference, digest, main, read_lock

ROOT = Path(__file__).parent.parent

# A command that draws squares as bright as its inputs say, and keeps count of its runs.
DRAW = """
import sys
from pathlib import Path
from PIL import Image
*names, option, out = sys.argv[1:]
assert option == "--out"
for name in names:
    level = int(Path(f"inputs/{name}.txt").read_text())
    Image.new("RGB", (8, 4), (level, level, level)).save(Path(out) / f"{name}.png")
    Path(out, f"{name}.json").write_text(str(level))
with open("runs.txt", "a") as runs:
    runs.write(" ".join(names) + "\\n")
"""
ENTRIES = """
[inputs]
drawing = ["draw.py"]

[defaults."sheets/*"]
command = "python draw.py {stem}"
paper = "ours"
inputs = ["drawing", "inputs/{stem}.txt"]

[figures."sheets/one.png"]
shows = "One."

[figures."sheets/two.png"]
shows = "Two."
tolerance = 3
because = "it is allowed to"

[figures."curve.png"]
shows = "A curve."
command = "python train.py"
paper = "ours"
rebuilt = false
"""


@pytest.fixture
def root(tmp_path):
    """A repository of two figures that are made here and one that is not."""
    for folder in ("figures", "inputs", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "draw.py").write_text(DRAW)
    (tmp_path / "inputs" / "one.txt").write_text("100\n")
    (tmp_path / "inputs" / "two.txt").write_text("200\n")
    (tmp_path / MANIFEST).write_text(ENTRIES)
    Image.new("RGB", (2, 2)).save(tmp_path / "figures" / "curve.png")
    return tmp_path


def runs(root: Path) -> list[str]:
    file = root / "runs.txt"
    return file.read_text().splitlines() if file.is_file() else []


def level(root: Path, name: str) -> int:
    return Image.open(root / "figures" / "sheets" / f"{name}.png").getpixel((0, 0))[0]


def one_of(root: Path, name: str = "sheets/one"):
    (figure,) = choose(read_manifest(root), [name])
    return figure


def test_only_what_changed_is_rebuilt(root):
    assert main([], root) == 0 and sorted(runs(root)) == ["one", "two"]
    assert main([], root) == 0 and len(runs(root)) == 2
    (root / "inputs" / "two.txt").write_text("50\n")
    assert main([], root) == 0 and runs(root)[2:] == ["two"] and (level(root, "one"), level(root, "two")) == (100, 50)
    (root / "figures" / "sheets" / "one.png").unlink()
    assert main([], root) == 0 and runs(root)[3:] == ["one"]
    (root / "draw.py").write_text(DRAW + "\n# both depend on this\n")
    assert main(["one"], root) == 0 and runs(root)[4:] == ["one"]
    assert main([], root) == 0 and runs(root)[5:] == ["two"]
    assert main(["--all", "sheets"], root) == 0 and sorted(runs(root)[6:]) == ["one", "two"]
    assert (root / "figures" / "sheets" / "two.json").read_text() == "50"  # records come along with their pictures


def test_figures_of_one_command_share_its_run(root):
    entries = ENTRIES.replace('{stem}"\npaper', 'one two"\npaper')
    (root / MANIFEST).write_text(entries)
    assert main([], root) == 0 and runs(root) == ["one two"]
    (root / "inputs" / "two.txt").write_text("7\n")
    assert main([], root) == 0 and runs(root) == ["one two", "one two"] and level(root, "two") == 7
    (root / "draw.py").write_text(DRAW + "\n# both depend on this\n")
    assert main(["one"], root) == 0 and len(runs(root)) == 3  # and the other one with it
    assert main([], root) == 0 and len(runs(root)) == 3


def test_a_digest_is_of_contents_and_of_nothing_else(root):
    first, source = digest(one_of(root), root), root / "inputs" / "one.txt"
    os.utime(source, (1, 1))
    (root / ".hidden").write_text("x")
    (root / MANIFEST).write_text(
        ENTRIES.replace('["drawing", "inputs/{stem}.txt"]', '["inputs/{stem}.txt", "draw.py"]')
    )
    assert digest(one_of(root), root) == first
    source.write_bytes(b"100\r\n")
    (root / "draw.py").write_bytes(DRAW.encode().replace(b"\n", b"\r\n"))
    assert digest(one_of(root), root) == first
    source.write_text("101\n")
    changed = digest(one_of(root), root)
    assert changed != first
    (root / MANIFEST).write_text(ENTRIES.replace("draw.py {stem}", "draw.py {stem} --fast"))
    assert digest(one_of(root), root) not in (first, changed)


def test_in_a_binary_file_every_byte_counts_and_so_does_a_files_name(root):
    (root / MANIFEST).write_text(ENTRIES.replace('"inputs/{stem}.txt"', '"inputs"'))
    digests = []
    for name, data in (("a", b"\0\r\n"), ("a", b"\0\n"), ("b", b"\0\n")):
        for old in (root / "inputs").glob("*.bin"):
            old.unlink()
        (root / "inputs" / f"{name}.bin").write_bytes(data)
        digests.append(digest(one_of(root), root))
    assert len(set(digests)) == 3


def test_an_exclamation_mark_takes_inputs_away_again(root):
    (root / "inputs" / "one.txt.bak").write_text("1")

    def files(*patterns: str) -> list[str]:
        (root / MANIFEST).write_text(ENTRIES.replace('["drawing", "inputs/{stem}.txt"]', json.dumps(patterns)))
        return [path.relative_to(root).as_posix() for path in input_files(one_of(root), root)]

    assert files("inputs", "!inputs/*.bak") == ["inputs/one.txt", "inputs/two.txt"]
    assert files("inputs", "!inputs/*.txt", "inputs/two.txt") == ["inputs/one.txt.bak", "inputs/two.txt"]


def test_of_a_notebook_the_code_counts_and_prose_and_outputs_do_not(root):
    (root / MANIFEST).write_text(ENTRIES.replace('"inputs/{stem}.txt"', '"notebooks/a.ipynb"'))

    def with_cells(code: str, prose: str, outputs: list, tags: list) -> str:
        cells = [
            {"cell_type": "markdown", "source": [prose], "metadata": {}},
            {"cell_type": "code", "source": [code], "outputs": outputs, "metadata": {"tags": tags}},
        ]
        (root / "notebooks" / "a.ipynb").write_text(json.dumps({"cells": cells}))
        return digest(one_of(root), root)

    first = with_cells("1 + 1", "Two.", [], ["figure"])
    assert with_cells("1 + 1", "Still two.", [{"text": "2"}], ["figure"]) == first
    assert with_cells("1 + 2", "Two.", [], ["figure"]) != first
    assert with_cells("1 + 1", "Two.", [], []) != first


def test_check_lets_pass_what_is_within_tolerance_and_no_more(root, capsys):
    assert main([], root) == 0
    committed = (root / "figures" / "sheets" / "one.png").read_bytes()
    assert main(["--check"], root) == 0 and capsys.readouterr().out.count("the same bytes") == 2
    (root / "inputs" / "two.txt").write_text("203\n")
    assert main(["--check"], root) == 0
    assert "two.png: within, 3 grey levels apart; at most 3 are asked for" in capsys.readouterr().out
    (root / "inputs" / "two.txt").write_text("204\n")
    (root / "inputs" / "one.txt").write_text("101\n")
    lock = read_lock(root)
    assert main(["--check"], root) == 1
    printed = capsys.readouterr().out
    assert "two.png: OUTSIDE, 4 grey levels apart; at most 3 are asked for" in printed
    assert "one.png: OUTSIDE, 1 grey levels apart; the same bytes are asked for" in printed
    assert (root / "figures" / "sheets" / "one.png").read_bytes() == committed and read_lock(root) == lock
    assert main(["--check", "two"], root) == 1 and "one.png" not in capsys.readouterr().out


def test_check_tells_other_sizes_and_pictures_that_are_not_there(root, capsys):
    assert main([], root) == 0
    (root / "draw.py").write_text(DRAW.replace("(8, 4)", "(9, 4)"))
    (root / "figures" / "sheets" / "one.png").unlink()
    assert main(["--check"], root) == 1
    printed = capsys.readouterr().out
    assert "two.png: OUTSIDE, sizes 8x4 and 9x4" in printed and "one.png: not there" in printed


def test_the_difference_is_the_mean_over_pixels_and_colours():
    first, second = (np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8) for seed in (0, 1))
    by_hand = sum(abs(int(a) - int(b)) for a, b in zip(first.flat, second.flat, strict=True)) / first.size
    assert difference(Image.fromarray(first), Image.fromarray(second)) == pytest.approx(by_hand)


def test_accept_takes_pictures_as_they_are(root, capsys):
    assert main(["--accept"], root) == 1 and "0 of 2 figure(s) taken" in capsys.readouterr().out
    (root / "figures" / "sheets").mkdir()
    for name in ("one", "two"):
        Image.new("RGB", (8, 4)).save(root / "figures" / "sheets" / f"{name}.png")
    assert main(["--accept"], root) == 0 and main([], root) == 0
    assert runs(root) == [] and level(root, "one") == 0
    assert json.loads((root / LOCK).read_text()).keys() == {"sheets/one.png", "sheets/two.png"}


def test_a_failing_command_is_told_and_the_others_still_run(root, capsys):
    (root / "inputs" / "one.txt").write_text("bright\n")
    assert main([], root) == 1
    printed = capsys.readouterr().out
    assert "`python draw.py one` ended with status 1" in printed and "invalid literal for int()" in printed
    assert runs(root) == ["two"] and read_lock(root).keys() == {"sheets/two.png"}
    assert not (root / "figures" / "sheets" / "one.png").exists()


def test_a_command_that_leaves_no_picture_is_told(root, capsys):
    (root / MANIFEST).write_text(ENTRIES.replace("draw.py {stem}", "draw.py two"))
    assert main([], root) == 1 and "`python draw.py two` ran, and left no one.png" in capsys.readouterr().out


def test_an_interrupt_keeps_what_was_finished(root, capsys, monkeypatch):
    def interrupted(job, root=None):
        if job[0].name == "sheets/two":
            raise KeyboardInterrupt
        return make(job, root)

    make = manifest.make
    monkeypatch.setattr(manifest, "make", interrupted)
    assert main([], root) == 130 and "the same command resumes" in capsys.readouterr().out
    monkeypatch.undo()
    assert runs(root) == ["one"]
    assert main([], root) == 0 and runs(root) == ["one", "two"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('shows = "One."', 'show = "One."', "it has no field 'show'; did you mean 'shows'?"),
        ('shows = "One."', "", "neither it nor a default says shows."),
        ('shows = "One."', "shows = 1", "shows = 1 is of the wrong type"),
        ('"drawing", ', '"darwing", ', "no file is or matches its input 'darwing'"),
        ('["drawing", "inputs/{stem}.txt"]', "[1]", "inputs = [1] is of the wrong type"),
        ('["drawing", "inputs/{stem}.txt"]', "[]", "without inputs nobody can tell"),
        ("inputs/{stem}.txt", "inputs/{name}.txt", "may hold {stem}, {number}, {protocol}; not 'name'"),
        ("inputs/{stem}.txt", "../other.txt", "inputs are paths inside the repository, which '../other.txt' is not"),
        ("python draw.py {stem}", "make one", "a command begins with 'python '"),
        ("tolerance = 3", 'tolerance = "byte"', "tolerance is 'bytes' or a mean difference of 0 to 255 grey levels"),
        ("tolerance = 3", "tolerance = -1", "not -1"),
        ('because = "it is allowed to"', "", "a tolerance of 3 grey levels needs a reason"),
        ("curve.png", "other.png", "it is not there, and rebuilt = false says that no command here makes it"),
        ('[figures."sheets/one.png"]', '[figures."sheets/one.txt"]', "an entry is a table with the picture's path"),
        ("[inputs]", "[input]", "got 'input'"),
        ("[inputs]", "[inputs", "is not valid TOML"),
    ],
)
def test_a_broken_entry_is_told_in_one_sentence(root, capsys, old, new, told):
    assert old in ENTRIES
    (root / MANIFEST).write_text(ENTRIES.replace(old, new))
    with pytest.raises(SystemExit) as ended:
        main([], root)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and told in printed and printed.startswith(MANIFEST) and printed.count("\n") == 1
    assert runs(root) == []


def test_pictures_without_an_entry_are_told(root, capsys):
    (root / "README.md").write_text("![a](figures/shown.webp) and ![a curve](figures/curve.png)")
    (root / "notebooks" / "00_a.ipynb").write_text(json.dumps({"cells": [{"source": "![b](../figures/a/b.webp)"}]}))
    Image.new("RGB", (2, 2)).save(root / "figures" / "kept.png")
    (root / "figures" / "record.json").write_text("{}")
    with pytest.raises(SystemExit):
        main([], root)
    printed = capsys.readouterr().err
    for told in ("shown.webp (shown in README.md)", "a/b.webp (shown in notebooks/00_a.ipynb)", "kept.png (in figures"):
        assert told in printed
    assert "curve.png" not in printed and "record.json" not in printed


def test_an_unknown_name_is_told_with_the_near_ones(root, capsys):
    with pytest.raises(SystemExit):
        main(["sheet/one"], root)
    assert "No figure is named 'sheet/one'; did you mean 'sheets/one'" in capsys.readouterr().err


def test_figures_are_chosen_by_name_by_file_and_by_folder(root):
    figures = read_manifest(root)
    for names in (["sheets"], ["one", "two"], ["figures/sheets/one.png", "two.png"]):
        assert [one.file for one in choose(figures, names)] == ["sheets/one.png", "sheets/two.png"]
    assert choose(figures, []) == figures


def test_the_manifest_lists_every_picture_of_readme_and_lessons():
    figures = read_manifest(ROOT)  # raises where README, a notebook or figures/ has a picture that it does not list
    assert {"world.webp", "demo.webp"} <= {one.file for one in figures}
    for lesson in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        assert f"lessons/{lesson.stem}.webp" in {one.file for one in figures}
    assert unlisted([one for one in figures if one.file != "demo.webp"], ROOT) == {"demo.webp": "shown in README.md"}


def test_the_lock_and_the_committed_pictures_are_the_manifests():
    figures = read_manifest(ROOT)
    made = {one.file for one in figures if one.rebuilt}
    assert set(read_lock(ROOT)) <= made
    assert {one.folder for one in figures if not one.rebuilt} == {"training", "over_training"}
    assert all(len(one) == 64 for one in read_lock(ROOT).values())


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("lessons/08_new.webp", "experiments.publishing.lesson_figures 08"),
        ("offline/new-sheet.webp", "experiments.evaluation new"),
        ("evaluation/new-sheet.webp", "experiments.evaluation new"),
        ("evaluation/style-sets-sheet.webp", "experiments.evaluation style-sets"),
    ],
)
def test_a_new_figure_takes_three_lines(tmp_path, file, command):
    defaults = (ROOT / MANIFEST).read_text().split("\n[figures.")[0]
    (tmp_path / "figures").mkdir()
    (tmp_path / MANIFEST).write_text(f'{defaults}\n[figures."{file}"]\nshows = "It."\npaper = "ours"\n')
    for pattern in itertools.chain(*tomllib.loads(defaults)["inputs"].values()):  # a repository that has all of them
        path = tmp_path / pattern.removeprefix("!").format(stem="08_new", protocol="new").replace("*", "any")
        path.mkdir(parents=True, exist_ok=True)
        (path / "any").touch()
    (new,) = read_manifest(tmp_path)
    assert new.command == f"python -m {command}" and new.rebuilt
    assert new.tolerance is not None and new.because and new.inputs


def test_of_two_defaults_that_fit_the_later_counts(root):
    later = '[defaults."sheets/t*"]\npaper = "another"\n\n[figures."sheets/one.png"]'
    (root / MANIFEST).write_text(ENTRIES.replace('[figures."sheets/one.png"]', later))
    assert (one_of(root, "one").paper, one_of(root, "two").paper) == ("ours", "another")
    assert one_of(root, "two").command == "python draw.py two"
