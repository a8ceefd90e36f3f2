"""The setup call of a lesson, and the widgets that work with and without a kernel."""

import contextlib
import io
import logging
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import context_diffusion as cd
from context_diffusion import notebook, widgets
from context_diffusion.widgets import play, starting_values


def test_setup_fixes_every_source_of_chance_and_says_where_it_runs(capsys):
    def draws():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    here = notebook.setup(seed=3)
    first = draws()
    notebook.setup(seed=4)
    assert draws() != first
    notebook.setup(seed=3)
    assert draws() == first
    assert here.seed == 3 and here.threads == torch.get_num_threads() and (here.data / "query").is_dir()
    assert f"{here.threads} thread(s), seed 3" in capsys.readouterr().out


def test_quiet_silences_libraries_that_are_imported_later():
    load = "from transformers import CLIPImageProcessor; from diffusers import StableDiffusionPipeline"
    code = f"from context_diffusion import notebook; notebook.quiet(); {load}"
    done = subprocess.run([sys.executable, "-c", code], cwd=notebook.ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout == ""


def test_quiet_silences_libraries_that_are_there_already():
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    for library in (of_diffusers, of_transformers):
        library.set_verbosity_info()
        library.enable_progress_bar()
    notebook.quiet()
    for library in (of_diffusers, of_transformers):
        assert library.get_verbosity() == logging.ERROR and not library.is_progress_bar_enabled()


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(notebook.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(notebook.subprocess, "run", lambda command, check: calls.append(command))
    calls = []
    return calls


def test_colab_gets_what_is_missing_and_keeps_its_torch_and_numpy(nothing_installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", object())
    notebook.install_missing()
    (command,) = nothing_installed
    assert command[1:5] == ["-m", "pip", "install", "-q"]
    assert f"torch=={torch.__version__}" in command and f"numpy=={np.__version__}" in command
    assert not any(word.startswith(("-U", "torchvision", "torchaudio")) for word in command)


def test_elsewhere_nothing_is_installed_but_said(nothing_installed):
    with pytest.raises(ModuleNotFoundError, match=r"pip install -r requirements\.txt"):
        notebook.install_missing()
    assert nothing_installed == []


def test_colab_ranges_are_those_of_the_requirements():
    required = (notebook.ROOT / "requirements.txt").read_text().splitlines()
    assert set(notebook.COLAB_NEEDS.values()) <= set(required)


# --- widgets ---------------------------------------------------------------------------------------------


def test_without_a_kernel_a_widget_is_its_starting_picture():
    assert play(lambda shift, mode="a", steps=7: (shift, mode, steps), shift=(0.0, 3.0), mode=["x", "a"]) == (
        1.5,
        "a",
        7,
    )


def test_controls_start_at_the_default_else_the_middle_else_the_first():
    def draw(a, b, c, d=0.25):
        pass

    controls = {"a": (0, 9), "b": ["x", "y"], "c": "word", "d": (0.0, 1.0)}
    assert starting_values(draw, controls) == {"a": 4, "b": "x", "c": "word", "d": 0.25}
    with pytest.raises(ValueError, match="no argument scale; it has a, b, c, d"):
        play(draw, scale=(0, 1))


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(widgets, "has_kernel", lambda: True)


def test_turning_a_slider_draws_again(kernel):
    seen = []
    box = play(lambda n=2, on=True: seen.append((n, on)), n=(0, 5), on=True)
    slider, tick = box.children[:2]
    assert (slider.min, slider.max, slider.value) == (0, 5, 2)
    slider.value = 4
    tick.value = False
    assert seen == [(2, True), (4, True), (4, False)]


def test_with_a_button_it_waits_for_the_click(kernel):
    seen = []
    box = play(lambda prompt: seen.append(prompt), button="draw", prompt="a cat")
    text, button = box.children[:2]
    text.value = "a boat"
    assert seen == ["a cat"]
    button.click()
    assert seen == ["a cat", "a boat"]


@pytest.mark.parametrize(
    ("answer", "expected", "verdict"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 1e-7]), "Right."),
        ([1, 2], np.array([1.0, 2.0]), "Right."),
        ("a boat", "a boat", "Right."),
        (
            torch.tensor([1.0, 2.1]),
            torch.tensor([1.0, 2.0]),
            "Not yet: the right shape, but 1 of 2 numbers are off. look",
        ),
        (
            torch.ones(3),
            torch.ones(2),
            "Not yet: wanted is a tensor of shape (2,); this is a tensor of shape (3,). look",
        ),
        (torch.tensor([2.0, 4.0]), torch.tensor([1.0, 2.0]), "Not yet: right up to a constant factor. look again"),
        (torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), "Not yet: right up to a constant that is added."),
        (torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0]), "Not yet: right but for the sign."),
        ([2.0, 5.0, 1.0], torch.tensor([1.0, 2.0, 5.0]), "Not yet: the right numbers in another order."),
        (
            torch.tensor([[1.0, 2], [3, 4]]).T,
            torch.tensor([[1.0, 2], [3, 4]]),
            "Not yet: right but for rows and columns",
        ),
        (torch.ones(2, requires_grad=True), torch.ones(2), "Right."),
        (torch.ones(2, device="meta"), torch.ones(2), "Not yet: "),
        (torch.ones(2) * 1j, torch.ones(2), "Not yet: wanted is a tensor of shape (2,); this one is complex."),
        ([torch.ones(2), torch.zeros(2)], torch.eye(2), "Not yet: "),
        ([[1, 2], [3]], torch.ones(2), "Not yet: wanted is a tensor of shape (2,); this is a list of 2."),
        ({1: 2}, 3, "Not yet: wanted is a number; this is a dict. look again"),
        (torch.tensor(3), 3, "Right."),
        (4, 3, "Not yet: too large. look again"),
        (2.9, 3, "Not yet: a little too small. look again"),
        ("a cat", "a boat", "Not yet: this text is another. look again"),
        ("A  boat", "a boat", "Not yet: right but for capitals or spaces."),
        (["a", "b"], ("a", "c"), "Not yet: part 2 of 2: this text is another."),
        ([1, None], [1, 2], "Not written yet.\n"),
        ([torch.ones(2), None], [torch.ones(2), torch.ones(3)], "Not written yet.\n"),
        ([torch.ones(2), torch.ones(3)], [torch.ones(2), torch.ones(3)], "Right."),
        ({"a": 1.0}, {"a": 1.0, "b": 2.0}, "Not yet: wanted is a dict with the keys a, b; this is a dict."),
        ({"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 2.0}, "Not yet: part 2 of 2: too large."),
        (torch.ones(3), True, "Not yet: wanted is a bool; this is a tensor of shape (3,)."),
        (False, True, "Not yet: this does not hold."),
        ("words", torch.ones(2), "Not yet: wanted is a tensor of shape (2,); this is a str."),
        (float("nan"), 1.0, "Not yet: not every number is finite."),
        (None, torch.ones(2), "Not written yet.\n"),
        (..., "a boat", "Not written yet.\n"),
    ],
)
def test_check_tells_right_from_wrong_and_from_not_written(answer, expected, verdict, capsys):
    notebook.check(answer, expected, "look again")
    assert capsys.readouterr().out.startswith(verdict)
    if verdict != "Right.":
        with pytest.raises(AssertionError, match=r"^Not"):
            notebook.check(answer, expected, "look again", strict=True)


