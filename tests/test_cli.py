import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from worlds import scenes_folder

from context_diffusion import cli
from context_diffusion.checkpoints import MODELS
from context_diffusion.cli import main
from context_diffusion.files import TINY_SCENES

ROOT = Path(__file__).parent.parent
FAST = ["--steps", "2", "--model"]


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A working folder with a query and two contexts."""
    monkeypatch.chdir(tmp_path)
    for name, spread in (("q.png", 60), ("a.jpg", 90), ("b.png", 120)):
        Image.effect_noise((40, 30), spread).convert("RGB").save(name)
    Path("cut.png").write_bytes(Path("q.png").read_bytes()[:500])
    Path("empty").mkdir()
    Path("r-2.png").mkdir()
    return tmp_path


def generate(*arguments: str) -> int:
    return main(["generate", *arguments, *FAST, str(scenes_folder())])


def test_generate_writes_the_picture_that_the_call_returns(inputs, capsys):
    options = ("--query", "q.png", "--context", "a.jpg", "b.png", "--prompt", "a cat", "--weights", "1", "2")
    assert generate(*options, "--seed", "3", "--out", "new/p.png") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("new/p.png  32x32, seed 3, ") and printed.endswith(" s\n")
    from context_diffusion import ContextDiffusion

    model = ContextDiffusion.from_pretrained(scenes_folder(), device="cpu")
    expected = model("q.png", ["a.jpg", "b.png"], "a cat", weights=[1, 2], seed=3, num_inference_steps=2)
    written = Image.open("new/p.png")
    np.testing.assert_array_equal(np.asarray(written), np.asarray(expected))
    assert written.text["prompt"] == "a cat" and written.text["seed"] == "3"
    assert [path.name for path in Path("new").iterdir()] == ["p.png"]


def test_several_images_have_names_and_seeds_of_their_own(inputs, capsys):
    assert generate("--prompt", "a cat", "--num-images", "3", "--seed", "4", "--out", "p.webp") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[:2] for line in lines] == [
        ["p.webp  32x32", " seed 4"],
        ["p-2.webp  32x32", " seed 5"],
        ["p-3.webp  32x32", " seed 6"],
    ]
    assert all(Path(line.split()[0]).is_file() for line in lines)


def test_demo_writes_the_picture_and_a_sheet(inputs, capsys):
    assert main(["demo", *FAST, str(scenes_folder())]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("out/demo.png  32x32, seed 0, ")
    assert printed[1].startswith("out/demo-sheet.png")
    sheet = Image.open("out/demo-sheet.png")
    assert sheet.width > 3 * sheet.height
    assert sorted(path.name for path in Path("out").iterdir()) == ["demo-sheet.png", "demo.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "at least one of --query, --context and --prompt"),
        (["--query", "none.png"], "no image file none.png"),
        (["--context", "a.jpg", "b.png", "--weights", "1"], "2 context image(s), 1 weight(s)"),
        (["--context", "empty"], "a folder without a picture"),
        (["--context", "*.gif"], "No file matches --context *.gif"),
        (["--query", "q\0.png"], "no file name may have"),
        (["--query", "cut.png"], "cut.png is damaged or truncated"),
        (["--query", "/dev/zero"], "a device or a pipe"),
        (["--prompt", "a cat", "--layout", "canny"], "pass --query as well"),
        (["--prompt", "a cat", "--strength", "0.5"], "pass --query as well"),
        (["--prompt", "a cat", "--control-scale", "1"], "pass --query as well"),
        (["--query", "q.png", "--layout", "cany"], "did you mean 'canny'"),
        (["--prompt", "a cat", "--num-images", "0"], "--num-images"),
        (["--prompt", "a cat", "--num-images", "1000000000"], "--num-images"),
        (["--prompt", "a cat", "--seed", "-1"], "--seed"),
        (["--prompt", "a cat", "--guidance-scale", "nan"], "--guidance-scale"),
        (["--prompt", "a cat", "--out", "p.psd"], "names no image format that can be written"),
        (["--prompt", "a cat", "--out", "/proc/p.png"], "cannot be written"),
        (["--prompt", "a cat", "--out", "n" * 300 + ".png"], "name too long"),
        (["--prompt", "a cat", "--out", "q.png/p.png"], "is not a folder"),
        (["--prompt", "a cat", "--out", "p\0.png"], "no file name may have"),
        (["--prompt", "a cat", "--out", ""], "is empty"),
        (["--prompt", "a cat", "--out", "r.png", "--num-images", "3"], "r-2.png is a folder"),
        (["--prompt", "a cat", "--out", "p.xyz"], "names no image format"),
        (["--prompt", "a cat", "--out", "."], "is a folder"),
        (["--context", "a.jpg", "--weights", "1", "2"], "one weight for each context image"),
        (["--query", "q.png", "--strength", "2"], "between 0 and 1"),
        (["--prompt", "a cat", "--device", "gpu"], "no device 'gpu' here; take"),
    ],
)
def test_what_a_user_can_mend_is_one_line_before_anything_is_loaded(inputs, capsys, monkeypatch, arguments, sentence):
    if "--device" not in arguments:
        monkeypatch.setattr("context_diffusion.context.ContextDiffusion.from_pretrained", None)
    before = sorted(inputs.iterdir())
    assert generate(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and sentence in printed.err and printed.err.count("\n") == 1
    assert sorted(inputs.iterdir()) == before


def test_an_unknown_model_is_told_with_the_near_one(inputs, capsys):
    assert main(["generate", "--prompt", "a cat", "--model", "tiny_scene"]) == 2
    assert "did you mean 'tiny-scenes'" in capsys.readouterr().err


def test_a_cut_prompt_is_a_note_not_a_warning_with_source_code(inputs, capsys):
    assert generate("--prompt", "a cat " * 20) == 0
    errors = capsys.readouterr().err
    assert errors.startswith("note: The prompt is longer") and ".py" not in errors


def test_an_interrupted_run_leaves_nothing(inputs, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("context_diffusion.context.model.ContextDiffusion.__call__", interrupted)
    assert generate("--prompt", "a cat", "--out", "p.png") == 130
    assert not Path("p.png").exists() and "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("contexts", [["pictures"], ["pictures/*"], ["pictures/?.*"], ["pictures/a.jpg", "**/b.png"]])
def test_contexts_are_pictures_folders_or_patterns(inputs, contexts):
    Path("pictures").mkdir()
    for name in ("a.jpg", "b.png"):
        Path(name).rename(f"pictures/{name}")
    (Path("pictures") / "deep.png").mkdir()
    Path("q.png").rename("q[1].png")
    assert cli.find_contexts(contexts, [1, 2]) == [Path("pictures/a.jpg"), Path("pictures/b.png")]
    assert cli.find_contexts(["q[1].png"], None) == [Path("q[1].png")]  # a file of such a name is that file


def test_home_is_written_with_a_tilde(inputs, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(inputs))
    assert generate("--query", "~/q.png", "--context", "~/?.jpg", "--out", "~/new/p.png") == 0
    assert (inputs / "new" / "p.png").is_file()


def test_quiet_prints_nothing(inputs, capsys):
    assert generate("--prompt", "a cat " * 20, "--quiet", "--out", "p.png") == 0
    assert main(["demo", *FAST, str(scenes_folder()), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "") and Path("p.png").is_file() and Path("out/demo-sheet.png").is_file()
    assert generate("--quiet") == 2 and capsys.readouterr().err.startswith("error: Give at least one")


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".qoi"])
def test_the_demo_writes_its_sheet_in_every_format(inputs, suffix):
    assert main(["demo", *FAST, str(scenes_folder()), "--out", f"d{suffix}"]) == 0
    assert Image.open(f"d-sheet{suffix}").width > Image.open(f"d{suffix}").width


def test_what_cannot_be_written_any_more_is_kept_elsewhere_and_the_others_where_they_belong(
    inputs, capsys, monkeypatch, tmp_path_factory
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("elsewhere")))
    from context_diffusion.context import ContextDiffusion

    draw = ContextDiffusion.__call__

    def then_a_folder_appears(*arguments, **options):
        Path("p-2.png").mkdir()
        return draw(*arguments, **options)

    monkeypatch.setattr(ContextDiffusion, "__call__", then_a_folder_appears)
    assert generate("--prompt", "a cat", "--num-images", "3", "--out", "p.png", "--seed", "5") == 2
    printed = capsys.readouterr()
    assert Image.open("p.png").text["seed"] == "5" and Image.open("p-3.png").text["seed"] == "7"
    error = printed.err.splitlines()[-1]
    assert error.startswith("error: ") and "p-2.png is a folder; the picture is " in error
    assert Image.open(error.split("the picture is ")[1].rstrip(".")).text["seed"] == "6"


def test_an_interrupt_loses_the_batch_in_progress_alone(inputs, capsys, monkeypatch):
    from context_diffusion.context import ContextDiffusion

    draw, calls = ContextDiffusion.__call__, []

    def interrupted(*arguments, **options):
        calls.append(options["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(*arguments, **options)

    monkeypatch.setattr(ContextDiffusion, "__call__", interrupted)
    monkeypatch.setattr(cli, "BATCH", 2)
    assert generate("--prompt", "a cat", "--num-images", "4", "--out", "p.png", "--seed", "5") == 130
    assert calls == [5, 7] and sorted(path.name for path in Path().glob("p*")) == ["p-2.png", "p.png"]
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted: nothing is half-written"


def test_batches_draw_what_one_call_draws(inputs, capsys, monkeypatch):
    assert generate("--prompt", "a cat", "--num-images", "3", "--out", "one.png") == 0
    monkeypatch.setattr(cli, "BATCH", 2)
    assert generate("--prompt", "a cat", "--num-images", "3", "--out", "two.png") == 0
    for end in (".png", "-2.png", "-3.png"):
        first, second = (np.asarray(Image.open(f"{name}{end}"), int) for name in ("one", "two"))
        assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("a boat among hills, mosaic style", None),
        ("3 Cats!", "has never seen 'cats', and guesses; did you mean 'cat'"),
        ("a dragon by the sea", "has never seen 'dragon'"),
        ("ein Schiff 日本", "has never seen 'ein', 'schiff', '日本'"),
    ],
)
def test_words_that_a_model_with_a_word_list_has_never_seen_are_noted(prompt, note):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY_SCENES / "tokenizer")
    model = SimpleNamespace(model=MODELS["tiny-scenes"], pipeline=SimpleNamespace(tokenizer=tokenizer))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cli.note_unknown_words(prompt, model)
    assert [note in str(each.message) for each in told] == ([True] if note else [])


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "context_diffusion", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, encoding="utf-8")


@pytest.mark.slow
def test_a_terminal_of_the_c_locale_is_enough(inputs):
    Path("é.png").write_bytes(Path("q.png").read_bytes())
    asked = ["generate", "--query", "é.png", "--prompt", "a café", "--out", "ö.png", *FAST, str(scenes_folder())]
    done = command(*asked, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")
    assert "Loading" not in done.stderr and "drawing" not in done.stderr  # bars of libraries
    assert done.returncode == 0 and "Traceback" not in done.stderr and "\\xf6.png  32x32" in done.stdout, done.stderr
    assert Image.open("ö.png").text["prompt"] == "a café"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["generate", "--steps", "many"], ["nonsense"], [], ["generate", "--query"], ["demo", "--out", "a.psd"]],
)
def test_a_wrong_command_is_one_line_and_status_2(inputs, arguments):
    done = command(*arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


@pytest.mark.slow
def test_a_full_disk_is_one_line(inputs):
    limited = "import resource, signal, sys; from context_diffusion.cli import main\n"
    limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    limited += "sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", limited, "generate", "--prompt", "a cat", *FAST, str(scenes_folder())]
    done = subprocess.run(line, cwd=inputs, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --out out/picture.png cannot be written")
    assert done.stderr.count("\n") == 1 and not Path("out").exists()


def test_help_names_every_argument_and_import_stays_light():
    code = (
        "import sys, context_diffusion, context_diffusion.cli as c; c.build_parser().format_help(); "
        "print(sorted({'torch', 'diffusers', 'transformers', 'matplotlib', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    commands = cli.build_parser()._subparsers._group_actions[0].choices
    undocumented = [a.dest for p in commands.values() for a in p._actions if not a.help]
    assert undocumented == []
