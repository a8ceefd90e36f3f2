"""Which rows of a network's batch belong to which branch of guidance, as the running pipeline stacks them.

Classifier-free guidance (Ho and Salimans 2022, eq. 6) needs a prediction with the prompt and one without it. Most
diffusers pipelines stack both branches in one batch; modular pipelines call the U-Net once for each. The tensors do
not tell: the second of two rows may be a second image, or the first image without its prompt. The pipeline given to
``style_aligned`` cannot always tell either, because one U-Net serves many pipelines. The one that is running can.
"""

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

UNCONDITIONAL_FIRST = (
    *(
        f"StableDiffusion{xl}{control}{task}Pipeline"
        for xl in ("", "XL")
        for control in ("", "ControlNet")
        for task in ("", "Img2Img", "Inpaint")
    ),
    *(f"StableDiffusionXLControlNetUnion{task}Pipeline" for task in ("", "Img2Img", "Inpaint")),
    "StableDiffusionAdapterPipeline",
    "StableDiffusionXLAdapterPipeline",
    *(f"StableDiffusion3{kind}Pipeline" for kind in ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetInpainting")),
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)
GUIDED_BRANCHES = dict.fromkeys(UNCONDITIONAL_FIRST, ("uncond", "cond")) | {
    "StableDiffusionInstructPix2PixPipeline": ("cond", "uncond", "uncond"),  # text and picture, picture alone, neither
    **{
        f"ZImage{kind}Pipeline": ("cond", "uncond")
        for kind in ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetInpaint")
    },
}


class Call(NamedTuple):
    """The pipeline that is calling a U-Net, and the qualified name of its method that does so."""

    pipe: Any
    method: str


def pipeline_call(network: nn.Module) -> Call | None:
    """Find the innermost call of a diffusers pipeline with this very U-Net or ControlNet; ``None`` in your own loop.

    A pipeline passes nothing of itself to its networks, so the frames of the call are searched for it.
    """
    from diffusers import DiffusionPipeline, ModularPipeline

    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            local = frame.f_locals
            owner = local.get("self")
            if isinstance(owner, DiffusionPipeline | ModularPipeline) and _holds(owner, network):
                if isinstance(local, dict):  # a copy before Python 3.13, and kept: it would hold on to the residuals
                    local.clear()
                return Call(owner, frame.f_code.co_qualname)
        frame = frame.f_back
    return None


def guidance_branches(call: Call | None) -> tuple[str, ...]:
    """Name the branches of the rows of a call, in order: "cond" with the prompt, "uncond" without it.

    Raises ``ValueError`` where no pipeline is running, or one whose layout is not in :data:`GUIDED_BRANCHES`.
    """
    if call is None:
        raise ValueError(
            "No diffusers pipeline is calling this U-Net, so the order of its rows under guidance is unknown; pass "
            "branches=, such as ('uncond', 'cond') where both are stacked in one batch, or ('cond',)."
        )
    if call.method == "ModularPipeline.__call__":
        return (_guider_branch(call.pipe.guider),)
    branches = GUIDED_BRANCHES.get(call.method.removesuffix(".__call__"))
    if branches is None:
        raise ValueError(
            f"The order of the rows in {call.method} under guidance is unknown; pass branches=, such as "
            "('uncond', 'cond') if it stacks the rows without the prompt before those with it."
        )
    if getattr(call.pipe, "_cfg_truncation", None) not in (None, 1):
        raise ValueError("cfg_truncation ends guidance at some step, so the rows change meanwhile; leave it at 1.")
    return branches if call.pipe.do_classifier_free_guidance else ("cond",)


def separate_branch(network: nn.Module, text: Any) -> str:
    """Name the branch of a call that a pipeline makes for one branch alone, by the name that it has for the text.

    Pipelines of FLUX and Qwen-Image call the network twice under guidance, with ``prompt_embeds`` and with
    ``negative_prompt_embeds``. Raises ``ValueError`` where no running pipeline has such a text.
    """
    from diffusers import DiffusionPipeline

    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            local = frame.f_locals
            if isinstance(owner := local.get("self"), DiffusionPipeline) and _holds(owner, network):
                names = [name for name, value in local.items() if value is text]
                if isinstance(local, dict):
                    local.clear()
                if names:
                    return "uncond" if any(name.startswith("negative") for name in names) else "cond"
        frame = frame.f_back
    raise ValueError(
        "Nothing says whether this call of the transformer has the prompt or leads away from it; pass "
        "branches=('cond',), or branches=('uncond',) for a call without the prompt."
    )


def is_guided(call: Call | None, branches: Sequence[str]) -> bool:
    """Whether the U-Net also runs without the prompt: in the branches of this call, or in a call of their own."""
    if call is not None and call.method == "ModularPipeline.__call__":
        return call.pipe.guider.num_conditions > 1
    return "uncond" in branches


def check_branches(branches: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return branches as a tuple; raise ``ValueError`` unless each is "cond" or "uncond"."""
    if branches is None:
        return None
    named = (branches,) if isinstance(branches, str) else tuple(branches)
    if not named or set(named) - {"cond", "uncond"}:
        raise ValueError(
            f"branches names each stacked part 'cond' (with the prompt) or 'uncond' (without it); got {branches!r}."
        )
    return named


def without_compilation(unet: nn.Module) -> nn.Module:
    """Return the module inside the wrapper of ``torch.compile``, or the module itself where there is none."""
    return getattr(unet, "_orig_mod", unet)


def _guider_branch(guider) -> str:
    """Name the branch that a modular pipeline's guider has prepared last."""
    others = set(guider._input_predictions) - {"pred_cond", "pred_uncond"}
    if others:
        raise ValueError(
            f"{type(guider).__name__} also runs the U-Net with changed attention ({', '.join(sorted(others))}), which "
            "style_aligned does not know; guide with ClassifierFreeGuidance or its kin."
        )
    return "cond" if guider.is_conditional else "uncond"


def _holds(pipe, network: nn.Module) -> bool:
    """Whether this is the pipeline's U-Net or one of its ControlNets."""
    controlnet = getattr(pipe, "controlnet", None)
    several = getattr(controlnet, "nets", ())  # of a MultiControlNetModel
    parts = (getattr(pipe, "unet", None), getattr(pipe, "transformer", None), controlnet, *several)
    return any(part is not None and without_compilation(part) is without_compilation(network) for part in parts)
