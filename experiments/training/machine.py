"""The machine that a run is on: its processes, its device, and its precision."""

from datetime import timedelta

import torch
from accelerate import PartialState

PATIENCE = timedelta(hours=2)  # the other processes wait while the first draws pictures or encodes them


def processes() -> PartialState:
    """Say which of the processes that `torchrun` started this is: ``is_main_process``, ``main_process_first()``."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def device() -> torch.device:
    """Name the GPU of this process, or the CPU where there is none."""
    return processes().device


def autocast(mixed_precision: str = "auto") -> torch.autocast:
    """Products in bf16 ("bf16"), in fp32 ("no"), or in whichever is faster here ("auto")."""
    enabled = mixed_precision == "bf16" or (mixed_precision == "auto" and bf16_pays())
    return torch.autocast(device().type, torch.bfloat16, enabled=enabled)


def bf16_pays() -> bool:
    """Whether bf16 products are faster than fp32 ones: on a GPU, and on a CPU with instructions of its own for them."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
