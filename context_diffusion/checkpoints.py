"""THE table of models by name, and finding and loading their parts: safetensors only, offline by default.

A *name* is one of the table, a folder in the ``save_pretrained`` layout, or a repository id of the Hugging Face hub.
Beside the pipeline a folder may hold the parts ``context_projector``, ``clip``, ``dino``, ``depth``,
``controlnet-canny``, ``controlnet-depth`` and ``ip-adapter``; for the hub models the table says where they live.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .checks import check_choice, check_path, either, hint, shown
from .files import TINY_FUSION, TINY_SCENES
from .loading import load_whole, read_settings

DEFAULT = "tiny-scenes"


@dataclass(frozen=True)
class Model:
    """One row of the table: where a model lives and what it wants."""

    name: str
    location: str  # a folder or a repository id
    vram_gb: float  # graphics memory for one picture in half precision; more than is there -> parts are moved in turn
    licence: str
    steps: int = 30
    guidance_scale: float = 7.5
    control_scale: float = 1.0  # of the ControlNets' residuals
    prompt_order: str = "importance"  # of the words of a prompt fused from several sources
    word_list: bool = False  # it was trained on whole words; others come in pieces that mean nothing to it
    evaluation_steps: int = 50  # of the papers' protocols
    half_on_gpu: bool = True
    half: str = "float16"  # the precision there
    transformer: bool = False  # in place of a U-Net: text to image and style alignment, but no layout and no contexts
    parts: Mapping[str, str] = field(default_factory=dict)  # name of a part -> repository id
    adapter_file: str = ""  # inside the part "ip-adapter", whose image encoder is models/image_encoder


# What the hub models share: networks for layout, contexts and scores.
HUB_PARTS = {
    "ip-adapter": "h94/IP-Adapter",
    "depth": "depth-anything/Depth-Anything-V2-Small-hf",
    "clip": "openai/clip-vit-large-patch14",
    "dino": "facebook/dino-vitb8",
}
SD35 = "stabilityai/stable-diffusion-3.5"


def transformer(name: str, location: str, licence: str, vram_gb: float, **settings) -> Model:
    """A row for a model that draws with a transformer, of 1024 x 1024 pixels; ``vram_gb`` is what its weights take."""
    return Model(name, location, vram_gb, licence, half="bfloat16", transformer=True, **settings)


MODELS = {
    model.name: model
    for model in (
        Model(
            name="tiny-scenes",
            location=str(TINY_SCENES),
            vram_gb=1,
            licence="MIT",
            steps=20,
            guidance_scale=3.0,
            prompt_order="sentence",  # that of its captions
            word_list=True,
            evaluation_steps=15,
            half_on_gpu=False,
        ),
        Model(
            name="sd15",
            location="stable-diffusion-v1-5/stable-diffusion-v1-5",
            vram_gb=4,
            licence="CreativeML OpenRAIL-M",
            parts={
                "controlnet-canny": "lllyasviel/control_v11p_sd15_canny",
                "controlnet-depth": "lllyasviel/control_v11f1p_sd15_depth",
                **HUB_PARTS,
            },
            adapter_file="models/ip-adapter_sd15.safetensors",
        ),
        Model(
            name="sdxl",
            location="stabilityai/stable-diffusion-xl-base-1.0",
            vram_gb=12,
            licence="CreativeML Open RAIL++-M",
            guidance_scale=6.0,
            parts={
                "controlnet-canny": "diffusers/controlnet-canny-sdxl-1.0",
                "controlnet-depth": "diffusers/controlnet-depth-sdxl-1.0",
                **HUB_PARTS,
            },
            adapter_file="sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
        ),
        transformer(
            "flux1-dev", "black-forest-labs/FLUX.1-dev", "FLUX.1 [dev] Non-Commercial", 34, steps=28, guidance_scale=3.5
        ),
        transformer("flux1-schnell", "black-forest-labs/FLUX.1-schnell", "Apache-2.0", 34, steps=4, guidance_scale=0.0),
        transformer("sd35-medium", f"{SD35}-medium", "Stability AI Community", 17, steps=40, guidance_scale=4.5),
        transformer("sd35-large", f"{SD35}-large", "Stability AI Community", 28, steps=28, guidance_scale=3.5),
        transformer("qwen-image", "Qwen/Qwen-Image", "Apache-2.0", 58, steps=50, guidance_scale=4.0),  # true_cfg_scale
        transformer("z-image", "Tongyi-MAI/Z-Image", "Apache-2.0", 21, steps=50, guidance_scale=4.0),
    )
}


@dataclass(frozen=True)
class Network:
    """One row of the table of networks that stand alone: they encode pictures, or turn something into words."""

    kind: str
    name: str
    location: str  # a folder or a repository id
    megabytes: int
    licence: str
    trainer: str = ""  # the command that makes it, where it is the project's own


NETWORKS = {
    (row.kind, row.name): row
    for row in (
        Network("encoder", "clip", HUB_PARTS["clip"], 1700, "MIT"),
        Network("encoder", "siglip", "google/siglip-base-patch16-224", 810, "Apache-2.0"),
        Network("encoder", "dino", HUB_PARTS["dino"], 340, "Apache-2.0"),
        Network("encoder", "dinov2", "facebook/dinov2-base", 350, "Apache-2.0"),
        Network("captioner", "tiny-fusion", str(TINY_FUSION / "captioner"), 2, "MIT", "experiments.training.captioner"),
        Network("captioner", "blip", "Salesforce/blip-image-captioning-large", 1900, "BSD-3-Clause"),
        Network("transcriber", "tiny-fusion", str(TINY_FUSION / "speech"), 2, "MIT", "experiments.training.speech"),
        Network("transcriber", "whisper", "openai/whisper-base", 290, "MIT"),
        Network("music model", "tiny-fusion", str(TINY_FUSION / "music"), 2, "MIT", "experiments.training.music"),
        Network("music model", "clap", "laion/clap-htsat-unfused", 600, "Apache-2.0"),
    )
}


def find_network(kind: str, name: str | Path) -> str:
    """Say where a network of a kind lives, by its name in the table, as a folder, or as a repository id.

    Raises ``FileNotFoundError`` if a folder holds no model, ``ValueError`` with the near names for an unknown one.
    """
    kinds: dict[str, list[str]] = {}
    for of, own in NETWORKS:
        kinds.setdefault(of, []).append(own)
    known, text = kinds[check_choice("the kind of network", kind, kinds)], check_path(f"the {kind}", name)
    row = NETWORKS.get((kind, text))
    location = os.path.expanduser(row.location) if row else text
    if os.path.isdir(location):
        if not os.path.isfile(os.path.join(location, "config.json")):
            raise FileNotFoundError(f"{location} holds no model: it has no config.json.")
        return location
    if row and row.trainer:
        raise FileNotFoundError(f"The offline {kind} is not at {location}; `python -m {row.trainer}` trains it.")
    if row or _is_repository(text):
        return location
    raise ValueError(
        f"There is no {kind} {shown(text)}: give {either(known)}, an existing folder, or owner/name{hint(text, known)}"
    )


def find_model(name: str | Path = DEFAULT) -> Model:
    """Find the row of the table for a name; for a folder or a repository id, make one.

    Raises ``ValueError`` with the near names for an unknown one, ``FileNotFoundError`` without the offline models.
    """
    text = check_path("a model", name)
    if text in MODELS:
        model = MODELS[text]
        if Path(model.location).is_absolute() and not (Path(model.location) / "model_index.json").is_file():
            raise FileNotFoundError(f"The offline model {text!r} is not at {model.location}; `make train` builds it.")
        return model
    if os.path.isdir(text):
        folder = Path(text)
        row = next((model for model in MODELS.values() if folder.resolve() == Path(model.location).resolve()), None)
        if row is not None:  # the folder of a row is that row: its ControlNets and scales come along
            return row
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{folder} holds no model_index.json, so it is no pipeline saved by save_pretrained.")
        if (folder / "transformer").is_dir():
            return transformer(str(name), text, "see its model card", vram_gb=0)
        _check_pipeline(folder)
        return Model(str(name), text, vram_gb=0, licence="see its model card")
    if _is_repository(text):
        return Model(text, text, vram_gb=0, licence="see its model card")
    raise ValueError(
        f"There is no model {shown(text)}: give one of {', '.join(MODELS)}, an existing folder, or a repository id "
        f"owner/name{hint(text, MODELS)}"
    )


def find_part(model: Model, part: str) -> str | None:
    """Say where a part of a model lives (``controlnet-canny``, ``dino``, ...): a folder, a repository id, or None."""
    part = check_path("a part", part)
    if part in model.parts:
        return model.parts[part]
    folder = os.path.join(model.location, part)
    return folder if os.path.isdir(folder) else None


def _is_repository(text: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text, re.ASCII) is not None and len(text) <= 96


def _check_pipeline(folder: Path) -> None:
    """Raise ``ValueError`` for a folder whose U-Net and VAE do not say what size of picture they draw."""
    try:
        unet, vae = (read_settings(folder / part / "config.json") for part in ("unet", "vae"))
        int(unet["sample_size"]), len(vae["block_out_channels"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is no Stable Diffusion pipeline with a unet and a vae ({error}).") from error


def find_device(name: str | torch.device | None = None) -> torch.device:
    """Take the device asked for if it is there; by default the GPU where there is one, else the CPU."""
    gpu = torch.accelerator.current_accelerator(check_available=True)
    there = {gpu.type: torch.accelerator.device_count(), "cpu": 1} if gpu else {"cpu": 1}
    if name is None:
        return torch.device(next(iter(there)))
    if not isinstance(name, str | torch.device):
        raise TypeError(f"A device is a word such as 'cpu' or 'cuda:0', not {shown(name)}.")
    kind, _, number = str(name).partition(":")
    if not (number or "0").isdecimal() or not int(number[:9] or "0") < there.get(kind, 0) or str(name).endswith(":"):
        usable = " or ".join(repr(known) for known in there)
        raise ValueError(f"There is no device {shown(str(name))} here; take {usable}.")
    return torch.device(name)


DTYPES = {
    torch.float16: ("float16", "fp16", "half"),
    torch.bfloat16: ("bfloat16", "bf16"),
    torch.float32: ("float32", "fp32", "float"),
    torch.float64: ("float64", "fp64", "double"),
}


def find_dtype(name: str | torch.dtype) -> torch.dtype:
    """Take a precision, or the word for one, such as ``"fp16"``."""
    word = str(name).removeprefix("torch.") if isinstance(name, str | torch.dtype) else ""
    found = next((dtype for dtype, words in DTYPES.items() if word in words), None)
    if found is None:
        known = [words[0] for words in DTYPES.values()]
        raise ValueError(f"A precision is torch.float16, or its word; there are {either(known)}, not {shown(name)}.")
    return found


def dtype_keyword(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Name the precision as the installed diffusers wants it: ``dtype=`` since 0.42, ``torch_dtype=`` before."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version("diffusers"))[:2])
    return {"dtype" if numbers >= (0, 42) else "torch_dtype": dtype}


def load_part(
    kind: type[Any],
    location: str,
    dtype: torch.dtype | None = torch.float32,
    *,
    device: str | torch.device = "cpu",
    unused: tuple[str, ...] = (),
    **options,
):
    """Load ``kind.from_pretrained(location)`` from safetensors, onto a ``device``; say in one sentence what is wrong.

    Weights that are missing, left over, of another shape or not finite are refused, but for those whose names hold one
    of ``unused``. ``dtype=None`` is for what has no weights: tokenizers, image processors and schedulers.
    """
    place = find_device(device)
    if dtype is not None:
        of_diffusers = kind.__module__.startswith(("diffusers", __package__))
        options = (dtype_keyword(dtype) if of_diffusers else {"dtype": dtype}) | options
    try:
        made = load_whole(kind, location, weights=dtype is not None, unused=unused, **options)
    except OSError as error:
        raise not_on_disk(location) from error
    return made if dtype is None else made.to(place)


class Fallback(UserWarning):
    """A part that the table of models names cannot be had, and the call makes do with less."""


def not_on_disk(location: str) -> FileNotFoundError:
    """Build the error for hub weights that are neither on this disk nor to be had now."""
    return FileNotFoundError(
        f"{location} is not on this disk and could not be downloaded: where there is a network, run "
        f"`hf download {location}` once (and unset HF_HUB_OFFLINE), or use the offline model {DEFAULT!r}."
    )
