"""Training: one process and many, killed or not, give the same weights; batches are what they claim; publishing."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from training_run import STEPS, Tiny, run

from context_diffusion.context.projector import ContextProjector
from context_diffusion.files import TINY_SCENES
from context_diffusion.scenes.judge import Judge
from experiments.evaluation.unseen import unseen
from experiments.publishing import weights
from experiments.training import data, depth, judge, music, vae
from experiments.training.clip import contrast, normalize
from experiments.training.dino import Pair, new_vit
from experiments.training.draws import Draws
from experiments.training.loop import Objective, add_gradients, new_accelerator, train
from experiments.training.optimizers import Muon, new_optimizers
from experiments.training.recipe import Recipe
from experiments.training.run import forerunners
from experiments.training.saving import load_weights, save_half
from experiments.training.tokenizer import new_tokenizer, token_ids
from experiments.training.unet import (
    NO_CONTEXT,
    NULL_CONTEXT,
    STRATA,
    TEXT_DROP,
    condition,
    drawn,
    group_mates,
    held_out_loss,
    new_scheduler,
    noised,
)

ROOT = Path(__file__).parent.parent
SCRIPT = Path(__file__).parent / "training_run.py"


def regression(model, draws):
    """Least squares towards y = 3x - 1."""
    x = draws.rand(1)
    return (model(x).float() - (3 * x - 1)).square().mean()


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def equal(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


def started(*arguments, processes: int = 0) -> subprocess.Popen:
    """The script of ``training_run`` in one process, or in several under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def seen(folder: Path) -> dict[int, list]:
    """What each sample of a run drew, by its number; samples seen again must be the same."""
    found: dict[int, list] = {}
    for file in folder.glob("seen-*.jsonl"):
        for line in file.read_text().splitlines():
            number, *values = json.loads(line)
            assert found.setdefault(number, values) == values
    return found


# --- one process or many, whole or in parts ----------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_see_the_samples_of_one_and_end_with_its_weights(tmp_path):
    kinds = {"adamw-1": 1e-5, "adamw-2": 1e-5, "muon-2": 2e-3}  # Muon orthogonalises in bf16
    torchrun = started(tmp_path / "two", "", *kinds, processes=2)
    for kind, tolerance in kinds.items():
        alone = run(tmp_path / "one" / kind, kind.split("-")[0])
        if kind == "adamw-1":
            output = torchrun.communicate(timeout=300)[0]
            assert torchrun.returncode == 0, output
        state = torch.load(tmp_path / "two" / kind / "tiny.pt", weights_only=True)
        assert seen(tmp_path / "two" / kind) == seen(tmp_path / "one" / kind)
        assert len(seen(tmp_path / "one" / kind)) == 8 * STEPS
        assert all((tmp_path / "two" / kind / f"seen-{process}.jsonl").exists() for process in (0, 1))
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(state["average"][key], value, rtol=0, atol=tolerance)
        record, other = (json.loads((tmp_path / who / kind / "tiny.json").read_text()) for who in ("one", "two"))
        np.testing.assert_allclose(record["loss"], other["loss"], atol=2e-3)  # of the whole batch


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_passes_add_up_to_the_batch(tmp_path, optimizer):
    whole, parts = (run(tmp_path / str(passes), optimizer, passes) for passes in (1, 4))
    assert seen(tmp_path / "1") == seen(tmp_path / "4")
    for first, second in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5 if optimizer == "adamw" else 2e-3)


def test_the_gradients_of_the_passes_add_up_to_that_of_the_batch():
    """Neither optimizer sees the scale of a gradient, so that the weights at the end would not tell."""
    found = []
    for passes in (1, 4):
        recipe, model = Recipe(1, 8, 0.1, accumulate=passes, mixed_precision="no"), fresh()
        value = add_gradients(Objective(model, regression), new_accelerator(recipe), recipe, step=3)
        with torch.no_grad():
            assert value == pytest.approx(regression(model, Draws(0, range(24, 32), 3)).item())
        found.append(model.weight.grad)
    torch.testing.assert_close(*found)


@pytest.mark.slow
def test_a_killed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    killed = {moment: started(tmp_path / moment, moment, "muon-1") for moment in ("step", "write")}
    whole = run(tmp_path / "whole", "muon")
    for moment, process in killed.items():
        output = process.communicate(timeout=300)[0]
        assert process.returncode == -signal.SIGKILL, output
        state = torch.load(tmp_path / moment / "muon-1" / "tiny.pt", weights_only=True)
        assert state["step"] == 10  # the last that was written whole
        assert equal(run(tmp_path / moment / "muon-1", "muon"), whole)
        assert seen(tmp_path / moment / "muon-1") == seen(tmp_path / "whole")


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path):
    recipe = Recipe(steps=60, batch_size=64, learning_rate=0.1, warmup=5)
    whole = train("whole", fresh(), regression, recipe, folder=tmp_path)

    def breaks(model, draws):
        if draws.samples[0] == 25 * 64:
            raise KeyboardInterrupt
        return regression(model, draws)

    with pytest.raises(KeyboardInterrupt):
        train("parts", fresh(), breaks, recipe, folder=tmp_path, save_every=10)
    assert torch.load(tmp_path / "parts.pt", weights_only=True)["step"] == 20
    resumed = train("parts", fresh(), regression, recipe, folder=tmp_path)
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(tmp_path, number):
    recipe = Recipe(steps=60, batch_size=64, learning_rate=0.1, warmup=5)
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    saved = []

    def signalled(model, draws):
        if draws.samples[0] == 25 * 64:
            signal.raise_signal(number)
        return regression(model, draws)

    with pytest.raises(KeyboardInterrupt, match="stopped at step 26; the same call goes on"):
        train("parts", fresh(), signalled, recipe, folder=tmp_path, save=lambda average, folder: saved.append(folder))
    assert saved == [tmp_path]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    resumed = train("parts", fresh(), regression, recipe, folder=tmp_path)
    assert equal(resumed, train("whole", fresh(), regression, recipe, folder=tmp_path))


