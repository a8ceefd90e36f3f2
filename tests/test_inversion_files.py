"""Trajectories saved, loaded, joined, blended; and what inversion refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_scheduler, tiny_sd15, tiny_sdxl

from context_diffusion.alignment.blending import blend_trajectories, weighted_slerp
from context_diffusion.alignment.inversion import ddim_invert, noised_reference
from context_diffusion.alignment.trajectory import Trajectory


def picture(seed: int = 0, size: int = 32) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def test_saved_and_loaded_is_the_same(tmp_path):
    pipe = tiny_sdxl()
    made = ddim_invert(pipe, picture(), "a cat", num_inference_steps=2, guidance_scale=2.0, negative_prompt="red")
    read = Trajectory.load(made.save(tmp_path / "cat.safetensors"))
    assert torch.equal(read.latents, made.latents) and torch.equal(read.alphas, made.alphas)
    assert read.embeddings.keys() == made.embeddings.keys()
    assert all(torch.equal(rows, made.embeddings[name]) for name, rows in read.embeddings.items())
    facts = ("prompts", "negative_prompt", "guidance_scale", "fixed_point_iterations", "model")
    assert all(getattr(read, name) == getattr(made, name) for name in facts)
    read.check(pipe)
    assert [path.name for path in tmp_path.iterdir()] == ["cat.safetensors"]


def test_files_that_are_no_trajectory_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="ddim_invert"):
        Trajectory.load(tmp_path / "none.safetensors")
    path = ddim_invert(tiny_sd15(), picture(), num_inference_steps=1).save(tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Trajectory.load(path)
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a trajectory"):
        Trajectory.load(tmp_path / "other.safetensors")


DAMAGES = {
    "no latents": lambda tensors, facts: tensors.pop("latents"),
    "no time steps": lambda tensors, facts: tensors.pop("timesteps"),
    "a tensor more": lambda tensors, facts: tensors.update(extra=torch.ones(2)),
    "a level less": lambda tensors, facts: tensors.update(latents=tensors["latents"][1:].clone()),
    "latents of one axis": lambda tensors, facts: tensors.update(latents=torch.ones(3)),
    "NaN": lambda tensors, facts: tensors["latents"].fill_(torch.nan),
    "text of another number": lambda tensors, facts: tensors.update({"embeddings.cond": torch.ones(3, 4, 8)}),
    "no prompts": lambda tensors, facts: facts.pop("prompts"),
    "prompts null": lambda tensors, facts: facts.update(prompts=None),
    "model null": lambda tensors, facts: facts.update(model=None),
    "guidance in words": lambda tensors, facts: facts.update(guidance_scale="2"),
    "a fact more": lambda tensors, facts: facts.update(colour="red"),
    "facts that are a list": lambda tensors, facts: [1, 2],
    "facts that are no JSON": lambda tensors, facts: "{",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_trajectory_is_refused_in_a_sentence(damage, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = ddim_invert(tiny_sd15(), picture(), "a cat", num_inference_steps=2).save(tmp_path / "cat.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors, facts = load_file(path), json.loads(metadata["made"])
    changed = DAMAGES[damage](tensors, facts)
    facts = changed if damage.startswith("facts") else facts
    metadata["made"] = facts if isinstance(facts, str) else json.dumps(facts)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match="is a damaged trajectory"):
        Trajectory.load(path)


def test_a_noised_reference_is_the_picture_with_one_noise_at_every_level(tmp_path):
    pipe = tiny_sd15()
    made = noised_reference(pipe, [picture(0), picture(1)], ["a cat", "a boat"], seed=3, num_inference_steps=4)
    clean = ddim_invert(pipe, [picture(0), picture(1)], num_inference_steps=1).clean
    assert torch.equal(made.clean, clean) and made.method == "added noise"
    for level, alpha in zip(made.latents[:-1], made.alphas.tolist(), strict=False):
        noise = (level - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        for row, seed in ((0, 3), (1, 4)):
            expected = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(noise[row], expected, atol=1e-4, rtol=1e-4)
    read = Trajectory.load(made.save(tmp_path / "both.safetensors"))
    assert (read.method, read.seed) == ("added noise", 3) and torch.equal(read.latents, made.latents)
    with pytest.raises(ValueError, match="one method; these have .*added noise.*ddim inversion"):
        Trajectory.join([made, ddim_invert(pipe, picture(), num_inference_steps=4)])


def test_a_trajectory_of_another_model_or_schedule_is_refused():
    made = ddim_invert(tiny_sd15(), picture(), num_inference_steps=2)
    with pytest.raises(ValueError, match="another model"):
        made.check(tiny_sdxl())
    with pytest.raises(ValueError, match="prediction_type"):
        made.check(tiny_sd15(prediction_type="v_prediction"))
    pipe = tiny_sd15(fresh=True)
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.2)
    with pytest.raises(ValueError, match="other weights"):
        made.check(pipe)
    pipe = tiny_sd15(fresh=True)
    pipe.scheduler = tiny_scheduler(beta_schedule="linear")
    with pytest.raises(ValueError, match="noise schedule differs"):
        made.check(pipe)


def test_references_that_do_not_fit_together_are_refused():
    pipe = tiny_sd15()
    one = ddim_invert(pipe, picture(), num_inference_steps=2)
    with pytest.raises(ValueError, match="one num_inference_steps"):
        Trajectory.join([one, ddim_invert(pipe, picture(), num_inference_steps=3)])
    with pytest.raises(ValueError, match="one size"):
        Trajectory.join([one, ddim_invert(pipe, picture(), num_inference_steps=2, height=16, width=16)])
    with pytest.raises(ValueError, match="empty"):
        Trajectory.join([])


def test_blended_trajectory_is_the_inversion_of_the_blend():
    pipe = tiny_sd15()
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0}
    both = ddim_invert(pipe, [picture(0), picture(1)], ["a cat", "a boat"], **settings)
    blended = blend_trajectories(pipe, [both], [0.25, 0.75], "slerp")
    expected = weighted_slerp(list(both.clean), [0.25, 0.75])
    torch.testing.assert_close(blended.clean[0], expected)
    assert blended.prompts == ("a cat and a boat",)
    again = ddim_invert(pipe, latents=expected, prompt="a cat and a boat", **settings)
    torch.testing.assert_close(blended.latents, again.latents)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "either image"),
        ({"image": []}, "empty"),
        ({"image": picture(), "num_inference_steps": 0}, "between 1 and 1000"),
        ({"image": picture(), "guidance_scale": float("nan")}, "finite"),
        ({"image": picture(), "fixed_point_iterations": -1}, "at least 0"),
        ({"image": picture(), "height": 31}, "multiple of 8"),
        ({"image": picture(), "prompt": ["a", "b"]}, "one each; got 2 for 1"),
        ({"latents": torch.zeros(2, 3, 16, 16)}, "references, channels, height, width"),
    ],
)
def test_bad_arguments_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ddim_invert(tiny_sd15(), **arguments)


def test_pipelines_without_a_unet_are_refused():
    with pytest.raises(TypeError, match="U-Net"):
        ddim_invert(object(), picture())
