"""A device that is only a wall: its tensors hold CPU tensors and, as on a GPU, mix with no tensor outside of it.

``stand_in_device.plug_in()`` makes it the accelerator of this process, so everything that looks for a GPU finds it. It
stands for a GPU's rules alone: not for its speed, its memory, its precisions or its rounding.
"""

import functools

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
ATEN = torch.ops.aten
CARRIERS = (ATEN.copy_.default, ATEN._to_copy.default)  # what moves between devices
INDEXING = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default)
JOINING = (ATEN.cat.default, ATEN.stack.default)  # where not even a single number may come from the CPU


class Held(torch.Tensor):
    """A tensor of the stand-in: torch sees its shape and device, and ``held``, on the CPU, has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Held":
        """Wrap a CPU tensor without copying it."""
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        with torch.inference_mode(held.is_inference()):  # a view of an ordinary tensor is an ordinary tensor
            wrapper = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=torch.device(NAME, 0), **layout)
        wrapper.held = held
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        """Run an operation that takes tensors of the stand-in."""
        return run(operation, *args, **(kwargs or {}))

    def numpy(self, *, force: bool = False):
        """Refuse, as every device but the CPU does, unless forced."""
        if not force:
            raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return self.held.detach().numpy()

    def tolist(self) -> list:
        """Copy the numbers out, which any device does."""
        return self.held.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the storage of the numbers, for those who compare its address."""
        return self.held.untyped_storage()

    def __format__(self, form: str) -> str:
        """Format a single number, as torch does for its own class alone."""
        return object.__format__(self, form) if self.dim() else format(self.item(), form)

    def __repr__(self, *, tensor_contents=None) -> str:
        """Show the numbers and the device."""
        return f"{self.held!r} on {NAME}"


@functools.cache
def plug_in() -> tuple[torch.library.Library, ...]:
    """Make the stand-in the accelerator of this process, for good: torch has room for one, and never lets it go."""
    _setup_privateuseone_for_python_backend(NAME)
    everything, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(run, "PrivateUse1")  # what makes a tensor and takes none; the rest comes by __torch_dispatch__
    own.impl("_copy_from", lambda source, target, *_: run(ATEN.copy_.default, target, source), "PrivateUse1")
    return everything, own  # registrations live as long as these


def run(operation, *args, **kwargs):
    """Check that one operation's tensors live together, run it on what they hold, and wrap what comes out."""
    if torch.is_inference_mode_enabled() and (found := operation.decompose(*args, **kwargs)) is not NotImplemented:
        return found  # into the operations that arrive here in every other mode
    leaves, structure = tree_flatten((args, kwargs))
    check_company(operation, args, [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
    named = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    ours = any(device.type == NAME for device in named) if named else any(isinstance(leaf, Held) for leaf in leaves)
    if ours and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' ({operation})")
    if operation is ATEN._fused_sdp_choice.default:
        return 0  # attention by its equation: the fused kernels are the CPU's own
    inside = [_inside(leaf) for leaf in leaves]
    wrappers = {id(held): leaf for leaf, held in zip(leaves, inside, strict=True) if isinstance(leaf, Held)}
    args, kwargs = tree_unflatten(inside, structure)

    def outside(value: object) -> object:
        if not isinstance(value, torch.Tensor) or not ours or any(value is leaf for leaf in leaves):
            return value
        if id(value) not in wrappers:
            return Held(value)
        wrapper = wrappers[id(value)]  # written in place
        if (wrapper.shape, wrapper.stride()) != (value.shape, value.stride()):
            wrapper.data = Held(value)  # and changed in shape: torch must see it
        return wrapper

    return tree_map(outside, operation(*args, **kwargs))


def check_company(operation, args: tuple, tensors: list[torch.Tensor]) -> None:
    """Refuse CPU tensors beside the stand-in's, as CUDA does; single numbers and indices may come along."""
    if operation in INDEXING and isinstance(args[0], Held):
        tensors = [args[0], *args[2:3]]
    strangers = [tensor for tensor in tensors if not isinstance(tensor, Held)]
    if operation in CARRIERS or len(strangers) in (0, len(tensors)):
        return
    written = tensors[0] if operation._schema.is_mutable else None
    if any(tensor.dim() or tensor is written or operation in JOINING for tensor in strangers):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! "
            f"({operation})"
        )


def _inside(leaf: object) -> object:
    """What an argument is on the CPU."""
    if isinstance(leaf, torch.device):
        return torch.device("cpu") if leaf.type == NAME else leaf
    return leaf.held if isinstance(leaf, Held) else leaf