def test_training_learns_and_saves_the_average(tmp_path):
    saved = []
    recipe = Recipe(steps=400, batch_size=64, learning_rate=0.1, warmup=5, ema=0.9)
    average = train(
        "line", fresh(), regression, recipe,
        save=lambda model, folder: saved.append(model), save_every=200, folder=tmp_path,
    )  # fmt: skip
    assert abs(average.weight.item() - 3) < 0.1 and abs(average.bias.item() + 1) < 0.1
    assert len(saved) == 2 and saved[-1] is average
    assert (tmp_path / "line.png").stat().st_size < 300_000


def test_a_diverging_run_says_so_and_keeps_the_checkpoint_before(tmp_path):
    def explodes(model, draws):
        return regression(model, draws) * (math.nan if draws.samples[0] == 3 else 1)

    recipe = Recipe(steps=10, batch_size=1, learning_rate=0.1)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 3; lower --learning-rate"):
        train("nan", fresh(), explodes, recipe, folder=tmp_path, save_every=2)
    state = torch.load(tmp_path / "nan.pt", weights_only=True)
    assert state["step"] == 2 and all(value.isfinite().all() for value in state["model"].values())
    assert equal(train("nan", fresh(), regression, recipe, folder=tmp_path),
                 train("whole", fresh(), regression, recipe, folder=tmp_path))  # fmt: skip


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    def steep(model, draws):  # the square root of 0: its value is finite, its slope is not
        return regression(model, draws) + (model.weight - model.weight.detach()).abs().sqrt().sum()

    model = fresh()
    with pytest.raises(FloatingPointError, match="the length of the gradient is"):
        train("steep", model, steep, Recipe(steps=10, batch_size=1, learning_rate=0.1), folder=tmp_path)
    assert equal(model, fresh()) and not (tmp_path / "steep.pt").exists()


def test_a_second_run_takes_the_options_of_its_recipe_and_says_which_it_cannot(tmp_path):
    def settings_of(folder):
        return torch.load(folder / "tiny.pt", weights_only=True)["optimizers"][0]["param_groups"][0]

    run(tmp_path, start="")
    shorter = Recipe(25, 8, 0.02, weight_decay=0.5, mixed_precision="no")
    train("tiny", Tiny(), lambda model, draws: model(draws.randn(3, 6, 6), True).square().mean(), shorter,
          folder=tmp_path)  # fmt: skip
    assert settings_of(tmp_path)["weight_decay"] == 0.5
    with pytest.raises(ValueError, match="written with another --optimizer than muon"):
        run(tmp_path, "muon")
    with pytest.raises(ValueError, match="began with --start nothing, not elsewhere: give that again"):
        run(tmp_path, start="elsewhere")
    with pytest.raises(ValueError, match="batch of 8 cannot be divided among 3 passes of 1 processes; take a multiple"):
        run(tmp_path, accumulate=3)


def test_a_constant_rate_is_continued_and_finished_beside_its_checkpoint(tmp_path):
    rates = []

    def noted(model, draws):
        rates.append(model.weight.item())
        return regression(model, draws)

    common = {"batch_size": 8, "learning_rate": 0.01, "schedule": "constant", "warmup": 1}
    train("line", fresh(), noted, Recipe(steps=10, **common), folder=tmp_path)
    train("line", fresh(), noted, Recipe(steps=20, **common), folder=tmp_path)
    before = torch.load(tmp_path / "line.pt", weights_only=True)
    assert before["step"] == 20 and len(rates) == 20
    finished = Recipe(steps=20, finish=6, **common)
    train("line", fresh(), noted, finished, folder=tmp_path)
    state = torch.load(tmp_path / "line-finish.pt", weights_only=True)
    assert (state["step"], state["first"]) == (26, 20)
    assert state["optimizers"][0]["param_groups"][0]["lr"] == pytest.approx(0.01 / 6)  # one step before zero
    assert torch.load(tmp_path / "line.pt", weights_only=True)["step"] == 20
    train("line", fresh(), noted, finished, folder=tmp_path)
    assert len(rates) == 26  # a finished run has nothing to do


