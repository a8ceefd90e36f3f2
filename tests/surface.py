"""The walk over the public surface: each parameter of everything public is handed a wrong value, the others right ones.

``python tests/surface.py`` walks and prints what went wrong as JSON. It is a process of its own, because the tests'
run-time type checker would refuse the wrong values before the library saw them.

A parameter has a right value in :data:`EXAMPLES`, under ``"function.parameter"`` or under its bare name; whatever has a
default needs none. A call goes right if it returns, or if the library refuses by a ``raise`` of its own: one sentence,
at once.
"""

import ast
import contextlib
import functools
import inspect
import itertools
import json
import os
import signal
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
HOME = ROOT / "context_diffusion"
OURS = (ValueError, TypeError, OSError, RuntimeError, IndexError, ModuleNotFoundError)
AT_ONCE = 2.0  # seconds of a core that one call may take

sys.path[:0] = [str(TESTS), str(ROOT)]
os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}


def wrong_values() -> dict[str, object]:
    """Values of every kind, most of them wrong for most parameters; new ones at each call."""
    import numpy as np
    import torch

    values: list[object] = [
        None, "", "nope", "123", "\0", "\ud800", b"", b"nope", 3, -1, 0, True, False, 2.5, 10**9, 10**400, float("nan"),
        float("inf"), 1j, [], (), {}, [None], [[]], [object()], (1, 2), ["nope"], {"nope": 3}, {1, 2}, object(), int,
        lambda: None, iter([]), Path("missing"), Path("nul\0"), np.int64(3), np.float32(0.5), np.bool_(True),
        np.float64("nan"), np.array(3), np.zeros(0), np.zeros((2, 2)), np.array(["nope"]), torch.tensor(2),
        torch.zeros(0), torch.full((3, 8, 8), torch.nan), torch.zeros(2, 2),
    ]  # fmt: skip
    return {_shown(value, number): value for number, value in enumerate(values)}


def _shown(value: object, number: int) -> str:
    text = f"{type(value).__name__}" if callable(value) or " at 0x" in repr(value) else " ".join(repr(value).split())
    return f"{number}:{text if len(text) < 40 else text[:36] + '...'}"


# --- what is right ----------------------------------------------------------------------------------------------------


def picture():
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))


def rows(count: int = 6):
    import torch

    return torch.randn(count, 4, generator=torch.Generator().manual_seed(count))


def encode(images):
    import numpy as np
    import torch

    return torch.stack([torch.from_numpy(np.asarray(one)[0, :4].reshape(-1)[:5].astype("f8")) + 1 for one in images])


def encode_text(texts):
    import torch

    return torch.stack([torch.arange(5.0) + len(text) for text in texts])


def edges():
    import numpy as np

    return np.eye(8)


def depths():
    import numpy as np

    return np.arange(64.0).reshape(8, 8)


@functools.cache
def folder() -> str:
    from worlds import scenes_folder

    return str(scenes_folder())


@functools.cache
def pipe():
    from tiny import tiny_sd15

    return tiny_sd15()


@functools.cache
def model():
    from context_diffusion import ContextDiffusion

    return ContextDiffusion.from_pretrained(folder())


def seeded():
    import torch

    return torch.Generator().manual_seed(0)


def tensor(*shape: int):
    import torch

    return torch.rand(*shape, generator=seeded()) + 0.1


@functools.cache
def hears():
    """A transcriber of random weights is not needed: the offline one is small."""
    from context_diffusion.fusion.speech import Transcriber

    return Transcriber.from_pretrained()


@functools.cache
def tagger():
    from context_diffusion.fusion.music import MusicTagger

    return MusicTagger.from_pretrained()


@functools.cache
def captioner():
    from context_diffusion.fusion.caption import Captioner

    return Captioner.from_pretrained()


def sound(rate: int = 16_000, seconds: float = 0.3):
    import numpy as np

    from context_diffusion.fusion.sound import Sound

    wave = np.sin(np.arange(int(rate * seconds)) / 20).astype(np.float32) / 2
    return Sound(wave, rate)


