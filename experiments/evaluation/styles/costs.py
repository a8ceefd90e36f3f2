"""What a method costs: seconds of the processor, and the most memory that its tensors take at any one time."""

import time
from collections.abc import Callable

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def clocked(work: Callable[[], object]) -> float:
    """Seconds that a piece of work takes: of the processor, which does not count those of others, or with a GPU all."""
    now = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = now()
    work()
    return now() - start


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside the block, on every device; ``peak`` is the most at one time.

    It is exact where the memory of a process is not: nothing of what was there before, of other threads or of what an
    allocator keeps counts. Nor does the scratch space inside a single operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        for tensor in tensors(found):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given:  # a view, or changed in place: nothing new
                self.alive[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {place: one for place, one in self.alive.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return found


def tensors(values: object) -> list[torch.Tensor]:
    """All tensors in a structure of lists and dictionaries."""
    return [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)]


def peak_memory(work: Callable[[], object]) -> int:
    """Bytes of the tensors that are alive at one time, at most, of those that a piece of work makes."""
    with Memory() as memory:
        work()
    return memory.peak
