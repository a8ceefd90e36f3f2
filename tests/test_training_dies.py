"""Training that dies or is asked for what cannot be: it goes on as if it had not been stopped, or says one sentence."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dying import SIGNALS, contents, died, moments
from torch import nn
from training_run import Tiny, run

from context_diffusion.files import folder_written_whole
from experiments.training import data, loop, recipe
from experiments.training.loop import train
from experiments.training.recipe import Recipe

TRAININGS = ("vae", "clip", "unet", "controlnet", "depth", "dino", "judge", "texture", "captioner", "speech", "music")


def state_of(folder: Path) -> dict:
    return torch.load(folder / "tiny.pt", weights_only=True)


@pytest.mark.parametrize("number", SIGNALS)
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(tmp_path, number):
    whole = run(tmp_path / "whole", "adamw")
    out = tmp_path / "killed"
    statuses = [
        died(lambda: run(out, "adamw"), number, (out / "tiny.pt").exists, moment) for moment in moments(number, 3, 0.06)
    ]
    assert set(statuses) <= {0, 3, -number, -15}, "no error, only an interrupt"
    resumed = run(out, "adamw")
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value)
    first, second = state_of(tmp_path / "whole"), state_of(out)
    assert first["losses"] == second["losses"] and first["step"] == second["step"]
    assert set(contents(out)) == set(contents(tmp_path / "whole"))  # and nothing is left over


def test_a_damaged_checkpoint_is_named(tmp_path):
    run(tmp_path)
    file = tmp_path / "tiny.pt"
    whole, state = file.read_bytes(), state_of(tmp_path)
    lacking = [{key: state[key] for key in state if key != lack} for lack in ("model", "optimizers", "step", "losses")]
    misfit = state | {"model": nn.Linear(2, 2).state_dict()}
    for content in (b"", b"words", whole[:1000], whole[: len(whole) // 2], {}, [], misfit, *lacking):
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        with pytest.raises(ValueError, match=r"tiny\.pt is damaged or of other work: move it away") as caught:
            run(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_cut_line_of_the_record_is_left_out(tmp_path):
    def steps():
        return [json.loads(line)["step"] for line in (tmp_path / "tiny.jsonl").read_text().splitlines()]

    def loss(model, draws):
        return model(draws.randn(3, 6, 6), False).square().mean()

    train("tiny", Tiny(), loss, Recipe(100, 1, 0.01, schedule="constant"), folder=tmp_path)
    with (tmp_path / "tiny.jsonl").open("ab") as lines:
        lines.write(b'{"step": 1\n[]\n\xff\n')
    train("tiny", Tiny(), loss, Recipe(200, 1, 0.01, schedule="constant"), folder=tmp_path)
    assert steps() == [100, 200]


def test_what_is_kept_and_damaged_is_made_again(tmp_path, capsys):
    made = []

    def make(file):
        made.append(file)
        np.save(file, np.arange(3))

    file = tmp_path / "numbers.npy"
    for content in (None, b"", b"words", "whole"):
        if isinstance(content, bytes):
            file.write_bytes(content)
        assert data.kept(file, np.load, make).tolist() == [0, 1, 2]
    assert len(made) == 3 and capsys.readouterr().out.count("numbers.npy is damaged") == 2
    (tmp_path / "file").write_text("words")
    with pytest.raises(ValueError, match="cannot be written: .*file is not a folder"):
        data.kept(tmp_path / "file" / "a.npy", np.load, lambda to: pytest.fail("worked in vain"))


def test_a_folder_is_replaced_whole_or_stays(tmp_path):
    folder = tmp_path / "unet"
    for text in ("first", "second"):
        with folder_written_whole(folder) as temporary:
            (temporary / "a").write_text(text)
        assert contents(tmp_path) == {"unet/a": text.encode()}
    with pytest.raises(KeyError), folder_written_whole(folder) as temporary:
        (temporary / "a").write_text("third")
        raise KeyError
    assert contents(tmp_path) == {"unet/a": b"second"}
    (tmp_path / ".unet.part-dead").mkdir()  # as a killed process leaves it
    folder.rename(tmp_path / ".unet.before")
    with pytest.raises(KeyError), folder_written_whole(folder):
        raise KeyError
    assert contents(tmp_path) == {"unet/a": b"second"} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--steps", "many"), "invalid int value: 'many'"),
        (("--steps", "0"), "steps must be finite and"),
        (("--learning-rate", "1e30"), "learning_rate must be finite and between 0 and 1"),
        (("--minutes", "nan"), "minutes must be at least 0"),
        (("--seed", "-1"), "seed must be"),
        (("--start", "no/such/folder"), "--start is a folder of weights to begin with, and no/such/folder is none"),
        ((), "is not a folder"),  # the folder of all runs cannot be written
    ],
)
def test_every_command_answers_in_one_line(tmp_path, monkeypatch, capsys, name, arguments, said):
    (tmp_path / "file").write_text("words")
    monkeypatch.setattr(recipe, "FOLDER", tmp_path / "training" if arguments else tmp_path / "file" / "training")
    assert command(monkeypatch, name, *arguments, *(("--kind", "canny") if name == "controlnet" else ())) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1 and said in output.err
    assert not output.out


def test_an_interrupt_is_one_line_too(monkeypatch, capsys):
    monkeypatch.setattr(loop, "train", interrupted)
    monkeypatch.setattr(data, "pictures", interrupted)
    assert command(monkeypatch, "depth") == 130
    assert capsys.readouterr().err == "interrupted: stopped at step 3; the same call goes on from there.\n"


def interrupted(*_, **__):
    raise KeyboardInterrupt("stopped at step 3; the same call goes on from there.")


def command(monkeypatch, name: str, *arguments: str) -> int:
    """Run ``python -m experiments.training.NAME`` in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.delitem(sys.modules, f"experiments.training.{name}", raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"experiments.training.{name}", run_name="__main__")
    return end.value.code
