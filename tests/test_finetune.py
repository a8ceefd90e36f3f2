"""Fine-tuning: a LoRA on a folder of pictures that diffusers loads, and clear answers to bad input."""

import shutil
import signal
import sys

import jaxtyping
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from dying import SIGNALS, contents, died, moments
from worlds import hub_folder

from context_diffusion import finetune as finetuning
from context_diffusion import scenes
from context_diffusion.commands import run_command
from context_diffusion.finetune import PROGRESS, WEIGHTS, Learner, finetune, main, read_folder
from context_diffusion.images import save_image

HUB = hub_folder()


@pytest.fixture
def _unloaded(monkeypatch):
    """No model may be loaded; and it is our own sentence that is read, not the type checker's."""
    monkeypatch.setattr(finetuning, "load_pipeline", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    for i, drawn in enumerate(scenes.context_group(seed=1, size=3)):
        save_image(drawn.image, path / f"{i}.png")
    (path / "1.txt").write_text("a red cat\n")
    (path / "notes.md").write_text("not a picture")
    return path


def short(folder, out, **options) -> list[float]:
    """Four steps on a tiny random model."""
    settings = {"steps": 4, "batch_size": 2, "rank": 2} | options
    return finetune(folder, "a boat", out, model=str(HUB), progress=False, **settings)


def stop_at(monkeypatch, number: int) -> None:
    """Let SIGTERM come in a step."""
    step = Learner.step

    def stopped(learner, *arguments):
        if arguments[-1] == number:
            signal.raise_signal(signal.SIGTERM)
        return step(learner, *arguments)

    monkeypatch.setattr(Learner, "step", stopped)


def saved(file, state) -> bytes:
    torch.save(state, file)
    return file.read_bytes()


def draw(pipe) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat", num_inference_steps=2, generator=generator, output_type="np").images


def test_the_lora_learns_loads_and_unloads(folder, tmp_path):
    losses = finetune(
        folder, "a boat", tmp_path / "lora", model=str(hub_folder()), steps=30, batch_size=4, rank=4,
        learning_rate=5e-3, progress=False,
    )  # fmt: skip
    assert len(losses) == 30 and np.mean(losses[-10:]) < np.mean(losses[:10])
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipe = StableDiffusionPipeline.from_pretrained(hub_folder(), safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    before = draw(pipe)
    pipe.load_lora_weights(tmp_path / "lora")
    assert np.abs(draw(pipe) - before).max() > 1e-3
    pipe.unload_lora_weights()
    np.testing.assert_allclose(draw(pipe), before, atol=1e-6)


def test_an_interrupt_saves_what_was_learned(folder, tmp_path, monkeypatch):
    step = Learner.step

    def interrupted(learner, *arguments):
        if arguments[-1] == 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # a Ctrl-C that was pressed twice is one
        return step(learner, *arguments)

    monkeypatch.setattr(Learner, "step", interrupted)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 2 of 4; the same call goes on from there"):
        short(folder, tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert set(contents(tmp_path)) == {WEIGHTS, PROGRESS}
    monkeypatch.undo()
    assert len(short(folder, tmp_path)) == 4
    assert set(contents(tmp_path)) == {WEIGHTS}


@pytest.mark.parametrize("number", SIGNALS)
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(folder, tmp_path, monkeypatch, number):
    monkeypatch.setattr(finetuning, "STRETCH", 2)
    losses = short(folder, tmp_path / "whole", steps=12)
    out = tmp_path / "killed"
    for moment in moments(number, 3, 0.25):
        died(lambda: short(folder, out, steps=12), number, out.exists, moment)
    assert short(folder, out, steps=12) == losses
    assert contents(out) == contents(tmp_path / "whole")


def test_only_the_same_call_goes_on(folder, tmp_path, monkeypatch):
    stop_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        short(folder, tmp_path)
    with pytest.raises(ValueError, match="unfinished.pt began with rank 2, not 3: give that again, or move the file"):
        short(folder, tmp_path, rank=3)
    other = tmp_path / "other"
    other.mkdir()
    save_image(scenes.context_group(seed=2, size=1)[0].image, other / "0.png")
    with pytest.raises(ValueError, match="began with pictures and captions"):
        short(other, tmp_path)
    whole = (tmp_path / PROGRESS).read_bytes()
    states = [b"", whole[:1000], b"words", *(saved(tmp_path / "state", state) for state in ({}, [], {"asked": {}}))]
    for state in states:
        (tmp_path / PROGRESS).write_bytes(state)
        with pytest.raises(ValueError, match="unfinished.pt (is damaged|began with)") as caught:
            short(folder, tmp_path)
        assert "\n" not in str(caught.value)


def test_what_is_not_finite_never_reaches_the_weights(folder, tmp_path, monkeypatch):
    encode = finetuning.encode

    def broken(*arguments):
        latents, text = encode(*arguments)
        return latents * float("nan"), text

    monkeypatch.setattr(finetuning, "encode", broken)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0; lower learning_rate"):
        short(folder, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_weights_that_are_not_finite_are_not_written(folder, tmp_path, monkeypatch):
    step = Learner.step

    def spoilt(learner, *arguments):
        loss = step(learner, *arguments)
        learner.weights[0].data.fill_(float("inf"))
        return loss

    monkeypatch.setattr(Learner, "step", spoilt)
    with pytest.raises(ValueError, match="must be finite"):
        short(folder, tmp_path / "lora", steps=1)
    assert not any((tmp_path / "lora").glob("*"))


def test_captions_come_from_text_files_first(folder):
    files, captions = read_folder(folder, "a boat")
    assert [file.name for file in files] == ["0.png", "1.png", "2.png"]
    assert captions == ["a boat", "a red cat", "a boat"]


@pytest.mark.usefixtures("_unloaded")
def test_bad_input_is_answered_before_a_model_is_loaded(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a folder"):
        finetune(tmp_path / "none", "a boat", tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        finetune(tmp_path, "a boat", tmp_path)
    with pytest.raises(ValueError, match="0.png has no caption"):
        finetune(folder, "", tmp_path)
    (tmp_path / "file").write_text("words")
    for out, kind, said in (
        (tmp_path / "file", ValueError, "out cannot be written: .* is not a folder"),
        (tmp_path / "a\0b", ValueError, "out holds a character"),
        (tmp_path / ("long" * 100), ValueError, "out .* cannot be written"),
        ("/proc/lora", ValueError, "out .* cannot be written"),
        (None, TypeError, "out is a text"),
    ):
        with pytest.raises(kind, match=said):
            finetune(folder, "a boat", out)


@pytest.mark.usefixtures("_unloaded")
@pytest.mark.parametrize(("name", "values"), {
    "steps": (0, -1, 1.5, "10", True, None, 10**9), "batch_size": (0, True, 10**6), "rank": (0, 10**6, 2.0),
    "learning_rate": (0, -1, 1e30, float("nan"), float("inf"), "high", True, None), "seed": (-1, 1.5, 2**70),
    "progress": ("no", 1), "caption": (3, "half \ud800"), "images": (None, 3, "", "a\0b", b"\xff", []),
}.items())  # fmt: skip
def test_arguments_that_will_not_do_are_refused_before_work(folder, tmp_path, name, values):
    for value in values:
        with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
            finetune(**{"images": folder, "caption": "a boat", "out": tmp_path / "lora"} | {name: value})
        assert "\n" not in str(caught.value) and caught.traceback[-1].path.parent.name == "context_diffusion"
        assert not (tmp_path / "lora").exists()


@pytest.mark.usefixtures("_unloaded")
def test_damaged_pictures_and_captions_are_refused_before_work(folder, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    (own / "2.png").write_bytes((own / "2.png").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"2\.png"):
        finetune(own, "a boat", tmp_path / "lora")
    (own / "2.png").unlink()
    (own / "1.txt").write_bytes("ein Bär".encode("latin-1"))
    with pytest.raises(ValueError, match=r"1\.txt is not UTF-8"):
        finetune(own, "a boat", tmp_path / "lora")
    (own / "1.txt").write_text("ein Bär", encoding="utf-8-sig")
    assert read_folder(own, "a boat")[1] == ["a boat", "ein Bär"]


@pytest.mark.parametrize(
    ("extra", "status", "said"),
    [
        ((), 0, ""),
        (("--steps", "many"), 2, "invalid int value"),
        (("--learning-rate", "1e30"), 2, "between 1e-12 and 1; got 1e"),
        (("--model", "tiny-scene"), 2, "tiny-scenes"),
        (("--out", "/proc/lora"), 2, "cannot be written"),
    ],
)
def test_the_command_answers_in_one_line(folder, tmp_path, monkeypatch, capsys, extra, status, said):
    arguments = ["--images", folder, "--caption", "a boat", "--out", tmp_path, "--model", hub_folder(), "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["finetune", *map(str, arguments), *extra])
    try:
        found = run_command(main)
    except SystemExit as end:
        found = end.code
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert found == status and len(error) == bool(status) and said in "".join(error)


def test_what_it_does_not_work_on_is_refused_in_a_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match="is a StableDiffusionXLPipeline"):
        finetune(folder, "a boat", tmp_path, model=str(hub_folder(True)))
    for name in ("qwen-image", "sd35-medium"):  # before any of their weights are asked for
        with pytest.raises(ValueError, match=f"1.x and 2.x; {name} draws with a transformer"):
            finetune(folder, "a boat", tmp_path, model=name)