def test_minutes_count_this_call_at_a_constant_rate_and_the_whole_run_in_a_cosine(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def slow(model, draws):  # a minute a step
        clock[0] += 60
        return regression(model, draws)

    def trained(schedule):
        recipe = Recipe(100, 4, 0.1, schedule=schedule, minutes=5, warmup=1)
        train(schedule, fresh(), slow, recipe, folder=tmp_path)
        return torch.load(tmp_path / f"{schedule}.pt", weights_only=True)

    assert [trained("constant")["step"] for _ in range(2)] == [5, 10]
    state = trained("cosine")
    assert state["step"] == 5 and state["optimizers"][0]["param_groups"][0]["lr"] == pytest.approx(0.1 * 0.02)
    assert trained("cosine")["step"] == 5


def test_the_line_says_how_far_a_run_is_and_a_repeated_stretch_is_told_once(tmp_path, capsys):
    recipe = Recipe(steps=300, batch_size=4, learning_rate=0.01)

    def breaks(model, draws):
        if draws.samples[0] == 4 * 240:
            raise KeyboardInterrupt
        return regression(model, draws)

    options = {"folder": tmp_path, "held_out": lambda model: [0.5, 0.25], "save_every": 150}
    with pytest.raises(KeyboardInterrupt):
        train("line", fresh(), breaks, recipe, **options)
    train("line", fresh(), regression, recipe, **options)
    lines = [json.loads(line) for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert [(line["step"], line["samples"], line["held_out"]) for line in lines] == [
        (100, 400, []), (200, 800, [0.5, 0.25]), (300, 1200, [0.5, 0.25]),
    ]  # fmt: skip
    losses = torch.load(tmp_path / "line.pt", weights_only=True)["losses"]
    assert lines[1]["loss"] == pytest.approx(np.mean(losses[100:200]), abs=1e-5)
    told = [line for line in capsys.readouterr().out.splitlines() if "step 200" in line]
    assert len(told) == 2 and told[0].startswith("line: step 200, 800 samples, loss ")
    assert "held out 0.3750 (0.500 0.250), " in told[0] and "samples a second, 0 minutes left" in told[0]


@pytest.mark.parametrize(("switch", "dtype"), [("bf16", torch.bfloat16), ("no", torch.float32)])
def test_mixed_precision_is_a_switch(tmp_path, switch, dtype):
    found = set()

    def loss(model, draws):
        output = model(draws.rand(1))
        found.add(output.dtype)
        return output.float().square().mean()

    def measured(average):
        return [float(found.add(average(torch.ones(1, 1)).dtype) is None)]

    recipe = Recipe(steps=2, batch_size=4, learning_rate=0.1, mixed_precision=switch)
    average = train("precision", fresh(), loss, recipe, held_out=measured, folder=tmp_path)
    assert found == {dtype} and average.weight.dtype == torch.float32


# --- what a run is made of -----------------------------------------------------------------------------------


def test_the_rate_warms_up_and_falls_like_a_cosine():
    recipe = Recipe(steps=1000, batch_size=1, learning_rate=1.0, warmup=10)
    assert recipe.rate(0, 0) == pytest.approx(0.1)
    assert recipe.rate(500, 0.5) == pytest.approx(0.51)
    assert recipe.rate(1000, 1) == pytest.approx(0.02)


def test_a_constant_rate_warms_up_and_stays_until_a_last_stretch_takes_it_to_zero():
    constant = {"steps": 1000, "batch_size": 1, "learning_rate": 1.0, "warmup": 10, "schedule": "constant"}
    recipe, last = Recipe(**constant), Recipe(**constant, finish=100)
    assert [recipe.rate(step, progress) for step, progress in ((0, 0), (9, 0.01), (999, 1))] == [0.1, 1, 1]
    assert [last.rate(500, progress) for progress in (0, 0.25, 1)] == [1, 0.75, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"schedule": "linear"}, "schedule is 'cosine' or 'constant'; got 'linear'"),
        ({"optimizer": "sgd"}, "optimizer is 'adamw' or 'muon'; got 'sgd'"),
        ({"mixed_precision": "fp16"}, "mixed_precision is 'auto', 'bf16' or 'no'; got 'fp16'"),
        ({"finish": 10}, "a cosine falls by itself"),
        ({"accumulate": 0}, "accumulate must be"),
        ({"learning_rate": math.nan}, "learning_rate must be finite"),
    ],
)
def test_a_recipe_says_what_is_wrong_with_it(wrong, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"steps": 1, "batch_size": 1, "learning_rate": 1.0} | wrong)


def test_the_command_line_overrides_the_recipe(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build" / "elsewhere").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["vae", "--steps", "7", "--learning-rate", "0.5", "--start", "build/elsewhere"])
    recipe = Recipe.from_command_line(None, steps=100, batch_size=4, learning_rate=1e-3)
    assert recipe == Recipe(steps=7, batch_size=4, learning_rate=0.5, start="build/elsewhere")


# --- random numbers ------------------------------------------------------------------------------------------


def everything(draws: Draws) -> list[torch.Tensor]:
    numbers = torch.tensor([generator.random() for generator in draws.numpy()])
    return [draws.rand(2), draws.randn(3, 1), draws.randint(10, 2), draws.strata(4), draws.rand(), numbers]


@given(st.integers(0, 100), st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=1, max_size=4))
@settings(deadline=None, max_examples=30)
def test_what_a_sample_draws_does_not_depend_on_its_batch(seed, first, sizes):
    whole = Draws(seed, range(first, first + sum(sizes)), 5)
    ends = np.cumsum(sizes).tolist()
    parts = [Draws(seed, range(first + end - size, first + end), 5) for size, end in zip(sizes, ends, strict=True)]
    for together, apart in zip(everything(whole), zip(*map(everything, parts), strict=True), strict=True):
        assert torch.equal(together, torch.cat(apart))
    common = {torch.rand((), generator=one.common).item() for one in (whole, *parts)}
    assert len(common) == 1
    assert torch.rand((), generator=Draws(seed, [first], 6).common).item() not in common
    assert not torch.equal(Draws(seed, [first], 5).rand(8), Draws(seed + 1, [first], 5).rand(8))


