"""What editors and type checkers see of the names that ``__init__.py`` looks up lazily."""

from . import (
    alignment,
    checkpoints,
    context,
    control,
    encoders,
    finetune,
    from_scratch,
    fusion,
    images,
    latents,
    melodies,
    metrics,
    notebook,
    pipelines,
    plotting,
    reading,
    scenes,
    widgets,
)
from .alignment import (
    StyleSettings,
    Trajectory,
    blending,
    ddim_invert,
    flow_invert,
    inversion,
    noised_reference,
    style_aligned,
    subject_mask,
)
from .context import ContextDiffusion, Request, projector
from .control import canny_map, depth_map
from .encoders import load_encoder
from .fusion.caption import ImageSource
from .fusion.description import Description
from .fusion.music import MusicSource
from .fusion.only import Only
from .fusion.prompt import fuse_prompts
from .fusion.speech import AudioSource, Transcriber
from .fusion.weather import WeatherSource
from .images import denormalize, image_grid, load_image, load_image_as_tensor, save_image
from .latents import generators
from .pipelines import load_pipeline
from .recorder import Recorder

__version__: str

__all__ = [
    "AudioSource",
    "ContextDiffusion",
    "Description",
    "ImageSource",
    "MusicSource",
    "Only",
    "Recorder",
    "Request",
    "StyleSettings",
    "Trajectory",
    "Transcriber",
    "WeatherSource",
    "alignment",
    "blending",
    "canny_map",
    "checkpoints",
    "context",
    "control",
    "ddim_invert",
    "denormalize",
    "depth_map",
    "encoders",
    "finetune",
    "flow_invert",
    "from_scratch",
    "fuse_prompts",
    "fusion",
    "generators",
    "image_grid",
    "images",
    "inversion",
    "latents",
    "load_encoder",
    "load_image",
    "load_image_as_tensor",
    "load_pipeline",
    "melodies",
    "metrics",
    "noised_reference",
    "notebook",
    "pipelines",
    "plotting",
    "projector",
    "reading",
    "save_image",
    "scenes",
    "style_aligned",
    "subject_mask",
    "widgets",
]