@pytest.mark.parametrize(
    "expected",
    [8191, 81.91, "secret 8191", [8191, 1], ["8191", "x"], {"key": 8191}, torch.full((2,), 8191.0), np.array(8191)],
    ids=repr,
)
@given(
    answer=st.one_of(
        st.integers(),
        st.floats(),
        st.text(),
        st.booleans(),
        st.lists(st.floats()),
        st.binary(),
        st.complex_numbers(),
        st.dictionaries(st.text(), st.integers()),
        st.lists(st.none()),
        st.sampled_from([object(), print, int]),
        st.tuples(st.integers(0, 3), st.integers(0, 3)).map(torch.ones),
        st.lists(st.lists(st.integers()), max_size=3),
        st.dates(),
        st.sets(st.integers()),
    )
)
@settings(max_examples=60, deadline=None)
def test_any_answer_gets_one_sentence_that_does_not_tell(expected, answer):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        notebook.check(answer, expected)
    assert said.getvalue().count("\n") == 1
    assert "8191" not in said.getvalue() and "81.91" not in said.getvalue()


def test_a_drawn_picture_depends_on_its_own_seed_alone():
    from tiny import tiny_sd15

    def pixels(prompts, seed):
        drawn = tiny_sd15()(prompts, generator=cd.generators(seed, len(prompts)), num_inference_steps=2)
        return [np.asarray(image, dtype=int) for image in drawn.images]

    together, alone = pixels(["a boat", "a cat"], 5), pixels(["a cat"], 6)
    assert np.abs(together[1] - alone[0]).max() <= 1
    assert np.abs(together[0] - pixels(["a boat"], 6)[0]).max() > 1
