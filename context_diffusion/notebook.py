"""A lesson's one setup call: seeds, quiet libraries, plot style and, on Colab, missing packages; and answer checks."""

import importlib.util
import logging
import numbers
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .checks import plain
from .files import ROOT
from .signatures import checked

if TYPE_CHECKING:
    import torch

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
    """Say whether the ``answer`` to an exercise is right and, if not, what is near, without telling the answer.

    Numbers, tensors and arrays are compared up to rounding, whatever their type or device; lists, tuples and dicts part
    by part; anything else by ``==``. ``None`` and ``...`` mean that nothing has been written yet. The ``hint`` follows
    a wrong answer. Solutions pass ``strict=True``: then anything but the right answer raises ``AssertionError``.

    >>> check(0.1 + 0.2, 0.3)
    Right.
    >>> check([2, 4], [1.0, 2.0])
    Not yet: right up to a constant factor.
    """
    fault = _fault(answer, expected)
    if fault and fault != UNWRITTEN:
        fault = f"Not yet: {fault}. {hint}".strip()
    if fault and strict:
        raise AssertionError(f"{fault} {hint}" if fault == UNWRITTEN else fault)
    print(fault or "Right.")


UNWRITTEN = "Not written yet."


def _fault(answer: object, expected: object) -> str:
    """What is wrong with an answer, "" if nothing; never what would be right."""

    if answer is None or answer is ...:
        return UNWRITTEN
    if isinstance(expected, Mapping):
        if not isinstance(answer, Mapping) or set(answer) != set(expected):
            return f"wanted is a dict with the keys {', '.join(map(str, expected))}; this is {_kind(answer)}"
        return _fault_of_parts([answer[key] for key in expected], list(expected.values()))
    if (numbers_wanted := _as_numbers(expected)) is not None:
        return _fault_of_numbers(answer, numbers_wanted)
    if isinstance(expected, (list, tuple)):
        if not isinstance(answer, (list, tuple)) or len(answer) != len(expected):
            return f"wanted is a list of {len(expected)}; this is {_kind(answer)}"
        return _fault_of_parts(answer, expected)
    answer = plain(answer)
    if isinstance(expected, str) and isinstance(answer, str):
        same = "".join(answer.lower().split()) == "".join(expected.lower().split())
        return "" if answer == expected else "right but for capitals or spaces" if same else "this text is another"
    if not isinstance(answer, type(expected)):
        return f"wanted is {_kind(expected)}; this is {_kind(answer)}"
    return "" if answer == expected else "this is another" if not isinstance(expected, bool) else "this does not hold"


def _fault_of_parts(answers: Sequence, expected: Sequence) -> str:
    faults = [_fault(*pair) for pair in zip(answers, expected, strict=True)]
    if UNWRITTEN in faults:
        return UNWRITTEN
    wrong = [f"part {number} of {len(faults)}: {fault}" for number, fault in enumerate(faults, 1) if fault]
    return wrong[0] if wrong else ""


def _fault_of_numbers(given: object, expected: "torch.Tensor") -> str:
    import torch

    wanted = _kind(expected)
    if isinstance(given, (list, tuple)) and any(part is None or part is ... for part in given):
        return UNWRITTEN
    if (answer := _as_numbers(given)) is None:
        return f"wanted is {wanted}; this is {_kind(given)}"
    expected = expected.double()
    if answer.is_complex():
        return f"wanted is {wanted}; this one is complex"
    if answer.shape != expected.shape:
        return f"wanted is {wanted}; this is {_kind(answer)}"
    answer = answer.double()
    if expected.isfinite().all() and not answer.isfinite().all():
        return "not every number is finite"

    def same(found: torch.Tensor) -> bool:
        return torch.allclose(found, expected, rtol=1e-4, atol=1e-5)

    if same(answer):
        return ""
    if same(-answer):
        return "right but for the sign"
    if answer.numel() == 1:
        near = abs(answer - expected) < 0.1 * abs(expected)
        return f"{'a little ' if near else ''}too {'large' if answer > expected else 'small'}"
    if answer.dim() == 2 and answer.shape[0] == answer.shape[1] and same(answer.T):
        return "right but for rows and columns, which are exchanged"
    if answer.any() and same(answer * (answer * expected).sum() / answer.square().sum()):
        return "right up to a constant factor"
    if same(answer - answer.mean() + expected.mean()):
        return "right up to a constant that is added"
    if torch.allclose(answer.flatten().sort().values, expected.flatten().sort().values, rtol=1e-4, atol=1e-5):
        return "the right numbers in another order"
    wrong = ~torch.isclose(answer, expected, rtol=1e-4, atol=1e-5)
    return f"the right shape, but {int(wrong.sum())} of {wrong.numel()} numbers are off"


def _as_numbers(value: object) -> "torch.Tensor | None":
    """A number, a list of numbers or of tensors, an array or a tensor, as a tensor; ``None`` where it is none."""
    import torch

    if isinstance(value, bool):
        return None
    try:
        if isinstance(value, (list, tuple)) and value and all(isinstance(part, torch.Tensor) for part in value):
            value = torch.stack([part.detach().cpu() for part in value])
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError, NotImplementedError):
        return None


def _kind(value: object) -> str:
    """Say what something is, not what it says: "a tensor of shape (2, 3)", "a list of 4", "a str"."""
    import numpy as np
    import torch

    if isinstance(value, (torch.Tensor, np.ndarray)):
        shape = tuple(value.shape)
        return f"a tensor of shape {shape}" if shape else "a number"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return "a number"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"