def test_samples_one_after_another_are_independent():
    draws = Draws(0, range(4000), 0)
    uniform, normal, whole = draws.rand(2), draws.randn(), draws.randint(5)
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.02) and uniform.min() >= 0 and uniform.max() < 1
    assert normal.std().item() == pytest.approx(1, abs=0.04)
    assert np.bincount(whole).min() > 700 and len(np.bincount(whole)) == 5
    pairs = torch.stack([uniform[:-1, 0], uniform[1:, 0], uniform[:-1, 1], normal[:-1], normal[1:]])
    assert (torch.corrcoef(pairs) - torch.eye(5)).abs().max() < 0.06


def test_the_strata_of_consecutive_samples_are_different_ones():
    parts = (Draws(3, range(320, 320 + STRATA), 10).strata(STRATA) * STRATA).long()
    assert sorted(parts.tolist()) == list(range(STRATA))


# --- Muon ----------------------------------------------------------------------------------------------------


def gradients(weights: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)  # contiguous, whatever the weight is


@pytest.mark.parametrize("channels_last", [False, True])
def test_muon_moves_any_weight_as_torch_moves_its_matrix(channels_last):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 4), nn.Conv2d(3, 5, 3), nn.Conv2d(4, 3, 1), nn.Conv1d(2, 4, 3)]
    weights = [layer.weight for layer in layers]
    axes = (0, 1, 2, 3)
    if channels_last:
        layers[1].to(memory_format=torch.channels_last)
        axes = (0, 2, 3, 1)  # the matrix has its columns in this order

    def matrix(tensor):
        return (tensor.permute(axes) if tensor.shape == (5, 3, 3, 3) else tensor).flatten(1).clone()

    flat = [nn.Parameter(matrix(weight.data)) for weight in weights]
    options = {"lr": 0.1, "weight_decay": 0.1, "ns_steps": 4, "adjust_lr_fn": "match_rms_adamw"}
    ours, theirs = Muon(weights, **options), torch.optim.Muon(flat, **options)
    for step in range(5):
        gradients(weights, step)
        for weight, one in zip(weights, flat, strict=True):
            one.grad = matrix(weight.grad)
        ours.step()
        theirs.step()
    for weight, one in zip(weights, flat, strict=True):
        assert torch.equal(matrix(weight.data), one.data)
    assert layers[1].weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    ours.zero_grad()
    assert all(weight.grad is None for weight in weights)


def test_muon_does_not_depend_on_the_memory_format():
    ends = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        layer = nn.Conv2d(8, 16, 3).to(memory_format=memory_format)
        optimizer = Muon([layer.weight], lr=0.1)
        for step in range(3):
            gradients([layer.weight], step)
            optimizer.step()
        ends.append(layer.weight.detach().contiguous())
    torch.testing.assert_close(*ends, rtol=0, atol=2e-3)  # bf16 inside, summed in another order


def test_muon_takes_matrices_and_leaves_the_rim_biases_and_norms_to_adamw():
    model = nn.ModuleDict({"conv_in": nn.Conv2d(3, 4, 3), "inner": nn.Conv2d(4, 4, 3), "norm": nn.GroupNorm(2, 4)})
    model["inner"].requires_grad_(True), model["norm"].bias.requires_grad_(False)
    muon, adamw = new_optimizers(model, "muon", 1e-3, 0.0, 0.99)
    assert [one is model["inner"].weight for one in muon.weights] == [True]
    others = {id(one) for one in adamw.param_groups[0]["params"]}
    expected = [*model["conv_in"].parameters(), model["inner"].bias, model["norm"].weight]
    assert others == {id(one) for one in expected}
    with pytest.raises(ValueError, match="no matrix view"):
        Muon([nn.Parameter(torch.randn(4, 6, 3, 3).transpose(0, 2))])


# --- pictures ------------------------------------------------------------------------------------------------


def small_pixels(number: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "make",
    [
        lambda draws, places: vae.random_crops(small_pixels(4, 128), draws),
        lambda draws, places: judge.augment(data.to_tensor(small_pixels(8)[places]), draws),
        lambda draws, places: data.crops(data.to_tensor(small_pixels(8)[places]), 32, 0.5, 1.0, draws),
        lambda draws, places: torch.cat(
            depth.examples(small_pixels(8)[places], torch.from_numpy(small_pixels(8)[places, ..., 0]), draws), dim=1
        ),
        lambda draws, places: torch.cat(group_mates(torch.as_tensor(places), draws), dim=1),
    ],
    ids=["vae", "judge", "crops", "depth", "mates"],
)
def test_a_sample_is_varied_in_the_same_way_in_every_batch(make):
    whole = make(Draws(0, range(8), 0), np.arange(8))
    parts = [make(Draws(0, range(first, first + 4), 0), np.arange(first, first + 4)) for first in (0, 4)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=0, atol=1e-6)
    assert len({tuple(one.flatten().tolist()) for one in whole}) > 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: data.crops(data.to_tensor(small_pixels(8)), 32, 0.5, 1.0, Draws(0, range(8), 0)),
        lambda: music.augmented(torch.arange(200.0).half().expand(2, 128, -1).mT, Draws(0, range(2), 0)),
    ],
    ids=["crops", "music"],
)
def test_samples_are_made_in_full_precision(make):
    with torch.autocast("cpu", torch.bfloat16):
        made = make()
    assert made.dtype == torch.float32 and torch.equal(made, make())


def test_half_of_the_pictures_are_mirrored():
    batch = data.to_tensor(small_pixels(1)).expand(400, -1, -1, -1)
    mirrored = data.mirror(Draws(0, range(400), 0), batch)
    straight = (mirrored == batch).flatten(1).all(dim=1)
    assert torch.equal(mirrored[~straight], batch[~straight].flip(3))
    assert straight.float().mean().item() == pytest.approx(0.5, abs=0.08)


