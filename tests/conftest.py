"""Settings of every test: no network, one thread, and every jaxtyping annotation checked at run time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("context_diffusion", "typecheck.checked")  # before any test imports the package
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_random_state():
    """Give each test the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)
