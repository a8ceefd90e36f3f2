"""How style alignment listens to a network: PyTorch's forward hooks, and one state for each call.

A hook before the network's forward pass begins a :class:`Call`; one after it ends the call. Around each shared layer,
:class:`Listener` catches the layer's ``scaled_dot_product_attention``, whatever processor, fused projection or LoRA has
made the query, key and value that come to it. Nothing is replaced: not a forward, not a processor.

Which blocks are open and which call is running are context variables. So another thread, which has a context of its
own, meets the hooks but draws as if there were none, and so does a copy of the network.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

from .positions import Placement

# What a layer keeps of the references, (branches, references, ...): attention its key and value and the moments of its
# query; a group norm its moments.
Kept = tuple[Tensor, ...]
BY_OTHER_MEANS = {"AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor"}  # the same attention, in other ways


class ReferenceDone(Exception):
    """The references have passed their last shared layer: the rest of the pass would be thrown away."""


@dataclass
class Call:
    """One call of an aligned network: what it is doing now, and what its layers keep of the references.

    "plain" is a call that is not aligned; "reference" is one that runs the references, whose keys and values are kept;
    "targets" is one whose images see what was kept. The rows are ``branches`` times as many as the images; ``names``
    are those of the branches. In a transformer ``grid`` are the rows and columns of patches of the images that run,
    ``frames`` where each begins on axis 0, if that differs, and ``placement`` says where the references lie.
    """

    names: tuple[str, ...]
    phase: Literal["plain", "reference", "targets"] = "plain"
    kept: dict[str, Kept] = field(default_factory=dict)
    last_layer: str = ""
    listeners: list["Listener"] = field(default_factory=list)
    grid: tuple[int, int] | None = None
    frames: Tensor | None = None
    placement: Placement | None = None

    @property
    def branches(self) -> int:
        """The number of branches of guidance."""
        return len(self.names)

    def keep(self, layer: str, *tensors: Tensor) -> None:
        """Keep something of the references; end their pass after the last layer."""
        self.kept[layer] = tensors
        if layer == self.last_layer:
            raise ReferenceDone

    def listen(self, listener: "Listener") -> None:
        """Let a listener hear the layer that is about to run."""
        listener.__enter__()
        self.listeners.append(listener)

    def abandon(self) -> None:
        """Take out what an interrupt has left behind: PyTorch runs no hooks after a ``KeyboardInterrupt``."""
        while self.listeners:
            self.listeners.pop().__exit__()


OPEN: ContextVar[tuple["Hooks", ...]] = ContextVar("the style_aligned blocks that are open here", default=())
RUNNING: ContextVar[Call | None] = ContextVar("the call of an aligned network that is running here", default=None)


def is_style_aligned(network: nn.Module) -> bool:
    """Whether a ``style_aligned`` block is open on this network, here: in this thread or task."""
    return any(each.network is network for each in OPEN.get())


class Listener(TorchFunctionMode):
    """While a layer runs, hand its first call of ``function`` to ``act``, which takes the same arguments.

    A layer's first attention is that to its own sequence; an IP-Adapter's second one is none of ours. What the function
    is given is what the layer computes with, wherever its weights are kept.
    """

    def __init__(self, layer: nn.Module, function: Callable, act: Callable[..., Tensor]):
        super().__init__()
        self.layer, self.function, self.act, self.met = layer, function, act, False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Called for every function of torch in the layer."""
        if function is not self.function or self.met or not is_running(self.layer):
            return function(*args, **(kwargs or {}))
        self.met = True
        return self.act(*args, **(kwargs or {}))

    def __exit__(self, *error) -> None:
        """Leave the stack of modes, wherever in it an interrupt has left this one."""
        above = []
        while (top := _pop_mode()) is not self:
            above.append(top)
        for mode in reversed(above):
            _push_mode(mode)


