"""Where a reference's subject is, so that it can lend its style without itself (Only-Style, 2506.09916).

The text says it: in cross-attention, the probability that a place gives to the word "cat" is high where the cat is. Two
means of these probabilities, inside and outside, cut a mask; and the reference's keys inside it are scaled down, so
that targets look at the rest.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..guidance import without_compilation
from ..latents import conditions
from .hooks import Listener, is_style_aligned
from .networks import choose_layers
from .reference_pass import without_ip_adapter
from .trajectory import Trajectory

Mask = Bool[Tensor, "references height width"]
Map = Float[Tensor, "references height width"]
PLACES = 64  # a coarser layer no longer says where something is


def subject_mask(
    pipe, trajectory: Trajectory, subject: str | Sequence[str], *, layers: str | Sequence[str] | None = None
) -> Mask:
    """Where the subject of each reference is: the higher of two means of :func:`subject_map`.

    ``subject`` is a word of the references' prompts, such as "cat", or one for each of the references in
    ``trajectory``, which ``pipe`` runs again, without guidance. ``layers`` are words from the names of the
    cross-attention layers to look at; by default they are the coarsest with at least 8 x 8 places, which in SD 1.5 and
    SDXL are those of the bottleneck. The mask has the size of the latents; hand it
    to ``style_aligned`` as ``subject=``. Raises ``ValueError`` for a word that a prompt does not have.
    """
    return two_means(subject_map(pipe, trajectory, subject, layers=layers))


@torch.no_grad()
def subject_map(
    pipe, trajectory: Trajectory, subject: str | Sequence[str], *, layers: str | Sequence[str] | None = None
) -> Map:
    """The probability that each place gives to the subject's tokens, at the size of the latents.

    Its mean over heads, the ``layers``, and the steps of the ``trajectory``; the arguments are those of
    :func:`subject_mask`.
    """
    unet = _check(pipe, trajectory)
    words = [subject] * len(trajectory) if isinstance(subject, str) else list(subject)
    if len(words) != len(trajectory):
        raise ValueError(f"subject is one word or one per reference; got {len(words)} for {len(trajectory)}.")
    at = [subject_tokens(pipe.tokenizer, prompt, word) for prompt, word in zip(trajectory.prompts, words, strict=True)]
    layers_by_name = {n: m for n, m in unet.named_modules() if n.endswith("attn2") and hasattr(m, "processor")}
    names = list(layers_by_name) if layers is None else choose_layers(list(layers_by_name), layers)
    (height, width), found = trajectory.latents.shape[-2:], defaultdict(list)

    def see(probabilities: Float[Tensor, "references heads places tokens"]) -> None:
        places = probabilities.shape[2]
        rows, columns = token_grid(height, width, places)
        of_subject = torch.stack([p[..., tokens].sum(-1) for p, tokens in zip(probabilities.mean(1), at, strict=True)])
        grid = rearrange(of_subject, "refs (rows columns) -> refs 1 rows columns", rows=rows, columns=columns)
        sized = F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)[:, 0]
        found[places].append(sized.cpu())

    like = torch.empty((), dtype=unet.dtype, device=pipe._execution_device)
    texts, added = conditions(trajectory.embeddings, ("cond",), like)
    with without_ip_adapter(unet), watched([layers_by_name[name] for name in names], see):
        for latents, time in zip(trajectory.latents, trajectory.timesteps, strict=False):
            unet(latents.to(like), time.to(like.device), encoder_hidden_states=texts, added_cond_kwargs=added)
    enough = [places for places in found if places >= PLACES] or [max(found)]
    seen = found[min(enough)] if layers is None else [each for maps in found.values() for each in maps]
    return torch.stack(seen).mean(0)


def subject_tokens(tokenizer, prompt: str, subject: str) -> list[int]:
    """The positions of a subject's tokens among those of a prompt.

    Raises ``ValueError`` where the prompt, as far as the model reads it, does not have them.
    """
    whole = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    part = tokenizer(subject, add_special_tokens=False).input_ids
    starts = [i for i in range(len(whole) - len(part) + 1) if part and whole[i : i + len(part)] == part]
    if not starts:
        raise ValueError(f"subject is a word of the reference's prompt; {subject!r} is not in {prompt!r}.")
    return [start + i for start in starts for i in range(len(part))]


def two_means(values: Map) -> Mask:
    """Split the values of each map into two, each as close as can be to its own mean; True is the higher part.

    On a line the best split (k-means with two centres) is between neighbours in size, so all splits are tried. A map of
    one value has no subject.
    """
    flat = values.flatten(1).double()
    low_to_high = flat.sort(dim=1).values
    count = flat.shape[1]
    below = torch.arange(1, count)
    sums = low_to_high.cumsum(dim=1)
    low, high = sums[:, :-1], sums[:, -1:] - sums[:, :-1]
    between = low**2 / below + high**2 / (count - below)  # least spread within is most spread between
    split = between.argmax(dim=1, keepdim=True)
    return (flat > low_to_high.gather(1, split)).view(values.shape)


def key_scales(subject: Mask, scale: float, tokens: int) -> Float[Tensor, "references tokens 1"]:
    """What multiplies each key of a layer: ``scale`` inside the subject, 1 outside, between them on its edge."""
    height, width = subject.shape[-2:]
    covered = F.adaptive_avg_pool2d(subject[:, None].float(), token_grid(height, width, tokens))
    return rearrange(1 + (scale - 1) * covered, "refs 1 rows columns -> refs (rows columns) 1")


def token_grid(height: int, width: int, tokens: int) -> tuple[int, int]:
    """The height and width of a layer's tokens: those of the latents, halved until their product is right.

    >>> token_grid(64, 96, 384)
    (16, 24)
    """
    for halved in range(height.bit_length() + width.bit_length()):
        grid = math.ceil(height / 2**halved), math.ceil(width / 2**halved)
        if math.prod(grid) == tokens:
            return grid
    raise ValueError(f"A layer of {tokens} tokens is no halving of latents of {height} x {width}.")


@contextmanager
def watched(layers: Sequence[nn.Module], see: Callable[[Tensor], None]) -> Iterator[None]:
    """While the block is open, show the attention probabilities of ``layers`` to ``see``, as they come."""
    modes: list[Listener] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **how) -> Tensor:
        scores = query.float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
        see((scores if attn_mask is None else scores + attn_mask).softmax(-1))
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **how)

    def enter(layer: nn.Module, args: tuple) -> None:
        modes.append(Listener(layer, F.scaled_dot_product_attention, attend))
        modes[-1].__enter__()

    def leave(layer: nn.Module, args: tuple, output) -> None:
        mode = modes.pop()
        mode.__exit__(None, None, None)
        if output is not None and not mode.met:
            raise RuntimeError(
                "Cross-attention was not computed by PyTorch's scaled_dot_product_attention, so it cannot be seen; "
                "choose AttnProcessor2_0."
            )

    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [layer.register_forward_hook(leave, always_call=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        while modes:
            modes.pop().__exit__(None, None, None)


def check_subject(subject: Tensor, trajectory: Trajectory) -> Mask:
    """Return a mask given by the caller; raise ``ValueError`` unless it fits the references."""
    wanted = (len(trajectory), *trajectory.latents.shape[-2:])
    if tuple(subject.shape) != wanted or subject.dtype != torch.bool:
        raise ValueError(
            f"A subject's mask is boolean and as large as the references' latents, {wanted}; got {subject.dtype} of "
            f"{tuple(subject.shape)}."
        )
    return subject


def _check(pipe, trajectory: Trajectory) -> nn.Module:
    if getattr(pipe, "unet", None) is None or getattr(pipe, "tokenizer", None) is None:
        raise TypeError(f"subject_mask needs a pipeline with a U-Net and a tokenizer; got {type(pipe).__name__}.")
    if not isinstance(trajectory, Trajectory):
        raise TypeError(
            f"subject_mask looks at a trajectory, as ddim_invert returns it; got {type(trajectory).__name__}."
        )
    unet = without_compilation(pipe.unet)
    if is_style_aligned(unet):
        raise RuntimeError("Find the subject before the style_aligned block: inside it, images share attention.")
    trajectory.check(pipe)
    return unet