def scene():
    from context_diffusion.scenes import Scene

    return Scene.draw(1)


def style():
    from context_diffusion.scenes import Style

    return Style.draw(1)


@functools.cache
def drawn():
    from context_diffusion.scenes import render

    return render(scene(), style())


def piece(**fixed):
    from context_diffusion.melodies import Piece

    return Piece.draw(1, **fixed)


def palette():
    from context_diffusion.metrics import palette_of

    return palette_of(picture(), 3)


def estimate():
    from context_diffusion.metrics import Estimate

    return Estimate(0.5, 0.1, 0.3, 0.7, 9)


def figure():
    from context_diffusion.plotting import lines

    return lines({"a": [1, 2]})


def weather():
    return ROOT / "data" / "weather" / "rain-at-dusk.json"


def silent_patience():
    from context_diffusion.fusion.client import Patience

    return Patience(timeout=1, retries=0)


def table_row():
    from context_diffusion.checkpoints import find_model

    return find_model(folder())


def request():
    from context_diffusion import Request

    return Request(prompt="a boat", seed=1, num_inference_steps=1)


def trajectory():
    return _trajectory()


@functools.cache
def _trajectory():
    from context_diffusion import ddim_invert

    return ddim_invert(pipe(), picture(), "a boat", num_inference_steps=2)


@functools.cache
def saved_trajectory() -> str:
    where = f"{tempfile.mkdtemp(prefix='surface-')}/t.safetensors"
    trajectory().save(where)
    return where


def scheduler():
    from context_diffusion.from_scratch import DDIM, make_betas

    return DDIM((1 - make_betas()).cumprod(0))


@functools.cache
def textbook_model():
    from context_diffusion.from_scratch import StableDiffusion

    return StableDiffusion.from_pretrained(folder())


def words_of_scratch():
    return textbook_model().tokenizer


def level():
    return 500


