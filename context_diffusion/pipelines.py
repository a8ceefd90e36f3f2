"""Building and placing diffusers pipelines: the one file that knows their classes and the kinds of ControlNet."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import ControlNetModel, DiffusionPipeline
from diffusers.models.controlnets.controlnet import ControlNetOutput

from .checkpoints import DEFAULT, Model, find_device, find_model, find_part, load_part
from .guidance import guidance_branches, pipeline_call


class GuidedForward:
    """The forward pass of a ControlNet in the branch with the prompt alone, so that guidance amplifies it as a prompt.

    Of the two ways in Zhang et al. 2023, section 3.4 ("classifier-free guidance resolution weighting"), the one that
    adds the map to ``eps_c`` and not to ``eps_uc``: ``eps_uc + w (eps_c(map) - eps_uc)``. The pipeline that is running
    says which rows have the prompt; the others get zeros. diffusers calls that ``guess_mode``, and weakens the upper
    residuals there down to a tenth; at the small guidance scale of the offline model nothing needs weakening, so here
    they stay whole. With ``guess_mode=True`` all rows are taken to have the prompt, as diffusers passes them then.

    It takes the place of ``network.forward``. The network is still diffusers' ``ControlNetModel``: what saves, loads or
    switches pipelines knows it.
    """

    def __init__(self, network: ControlNetModel):
        self.network, self.forward = network, network.forward

    def __call__(self, *inputs, guess_mode: bool = False, return_dict: bool = True, **named):
        """As the network's own; raises ``ValueError`` where nothing says which rows have the prompt."""
        call = pipeline_call(self.network)
        if call is None and not guess_mode:
            raise ValueError(
                "No diffusers pipeline is calling this guided ControlNet, so the rows with the prompt are unknown: "
                "pass those rows alone with guess_mode=True, or load it by ControlNetModel.from_pretrained."
            )
        branches = ("cond",) if guess_mode else guidance_branches(call)
        rows = len(inputs[0] if inputs else named["sample"])

        def with_prompt(given):
            if isinstance(given, dict):
                return {name: with_prompt(each) for name, each in given.items()}
            per_row = isinstance(given, torch.Tensor) and given.ndim > 0 and len(given) == rows
            return given.chunk(len(branches))[branches.index("cond")] if per_row else given

        def for_all(residual: torch.Tensor) -> torch.Tensor:
            return torch.cat([residual if branch == "cond" else torch.zeros_like(residual) for branch in branches])

        if branches == ("cond",):
            return self.forward(*inputs, return_dict=return_dict, **named)
        down, mid = self.forward(*map(with_prompt, inputs), return_dict=False, **with_prompt(named))
        down, mid = tuple(map(for_all, down)), for_all(mid)
        return ControlNetOutput(down, mid) if return_dict else (down, mid)


def load_pipeline(
    name: str | Path = DEFAULT,
    *,
    control: str | Sequence[str] | None = None,
    image_to_image: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **options,
) -> DiffusionPipeline:
    """Load a plain diffusers pipeline by name: text to image, on ``device``, by default the GPU if there is one.

    ``control="canny"`` or ``"depth"`` adds that ControlNet, a list several (their residuals add up, and the pipeline
    wants lists of pictures and scales); ``image_to_image=True`` takes the image-to-image class.
    ``dtype`` is float16 for hub models on a GPU and float32 elsewhere; ``options`` go to ``from_pretrained``.
    Raises ``ValueError`` for an unknown name, ``FileNotFoundError`` for weights that cannot be had.
    """
    from diffusers import AutoPipelineForText2Image

    model = find_model(name)
    device = find_device(device)
    if dtype is None:
        dtype = torch.float16 if model.half_on_gpu and device.type == "cuda" else torch.float32
    kinds = [control] if isinstance(control, str) else list(control or ())
    controlnets = [load_controlnet(model, kind, dtype) for kind in kinds]
    controlnet = controlnets[0] if isinstance(control, str) else controlnets or None
    if model.parts and dtype == torch.float16:
        options.setdefault("variant", "fp16")  # half the download
    pipe = load_part(AutoPipelineForText2Image, model.location, dtype, **options)
    if controlnet is not None or image_to_image:
        pipe = as_pipeline(pipe, controlnet=controlnet, image_to_image=image_to_image)
    return place(pipe, device, model.vram_gb)


def load_controlnet(model: Model, kind: str, dtype: torch.dtype) -> ControlNetModel:
    """Load the ControlNet ``kind`` ("canny", "depth") of a model; guided, where the model's row of the table says so.

    Raises ``ValueError`` where the model has none, ``FileNotFoundError`` where its weights cannot be had.
    """
    location = find_part(model, f"controlnet-{kind}")
    if location is None:
        raise ValueError(f"{model.name!r} has no ControlNet {kind!r} beside it (controlnet-{kind}/).")
    network = load_part(ControlNetModel, location, dtype).eval().requires_grad_(False)
    if model.guided_control:
        network.forward = GuidedForward(network)
    return network


def place(pipe: DiffusionPipeline, device: torch.device, vram_gb: float = 0) -> DiffusionPipeline:
    """Move a pipeline to a device; a GPU smaller than ``vram_gb`` gets one part at a time."""
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
