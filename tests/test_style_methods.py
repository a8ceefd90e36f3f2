"""The bench of style methods: its tasks, its rows, methods and references of one's own, and what is drawn anew."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dying import contents, died
from PIL import Image
from worlds import hub_folder, judged_folder, scenes_folder

from context_diffusion.commands import run_command
from context_diffusion.files import ROOT
from context_diffusion.scenes import STYLES
from experiments.evaluation import harness
from experiments.evaluation.bench import Bench
from experiments.evaluation.curves import undominated
from experiments.evaluation.results import Unit
from experiments.evaluation.styles import comparison, methods, own, tasks
from experiments.evaluation.styles.costs import peak_memory
from experiments.evaluation.styles.held_out import HELD_OUT

EXAMPLE = "experiments.evaluation.styles.example:tinted"
SAMPLING = {"num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def bench():
    return Bench(judged_folder(), steps=2, limit=1)


@pytest.fixture(scope="module")
def world():
    return tasks.World(24, test=True)


def pixels(pictures) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def own_size(pipe) -> tuple[int, int]:
    return own.picture_size(pipe, None, None)


def write_method(folder: Path, body: str, name: str = "mine.py") -> Path:
    """A file with a method called ``mine``."""
    file = folder / name
    file.write_text(f"def mine(pipe, task, **sampling):\n    {body}\n")
    return file


# --- tasks ------------------------------------------------------------------------------------------------


def test_the_test_set_has_every_style_twice_and_two_that_no_training_saw(world):
    styles = [world.style(index) for index in range(24)]
    assert sorted(styles) == sorted([*STYLES, *HELD_OUT] * 2)
    assert not {*HELD_OUT} & {*STYLES}
    development = tasks.World(100)
    assert {development.style(index) for index in range(100)} == set(STYLES)
    of_both = [{seed for i in range(w.count) for seed in w.task(i).seeds} for w in (world, development)]
    assert len(of_both[1]) == 400 and not set.intersection(*of_both)


@pytest.mark.parametrize("index", [0, 10, 11, 17, 23])
def test_no_reference_shows_what_is_asked_for_and_all_are_of_one_style_draw(world, index):
    task, drawn = world.task(index), world.truth(index).drawn
    asked = [scene.object for scene in world.asked(index).values()]
    assert len({*asked, *(one.scene.object for one in drawn)}) == 6
    assert len({one.style for one in drawn}) == 1
    assert [name in prompt for name, prompt in zip(asked, task.prompts, strict=True)] == [True] * 4
    assert all(text.endswith(f", {world.style(index)} style") for text in (*task.prompts, *task.captions))
    assert task.subject == drawn[0].scene.object
    real, further = world.real(index), world.truth(index).further
    assert len(further) == 3 * len(real) and not {*pixels(real)} & {*pixels(further)}


def test_a_held_out_style_keeps_the_scene_and_changes_every_part_of_it(world):
    for index in (10, 11):
        first, _ = world.drawn(index)
        flat = tasks.render(first.scene, first.style, 0)
        assert np.array_equal(first.segments, flat.segments)
        changed = np.abs(first.pixels.astype(int) - flat.pixels).mean(axis=2)
        assert all(changed[first.segments == part].mean() > 8 for part in np.unique(flat.segments))


def test_a_folder_is_captioned_by_a_table_or_by_texts(tmp_path):
    for number, name in enumerate("ab"):
        Image.new("RGB", (40, 30), (90 * number, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.txt").write_text("a cat on a mat, ink wash")
    (tmp_path / "captions.toml").write_text('[captions]\n"a.png" = "a mountain"\n')
    folder = tasks.Folder(tmp_path)
    first, second = folder.task(0), folder.task(1)
    assert first.prompts == ("a boat", "a cat", "a house", "a tree")
    assert second.prompts == ("a boat, ink wash", "a house, ink wash", "a tree, ink wash", "a car, ink wash")
    assert (second.captions, second.subject) == (("a cat on a mat, ink wash",), "cat")
    (tmp_path / "captions.toml").write_text('prompts = ["a fox"]\n[captions]\n"a.png" = "a mountain"\n')
    again = tasks.Folder(tmp_path)
    assert again.task(0).prompts == ("a fox",) and again.about()[0] != folder.about()[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("captions = 3", "captions.toml holds prompts"),
        ("[captions", "captions.toml is not TOML"),
        ('title = "mine"', "captions.toml holds prompts"),
        (
            '[captions]\n"c.png" = "a hill"',
            "a caption of 'c.png', which is not among the pictures; did you mean 'a.png'",
        ),
        ("", "a.png has none in captions.toml"),
        ('[captions]\n"a.png" = ", ink wash"', "what the picture shows, then its style"),
    ],
)
def test_captions_that_will_not_do_are_refused_in_a_sentence(tmp_path, text, sentence):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "captions.toml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tasks.Folder(tmp_path)


# --- rows -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(bench):
    """The pictures of the first task by every method."""
    protocol = comparison.StyleMethods(bench)
    return protocol, {name: pixels(protocol.draw(Unit(name, 0))) for name in protocol.settings}


def test_every_method_draws_otherwise_and_leaves_the_pipeline_alone(bench, drawn):
    protocol, found = drawn
    assert set(found) == {*methods.METHODS, comparison.REAL}
    assert len({first for first, *_ in found.values()}) == len(found)
    assert pixels(protocol.draw(Unit(methods.PLAIN, 0))) == found[methods.PLAIN]
    task = protocol.tasks.task(0)
    for name, row in protocol.rows.items():
        own.guarded(name, row.draw)(bench.pipe, task.parts(1)[0], **SAMPLING)  # raises if anything is left changed


def test_a_method_with_two_references_takes_both(bench, drawn):
    protocol, found = drawn
    task = protocol.tasks.task(0)
    swapped = tasks.replace(task, references=(task.references[0], Image.new("RGB", (128, 128), "teal")))
    for name in (methods.SLERP, methods.BOTH):
        assert pixels(protocol.rows[name].draw(bench.pipe, swapped, **bench.sampling)) != found[name]
    assert pixels(protocol.rows[methods.NOISED].draw(bench.pipe, swapped, **bench.sampling)) == found[methods.NOISED]


def test_the_colour_copy_has_the_references_moments_and_the_near_copy_its_pixels(bench):
    mild = Image.fromarray(
        np.random.default_rng(0).normal((120, 100, 140), 8, (128, 128, 3)).clip(0, 255).astype(np.uint8)
    )
    task = tasks.Task(("a boat", "a cat"), (mild,), ("a cup",), (3, 4))
    wanted = methods.moments(methods.to_tensor(mild))
    for picture in methods.colour_copy(bench.pipe, task, **SAMPLING):
        for found, true in zip(methods.moments(methods.to_tensor(picture)), wanted, strict=True):
            torch.testing.assert_close(found, true, atol=0.01, rtol=0)
    big = tasks.World(1).task(0)
    copies = methods.near_copy(bench.pipe, big, **SAMPLING)
    small = methods.resize(big.references[0], own_size(bench.pipe))
    assert all(np.corrcoef(np.asarray(copy).ravel(), np.asarray(small).ravel())[0, 1] > 0.5 for copy in copies)
    assert len({*pixels(copies)}) == len(copies)


def test_the_optimised_texture_is_nearer_to_the_references_and_its_picture_to_the_plain_one(bench):
    stripes = np.tile((np.arange(128) % 8 < 4)[:, None, None] * 200, (1, 128, 3)).astype(np.uint8)
    task = tasks.Task(("a boat", "a cat"), (Image.fromarray(stripes),), ("a cup",), (3, 4))
    moved = methods.optimised(bench.pipe, task, steps=25, rate=0.03, **SAMPLING)
    encoder = bench.pipe.vae.encoder

    def grams(picture: Image.Image) -> list[np.ndarray]:
        layers = methods.features(encoder, methods.network_range(picture, encoder))
        flat = [one.detach().double().flatten(2).squeeze(0).numpy() for one in layers]
        return [one @ one.T / one.shape[1] for one in flat]

    def error(picture: Image.Image) -> float:
        pairs = zip(grams(picture), grams(task.references[0]), strict=True)
        return sum(np.square(own - wanted).sum() / np.square(wanted).sum() for own, wanted in pairs)

    for before, after in zip(methods.plain(bench.pipe, task, **SAMPLING), moved, strict=True):
        assert error(after) < 0.5 * error(before)
        assert np.corrcoef(np.asarray(before).ravel(), np.asarray(after).ravel())[0, 1] > 0.3


def test_what_a_model_cannot_do_is_no_row():
    plain, xl = (methods.rows(Bench(hub_folder(xl)), 1) for xl in (False, True))
    assert not {methods.CONTEXTS, methods.SLERP, methods.BOTH} & {*plain}
    assert {*plain} - {*xl} == {methods.LORA}


def test_a_method_is_known_by_its_source_and_its_settings():
    known = {name: json.dumps(methods.source(method)) for name, method in methods.METHODS.items()}
    assert len({*known.values()}) == len(known)
    assert all("0x" not in text for text in known.values())  # an address would be another one tomorrow


def test_memory_is_that_of_tensors_alive_at_one_time():
    def work():
        first = torch.zeros(1000, 250)
        second = first + 1
        del first
        third = second.view(-1) * 2
        del second
        return third + 1

    assert peak_memory(work) == 2_000_000


def test_what_no_other_beats_is_undominated():
    places = {"a": (1.0, 1.0), "b": (2.0, 0.5), "c": (0.5, 0.5), "d": (1.0, 1.0)}
    assert undominated(places, (1, 1)) == ["a", "b", "d"]
    assert undominated(places, (-1, -1)) == ["c"]


# --- a method of one's own --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return task.references", "one PIL picture of each of the 4 prompts; 'mine' returned 2"),
        ("return 3", "'mine' returned 3."),
        ("return [None] * 4", "'mine' returned None among them."),
        ("return [task.references[0]] * 4", "returned one of 128x128"),
        ("1 / 0", r"The method 'mine' failed: ZeroDivisionError: division by zero (\S+mine.py, line 2)"),
        ("pipe.unet.conv_in.bias.data.add_(0) if 0 else pipe.unet.conv_in.register_forward_hook(print)",
         "left the unet of the pipeline changed"),
    ],
)  # fmt: skip
def test_what_a_method_does_wrong_is_told_in_a_sentence(tmp_path, body, sentence):
    fresh = Bench(judged_folder(), steps=1, limit=1, methods=[f"{write_method(tmp_path, body)}:mine"], only=["mine"])
    pattern = sentence if "\\" in sentence else re.escape(sentence)
    with pytest.raises(
        (ValueError, TypeError, RuntimeError), match=pattern.replace("(\\S", "\\(\\S").replace("2)", "2\\)")
    ):
        comparison.StyleMethods(fresh).draw(Unit("mine", 0))


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("mine", "--method is MODULE:NAME or FILE.py:NAME; got 'mine'"),
        ("nowhere.py:mine", "there is no file nowhere.py"),
        ("no_such_module:mine", "there is no module 'no_such_module'"),
        ("experiments.evaluation.styles.example:tint", "has no 'tint'; did you mean 'tinted'"),
        ("experiments.evaluation.styles.tasks:MOST", "A method is called with (pipe, task, **sampling)"),
        ("builtins:print", "print takes (*args, sep"),
        ("def mine(pipe, task): return []", "mine takes (pipe, task): got an unexpected keyword"),
        ("def mine(pipe, task, *, scale, **sampling): return []", "missing a required argument: 'scale'"),
        ("def mine(", "cannot be imported: SyntaxError"),
        ("import no_such_thing", "imports 'no_such_thing', which is not installed here"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
    ],
)
def test_a_method_that_will_not_do_is_told_before_anything_is_loaded(tmp_path, word, sentence, capsys):
    if " " in word:
        (tmp_path / "mine.py").write_text(word)
        word = f"{tmp_path / 'mine.py'}:mine"
    with pytest.raises(SystemExit) as end:
        harness.main(["methods", "--method", word, "--work", str(tmp_path)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and sentence in said and said.count("\n") == 1


def test_the_command_line_refuses_rows_and_references_in_a_sentence(tmp_path, capsys):
    for arguments, sentence in (
        (["--only", "full shoring"], "There is no method 'full shoring' here"),
        (["--only", "full shoring"], "did you mean 'full sharing'"),
        (["--references", str(tmp_path / "none")], "is not a folder"),
        (["--references", str(tmp_path), "--test"], "--test is a set of references of its own"),
        (["--method", EXAMPLE, "--method", EXAMPLE], "There is a method 'tinted' already"),
    ):
        with pytest.raises(SystemExit):
            harness.main(["methods", *arguments, "--work", str(tmp_path)])
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
    for arguments, sentence in (
        (["style-sets", "--references", str(tmp_path)],
         "--references is of references, methods, blends, control and settings; style-sets would not heed it"),
        (["blends", "--seeds", "3"], "--seeds is of style-sets; blends would not heed it"),
        (["clip", "--limit", "3"], "settings and control; clip would not heed it"),
        (["references", "--test"], "--test is of methods; references would not heed it"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            harness.main([*arguments, "--work", str(tmp_path)])
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("protocol", harness.TAKERS["references"])
@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "holds no picture"),
        ({"a.png": b"words"}, "a.png has no image format"),
        ({"a.png": None}, "a.png has none in captions.toml"),
        ({"a.png": None, "a.txt": b""}, "a.txt is empty"),
        (
            {"a.png": None, "captions.toml": b'[captions]\n"b.png" = "a fox"'},
            "'b.png', which is not among the pictures",
        ),
    ],
)
def test_a_folder_that_will_not_do_is_told_before_anything_is_loaded(tmp_path, protocol, files, sentence, capsys):
    folder, work = tmp_path / "pictures", tmp_path / "work"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content or b"")
        if content is None:
            Image.new("RGB", (8, 8)).save(folder / name)
    with pytest.raises(SystemExit):
        harness.main([protocol, "--references", str(folder), "--work", str(work)])
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and "--images" not in said and not work.exists()


# --- what is drawn anew -----------------------------------------------------------------------------------


def methods_asked(folder: Path, *arguments: str, model: Path | None = None) -> dict:
    """Run the command line on a tiny model and read the record."""
    places = ["--work", str(folder / "work"), "--out", str(folder / "out"), "--limit", "1", "--steps", "1"]
    assert harness.main(["methods", "--model", str(model or scenes_folder()), *places, *arguments]) == 0
    return json.loads((folder / "out" / "methods.json").read_text())


def marks(folder: Path) -> dict[str, int]:
    """When each picture was written."""
    return {str(path): path.stat().st_mtime_ns for path in (folder / "work").rglob("*.png")}


@pytest.mark.slow
def test_one_more_method_draws_that_method_alone(tmp_path, capsys):
    file = write_method(tmp_path, "return pipe(list(task.prompts), generator=task.noise(), **sampling).images")
    only = ["--only", methods.PLAIN, "--only", methods.NOISED]
    methods_asked(tmp_path, *only)
    before = marks(tmp_path)
    found = methods_asked(tmp_path, *only, "--only", "mine", "--method", f"{file}:mine")
    after = marks(tmp_path)
    new = {path for path, when in after.items() if before.get(path) != when}
    assert len(before) == 8 and len(new) == 4 and all("/mine/" in path for path in new)
    assert "3 methods, 12 pictures in all" in capsys.readouterr().out
    assert any(number["name"].startswith("mine: ") for number in found["numbers"])
    rows = {row["row"]: row for row in csv.DictReader((tmp_path / "out" / "methods-papers.csv").open())}
    assert rows["mine"]["value"] == rows[methods.PLAIN]["value"]  # it does the same
    file.write_text(file.read_text() + "# changed\n")
    methods_asked(tmp_path, *only, "--only", "mine", "--method", f"{file}:mine")
    assert len(marks(tmp_path)) == 16
    assert "nan" not in (tmp_path / "out" / "methods-scores.csv").read_text().lower()


STATEFUL = (methods.LORA, methods.NVQG, methods.ONLY, methods.CONTEXTS, methods.NEAR)  # they change most on the way
SPLIT = ["--quick", "--limit", "2", "--steps", "2", *(word for name in STATEFUL for word in ("--only", name))]


@pytest.mark.slow
def test_three_processes_and_killed_ones_make_the_bytes_of_one(tmp_path):
    def asked(name: str) -> list[str]:
        places = ["--work", str(tmp_path / name / "work"), "--out", str(tmp_path / name / "out")]
        return ["methods", "--model", str(judged_folder()), *SPLIT, *places]

    assert harness.main(asked("one")) == 0

    def there() -> int:
        return len(list((tmp_path / "killed" / "work").rglob("*.png")))

    for pictures in (1, 7, 22):
        died(lambda: run_command(lambda: harness.main(asked("killed"))), 9, lambda n=pictures: there() >= n, 0)
    assert 0 < there() < 2 * 4 * len(STATEFUL), "it was to die half-way"
    assert harness.main(asked("killed")) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    command = [*torchrun, "-m", "experiments.evaluation", *asked("three")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for other in ("killed", "three"):
        assert contents(tmp_path / other / "work") == contents(tmp_path / "one" / "work"), other
        for file in ("methods-units.csv", "methods-scores.md", "methods-papers.csv"):
            assert (tmp_path / other / "out" / file).read_bytes() == (tmp_path / "one" / "out" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("xl", [False, True])
def test_pictures_of_one_s_own_go_through_a_hub_s_model(tmp_path, xl, capsys):
    """Every row that such a model has, on one captioned picture: a single unit, and no nan on any page."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.effect_noise((90, 60), 80).convert("RGB").save(pictures / "fuji.png")
    (pictures / "captions.toml").write_text(
        'prompts = ["a fox", "a bridge"]\n[captions]\n"fuji.png" = "a mountain, ink wash"'
    )
    found = methods_asked(tmp_path, "--references", str(pictures), "--batch-size", "1", model=hub_folder(xl))
    rows = {number["name"].split(":")[0] for number in found["numbers"] if "seconds" in number["name"]}
    assert methods.NVQG in rows and methods.BOTH not in rows and (methods.LORA in rows) != xl
    assert "1 reference of pictures: fuji.png" in found["notes"][0] and "fuji.png" in capsys.readouterr().out
    for page in (tmp_path / "out").glob("*.[mct]*"):
        assert "nan" not in page.read_text().lower(), page.name