EXAMPLES: dict[str, Callable[[], object]] = {
    # names that mean the same everywhere
    "image": picture, "images": lambda: [picture(), picture()], "source": picture, "seed": lambda: 1,
    "count": lambda: 2, "prompt": lambda: "a boat", "prompts": lambda: ["a boat"], "text": lambda: "a boat",
    "texts": lambda: ["a boat", "a cat"], "pipe": pipe, "path": lambda: "out.png", "name": folder,
    "device": lambda: "cpu", "scene": scene, "style": style, "piece": piece, "weights": lambda: [1, 2],
    "values": lambda: [0.5, 0.25, 0.75], "first": lambda: [0.5, 0.25], "second": lambda: [0.25, 0.5],
    "events": lambda: [True, False], "encode": lambda: encode, "encode_images": lambda: encode,
    "encode_text": lambda: encode_text, "classify": lambda: encode, "prompt_classes": lambda: [0, 1],
    "reference_classes": lambda: [1, 2], "references": lambda: [picture(), drawn().image], "generated": rows,
    "real": lambda: rows(7), "sound": sound, "sounds": lambda: [sound()], "requests": request, "request": request,
    "recording": lambda: (sound().samples, 16_000), "model": folder, "num_steps": lambda: 3, "t": level, "s": lambda: 0,
    "num_inference_steps": lambda: 2, "generators": lambda: [seeded()], "scheduler": lambda: scheduler(),
    "guidance_scale": lambda: 2.0, "x_0": lambda: tensor(1, 4, 8, 8), "noise": lambda: tensor(1, 4, 8, 8),
    "output": lambda: tensor(1, 4, 8, 8), "x_t": lambda: tensor(1, 4, 8, 8), "x": lambda: tensor(1, 4, 16, 16),
    "unet": lambda: textbook_model().unet, "context": lambda: tensor(2, 16, 32), "network": lambda: tensor_network(),
    "drawn": drawn, "draw": lambda: lambda x=1: x, "controls": dict,
    # what a room calls by those names
    "Description.text": lambda: "a boat", "Estimate.value": lambda: 0.5, "Estimate.standard_error": lambda: 0.1,
    "Estimate.low": lambda: 0.3, "Estimate.high": lambda: 0.7, "Estimate.n": lambda: 9,
    "AudioSource.model": hears, "MusicSource.model": tagger, "ImageSource.captioner": captioner,
    "Only.source": lambda: "a boat, neon style", "Recorder.default": lambda: "boat.flac",
    "WeatherSource.recorded": weather, "Transcriber.from_pretrained.name": lambda: "tiny-fusion",
    "Captioner.from_pretrained.name": lambda: "tiny-fusion", "MusicTagger.from_pretrained.name": lambda: "tiny-fusion",
    "Transcriber.network": lambda: hears().network, "Transcriber.processor": lambda: hears().processor,
    "Captioner.network": lambda: captioner().network, "Captioner.tokenizer": lambda: captioner().tokenizer,
    "Captioner.preprocess": lambda: captioner().preprocess, "MusicTagger.network": lambda: tagger().network,
    "MusicTagger.tokenizer": lambda: tagger().tokenizer, "MusicTagger.extractor": lambda: tagger().extractor,
    "MusicTagger.__call__.sound": lambda: sound(tagger().rate), "MusicTagger.logits.sounds": lambda: [sound(48_000)],
    "MusicTagger.__call__.descriptions": lambda: ["a happy piece", "a sad piece"],
    "MusicTagger.logits.descriptions": lambda: ["a happy piece", "a sad piece"],
    "MusicTagger.windows.samples": lambda: sound(48_000).samples,
    "fuse_prompts.sources": lambda: ["a boat", "neon style"], "as_description.source": lambda: "a boat",
    "FusedPrompt.parts": tuple, "FusedPrompt.tokens": lambda: 4, "FusedPrompt.limit": lambda: 16,
    "Part.description": lambda: described(), "Part.share": lambda: 1.0, "Part.phrases": tuple,
    "read_sound.target_rate": lambda: 16_000, "read_weather.answer": weather, "fetch_weather.place": lambda: (91, 0),
    "fetch_weather.patience": silent_patience, "WeatherSource.place": lambda: None,
    "check_place.place": lambda: "Lisbon", "Weather.words.vocabulary": lambda: "open",
    "ContextDiffusion.pipeline": lambda: model().pipeline, "ContextDiffusion.model": table_row,
    "ContextDiffusion.contexts": lambda: model().contexts, "ContextDiffusion.__call__.prompt": lambda: "a boat",
    "ContextDiffusion.__call__.num_inference_steps": lambda: 1, "ContextDiffusion.__call__.seed": lambda: 1,
    "ContextDiffusion.__call__.guidance_scale": lambda: 1.0, "ContextDiffusion.from_pretrained.device": lambda: "cpu",
    "finetune.images": lambda: pictures_folder(), "finetune.caption": lambda: "a boat", "finetune.out": lambda: "lora",
    "finetune.model": folder, "finetune.steps": lambda: 1, "finetune.batch_size": lambda: 1, "finetune.rank": lambda: 1,
    "read_folder.folder": lambda: pictures_folder(), "read_folder.caption": lambda: "a boat",

    "load_encoder.name": lambda: "dino", "load_encoder.model": folder, "TransformersEncoder.name": lambda: "clip",
    "TransformersEncoder.network": lambda: clip().network,
    "TransformersEncoder.preprocess": lambda: clip().preprocess, "features.output": rows,
    "average_embeddings.embeddings": rows, "average_embeddings.weights": lambda: [1] * 6,
    "vision_inputs.images": lambda: tensor(1, 3, 16, 16).clamp(0, 1), "vision_inputs.size": lambda: 8,
    "depth_map.estimator": lambda: depth(), "DepthEstimator.network": lambda: depth().network,
    "DepthEstimator.preprocess": lambda: depth().preprocess, "stretch.values": lambda: tensor(4, 4),
    "control_image.control": lambda: tensor(4, 4).clamp(0, 1),
    "find_network.kind": lambda: "transcriber", "find_network.name": lambda: "tiny-fusion",
    "find_part.model": table_row, "find_part.part": lambda: "clip", "dtype_keyword.dtype": lambda: dtype_(),
    "load_part.kind": lambda: unet_class(), "load_part.location": lambda: folder() + "/unet",
    "not_on_disk.location": lambda: "owner/name", "find_model.name": folder,
        "place.device": lambda: cpu(),
    "load_pipeline.name": folder, "load_pipeline.device": lambda: "cpu",
    "NormalizedImage.build.values": lambda: tensor(3, 4, 4), "NormalizedImage.build.statistics": lambda: tensor(6),
    "resize.size": lambda: 16, "to_pil.values": lambda: tensor(3, 4, 4).clamp(0, 1),
    "dynamic_normalization.images": lambda: tensor(1, 3, 4, 4), "denormalize.values": lambda: tensor(3, 4, 4),
    "denormalize.statistics": lambda: tensor(6), "save_image.path": lambda: "out.png",
    "picture_size.width": lambda: 32, "picture_size.height": lambda: 32, "latents.encode_images.pipe": pipe,
    "encode_prompts.negative_prompt": lambda: "", "encode_prompts.width": lambda: 32, "encode_prompts.height":
    lambda: 32,
    "conditions.embeddings": lambda: prompt_embeddings(), "conditions.branches": lambda: ["cond"],
    "conditions.like": lambda: tensor(1, 4, 16, 16), "alpha_at.scheduler": lambda: pipe().scheduler,
    "alpha_at.timestep": level, "invert_latents.predict": lambda: lambda z, t: z * 0.1,
    "text_image_similarity.encode_images": lambda: encode, "text_image_similarity.encode_text": lambda: encode_text,
    # metrics
    "FeatureMoments.update.features": rows, "FeatureMoments.gaussian.without": lambda: 0,
    "Palette.lab": lambda: palette().lab, "Palette.weights": lambda: palette().weights, "Palette.spread": lambda: 1.0,
    "earth_movers_distance.first": palette, "earth_movers_distance.second": palette, "Preprocess.size": lambda: 8,
    "Preprocess.__call__.images": lambda: [picture()], "CLIP_PREPROCESS.images": lambda: [picture()],
    "DINO_PREPROCESS.images": lambda: [picture()],
    "palette_of.images": picture, "palette_distance.targets": picture, "palette_distances.targets": picture,
    "srgb_to_lab.pixels": lambda: pixels(), "edge_f1.images": edges, "edge_f1.targets": edges,
    "edge_f1_scores.images": edges, "edge_f1_scores.targets": edges, "depths": depths,
    "depth_rank_correlation.targets": depths, "depth_rank_correlations.targets": depths,
    "pairwise_scores.sets": lambda: [rows()], "set_consistency.sets": lambda: [rows(), rows(5)],
    "text_image_scores.images": lambda: [picture(), picture()],
    "said": lambda: ["a boat"], "written": lambda: ["a cat"], "kernel_distance.subset_size": lambda: 3,
    "estimate_mean.resamples": lambda: 50, "estimate_difference.resamples": lambda: 50,
    # alignment and the textbook
    "ddim_invert.num_inference_steps": lambda: 2,
    "Trajectory.join.trajectories": lambda: [trajectory(), trajectory()], "Trajectory.at.timestep": lambda: 1,
    "Trajectory.on_line.time": lambda: 0.5,
    "Trajectory.save.path": lambda: "t.safetensors", "Trajectory.load.path": lambda: saved_trajectory(),
    **{f"Trajectory.{name}": (lambda name=name: getattr(trajectory(), name))
       for name in ("latents", "timesteps", "alphas", "embeddings", "prompts")},
    "StyleSettings.per_reference.name": lambda: "score_scale", "blend_trajectories.references": lambda: trajectory(),
    "vectors": lambda: tensor(2, 4), "start": lambda: tensor(4), "end": lambda: tensor(4) + 1, "slerp.t": lambda: 0.5,
    "linear.weights": lambda: [1, 2], "weighted_slerp.weights": lambda: [1, 2], "style_aligned.references": trajectory,
    "style_aligned.weights": lambda: None, "blend_trajectories.weights": lambda: None,
    "StableDiffusion.tokenizer": words_of_scratch, "text_encoder": lambda: textbook_model().text_encoder,
    "autoencoder": lambda: textbook_model().autoencoder,
    "StableDiffusion.scheduler": lambda: textbook_model().scheduler,
    "vocab": lambda: {"a": 0}, "merges": list, "Tokenizer.from_pretrained.folder": lambda: folder() + "/tokenizer",
    "word": lambda: "boat", "ids": lambda: [1, 2], "draw_noise.shape": lambda: (1, 4, 8, 8),
    "text_to_image.num_inference_steps": lambda: 1, "image_to_image.num_inference_steps": lambda: 2,
    "encode_prompt.model": lambda: textbook_model(), "text_to_image.model": lambda: textbook_model(),
    "image_to_image.model": lambda: textbook_model(), "tensor_to_images.pixels": lambda: tensor(1, 3, 8, 8),
    # scenes and melodies
    "Scene.object": lambda: "boat", "Scene.background": lambda: "hills", "Scene.sun": lambda: True,
    "Style.name": lambda: "neon", "Style.family": lambda: "warm", "Style.palette": lambda: style().palette,
    "Style.period": lambda: 9.0, "Style.angle": lambda: 0.5, "Style.weight": lambda: 2.0, "Style.strength": lambda: 0.5,
    "TinyScenes.groups": lambda: 3, "TinyScenes.rendering.index": lambda: 1, "TinyScenes.style.group": lambda: 1,
    "TinyScenes.__getitem__.index": lambda: 1, "Judge.network": lambda: judge().network,
    **{f"Rendering.{name}": (lambda name=name: getattr(drawn(), name))
       for name in ("scene", "style", "caption", "pixels", "depth", "edges", "segments")},
    **{f"Piece.{name}": (lambda name=name: getattr(piece(), name))
       for name in ("mood", "genre", "seed", "tempo", "mode", "tonic", "register", "density", "articulation",
                    "brightness", "reverb", "tension", "swell", "percussion", "contour", "lead", "chords", "bass")},
    "Note.instrument": lambda: "piano", "Note.start": lambda: 0.0, "Note.length": lambda: 1.0,
    "Note.pitch": lambda: 60.0, "Note.loudness": lambda: 0.5,
    # the page
    "compare.rows": lambda: {"a": [picture()], "b": [picture()]}, "bars.samples": lambda: {"a": [1, 2], "b": [3]},
    "estimates.values": lambda: {"a": estimate()}, "lines.series": lambda: {"a": [1, 2]},
    "flow_diagram.paths": lambda: ["a -> b"],
    "heatmap.values": lambda: tensor(2, 2), "show.images": picture,
    "notebook.check.answer": lambda: 1.0, "notebook.check.expected": lambda: 1.0, "Setup.device": lambda: "cpu",
    "Setup.threads": lambda: 1, "Setup.seed": lambda: 0, "Setup.data": lambda: Path("data"),
    "starting_values.controls": lambda: {"x": (1, 2)}, "play.x": lambda: (1, 2),
}  # fmt: skip
KEYWORDS = {  # the keywords that a function takes by ``**name``
    "Scene.draw": ("object", "background", "sun", "x", "size", "nope"), "Style.draw": ("name", "family", "nope"),
    "context_group": ("object", "nope"), "Piece.draw": ("mood", "genre", "tempo", "nope"), "play": ("x",),
    "Transcriber.from_pretrained": ("language", "task"), "save_image": ("quality",), "load_pipeline": ("nope",),
    "text_image_similarity": ("encode_images", "encode_text", "batch_size"),
    "word_error_rate": ("resamples", "seed"),
}  # fmt: skip
INSTANCES: dict[str, Callable[[], object]] = {  # whose methods are called
    "ContextDiffusion": model, "Description": lambda: described(), "Transcriber": hears, "Captioner": captioner,
    "MusicTagger": tagger, "FeatureMoments": lambda: moments(), "Preprocess": lambda: preprocess(),
    "TinyScenes": lambda: tiny_scenes(), "Judge": lambda: judge(), "DepthEstimator": lambda: depth(),
    "TransformersEncoder": lambda: clip(), "Estimate": estimate,
    "Trajectory": lambda: trajectory(), "StyleSettings": lambda: source("StyleSettings"),
    "AudioSource": lambda: source("AudioSource", (sound().samples, 16_000), model=hears()),
    "ImageSource": lambda: source("ImageSource", picture(), captioner()), "Only": lambda: source("Only", "neon style"),
    "MusicSource": lambda: source("MusicSource", (sound().samples, 16_000), model=tagger()),
    "WeatherSource": lambda: source("WeatherSource", recorded=weather()), "Tokenizer": words_of_scratch,
    "FusedPrompt": lambda: fused(),
}  # fmt: skip
EXTRA = (  # public, though not exported by name from its room
    "fusion.caption.Captioner", "fusion.music.MusicTagger", "fusion.sound.read_sound", "fusion.client.Patience",
    "fusion.weather.fetch_weather", "fusion.weather.check_place", "fusion.weather_answers.read_weather",
)  # fmt: skip
# Not handed in by people: what the library builds for itself, and equations and networks, whose tensors other equations
# made (torch says what does not fit).
INSIDE = (
    "notebook.setup", "notebook.quiet", "notebook.install_missing", "finetune.main", "fusion.description.Source",
    "encoders.Encoder", "encoders.features", "encoders.warn_if_cut", "checkpoints.Model", "checkpoints.Network",
    "checkpoints.dtype_keyword", "checkpoints.load_part", "checkpoints.find_part", "checkpoints.not_on_disk",
    "checkpoints.transformer", "finetune.Learner", "finetune.read_caption", "finetune.digest", "finetune.encode",
    "finetune.save_lora",
    "finetune.read_folder", "context.request.CheckedRequest", "context.contexts", "context.projector",
    "pipelines.check_", "pipelines.load_adapter", "pipelines.kept_adapter_scale",
    "pipelines.as_pipeline", "pipelines.place", "pipelines.load_controlnet", "latents.conditions", "latents.alpha_at",
    "latents.encode_prompts", "latents.encode_images", "latents.picture_size", "images.listed",
    "images.NormalizedImage", "alignment.equations", "alignment.reference_pass", "alignment.aligner.StyleAligner",
    "alignment.inversion.Levels", "alignment.inversion.Start", "alignment.inversion.invert_latents",
    "alignment.inversion.ddim_step", "alignment.inversion.velocity_step", "alignment.inversion.to_noise",
    "alignment.inversion.output_predictor", "alignment.inversion.noise_predictor", "alignment.inversion.noise_levels",
    "alignment.networks", "alignment.hooks", "alignment.subject", "alignment.trajectory.Trajectory.__getitem__",
    "from_scratch.schedulers.D", "from_scratch.schedulers.E", "from_scratch.schedulers.Scheduler",
    "from_scratch.schedulers.rescale_betas_zero_snr",
    "from_scratch.autoencoder", "from_scratch.unet", "from_scratch.text_encoder", "from_scratch.sampling.State",
    "from_scratch.sampling.denoise", "from_scratch.sampling.guided_prediction", "from_scratch.attention_maps",
    "from_scratch.style_aligned",
)  # fmt: skip


