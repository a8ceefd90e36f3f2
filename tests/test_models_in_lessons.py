"""Lessons say which models they run with, and run with a random one in each of these models' places.

The claim is the comment of a lesson's line ``MODEL = "tiny-scenes"``: the other names it holds, in quotes.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from test_notebooks import FOLDER, LESSONS, code_cells, read, unwelcome
from tiny import tiny_image_encoder, tiny_sd15, tiny_sdxl, tiny_tokenizer
from transformers import CLIPImageProcessorPil, DPTImageProcessorPil, ViTConfig, ViTImageProcessorPil, ViTModel
from worlds import LAYERS, random_adapter, random_clip, random_depth

from context_diffusion.checkpoints import DEFAULT, MODELS, Model
from experiments.publishing.execution import execute

LINE = re.compile(rf'^MODEL = "{DEFAULT}"(.*)$', re.MULTILINE)
FORM = re.compile(r'  # (or (the folder of an )?"[\w-]+"(, "[\w-]+")*|alone: .+)')
SIDE = 20  # of the latents: a picture of 160 x 160 pixels is neither the offline model's nor a power of two
TOKENS = 77  # that CLIP's text encoders read
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
OF_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
SHAPES = {  # how each pipeline is built, and the scheduler that its repository has
    "sd15": (tiny_sd15, PNDMScheduler(**NOISE, skip_prk_steps=True)),
    "sdxl": (tiny_sdxl, EulerDiscreteScheduler(**NOISE, timestep_spacing="leading")),
}
ALWAYS = [("00_quickstart", "sdxl")]  # the others take a minute each: MODELS=1 asks for them


def comment(path: Path) -> str | None:
    """What follows a lesson's ``MODEL = "tiny-scenes"``; ``None`` without such a line."""
    lines = LINE.findall("\n".join(code_cells(read(path))))
    assert len(lines) <= 1, f"{path.name} has {len(lines)} lines that say MODEL = {DEFAULT!r}"
    return lines[0] if lines else None


COMMENTS = {path: text for path in LESSONS if (text := comment(path)) is not None}
CLAIMS = [(path, name) for path, text in COMMENTS.items() for name in re.findall(r'"([\w-]+)"', text)]


def test_some_lessons_claim_each_model():
    assert {name for _, name in CLAIMS} == set(SHAPES)
    assert [claim for claim in ALWAYS if claim in [(path.stem, name) for path, name in CLAIMS]] == ALWAYS


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_names_other_models_or_says_why_there_are_none(path):
    if path not in COMMENTS:
        assert DEFAULT not in "\n".join(code_cells(read(path))), "the model's name belongs in a line MODEL = ..."
        return
    assert FORM.fullmatch(COMMENTS[path]), f"{COMMENTS[path]!r} is neither '# or \"name\", ...' nor '# alone: reason'"
    for name in re.findall(r'"([\w-]+)"', COMMENTS[path]):
        assert name in MODELS and name != DEFAULT


def snapshot(hub: Path, repository: str) -> Path:
    """An empty snapshot of a repository in a cache of the hub."""
    root, revision = hub / f"models--{repository.replace('/', '--')}", "0" * 40
    for folder in (root / "refs", root / "snapshots" / revision):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(revision)
    return root / "snapshots" / revision


def random_pipeline(row: Model) -> DiffusionPipeline:
    """A random pipeline of a row's shape, whose VAE shrinks and whose text encoders read as much as the real ones."""
    build, scheduler = SHAPES[row.name]
    pipe = build(fresh=True)
    pipe.unet.register_to_config(sample_size=SIDE)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**blocks, block_out_channels=(8, 8, 16, 16), norm_num_groups=4, sample_size=8 * SIDE)
    pipe.register_modules(scheduler=scheduler, vae=vae.eval())
    for name, part in pipe.components.items():
        if name.startswith("tokenizer"):
            part.model_max_length = TOKENS
        if name.startswith("text_encoder"):
            part.config.max_position_embeddings = TOKENS
            pipe.register_modules(**{name: type(part)(part.config).eval()})
    return pipe


def random_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet of a U-Net, with its zero convolutions filled."""
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
    for weight in network.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return network


def fill(hub: Path, row: Model) -> Path:
    """Put a random model of a row's shape, with all parts of the row, into a cache of the hub; return its pipeline."""
    pipe = random_pipeline(row)
    pipe.save_pretrained(folder := snapshot(hub, row.location))
    homes = {repository: snapshot(hub, repository) for repository in set(row.parts.values())}
    homes = {part: homes[repository] for part, repository in row.parts.items()}
    for kind in ("canny", "depth"):
        random_controlnet(pipe.unet).save_pretrained(homes[f"controlnet-{kind}"])
    adapter = homes["ip-adapter"] / row.adapter_file
    adapter.parent.mkdir(exist_ok=True)
    save_file(random_adapter(pipe.unet), adapter)
    tiny_image_encoder().save_pretrained(homes["ip-adapter"] / "models" / "image_encoder")
    dino = ViTModel(ViTConfig(**LAYERS, image_size=24, patch_size=8), add_pooling_layer=False)
    for part, network, processor in (
        ("clip", random_clip(), CLIPImageProcessorPil()),
        ("depth", random_depth(), DPTImageProcessorPil()),
        ("dino", dino, ViTImageProcessorPil(**OF_IMAGENET)),
    ):
        network.save_pretrained(homes[part])
        processor.save_pretrained(homes[part])
    tiny_tokenizer().save_pretrained(homes["clip"])
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Callable[[str], tuple[Path, Path]]:
    """A function from a model's name to a cache of the hub that has it, and the folder of its pipeline there."""
    made: dict[str, tuple[Path, Path]] = {}

    def find(name: str) -> tuple[Path, Path]:
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            made[name] = root, fill(root, MODELS[name])
        return made[name]

    return find


@pytest.mark.lesson
@pytest.mark.parametrize(("path", "name"), CLAIMS, ids=[f"{path.stem} with {name}" for path, name in CLAIMS])
def test_a_lesson_runs_with_the_models_it_names(path, name, hub, monkeypatch):
    if (path.stem, name) not in ALWAYS and "MODELS" not in os.environ:
        pytest.skip("MODELS=1 asks for the lessons that take minutes")
    cache, folder = hub(name)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    notebook = nbformat.read(path, as_version=4)
    line = "MODEL = " + repr(str(folder) if "folder" in COMMENTS[path] else name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = LINE.sub(lambda _: line, cell.source)
    execute(notebook, FOLDER)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        assert unwelcome(output) is None