def test_pictures_and_their_depth_are_mirrored_together():
    level = torch.linspace(0, 255, 64).byte().expand(20, 64, -1)  # nearer to the right
    pixels = level[..., None].expand(-1, -1, -1, 3)
    pictures, target = depth.examples(pixels, level, Draws(0, range(20), 0))
    slopes = [(one[..., -1] - one[..., 0]).mean(dim=(1, 2)) for one in (pictures, target)]
    assert torch.equal(slopes[0] > 0, slopes[1] > 0) and 0 < (slopes[1] > 0).sum() < 20


def test_the_decoder_alone_leaves_the_encoder_and_the_scale_is_that_of_the_latents():
    model, pixels = vae.new_autoencoder(), small_pixels(4)
    vae.decoder_loss(model, data.to_tensor(pixels), Draws(0, range(4), 0), Judge.from_pretrained().network).backward()
    assert all(weight.grad is None for part in (model.encoder, model.quant_conv) for weight in part.parameters())
    assert all(weight.grad is not None for weight in model.decoder.parameters())
    with torch.no_grad():
        latents = model.encode(data.to_tensor(pixels)).latent_dist.mean
    assert (latents * vae.scaling_factor(model, pixels)).std().item() == pytest.approx(1, abs=0.01)


def test_features_are_the_farther_apart_the_more_a_texture_is_blurred():
    judge, drawn = Judge.from_pretrained().network.requires_grad_(False), unseen(0, "mosaic").pixels
    sharp = data.to_tensor(drawn[None])
    blurred = [data.to_tensor(cv2.GaussianBlur(drawn, (0, 0), sigma)[None]) for sigma in (0.5, 1.0, 2.0)]
    apart = [vae.features_apart(judge, sharp, other).item() for other in (sharp, *blurred)]
    assert apart[0] == 0 and apart == sorted(apart) and apart[1] > 0.01


def test_latents_and_target_are_scaled_and_turned_alike_in_half_of_the_batches():
    pixels = torch.linspace(0, 1, 96)[:, None] + torch.linspace(0, 3, 96)
    target, latents = pixels.expand(2, 1, -1, -1), F.avg_pool2d(pixels.expand(2, 1, -1, -1), 8)
    sides, kept = set(), 0
    for step in range(200):
        small, large = vae.changed_alike(latents, target, Draws(0, range(2), step))
        assert large.shape[2] == 8 * small.shape[2] and large.shape[3] == 8 * small.shape[3]
        torch.testing.assert_close(small[..., 1:-1, 1:-1], F.avg_pool2d(large, 8)[..., 1:-1, 1:-1], atol=0.06, rtol=0)
        sides.add(small.shape[2])
        kept += small is latents
    assert sides == {6, 8, 9, 10, 12} and 70 < kept < 130


def test_the_centre_of_dino_is_that_of_all_passes_and_its_teacher_follows_once():
    torch.manual_seed(0)
    whole = Pair()
    for weight in whole.student.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    parts = Pair()
    parts.load_state_dict(whole.state_dict())
    wide, narrow = [torch.randn(4, 3, 64, 64) for _ in range(2)], [torch.randn(4, 3, 32, 32) for _ in range(2)]
    together = whole.loss(wide, narrow)
    halves = [
        parts.loss([one[half] for one in wide], [one[half] for one in narrow]) for half in (slice(2), slice(2, 4))
    ]
    torch.testing.assert_close(together, sum(halves) / 2)
    together.backward()
    assert all(weight.grad is None for weight in whole.teacher.parameters())
    before = whole.teacher.head[0].weight.clone()
    for pair in (whole, parts):
        pair.follow(momentum=0.9)
        assert not pair.seen
    torch.testing.assert_close(whole.centre, parts.centre)
    assert whole.centre.abs().max() > 0
    expected = 0.9 * before + 0.1 * whole.student.head[0].weight
    torch.testing.assert_close(whole.teacher.head[0].weight, expected)
    torch.testing.assert_close(parts.teacher.head[0].weight, expected)


# --- the U-Net's recipe --------------------------------------------------------------------------------------


