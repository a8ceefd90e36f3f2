"""Building and placing diffusers pipelines, with and without ControlNets."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import ControlNetModel, DiffusionPipeline
from transformers import CLIPVisionModelWithProjection

from .checkpoints import DEFAULT, Model, find_device, find_dtype, find_model, find_part, load_part, not_on_disk
from .checks import check_flag, check_list, check_number, hint, reason, shown
from .latents import check_pipeline
from .loading import check_safetensors, check_weights, is_local, quiet, read_settings, within_reach

OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")  # options


def load_pipeline(
    name: str | Path = DEFAULT,
    *,
    control: str | Sequence[str] | None = None,
    image_to_image: bool = False,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options,
) -> DiffusionPipeline:
    """Load a plain diffusers pipeline by name: text to image, on ``device``, by default the GPU if there is one.

    ``control="canny"`` or ``"depth"`` adds that ControlNet, a list several (their residuals add up, and the pipeline
    wants lists of pictures and scales); ``image_to_image=True`` takes the image-to-image class.
    ``dtype``, or its word such as "fp16", is by default half precision for hub models on a CUDA GPU (bfloat16 for
    transformers) and float32 elsewhere, Apple's GPU included; ``options`` go to ``from_pretrained``. Raises
    ``ValueError`` for an unknown name or a damaged part, ``FileNotFoundError`` for weights that cannot be had.
    """
    model = find_model(name)
    device = find_device(device)
    image_to_image = check_flag("image_to_image", image_to_image)
    if model.transformer and (control is not None or image_to_image):
        raise ValueError(
            f"{shown(model.name)} draws with a transformer, for which control and image_to_image are not built here; "
            "they are for models with a U-Net, such as 'sdxl'."
        )
    half = model.half_on_gpu and device.type == "cuda"
    dtype = find_dtype((model.half if half else "float32") if dtype is None else dtype)
    kinds = [control] if isinstance(control, str) else [] if control is None else check_list("control", control, 8)
    controlnets = [load_controlnet(model, kind, dtype) for kind in kinds]
    controlnet = controlnets[0] if isinstance(control, str) else controlnets or None
    if model.parts and dtype == torch.float16:
        options.setdefault("variant", "fp16")  # half the download
    pipe = _from_parts(model.location, dtype, options)
    for network in controlnets:
        check_control_fits(network, pipe.unet, model)
    if controlnet is not None or image_to_image:
        pipe = as_pipeline(pipe, controlnet=controlnet, image_to_image=image_to_image)
    return place(pipe, device, model.vram_gb)


def _from_parts(location: str, dtype: torch.dtype, options: Mapping[str, Any]) -> DiffusionPipeline:
    """Load each part of a pipeline by itself, so that a damaged one is named, and put them together."""
    from diffusers import AutoPipelineForText2Image

    folder = _folder(location, options)
    index, variant = read_settings(folder / "model_index.json"), options.get("variant")
    parts: dict[str, Any] = {}
    for name, entry in index.items():
        kind = _class_of(entry) if isinstance(entry, list) and name not in options else None
        if kind is None:
            continue
        network = issubclass(kind, torch.nn.Module)
        in_variant = network and variant and any((folder / name).glob(f"*.{variant}.*safetensors"))
        chosen: dict[str, Any] = {"variant": variant} if in_variant else {}
        parts[name] = load_part(kind, str(folder / name), dtype if network else None, **chosen)
    others = {name: value for name, value in options.items() if name not in (*OF_THE_HUB, "variant")}
    try:
        with quiet("diffusers"), within_reach(str(folder)):
            pipe = AutoPipelineForText2Image.from_pretrained(folder, **parts | others)
    except Exception as error:  # of the library, which raises anything on a wrong model_index.json
        raise ValueError(f"{folder} does not load as a text-to-image pipeline: {reason(error)}.") from error
    check_parts_fit(pipe, folder)
    return pipe


def _folder(location: str, options: Mapping[str, Any]) -> Path:
    """The folder of a pipeline; one of the hub is downloaded, or found on this disk."""
    if os.path.isdir(location):
        return Path(location)
    hub = {name: options[name] for name in (*OF_THE_HUB, "variant") if name in options}
    try:
        with quiet("diffusers", "huggingface_hub"), within_reach(location):
            return Path(DiffusionPipeline.download(location, use_safetensors=True, **hub))
    except OSError as error:
        raise not_on_disk(location) from error


def _class_of(entry: Sequence) -> type[Any] | None:
    """The class of a part that ``model_index.json`` names by library and class, if this file can load it."""
    import diffusers
    import transformers

    library, name = entry if len(entry) == 2 else (None, None)
    home = {"diffusers": diffusers, "transformers": transformers}.get(str(library))
    home = home or getattr(diffusers.pipelines, str(library), None)  # such as the safety checker's
    found = getattr(home, str(name), None)
    return found if isinstance(found, type) and hasattr(found, "from_pretrained") else None


def check_parts_fit(pipe: DiffusionPipeline, folder: Path) -> None:
    """Refuse parts that are whole by themselves and of different sizes, before a network stumbles over another's."""
    if "unet" not in pipe.components:
        return  # a transformer; diffusers checks what its pipelines need
    unet, vae = pipe.unet.config, pipe.vae.config
    check_same(folder / "unet", "in_channels", unet.in_channels, "the vae's latent_channels are", vae.latent_channels)
    if "text_encoder_2" in pipe.components and (pipe.text_encoder_2 is None or unet.addition_embed_type is None):
        raise ValueError(
            f"{folder} does not fit: model_index.json names {type(pipe).__name__}, which has a second text encoder and "
            "a U-Net that reads sizes."
        )
    widths = []
    for suffix in ("", "_2"):
        encoder, tokenizer = (getattr(pipe, part + suffix, None) for part in ("text_encoder", "tokenizer"))
        if encoder is None or tokenizer is None:
            continue
        config, where = encoder.config, folder / f"tokenizer{suffix}"
        widths.append(config.hidden_size)
        try:
            ids = tokenizer("a boat", padding="max_length", max_length=tokenizer.model_max_length)["input_ids"]
        except Exception as error:  # of the library, on a tokenizer that is damaged; OverflowError without its length
            raise ValueError(f"{where} cannot read a prompt: {reason(error)}.") from error
        if not len(ids) <= config.max_position_embeddings or max(len(tokenizer), *ids) > config.vocab_size:
            raise ValueError(
                f"{where} and text_encoder{suffix} do not fit: {len(tokenizer)} words in {len(ids)} places, where the "
                f"network reads {config.vocab_size} in {config.max_position_embeddings}."
            )
    if widths and unet.encoder_hid_dim_type is None and isinstance(unet.cross_attention_dim, int):
        check_same(folder / "unet", "cross_attention_dim", unet.cross_attention_dim, "the text's width is", sum(widths))