def is_running(layer: nn.Module) -> bool:
    """Whether this is asked from within a call of ``layer``; after an interrupt its listener may outlive the call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is nn.Module._call_impl.__code__:
            local = frame.f_locals
            module = local["self"]
            if isinstance(local, dict):  # a copy before Python 3.13, and kept: it would hold on to the arguments
                local.clear()
            if module is layer:
                return True
        frame = frame.f_back
    return False


_compiling = threading.Lock()
_eager_blocks: list[Any] = []  # one entry for each open block; the first holds the stance that all share


@contextmanager
def without_compiled_code() -> Iterator[None]:
    """Run compiled networks eagerly: code that was compiled before a block does not meet the block's hooks.

    The stance of PyTorch's compiler is one for all threads, so the first block to open takes it and the last to close
    gives it back.
    """
    with _compiling:
        _eager_blocks.append(None if _eager_blocks else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _compiling:
            stance = _eager_blocks[0]
            _eager_blocks.pop()
            if not _eager_blocks:
                stance.__exit__(None, None, None)


class Hooks:
    """Hooks on a network and its modules, for as long as a block is open; they act only where it is open."""

    def __init__(self, network: nn.Module):
        self.network, self.thread = network, threading.get_ident()
        self._handles: list = []

    def open(self) -> None:
        """Let the hooks act in this context."""
        OPEN.set((*OPEN.get(), self))

    def close(self) -> None:
        """Take every hook off, and end what an interrupt has left running."""
        OPEN.set(tuple(each for each in OPEN.get() if each is not self))
        while self._handles:
            self._handles.pop().remove()
        if (call := RUNNING.get()) is not None:
            call.abandon()
            RUNNING.set(None)

    def before(self, module: nn.Module, act: Callable[[nn.Module, tuple, dict], Any]) -> None:
        """Call ``act(module, args, kwargs)`` before each forward pass of ``module``."""
        self._handles.append(module.register_forward_pre_hook(Hook(self, act), with_kwargs=True))

    def after(self, module: nn.Module, act: Callable[[nn.Module, tuple, Any], Any], always: bool = False) -> None:
        """Call ``act(module, args, output)`` after each forward pass; ``always`` also if it raised."""
        self._handles.append(module.register_forward_hook(Hook(self, act), always_call=always))

    def act_here(self) -> bool:
        """Whether the block is open in this context; raises ``RuntimeError`` where that is not clear."""
        if self in OPEN.get():
            return True
        if threading.get_ident() == self.thread:
            raise RuntimeError(
                "A style_aligned block was opened on this network in another context (another notebook cell or task); "
                "open it and draw in one place, and leave it before drawing elsewhere in the same thread."
            )
        return False


class Hook:
    """A hook that acts where its block is open. Copied or pickled along with a network, it does nothing."""

    def __init__(self, hooks: Hooks, act: Callable):
        self.hooks, self.act = hooks, act

    def __call__(self, *given):
        """As PyTorch calls hooks."""
        return self.act(*given) if self.hooks.act_here() else None

    def __reduce__(self):
        return (NoHook, ())


class NoHook:
    """What a hook is in a copy of its network."""

    def __call__(self, *given) -> None:
        """Do nothing."""


def running_call() -> Call:
    """The call that is running here; raises ``RuntimeError`` for a layer that is called by itself."""
    call = RUNNING.get()
    if call is None:
        raise RuntimeError(
            "A layer of a style-aligned network was called outside a call of the whole network (its forward called "
            "directly, one block alone, or gradient checkpointing), so nothing says what it is to share; call the "
            "network itself, or leave the style_aligned block."
        )
    return call


def check_gradients(network: nn.Module) -> None:
    """Raise ``RuntimeError`` where a block of the network would be run again outside the call, in the backward pass."""
    if torch.is_grad_enabled() and getattr(network, "is_gradient_checkpointing", False):
        raise RuntimeError(
            "Gradient checkpointing runs layers again in the backward pass, where nothing is shared; call "
            "disable_gradient_checkpointing() on the network before the style_aligned block."
        )


def check_layer(name: str, module: nn.Module, processors: frozenset[str], joint: bool) -> None:
    """Raise ``ValueError`` for a layer whose attention cannot be shared."""
    kind = type(module.processor).__name__
    if kind not in processors | BY_OTHER_MEANS:
        raise ValueError(f"Layer {name} already has a processor of its own ({kind}); remove it before aligning styles.")
    extras = () if joint else ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross")
    extra = next((extra for extra in extras if getattr(module, extra, None) is not None), None)
    if extra is not None:
        raise ValueError(
            f"Layer {name} has a {extra}, which style alignment does not support; SD 1.x, 2.x and SDXL have none."
        )


def by_branch(rows: Float[Tensor, "rows heads tokens dim"], branches: int) -> Tensor:
    """Rows of heads as (branches, images, tokens, channels), a view where the heads were split from channels."""
    return rearrange(
        rows, "(branches images) heads tokens dim -> branches images tokens (heads dim)", branches=branches
    )


def as_rows(features: Float[Tensor, "branches images tokens channels"], heads: int) -> Tensor:
    """The reverse of :func:`by_branch`."""
    return rearrange(features, "branches images tokens (heads dim) -> (branches images) heads tokens dim", heads=heads)
