"""A lesson's one setup call: seeds, quiet libraries, plot style and, on Colab, missing packages; and answer checks."""

import importlib.util
import logging
import os
import random
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from .files import ROOT
from .signatures import checked

COLAB_NEEDS = {  # import name -> requirement for pip; torch and numpy are Colab's own and stay as they are
    "diffusers": "diffusers>=0.39,<0.44",
    "transformers": "transformers>=5.15,<6",
    "accelerate": "accelerate>=1.14",
    "safetensors": "safetensors>=0.5",
    "einops": "einops>=0.8",
    "jaxtyping": "jaxtyping>=0.2.36",
    "cv2": "opencv-python-headless>=4.10",
    "peft": "peft>=0.14",
    "httpx": "httpx>=0.27",
    "soundfile": "soundfile>=0.12",
    "ipywidgets": "ipywidgets>=7.7",
}


@dataclass(frozen=True)
class Setup:
    """What a lesson needs to know about the machine it runs on."""

    device: str
    threads: int
    seed: int
    data: Path  # the folder with query/, context/ and checkpoints/


@checked
def setup(seed: int = 0) -> Setup:
    """Prepare a lesson and say where it runs; call it once, in the first cell.

    It seeds Python, NumPy and torch, keeps the libraries' chatter off the page, and leaves the number of threads to
    ``OMP_NUM_THREADS``. On Colab it installs what is missing and touches neither torch nor NumPy.
    """
    install_missing()
    for library in ("diffusers", "transformers"):  # imported first: no environment variable hides their loading bars
        importlib.import_module(f"{library}.utils.logging")
    quiet()
    import numpy as np
    import torch

    from .checkpoints import find_device
    from .plotting import use_style

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for libraries that still draw from the global state
    torch.manual_seed(seed)
    use_style()
    here = Setup(str(find_device()), torch.get_num_threads(), seed, ROOT / "data")
    print(f"torch {torch.__version__} on {here.device}, {here.threads} thread(s), seed {seed}")
    return here


def quiet() -> None:
    """Hide loading bars, and notes that no reader can act on, from a page or a terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in ("diffusers", "transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    for library in ("diffusers", "transformers"):  # if already imported, they no longer read the environment
        module = sys.modules.get(f"{library}.utils.logging")
        if module is not None:
            module.set_verbosity_error()
            module.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers|huggingface_hub)\b.*")
    warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks.*")
    warnings.filterwarnings("ignore", message=".*IProgress not found.*")


def install_missing() -> list[str]:
    """On Colab, install the missing packages; elsewhere raise ``ModuleNotFoundError`` that says how to get them."""
    missing = [wanted for name, wanted in COLAB_NEEDS.items() if importlib.util.find_spec(name) is None]
    if "google.colab" not in sys.modules:  # Colab's kernel loads it before the first cell
        missing += [name for name in ("torch", "matplotlib") if importlib.util.find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(
                f"Not installed for this kernel: {', '.join(missing)}. Run `make lab` in {ROOT}, "
                f"or `{sys.executable} -m pip install -r requirements.txt` there."
            )
    if not missing:
        return []
    print(f"Installing {', '.join(missing)} ...")
    keep = [f"{name}=={_version(name)}" for name in ("torch", "numpy") if _version(name)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing, *keep], check=True)
    importlib.invalidate_caches()
    return missing


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


@checked
def check(answer: object, expected: object, hint: str = "", *, strict: bool = False) -> None:
    """Say whether the ``answer`` to an exercise is right and, if not, what to look at.

    Tensors, arrays and floats are compared by ``torch.testing.assert_close``, up to rounding; anything else by ``==``.
    ``None`` and ``...`` mean that nothing has been written yet. Solutions pass ``strict=True``: then anything but the
    right answer raises ``AssertionError``.

    >>> check(0.1 + 0.2, 0.3)
    Right.
    """
    import numpy as np
    import torch

    if answer is None or answer is ...:
        wrong = "Not written yet."
    elif isinstance(expected, (torch.Tensor, np.ndarray, float)):
        try:
            answer, expected = (torch.as_tensor(value).double() for value in (answer, expected))
            torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
            wrong = ""
        except (AssertionError, TypeError, ValueError, RuntimeError) as error:
            wrong = f"Not yet: {str(error).strip().splitlines()[0]}"
    else:
        wrong = "" if answer == expected else f"Not yet: expected {expected!r}, got {answer!r}."
    if wrong and strict:
        raise AssertionError(f"{wrong} {hint}".strip())
    print(f"{wrong} {hint if answer is not None and answer is not ... else ''}".strip() if wrong else "Right.")