def check_control_fits(network: ControlNetModel, unet: torch.nn.Module, model: Model) -> None:
    """Refuse a ControlNet that was trained for another U-Net."""
    for name in ("in_channels", "cross_attention_dim", "block_out_channels"):
        check_same(f"The ControlNet of {model.name}", name, network.config[name], "the U-Net's is", unet.config[name])


def check_same(where: str | Path, name: str, own: object, whose: str, other: object) -> None:
    """Refuse two parts that do not fit: ``name`` is one number in one's config and another in the other's."""
    own, other = (list(value) if isinstance(value, tuple) else value for value in (own, other))
    if own != other:
        raise ValueError(f"{where} does not fit: its {name} is {shown(own)}, and {whose} {shown(other)}.")


def load_adapter(pipe: DiffusionPipeline, root: str, subfolder: str, name: str, encoder: str) -> None:
    """Load an IP-Adapter's file ``name`` and its image encoder into a pipeline, both from ``root``."""
    local = is_local(root)
    if local:
        check_safetensors(Path(root, subfolder, name))
    if pipe.image_encoder is None:
        network = load_part(CLIPVisionModelWithProjection, root, pipe.unet.dtype, subfolder=encoder)
        pipe.register_modules(image_encoder=network.eval().requires_grad_(False).to(pipe.device))
    try:
        with quiet("diffusers"), within_reach(root):  # the image encoder is there, so no warning that it is not
            pipe.load_ip_adapter(root, subfolder=subfolder, weight_name=name, image_encoder_folder=None)
    except Exception as error:  # of the library, which raises anything on a damaged file
        if isinstance(error, OSError) and not local:
            raise not_on_disk(root) from error
        raise ValueError(f"{root}/{name} does not load as an IP-Adapter: {reason(error)}.") from error
    check_weights(pipe.unet, {}, f"{root}/{name}")