def source(name: str, *given, **named):
    import context_diffusion as cd

    return getattr(cd, name)(*given, **named)


def described():
    from context_diffusion import Description

    return Description("a boat, neon style")


def fused():
    from context_diffusion import fuse_prompts

    return fuse_prompts(["a boat"])


def moments():
    from context_diffusion.metrics import FeatureMoments

    return FeatureMoments().update(rows())


def preprocess():
    from context_diffusion.metrics import Preprocess

    return Preprocess(8)


def tiny_scenes():
    from context_diffusion.scenes import TinyScenes

    return TinyScenes(3)


@functools.cache
def judge():
    from context_diffusion.scenes import Judge

    return Judge.from_pretrained()


@functools.cache
def depth():
    from context_diffusion.control import DepthEstimator

    return DepthEstimator.from_pretrained(folder())


@functools.cache
def clip():
    from context_diffusion import load_encoder

    return load_encoder("clip", folder())


def tensor_network():
    import torch

    return torch.nn.Identity()


def controlnet():
    from tiny import tiny_controlnet

    return tiny_controlnet(fresh=True)


def unet_class():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel


def cpu():
    import torch

    return torch.device("cpu")


def dtype_():
    import torch

    return torch.float32


def pixels():
    import numpy as np

    return np.zeros((2, 3), dtype=np.uint8)


