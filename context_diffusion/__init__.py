"""Context-aware, style-aligned image generation, from paper to picture.

Names are looked up lazily: ``import context_diffusion`` loads none of torch, diffusers or transformers.
"""

import importlib

_HOME = {  # public name -> the module that holds it
    "denormalize": "images",
    "image_grid": "images",
    "load_image": "images",
    "load_image_as_tensor": "images",
    "save_image": "images",
    "ContextDiffusion": "context",
    "load_pipeline": "checkpoints",
    "load_encoder": "encoders",
    "canny_map": "control",
    "depth_map": "control",
    "style_aligned": "attention",
    "ddim_invert": "inversion",
    "Trajectory": "inversion",
    "fuse_prompts": "fusion.prompt",
    "Description": "fusion.description",
    "AudioSource": "fusion.speech",
    "ImageSource": "fusion.caption",
    "MusicSource": "fusion.music",
    "Only": "fusion.only",
    "Recorder": "recorder",
    "Transcriber": "fusion.speech",
    "WeatherSource": "fusion.weather",
}
_MODULES = {
    "attention", "blending", "checkpoints", "context", "control", "encoders", "from_scratch", "fusion", "images",
    "inversion", "melodies", "metrics", "notebook", "plotting", "projector", "reading", "scenes", "training", "widgets",
}  # fmt: skip

__all__ = sorted({*_HOME, *_MODULES})


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
