"""A method of one's own, named on the command line: ``--method module:name`` or ``--method path/to/file.py:name``.

It is called like every other (:mod:`.methods`), with the same seed before each task; what it returns is checked, and so
is that it leaves the pipeline as it found it, because the next row draws with it.
"""

import hashlib
import importlib
import importlib.util
import inspect
import random
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

from context_diffusion.checks import hint, reason, shown
from context_diffusion.latents import picture_size

from .methods import METHODS, Method, Row
from .tasks import Task


def load_methods(words: Sequence[str]) -> dict[str, Row]:
    """Find the methods that were named, as rows; raises what teaches before any model is loaded."""
    found: dict[str, Row] = {}
    for word in words:
        name, row = load_method(word)
        if name in found or name in METHODS:
            raise ValueError(f"There is a method {name!r} already; give the attribute `name` of {word} another text.")
        found[name] = row
    return found


def load_method(word: str) -> tuple[str, Row]:
    """Import ``module:name`` or ``file.py:name``; its row is called as its attribute ``name`` says, else as it is.

    Its pictures are drawn anew when the file changes that it is in; other files that this one imports do not count.
    """
    where, _, name = word.rpartition(":")
    if not where or not name:
        raise ValueError(f"--method is MODULE:NAME or FILE.py:NAME; got {word!r}.")
    module = import_from(where)
    known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if not hasattr(module, name):
        raise ValueError(f"{where} has no {name!r}{hint(name, known)}")
    method = getattr(module, name)
    if not callable(method):
        raise TypeError(f"A method is called with (pipe, task, **sampling); {word} is {shown(method)}.")
    check_signature(method, word)
    title = getattr(method, "name", name)
    if not isinstance(title, str) or not title.strip():
        raise TypeError(f"The name of a method is a text; that of {word} is {shown(title)}.")
    file = Path(getattr(module, "__file__", None) or "")
    about = [title, hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else where]
    return title, Row(guarded(title, method), about)


def check_signature(method: Method, word: str) -> None:
    """Refuse what cannot be called as a method is; raises ``TypeError``. What has no signature, in C, is believed."""
    try:
        signature = inspect.signature(method)
    except ValueError:
        return
    try:
        signature.bind(None, None, num_inference_steps=1, guidance_scale=1.0)
    except TypeError as error:
        raise TypeError(
            "A method is called with (pipe, task, **sampling), where sampling holds num_inference_steps and "
            f"guidance_scale; {word} takes {signature}: {reason(error)}."
        ) from None


def import_from(where: str) -> ModuleType:
    """Import a module by its name, or a file; raises ``FileNotFoundError`` or ``ImportError`` in one sentence."""
    path = Path(where)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise FileNotFoundError(f"--method: there is no file {where}.")
    try:
        if not is_file:
            return importlib.import_module(where)
        sys.path.insert(0, str(path.resolve().parent))  # for what it imports from its own folder
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            raise FileNotFoundError(f"--method: there is no module {where!r} here; a file ends in .py.") from None
        raise ImportError(f"{where} imports {error.name!r}, which is not installed here.") from error
    except (Exception, SystemExit) as error:  # other people's code: told in their file and line
        raise ImportError(f"{where} cannot be imported: {told(error)}") from error


def guarded(name: str, method: Method) -> Method:
    """The method, told by its name where it fails, and held to leaving the pipeline as it was."""

    def draw(pipe, task: Task, **sampling) -> list[Image.Image]:
        before = state(pipe)
        try:
            found = method(pipe, task, **sampling)
        except (Exception, SystemExit) as error:  # other people's code: told in their file and line
            raise RuntimeError(f"The method {name!r} failed: {told(error)}") from error
        changed = [part for part, one in state(pipe).items() if one != before.get(part)]
        if changed:
            raise RuntimeError(
                f"The method {name!r} left the {changed[0]} of the pipeline changed, and the next row draws with it; "
                "put back what was there, in a `finally`."
            )
        return found

    return draw


def told(error: BaseException) -> str:
    """Say in one line what went wrong, and where; a syntax error says the latter itself."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if isinstance(error, SyntaxError) else f" ({where.filename}, line {where.lineno})"
    return f"{type(error).__name__}: {reason(error)}{place}"


def state(pipe) -> dict[str, object]:
    """What a method must leave alone: each part, and of networks the weights, the processors and the hooks."""
    found: dict[str, object] = {}
    for name, part in pipe.components.items():
        found[name] = id(part)
        if isinstance(part, torch.nn.Module):
            weights = [(key, id(weight), weight._version) for key, weight in part.named_parameters()]
            modules = list(part.modules())
            hooks = [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in modules]
            found[name] = (
                weights,
                hooks,
                [id(one) for one in modules],
                [id(getattr(one, "processor", None)) for one in modules],
            )
    return found


def seeded(task: Task) -> None:
    """Seed all that draws random numbers without being told from where."""
    random.seed(task.seeds[0])
    np.random.seed(task.seeds[0] % 2**32)  # noqa: NPY002  what other people's code may use
    torch.manual_seed(task.seeds[0])


def check_pictures(found: object, name: str, task: Task, pipe) -> list[Image.Image]:
    """Refuse what is not one picture of each prompt, all of the pipeline's size."""
    rule = f"A method returns a list with one PIL picture of each of the {len(task.prompts)} prompts; {name!r} returned"
    if not isinstance(found, list | tuple):
        raise TypeError(f"{rule} {shown(found)}.")
    if len(found) != len(task.prompts):
        raise ValueError(f"{rule} {len(found)}.")
    for picture in found:
        if not isinstance(picture, Image.Image):
            raise TypeError(f"{rule} {shown(picture)} among them.")
    size = picture_size(pipe, None, None) if hasattr(pipe, "unet") else found[0].size
    for picture in found:
        if picture.size != size:
            raise ValueError(f"Pictures of this model have {size[0]}x{size[1]} pixels; {name!r} returned one of "
                             f"{picture.width}x{picture.height}.")  # fmt: skip
    return [picture.convert("RGB") for picture in found]