@functools.cache
def pictures_folder() -> str:
    where = tempfile.mkdtemp(prefix="surface-")
    picture().save(f"{where}/a.png")
    return where


@functools.cache
def prompt_embeddings():
    from context_diffusion.latents import encode_prompts

    return encode_prompts(pipe(), ["a boat"], "", 32, 32)


# --- what is public ---------------------------------------------------------------------------------------------------


def public() -> dict[str, object]:
    """Everything public that can be called: home -> object, homes as in ``"fusion.prompt.fuse_prompts"``."""
    import importlib

    import context_diffusion as cd

    found: dict[str, object] = {}
    for name in cd.__all__:
        one = getattr(cd, name)
        members = {name: one}
        if isinstance(one, types.ModuleType):
            names = getattr(one, "__all__", None) or [
                key for key, each in vars(one).items()
                if not key.startswith("_") and getattr(each, "__module__", None) == one.__name__
            ]  # fmt: skip
            members = {key: getattr(one, key) for key in names}
        for each in members.values():
            if inspect.isroutine(each) or inspect.isclass(each):
                found[f"{each.__module__.removeprefix('context_diffusion.')}.{each.__name__}"] = each
    for home in EXTRA:
        module, _, key = home.rpartition(".")
        found[home] = getattr(importlib.import_module(f"context_diffusion.{module}"), key)
    return {home: one for home, one in found.items() if not home.startswith(INSIDE)}