@pytest.mark.slow
def test_another_reference_in_the_same_place_is_drawn_anew(tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, color in (("a", "teal"), ("b", "gold")):
        Image.new("RGB", (64, 64), color).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text("a mountain, ink wash")
    asked = ["--references", str(pictures), "--only", methods.NOISED, "--limit", "2"]
    first = methods_asked(tmp_path, *asked, model=hub_folder())
    before = marks(tmp_path)
    Image.effect_noise((64, 64), 80).convert("RGB").save(pictures / "b.png")
    second = methods_asked(tmp_path, *asked, model=hub_folder())
    new = {path for path in marks(tmp_path) if path not in before}
    assert len(before) == 8 and len(new) == 4
    assert first["numbers"] != second["numbers"]
    assert "never saw the toy world" not in capsys.readouterr().out
    methods_asked(tmp_path, "--only", methods.PLAIN, model=hub_folder())
    assert "never saw the toy world" in capsys.readouterr().out


@pytest.mark.slow
def test_a_method_that_seeds_nothing_draws_the_same_again(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\nimport torch\nfrom PIL import Image\n"
        "def mine(pipe, task, **sampling):\n"
        "    noise = np.random.rand(32, 32, 3) + torch.rand(32, 32, 3).numpy()\n"
        "    side = pipe.unet.config.sample_size * pipe.vae_scale_factor\n"
        "    return [Image.fromarray((120 * noise).astype(np.uint8)).resize((side, side))] * len(task.prompts)\n"
    )
    protocol = comparison.StyleMethods(
        Bench(scenes_folder(), limit=2, methods=[f"{file}:mine"], only=["mine"], steps=1)
    )
    units = protocol.units()
    there, back = ([pixels(protocol.draw(unit)) for unit in order] for order in (units, units[::-1]))
    assert there == back[::-1] and there[0] != there[1]


@pytest.mark.slow
def test_the_example_runs_from_the_command_line(tmp_path):
    found = methods_asked(tmp_path, "--method", EXAMPLE, "--only", "tinted")
    assert found["command"].endswith(f"--limit 1 --steps 1 --method {EXAMPLE} --only tinted")
    assert (tmp_path / "out" / "methods-costs.md").read_text().count("tinted") == 1