def test_context_mates_are_others_of_the_same_group():
    index = torch.arange(400)
    mates, weights = group_mates(index, Draws(1, range(400), 0))
    assert mates.shape == weights.shape == (400, 3)
    assert (mates // 4 == index[:, None] // 4).all()
    assert (mates != index[:, None]).all()
    assert all(len(set(row)) == 3 for row in mates.tolist())
    ones = mates[:, 0] - index
    assert set(ones.tolist()) == {-3, -2, -1, 1, 2, 3}
    counts = weights.sum(dim=1).long()
    assert torch.equal(weights, (torch.arange(3) < counts[:, None]).float())  # the first ones are kept
    assert np.bincount(counts, minlength=4)[1:].min() > 90 and counts.min() == 1


def small_features(pictures: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(pictures, 12, 16, 16, generator=generator),
        "text": torch.randn(6, 32, 128, generator=generator),
        "caption": torch.randint(5, (pictures,), generator=generator),
        "pooled": torch.randn(pictures, 16, 128, generator=generator),
        "statistics": torch.rand(pictures, 6, generator=generator),
    }


def test_text_and_contexts_are_dropped_at_their_stated_rates():
    features, projector = small_features(), ContextProjector()
    lengths, null, dropped = [], [], []
    for step in range(300):
        tokens = condition(features, projector, torch.arange(64), Draws(0, range(64 * step, 64 * step + 64), step))
        lengths.append(tokens.shape[1])
        dropped.append((tokens[:, :32] == features["text"][-1]).all(dim=(1, 2)).float().mean())
        if tokens.shape[1] == 49:
            null.append((tokens[:, 32:] == 0).all(dim=(1, 2)).float().mean())
    assert set(lengths) == {32, 49}
    assert np.mean(np.array(lengths) == 32) == pytest.approx(NO_CONTEXT, abs=0.1)
    assert torch.stack(null).mean().item() == pytest.approx(NULL_CONTEXT, abs=0.02)
    assert torch.stack(dropped).mean().item() == pytest.approx(TEXT_DROP, abs=0.02)
    assert pytest.approx(0.375) == NO_CONTEXT + (1 - NO_CONTEXT) * NULL_CONTEXT


def test_a_condition_does_not_depend_on_its_batch():
    features, projector, index = small_features(), ContextProjector(), torch.arange(8)
    for step in range(4):
        whole = condition(features, projector, index, Draws(0, range(8), step))
        halves = [condition(features, projector, index[i : i + 4], Draws(0, range(i, i + 4), step)) for i in (0, 4)]
        torch.testing.assert_close(whole, torch.cat(halves))


def test_noised_latents_and_weights_follow_the_closed_form():
    features, scheduler = small_features(), DDIMScheduler(
        beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1
    )  # fmt: skip
    noise, timestep = torch.randn(64, 12, 16, 16), torch.randint(1000, (64,))
    noisy, target, weight = noised(features["latents"], scheduler, timestep, noise)
    betas = torch.linspace(0.00085**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    alpha = (1 - betas).cumprod(0)[timestep]
    a, s = alpha.sqrt()[:, None, None, None], (1 - alpha).sqrt()[:, None, None, None]
    torch.testing.assert_close(noisy.double(), a * features["latents"] + s * noise, rtol=0, atol=1e-5)
    assert torch.equal(target, noise)
    snr = alpha / (1 - alpha)
    expected = torch.minimum(snr, torch.tensor(5.0)) / snr * torch.minimum(1 / alpha, torch.tensor(30.0))
    torch.testing.assert_close(weight.double(), expected, rtol=1e-4, atol=0)


def test_velocities_and_their_weights_follow_the_closed_form_down_to_pure_noise():
    latents, noise = torch.randn(2, 64, 12, 4, 4)
    timestep = torch.linspace(0, 999, 64).long()
    noisy, target, weight = noised(latents, new_scheduler(), timestep, noise)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])  # Lin et al. 2023, algorithm 1
    alpha = (root**2)[timestep]
    a, s = alpha.sqrt()[:, None, None, None], (1 - alpha).sqrt()[:, None, None, None]
    torch.testing.assert_close(noisy.double(), a * latents + s * noise, rtol=0, atol=1e-4)
    torch.testing.assert_close(target.double(), a * noise - s * latents, rtol=0, atol=1e-4)
    snr = alpha / (1 - alpha)
    expected = (snr.clamp(max=5) + 1) / (snr + 1)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(noisy[-1], noise[-1])
    torch.testing.assert_close(target[-1], -latents[-1])
    assert weight[-1] == 1


def test_both_objectives_agree_on_one_guess():
    """One guess of the noise and the velocity that it implies have the same error, up to the factors in the weights."""
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear")
    timestep = torch.tensor([5, 100, 400, 600])
    latents, noise, guess = torch.randn(3, 4, 12, 4, 4)
    noisy, _, of_noise = noised(latents, scheduler, timestep, noise)
    scheduler.register_to_config(prediction_type="v_prediction")
    _, velocity, of_velocity = noised(latents, scheduler, timestep, noise)
    alpha = scheduler.alphas_cumprod[timestep].view(-1, 1, 1, 1)
    implied = (noisy - (1 - alpha).sqrt() * guess) / alpha.sqrt()
    guessed = alpha.sqrt() * guess - (1 - alpha).sqrt() * implied
    errors = [(difference**2).mean(dim=(1, 2, 3)) for difference in (noise - guess, velocity - guessed)]
    alpha = alpha.flatten()
    snr = alpha / (1 - alpha)
    without = of_noise / (1 / alpha)  # no cap is reached here
    torch.testing.assert_close(without * errors[0], snr.clamp(max=5) / snr * alpha * errors[1])
    torch.testing.assert_close(of_noise * errors[0], snr.clamp(max=5) / snr * errors[1], rtol=1e-3, atol=0)
    assert (of_velocity <= 1).all() and (of_velocity > 0).all()


def test_what_a_scheduler_predicts_is_known_or_refused():
    scheduler = DDIMScheduler(prediction_type="sample")
    with pytest.raises(ValueError, match="'v_prediction' and 'epsilon'; the scheduler has 'sample'"):
        noised(torch.zeros(1, 12, 4, 4), scheduler, torch.tensor([3]), torch.zeros(1, 12, 4, 4))


def test_each_batch_takes_its_time_steps_evenly():
    features, scheduler = small_features(), new_scheduler()
    for step in range(3):
        draws = Draws(0, range(STRATA * step, STRATA * (step + 1)), step)
        timestep = drawn(features, torch.arange(STRATA), scheduler, draws)[1].sort().values
        parts = 1000 * torch.arange(STRATA + 1) / STRATA
        assert (parts[:-1].floor() <= timestep).all() and (timestep < parts[1:]).all()