def calls() -> Iterator[tuple[str, Callable, list[inspect.Parameter]]]:
    """Every function, constructor and method, with the parameters that a caller gives."""
    for home, one in public().items():
        if not inspect.isclass(one) or "__init__" in vars(one):
            yield home, one, parameters(one)
        if inspect.isclass(one):
            for name, method in vars(one).items():
                called = name in ("__call__", "__getitem__") or not name.startswith("_")
                if (
                    called
                    and not f"{home}.{name}".startswith(INSIDE)
                    and isinstance(method, (types.FunctionType, classmethod, staticmethod))
                ):
                    yield f"{home}.{name}", _bound(one, name, method), parameters(getattr(one, name))


def _bound(kind: type, name: str, method: object) -> Callable:
    if isinstance(method, types.FunctionType):
        return lambda *args, **named: getattr(INSTANCES[kind.__name__](), name)(*args, **named)
    return getattr(kind, name)


def parameters(one: Callable) -> list[inspect.Parameter]:
    given = [p for p in inspect.signature(one).parameters.values() if p.name != "self"]
    return [p for p in given if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def example(home: str, name: str) -> Callable[[], object] | None:
    """A right value for a parameter: under the longest end of its home that the table has, else under its bare name."""
    steps = home.split(".")
    for start in range(len(steps) + 1):
        if (key := ".".join([*steps[start:], name])) in EXAMPLES:
            return EXAMPLES[key]
    return None


# --- the walk ---------------------------------------------------------------------------------------------------------


class TooSlow(BaseException):
    """A call that did not come back at once; no ``except Exception`` swallows it."""


def fault(call: Callable[[], object]) -> str | None:
    """Say what is wrong with a call's answer; None if it returns, or refuses as the library should."""

    def stop(*_):
        raise TooSlow

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, AT_ONCE)
    try:
        answer = call()
        if isinstance(answer, contextlib.AbstractContextManager) and inspect.isgenerator(getattr(answer, "gen", None)):
            with answer:
                pass
        elif inspect.isgenerator(answer):
            list(itertools.islice(answer, 100))
    except TooSlow:
        return f"no answer within {AT_ONCE:g} s"
    except (Exception, SystemExit) as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return _not_ours(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def _not_ours(error: BaseException) -> str | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file, line = Path(trace.tb_frame.f_code.co_filename), trace.tb_lineno
    said = " ".join(str(error).split())[:150]
    where = f"{file.name}:{line}"
    if not isinstance(error, OURS) or HOME not in file.parents or line not in raises(file):
        return f"{type(error).__name__} from inside, {where}: {said}"
    if not said or "\n" in str(error).strip():
        return f"{type(error).__name__} is not one sentence, {where}: {said}"
    return None


@functools.cache
def raises(file: Path) -> frozenset[int]:
    """The lines of a file that belong to a ``raise``."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Raise)]
    return frozenset(line for node in nodes for line in range(node.lineno, node.end_lineno + 1))


def walk(only: str = "") -> dict:
    """Call everything with every wrong value; give the faults by home and parameter, and what the table lacks."""
    faults: dict[str, dict[str, str]] = {}
    lacking, broken, tried, slow = [], {}, 0, {}
    for home, one, given in calls():
        if only and only not in home:
            continue
        short = home.split(".")
        extra = next((KEYWORDS[key] for i in range(len(short)) if (key := ".".join(short[i:])) in KEYWORDS), ())
        kind = short[-2] if one.__name__ == "<lambda>" else None
        needed = [p.name for p in given if p.default is p.empty and example(home, p.name) is None]
        if needed or (kind and kind not in INSTANCES):
            what = ", ".join(needed) if needed else f"an instance of {kind} in INSTANCES"
            lacking.append(f"{home} needs {what}")
            continue
        started = time.perf_counter()
        names = [p.name for p in given]
        kinds = {p.name: p.annotation for p in given}
        positional = [p.name for p in given if p.kind is p.POSITIONAL_ONLY]

        def right(names=names, home=home, given=given) -> dict[str, object]:
            told = [p.name for p in given if p.default is p.empty]
            own = [key.rpartition(".") for key in EXAMPLES]
            told += [name for short, _, name in own if short and f".{home}".endswith(f".{short}")]
            return {name: example(home, name)() for name in dict.fromkeys(told)}

        def call(values: dict, one=one, positional=positional):
            values = dict(values)
            return one(*[values.pop(name) for name in positional], **values)

        if (why := fault(lambda right=right, call=call: call(right()))) is not None:
            broken[home] = why
            continue
        for name in (*names, *extra):
            wanted = example(home, name)
            takes_function = "Callable" in str(kinds.get(name)) or wanted and inspect.isfunction(wanted())
            for shown, value in wrong_values().items():
                if takes_function and callable(value):
                    continue  # what a caller's own function does or raises is the caller's
                values = right() | {name: value}
                tried += 1
                if (why := fault(lambda values=values, call=call: call(values))) is not None:
                    faults.setdefault(f"{home}({name})", {})[shown] = why
        slow[home] = round(time.perf_counter() - started, 2)
        print(f"{slow[home]:7.2f} s  {home}", file=sys.stderr, flush=True)
    slowest = dict(sorted(slow.items(), key=lambda pair: -pair[1])[:12])
    return {"faults": faults, "lacking": lacking, "broken": broken, "tried": tried, "slowest": slowest}


def main() -> None:
    """Walk, and print the result as JSON."""
    import resource

    import numpy as np
    import torch

    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as where, contextlib.redirect_stdout(sys.stderr):
        os.chdir(where)
        found = walk(*sys.argv[1:])
        os.chdir(ROOT)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
