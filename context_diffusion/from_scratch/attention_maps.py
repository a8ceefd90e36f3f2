"""What cross-attention looks at, word by word: the softmax of every cross-attention layer, recorded as a model runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .attention import Attention, SpatialTransformer

Maps = dict[str, list[Float[Tensor, "batch heads height width tokens"]]]


@contextmanager
def record_cross_attention(unet: nn.Module) -> Iterator[Maps]:
    """Inside the block, every call of the U-Net adds its attention weights: ``maps[layer][call]``.

    A weight is the share of a pixel's attention that goes to one token; over the tokens they sum to 1. With guidance
    the batch is twice as long: first without the prompt, then with it. The model computes as before: a forward hook,
    removed at the end of the block, sees the layer's input and evaluates the softmax once more.

        with record_cross_attention(model.unet) as maps:
            images = text_to_image(model, "a boat on the sea")
    """
    maps: Maps = {}
    size = {}

    def note_size(module: nn.Module, args: tuple):
        size["now"] = args[0].shape[-2:]

    def record(name: str):
        def hook(module: Attention, args: tuple, output: Tensor):
            weights = rearrange(
                module.weights(*args),
                "batch heads (height width) tokens -> batch heads height width tokens",
                height=size["now"][0],
            )
            maps.setdefault(name, []).append(weights.detach())

        return hook

    hooks = []
    for name, module in unet.named_modules():
        if isinstance(module, SpatialTransformer):
            hooks.append(module.register_forward_pre_hook(note_size))
        elif name.endswith("cross_attention"):
            hooks.append(module.register_forward_hook(record(name)))
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def word_maps(maps: Mapping[str, list[Tensor]], row: int = -1) -> Float[Tensor, "tokens height width"]:
    """One map per token: the mean over heads, layers and calls, at the size of the finest layer.

    Arguments:
        maps: what ``record_cross_attention`` collected.
        row: which row of the batch; the last row belongs to the last prompt, with or without guidance.
    """
    if not maps:
        raise ValueError(
            "No attention was recorded: run the U-Net inside `with record_cross_attention(unet) as maps:`."
        )
    means = [torch.stack([call[row].mean(0) for call in calls]).mean(0) for calls in maps.values()]
    finest = max((mean.shape[:2] for mean in means), key=lambda size: size[0] * size[1])
    pictures = [rearrange(mean, "height width tokens -> 1 tokens height width").float() for mean in means]
    return torch.cat([F.interpolate(p, size=finest, mode="bilinear") for p in pictures]).mean(0)
