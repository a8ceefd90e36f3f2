"""Context-aware, style-aligned image generation, from paper to picture.

Names are looked up lazily: ``import context_diffusion`` loads none of torch, diffusers or transformers.
"""

import importlib
import os
import sys

# A thread that waits for another spins first. Three hundred thousand turns, which is the default, cost nothing while
# every thread has a core of its own, and nearly everything where one other program is at work. Read as torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.2.0"

_HOME = {  # public name -> the module that holds it
    "AudioSource": "fusion.speech",
    "ContextDiffusion": "context",
    "Description": "fusion.description",
    "ImageSource": "fusion.caption",
    "MusicSource": "fusion.music",
    "Only": "fusion.only",
    "Recorder": "recorder",
    "Request": "context",
    "StyleSettings": "alignment",
    "Trajectory": "alignment",
    "Transcriber": "fusion.speech",
    "WeatherSource": "fusion.weather",
    "canny_map": "control",
    "ddim_invert": "alignment",
    "denormalize": "images",
    "depth_map": "control",
    "flow_invert": "alignment",
    "fuse_prompts": "fusion.prompt",
    "generators": "latents",
    "image_grid": "images",
    "load_encoder": "encoders",
    "load_image": "images",
    "load_image_as_tensor": "images",
    "load_pipeline": "pipelines",
    "noised_reference": "alignment",
    "save_image": "images",
    "style_aligned": "alignment",
    "subject_mask": "alignment",
}
_MODULES = {  # short name -> where the module is
    "blending": "alignment.blending",
    "inversion": "alignment.inversion",
    "projector": "context.projector",
} | {
    name: name
    for name in (
        "alignment", "checkpoints", "context", "control", "encoders", "finetune", "from_scratch", "fusion", "images",
        "latents", "melodies", "metrics", "notebook", "pipelines", "plotting", "reading", "scenes", "widgets",
    )
}  # fmt: skip

__all__ = sorted({*_HOME, *_MODULES})


if sys.argv[:1] == ["-m"]:  # `python -m` is about to run a command of this repository
    from .commands import answer_while_loading

    answer_while_loading()


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