def load_controlnet(model: Model, kind: str, dtype: torch.dtype) -> ControlNetModel:
    """Load the ControlNet ``kind`` ("canny", "depth") of a model.

    Raises ``ValueError`` where the model has none, ``FileNotFoundError`` where its weights cannot be had.
    """
    location = find_part(model, f"controlnet-{kind}") if isinstance(kind, str) else None
    if location is None:
        known = [*model.parts, *(path.name for path in Path(model.location).glob("controlnet-*"))]
        near = hint(kind, [name.removeprefix("controlnet-") for name in known if name.startswith("controlnet-")])
        raise ValueError(f"{shown(model.name)} has no ControlNet {shown(kind)} beside it (controlnet-.../){near}")
    return load_part(ControlNetModel, location, dtype).eval().requires_grad_(False)


_scaled: WeakKeyDictionary[torch.nn.Module, RLock] = WeakKeyDictionary()


@contextmanager
def kept_adapter_scale(unet: torch.nn.Module) -> Iterator[None]:
    """Put the scales of a U-Net's IP-Adapters back at the end of the block: they are the user's.

    They are the network's too, so threads that want scales of their own wait for each other.
    """
    adapters = [module for module in unet.modules() if hasattr(module, "to_k_ip") and hasattr(module, "scale")]
    if not adapters:
        yield
        return
    with _scaled.setdefault(unet, RLock()):
        scales = [list(adapter.scale) for adapter in adapters]
        try:
            yield
        finally:
            for adapter, scale in zip(adapters, scales, strict=True):
                adapter.scale[:] = scale


def place(pipe: DiffusionPipeline, device: torch.device, vram_gb: float = 0) -> DiffusionPipeline:
    """Move a pipeline to a device; a GPU smaller than ``vram_gb`` gets one part at a time."""
    if getattr(pipe, "transformer", None) is None:
        check_pipeline(pipe)
    device, vram_gb = find_device(device), check_number("vram_gb", vram_gb, 0)
    if device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < vram_gb * 2**30:
        pipe.enable_model_cpu_offload(device=device)
        pipe.vae.enable_slicing()
        return pipe
    return pipe.to(device)


def as_pipeline(pipe: DiffusionPipeline, *, controlnet=None, image_to_image: bool = False) -> DiffusionPipeline:
    """Build another Stable Diffusion pipeline from the very parts of ``pipe``: with a ControlNet, from an image.

    Nothing is copied or cast (``from_pipe`` of diffusers would cast everything to float32).
    """
    import diffusers

    check_pipeline(pipe)
    several = controlnet if isinstance(controlnet, list | tuple) else [controlnet]
    if controlnet is not None and not all(isinstance(network, torch.nn.Module) for network in several):
        raise TypeError(f"controlnet is a ControlNetModel or a list of them, not {shown(controlnet)}.")
    image_to_image = check_flag("image_to_image", image_to_image)
    xl = getattr(pipe, "text_encoder_2", None) is not None
    kind = getattr(
        diffusers,
        f"StableDiffusion{'XL' * xl}{'ControlNet' * (controlnet is not None)}{'Img2Img' * image_to_image}Pipeline",
    )
    parts = {key: part for key, part in pipe.components.items() if key != "controlnet"}
    if controlnet is not None:
        parts["controlnet"] = controlnet
    settings = {"add_watermarker": False} if xl else {"requires_safety_checker": parts["safety_checker"] is not None}
    other = kind(**parts, **settings)
    other.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return other
