"""Fine-tuning: a LoRA on a folder of pictures that diffusers loads, and clear answers to bad input."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from worlds import hub_folder

from context_diffusion import scenes
from context_diffusion.finetune import finetune, read_folder
from context_diffusion.images import save_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    for i, drawn in enumerate(scenes.context_group(seed=1, size=3)):
        save_image(drawn.image, path / f"{i}.png")
    (path / "1.txt").write_text("a red cat\n")
    (path / "notes.md").write_text("not a picture")
    return path


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
    from context_diffusion import finetune as module

    whole = module._descend

    def interrupted(*arguments):
        for step, value in enumerate(whole(*arguments)):
            if step == 2:
                raise KeyboardInterrupt
            yield value

    monkeypatch.setattr(module, "_descend", interrupted)
    losses = finetune(folder, "a boat", tmp_path, model=str(hub_folder()), steps=30, batch_size=2, progress=False)
    assert len(losses) == 2
    assert (tmp_path / "pytorch_lora_weights.safetensors").is_file()


def test_captions_come_from_text_files_first(folder):
    files, captions = read_folder(folder, "a boat")
    assert [file.name for file in files] == ["0.png", "1.png", "2.png"]
    assert captions == ["a boat", "a red cat", "a boat"]


def test_bad_input_is_answered_before_a_model_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("context_diffusion.finetune.load_pipeline", lambda *_: pytest.fail("loaded"))
    with pytest.raises(FileNotFoundError, match="must be a folder"):
        finetune(tmp_path / "none", "a boat", tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        finetune(tmp_path, "a boat", tmp_path)
    with pytest.raises(ValueError, match="0.png has no caption"):
        finetune(folder, "", tmp_path)
    with pytest.raises(ValueError, match="must be positive; got 0"):
        finetune(folder, "a boat", tmp_path, steps=0)


def test_sdxl_is_refused_in_a_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match="is SDXL"):
        finetune(folder, "a boat", tmp_path, model=str(hub_folder(True)))
