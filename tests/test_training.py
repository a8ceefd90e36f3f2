"""Training: the loop resumes exactly, batches are what they claim, publishing is whole or not at all."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from context_diffusion.context.projector import ContextProjector
from experiments.training import data, loop
from experiments.training.clip import contrast, normalize
from experiments.training.dino import new_vit
from experiments.training.loop import Recipe, load_published, publish_pretrained, train, write_curve
from experiments.training.tokenizer import new_tokenizer, token_ids
from experiments.training.unet import NO_CONTEXT, NULL_CONTEXT, TEXT_DROP, condition, new_scheduler, noised


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder for states and figures."""
    monkeypatch.setattr(loop, "STATE_FOLDER", tmp_path / "states")
    monkeypatch.setattr(loop, "FIGURES", tmp_path / "figures")
    return tmp_path


def regression(model, generator):
    """Least squares towards y = 3x - 1."""
    x = torch.rand(64, 1, generator=generator)
    return (model(x).float() - (3 * x - 1)).square().mean()


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(workshop):
    recipe = Recipe(steps=60, batch_size=64, learning_rate=0.1, warmup=5)
    whole = train("whole", fresh(), regression, recipe)

    def breaks(model, generator):
        if generator.initial_seed() == 25:  # the seed of step 25
            raise KeyboardInterrupt
        return regression(model, generator)

    with pytest.raises(KeyboardInterrupt):
        train("parts", fresh(), breaks, recipe)
    resumed = train("parts", fresh(), regression, recipe)
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_training_learns_and_publishes_the_average(workshop):
    published = []
    recipe = Recipe(steps=400, batch_size=64, learning_rate=0.1, warmup=5, ema=0.9)
    average = train("line", fresh(), regression, recipe, publish=published.append, publish_every=200)
    assert abs(average.weight.item() - 3) < 0.1 and abs(average.bias.item() + 1) < 0.1
    assert len(published) == 3 and published[-1] is average
    assert (workshop / "figures" / "training" / "line.png").stat().st_size < 300_000


def test_a_diverging_run_says_so_and_keeps_the_checkpoint_before(workshop):
    def explodes(model, generator):
        return regression(model, generator) * (math.nan if generator.initial_seed() == 3 else 1)

    with pytest.raises(FloatingPointError, match="step 3; lower --learning-rate"):
        train("nan", fresh(), explodes, Recipe(steps=10, batch_size=1, learning_rate=0.1))


def test_the_rate_warms_up_and_falls_like_a_cosine():
    recipe = Recipe(steps=1000, batch_size=1, learning_rate=1.0, warmup=10)
    assert recipe.rate(0, 0) == pytest.approx(0.1)
    assert recipe.rate(0.5, 500) == pytest.approx(0.51)
    assert recipe.rate(1, 1000) == pytest.approx(0.02)


def test_context_mates_are_others_of_the_same_group():
    index = torch.arange(400)
    for count in (1, 2, 3):
        mates = data.group_mates(index, torch.Generator().manual_seed(count), count)
        assert mates.shape == (400, count)
        assert (mates // 4 == index[:, None] // 4).all()
        assert (mates != index[:, None]).all()
        assert all(len(set(row)) == count for row in mates.tolist())
    ones = data.group_mates(index, torch.Generator().manual_seed(1), 1)[:, 0] - index
    assert set(ones.tolist()) == {-3, -2, -1, 1, 2, 3}


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
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        tokens = condition(features, projector, torch.arange(64), generator)
        lengths.append(tokens.shape[1])
        dropped.append((tokens[:, :32] == features["text"][-1]).all(dim=(1, 2)).float().mean())
        if tokens.shape[1] == 49:
            null.append((tokens[:, 32:] == 0).all(dim=(1, 2)).float().mean())
    assert set(lengths) == {32, 49}
    assert np.mean(np.array(lengths) == 32) == pytest.approx(NO_CONTEXT, abs=0.1)
    assert torch.stack(null).mean().item() == pytest.approx(NULL_CONTEXT, abs=0.02)
    assert torch.stack(dropped).mean().item() == pytest.approx(TEXT_DROP, abs=0.02)
    assert pytest.approx(0.5) == NO_CONTEXT + (1 - NO_CONTEXT) * NULL_CONTEXT


def test_noised_latents_and_weights_follow_the_closed_form():
    features, scheduler = small_features(), new_scheduler()
    index = torch.arange(64)
    noisy, timestep, noise, weight = noised(features, index, scheduler, torch.Generator().manual_seed(1), "cpu")
    betas = torch.linspace(0.00085**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    alpha = (1 - betas).cumprod(0)[timestep]
    a, s = alpha.sqrt()[:, None, None, None], (1 - alpha).sqrt()[:, None, None, None]
    torch.testing.assert_close(noisy.double(), a * features["latents"] + s * noise, rtol=0, atol=1e-5)
    snr = alpha / (1 - alpha)
    expected = torch.minimum(snr, torch.tensor(5.0)) / snr * torch.minimum(1 / alpha, torch.tensor(30.0))
    torch.testing.assert_close(weight.double(), expected, rtol=1e-4, atol=0)


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


def test_publishing_replaces_files_and_leaves_nothing_half_written(tmp_path):
    projector = ContextProjector()
    publish_pretrained(projector, "part", root=tmp_path)
    with torch.no_grad():
        projector.position.fill_(0.5)
    publish_pretrained(projector, "part", root=tmp_path)
    loaded = ContextProjector.from_pretrained(tmp_path / "part")
    assert (loaded.position == 0.5).all()
    assert projector.position.dtype == torch.float32
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_a_warm_start_takes_over_the_published_weights(tmp_path):
    first, second = ContextProjector(), ContextProjector()
    publish_pretrained(first, "part", root=tmp_path)
    load_published(second, "part", root=tmp_path)
    for published, loaded in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(published.half().float(), loaded, rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match="holds none"):
        load_published(second, "nothing", root=tmp_path)


def test_a_warm_start_maps_keys_that_the_saved_file_names_otherwise(tmp_path):
    first, second = new_vit(), new_vit()
    publish_pretrained(first, "part", root=tmp_path)
    saved = load_file(tmp_path / "part" / "model.safetensors")
    assert set(saved) != set(first.state_dict())  # transformers 5 keeps the file's old names
    load_published(second, "part", root=tmp_path)
    for key, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], value.half().float(), rtol=0, atol=0)


def test_the_record_of_a_warm_run_keeps_its_forerunners(tmp_path):
    cold, warm = (Recipe(steps=2, batch_size=1, learning_rate=1.0, warm=value) for value in (False, True))
    for losses, recipe in (([3.0, 2.0], cold), ([2.0, 1.0], warm), ([1.0, 0.5], warm), ([1.0, 0.5], warm)):
        write_curve("part", losses, recipe, 60.0, tmp_path)
    record = json.loads((tmp_path / "part.json").read_text())
    assert record["loss"] == [1.0, 0.5] and [run["loss"] for run in record["earlier"]] == [[3.0, 2.0], [2.0, 1.0]]
    write_curve("part", [9.0], cold, 60.0, tmp_path)  # from nothing: no forerunner
    assert json.loads((tmp_path / "part.json").read_text())["earlier"] == []


def test_the_command_line_overrides_the_recipe(monkeypatch):
    monkeypatch.setattr("sys.argv", ["vae", "--steps", "7", "--learning-rate", "0.5", "--warm"])
    recipe = Recipe.from_command_line(None, steps=100, batch_size=4, learning_rate=1e-3)
    assert recipe == Recipe(steps=7, batch_size=4, learning_rate=0.5, warm=True)
