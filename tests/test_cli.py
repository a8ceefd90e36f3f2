import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from worlds import scenes_folder

from context_diffusion import cli
from context_diffusion.cli import main

ROOT = Path(__file__).parent.parent
FAST = ["--steps", "2", "--quiet", "--model"]


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A working folder with a query and two contexts."""
    monkeypatch.chdir(tmp_path)
    for name, spread in (("q.png", 60), ("a.jpg", 90), ("b.png", 120)):
        Image.effect_noise((40, 30), spread).convert("RGB").save(name)
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
        (["--prompt", "a cat", "--out", "p.xyz"], "names no image format"),
        (["--prompt", "a cat", "--out", "."], "is a folder"),
        (["--context", "a.jpg", "--weights", "1", "2"], "one weight for each context image"),
        (["--query", "q.png", "--strength", "2"], "between 0 and 1"),
        (["--prompt", "a cat", "--device", "gpu"], "no device 'gpu' here; take"),
    ],
)
def test_what_a_user_can_mend_is_one_line_without_a_traceback(inputs, capsys, arguments, sentence):
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