def test_the_held_out_loss_is_fixed_and_that_of_a_silent_network_is_the_velocity():
    class Silent(nn.Module):
        projector = ContextProjector()

        def unet(self, noisy, timestep, tokens):
            return type("Output", (), {"sample": torch.zeros_like(noisy)})

    features, scheduler = small_features(96), new_scheduler()
    first, second = (held_out_loss(features, scheduler, Silent()) for _ in range(2))
    assert first == second and len(first) == 5
    np.testing.assert_allclose(first, 1, atol=0.02)  # alpha_bar times the noise's variance + (1 - alpha_bar) x 1


def test_projector_averages_over_images_and_ignores_their_order():
    torch.manual_seed(0)
    projector = ContextProjector()
    pooled, statistics = torch.randn(2, 3, 16, 128), torch.rand(2, 3, 6)
    tokens = projector(pooled, statistics)
    assert tokens.shape == (2, 17, 128) == (2, projector.tokens, 128)
    torch.testing.assert_close(tokens, projector(pooled.flip(1), statistics.flip(1)))
    each = torch.stack([projector(pooled[:, i : i + 1], statistics[:, i : i + 1]) for i in range(3)], dim=1)
    weights = torch.tensor([[1.0, 2.0, 3.0]]).expand(2, 3)
    mixed = torch.einsum("bn,bntd->btd", weights / 6, each)
    torch.testing.assert_close(projector(pooled, statistics, weights), mixed)
    torch.testing.assert_close(projector(pooled, statistics, 10 * weights), mixed)


def test_projector_pools_neighbouring_patches():
    patches = torch.arange(64.0).reshape(1, 64, 1)
    pooled = ContextProjector().pool(patches)
    expected = torch.nn.functional.avg_pool2d(patches.reshape(1, 1, 8, 8), 2).reshape(1, 16, 1)
    torch.testing.assert_close(pooled, expected)
    with pytest.raises(ValueError, match="divide"):
        ContextProjector(grid=3)


def test_a_statistic_token_is_the_only_one_that_sees_the_statistics():
    torch.manual_seed(0)
    projector, pooled = ContextProjector(), torch.randn(1, 1, 16, 128)
    bright, dark = projector(pooled, torch.full((1, 1, 6), 0.9)), projector(pooled, torch.full((1, 1, 6), 0.1))
    torch.testing.assert_close(bright[:, :16], dark[:, :16])
    assert (bright[:, 16] - dark[:, 16]).abs().max() > 0.01


def test_dynamic_normalization_in_training_takes_out_mean_and_deviation():
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalized, removed = normalize(pixels)
    torch.testing.assert_close(normalized.mean(dim=(2, 3)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.std(dim=(2, 3), correction=0), torch.ones(2, 3), atol=1e-4, rtol=0)
    restored = normalized * removed[:, 3:, None, None] + removed[:, :3, None, None]
    torch.testing.assert_close(restored, pixels.permute(0, 3, 1, 2) / 255)


def test_equal_captions_share_the_target():
    """Two pictures with one caption: a model that cannot tell them apart is not punished for it."""
    image = torch.eye(3)[[0, 0, 1]]
    which = torch.tensor([0, 0, 1])
    good = contrast(image, image, which, torch.tensor(100.0))
    assert good.item() == pytest.approx(2 / 3 * math.log(2), abs=1e-4)
    strict = contrast(image, image, torch.arange(3), torch.tensor(100.0))
    assert strict.item() == pytest.approx(good.item(), abs=1e-4)
    wrong = contrast(image, image.roll(1, 0), which, torch.tensor(100.0))
    assert wrong.item() > 10


def test_every_known_word_is_one_token_and_other_text_survives():
    tokenizer = new_tokenizer()
    ids = token_ids(tokenizer, ["a boat among hills, watercolor style", "zebra", ""])
    assert ids.shape == (3, 32)
    assert (ids[0] != 1).sum() == 1 + 7  # start, six words and a comma
    assert (ids[2] != 1).sum() == 1
    assert tokenizer.decode(ids[1], skip_special_tokens=True).strip() == "zebra"
    assert new_tokenizer().get_vocab() == tokenizer.get_vocab()


# --- weights in and out --------------------------------------------------------------------------------------


def test_publishing_replaces_files_and_leaves_nothing_half_written(tmp_path):
    projector = ContextProjector()
    save_half(projector, tmp_path / "part")
    with torch.no_grad():
        projector.position.fill_(0.5)
    save_half(projector, tmp_path / "part")
    loaded = ContextProjector.from_pretrained(tmp_path / "part")
    assert (loaded.position == 0.5).all()
    assert projector.position.dtype == torch.float32
    assert {value.dtype for value in load_file(next((tmp_path / "part").glob("*.safetensors"))).values()} == {
        torch.float16
    }
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_a_warm_start_takes_over_the_published_weights(tmp_path):
    first, second = ContextProjector(), ContextProjector()
    save_half(first, tmp_path / "part")
    load_weights(second, tmp_path / "part")
    for published, loaded in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(published.half().float(), loaded, rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match="there are none"):
        load_weights(second, tmp_path / "nothing")


def test_a_warm_start_maps_keys_that_the_saved_file_names_otherwise(tmp_path):
    first, second = new_vit(), new_vit()
    save_half(first, tmp_path / "part")
    saved = load_file(tmp_path / "part" / "model.safetensors")
    assert set(saved) != set(first.state_dict())  # transformers 5 keeps the file's old names
    load_weights(second, tmp_path / "part")
    for key, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], value.half().float(), rtol=0, atol=0)


def test_the_record_of_a_warm_run_keeps_its_forerunners(tmp_path):
    def trained(folder, losses, start=""):
        values = iter(losses)

        def loss(model, draws):
            return model(torch.zeros(1, 1)).sum() * 0 + next(values)

        recipe = Recipe(steps=2, batch_size=1, learning_rate=1.0, start=str(start))
        train("part", fresh(), loss, recipe, folder=tmp_path / folder)
        return json.loads((tmp_path / folder / "part.json").read_text())

    trained("first", [3.0, 2.0])
    trained("second", [2.0, 1.0], tmp_path / "first")
    record = trained("third", [1.0, 0.5], tmp_path / "second")
    assert record == trained("third", [], tmp_path / "second")  # a finished run that is called again
    assert record["recipe"]["start"] == "second"  # and no path of this machine
    assert record["loss"] == [1.0, 0.5] and [run["loss"] for run in record["earlier"]] == [[3.0, 2.0], [2.0, 1.0]]
    assert trained("fourth", [9.0, 9.0])["earlier"] == []  # from nothing: no forerunner


def test_the_forerunner_of_published_weights_is_the_published_record():
    published = json.loads((ROOT / "figures" / "training" / "vae.json").read_text())
    assert forerunners("vae", str(TINY_SCENES))[-1]["loss"] == published["loss"]
    assert forerunners("vae", "") == forerunners("vae", "nowhere") == []


# --- publishing ----------------------------------------------------------------------------------------------


def filled(folder: Path, *parts: str, text: str = "new") -> Path:
    for part in parts:
        (folder / part).mkdir(parents=True)
        (folder / part / "weights.safetensors").write_text(text)
    return folder


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_publishing_copies_whole_folders_and_the_record(tmp_path, capsys):
    filled(tmp_path / "build/training/depth", "depth")
    for suffix in ("json", "png", "jsonl", "pt"):
        (tmp_path / f"build/training/depth/depth.{suffix}").write_text(suffix)
    target = filled(tmp_path / "data/checkpoints/tiny-scenes", "depth", "vae", text="old")
    (target / "depth" / "stale.bin").write_text("old")
    before = files(tmp_path)
    weights.publish(["depth"], root=tmp_path, dry_run=True)
    assert files(tmp_path) == before
    assert "depth: build/training/depth/depth -> data/checkpoints/tiny-scenes/depth" in capsys.readouterr().out
    weights.publish(["depth"], root=tmp_path)
    assert files(target) == {"depth/weights.safetensors": "new", "vae/weights.safetensors": "old"}
    assert files(tmp_path / "figures") == {f"training/depth.{suffix}": suffix for suffix in ("json", "png", "jsonl")}
    assert files(tmp_path / "build") == {key[6:]: text for key, text in before.items() if key.startswith("build")}


def test_nothing_is_published_unless_all_is_there(tmp_path):
    filled(tmp_path / "build/training/depth", "depth")
    before = files(tmp_path)
    with pytest.raises(FileNotFoundError, match="unet holds no unet and no context_projector; train unet first"):
        weights.publish(["depth", "unet"], root=tmp_path)
    with pytest.raises(ValueError, match="no run 'dept'; there are vae, decoder, clip"):
        weights.publish(["depth", "dept"], root=tmp_path)
    assert files(tmp_path) == before


def test_a_published_unet_has_its_scheduler_its_encoders_and_the_index_of_a_pipeline(tmp_path):
    parts = ("unet", "context_projector", "vae", "text_encoder", "image_encoder")
    source = filled(tmp_path / "elsewhere", *parts, "scheduler", "controlnet-canny")
    weights.publish(["unet"], source, tmp_path)
    target = tmp_path / "data/checkpoints/tiny-scenes"
    found = files(target)
    assert json.loads(found.pop("model_index.json")) == json.loads((TINY_SCENES / "model_index.json").read_text())
    assert found == {f"{part}/weights.safetensors": "new" for part in (*parts, "scheduler")}
    plain = filled(tmp_path / "plain", "unet", "context_projector", text="newer")
    weights.publish(["unet"], plain, tmp_path)
    assert files(target)["vae/weights.safetensors"] == "new" and files(target)["unet/weights.safetensors"] == "newer"
    scheduler = DDIMScheduler.from_pretrained(target / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert torch.equal(scheduler.alphas_cumprod, new_scheduler().alphas_cumprod)


def test_towers_are_published_with_clip_only_before_a_unet_reads_them(tmp_path):
    source = filled(tmp_path / "build/training/clip", "clip", "text_encoder", "image_encoder", "tokenizer")
    targets = [target.name for _, target in weights.copies("clip", root=tmp_path)]
    assert targets == ["clip", "text_encoder", "image_encoder", "tokenizer"]
    filled(tmp_path / "data/checkpoints/tiny-scenes", "unet")
    assert weights.copies("clip", root=tmp_path) == [(source / "clip", tmp_path / "data/checkpoints/tiny-scenes/clip")]


def test_every_published_part_has_a_run_that_publishes_it():
    known = {(model, folder) for model, folders in weights.FOLDERS.values() for folder in folders}
    known |= {("tiny-scenes", part) for part in (*weights.TOWERS, "scheduler")}
    there = {(part.parent.name, part.name) for part in (ROOT / "data/checkpoints").glob("*/*") if part.is_dir()}
    assert there == known
