"""One part of a model out of its folder: whole, finite, and without running code that lies beside it.

transformers and diffusers fill what a file lacks with random numbers and go on. Here whatever is missing, left over, of
another shape, or not finite is refused, in one sentence that names the file or the part.
"""

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

from torch import nn

from .checks import is_finite, reason, shown

NOT_LEARNED = ("position_ids", "num_batches_tracked")  # counted, not learned; saved by some versions and not by others
SETTINGS = ("config.json", "model_index.json", "index.json", "tokenizer.json", "special_tokens_map.json", "vocab.json")
WORDS = ("merges.txt", "vocab.txt")
LAYERS = 1000  # more of them in a config are a damaged number: to build them would fill the memory
PATIENCE = 1.5  # seconds that the hub has to answer


def load_whole(kind: type[Any], location: str, *, weights: bool, unused: tuple[str, ...] = (), **options):
    """Call ``kind.from_pretrained(location)``, refuse what is not whole, and never run code from the folder.

    ``weights`` says whether it is a network; weights whose names hold one of ``unused`` may be missing or left over.
    Raises ``ValueError`` for a damaged folder, ``OSError`` for hub weights that are neither here nor to be had.
    """
    local, where = is_local(location), str(Path(location, options.get("subfolder", "")))
    if local:
        check_files(Path(where))
        _check_class(kind, Path(where))
    if weights:
        options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if not kind.__module__.startswith(("diffusers", __package__)):
        options["trust_remote_code"] = False
    try:
        with quiet("transformers", "diffusers"), within_reach(location):
            made = kind.from_pretrained(location, **options)
    except Exception as error:  # the one place around foreign loaders: a damaged folder makes them raise anything
        if isinstance(error, OSError) and not local:
            raise
        raise ValueError(f"{where} does not load as {kind.__name__}: {reason(error)}.") from error
    if not weights:
        _check_vocabulary(made, where) if local else None
        return made
    network, info = made
    check_weights(network, info, where, unused)
    return network


def is_local(location: str) -> bool:
    """Whether a location is a folder here, or would be one of a folder here, and no repository id."""
    return os.path.isabs(location) or os.path.isdir(location) or os.path.isdir(os.path.dirname(location))


def check_files(folder: Path) -> None:
    """Refuse a missing folder, and a settings or weights file in it that is empty, cut, or a git-lfs pointer."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing: it is a part of a model; save or copy it again.")
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name.endswith(SETTINGS):
            read_settings(path)
        elif path.is_file() and path.suffix == ".safetensors":
            check_safetensors(path)
        elif path.is_file() and path.name in WORDS:
            _check_there(path)


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model folder; raise ``ValueError`` unless it holds an object of names and values."""
    _check_there(path)
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({reason(error)}): save or copy it again.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold names and values, {{...}}; it holds a {type(settings).__name__}.")
    for name, number in _numbers(settings) if path.name == "config.json" else ():
        if "layers" in name and number > LAYERS:
            raise ValueError(f"{path} asks for {name}={number:g}; no more than {LAYERS} are built.")
    return settings


def check_safetensors(path: Path) -> None:
    """Refuse a weights file whose header or length is wrong; nothing of the weights is read."""
    from safetensors import safe_open

    _check_there(path)
    try:
        with safe_open(path, framework="pt"):
            pass
    except Exception as error:  # SafetensorError, OSError, or what the decoder raises on a broken header
        raise ValueError(f"{path} is no whole safetensors file ({reason(error)}): save or copy it again.") from error


def check_weights(network: nn.Module, info: Mapping[str, Iterable], where: str, unused: tuple[str, ...] = ()) -> None:
    """Refuse a network whose weights and config do not fit, by what its loader tells, or that holds NaN or infinity."""

    def counted(key: str) -> list[str]:
        names = (entry if isinstance(entry, str) else _misfit(entry) for entry in info.get(key, ()))
        return sorted(name for name in names if not any(part in name for part in (*NOT_LEARNED, *unused)))

    for key, problem in (
        ("mismatched_keys", "have another shape than its config.json says"),
        ("missing_keys", "are missing"),
        ("unexpected_keys", "have no place in it"),
    ):
        if names := counted(key):
            some = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
            raise ValueError(f"{where} is no whole {type(network).__name__}: weights {problem}: {some}.")
    for name, weight in network.state_dict().items():
        if weight.is_meta:
            raise ValueError(f"{where} is no whole {type(network).__name__}: weights are missing: {name}.")
        if weight.is_floating_point() and not is_finite(weight):
            raise ValueError(f"{where} holds NaN or infinity in {name}: train, save or copy it again.")


@contextmanager
def within_reach(location: str) -> Iterator[None]:
    """Let the hub's client use the network only for what is no folder here, and only if the hub answers."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = is_local(location) or not hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_answers() -> bool:
    """Say whether the hub can be reached, within :data:`PATIENCE`; its own client would try for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    return _answers(constants.ENDPOINT, int(time.monotonic() // 30))


@lru_cache(maxsize=1)
def _answers(address: str, half_minute: int) -> bool:
    """Ask once, and know it for as long as ``half_minute`` is the same number."""
    import httpx

    answer: Queue[bool] = Queue()

    def ask() -> None:
        try:
            httpx.head(address, timeout=PATIENCE)
            answer.put(True)
        except Exception:  # no network, no name server, a proxy that refuses: no answer, whatever the reason
            answer.put(False)

    Thread(target=ask, daemon=True).start()  # looking up a name has no time limit of its own
    try:
        return answer.get(timeout=PATIENCE)
    except Empty:
        return False


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Silence the warnings of libraries' loggers, where what they warn of is checked or told in a sentence."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_there(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(24)
    if not start:
        raise ValueError(f"{path} is empty: save or copy it again.")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` where it came from.")


def _check_class(kind: type[Any], folder: Path) -> None:
    """Refuse a config that says it is of another class; diffusers and transformers go on with what they were told."""
    for name in ("config.json", "scheduler_config.json"):
        if not (folder / name).is_file():
            continue
        settings = read_settings(folder / name)
        own, said = kind.__name__, settings.get("_class_name")
        if name == "scheduler_config.json":  # schedulers are swapped for each other, and may read each other's config
            import diffusers

            wrong = not isinstance(getattr(diffusers, str(said), None), type)
        elif kind.__module__.startswith("transformers"):
            own = getattr(getattr(kind, "config_class", None), "model_type", "")
            said = settings.get("model_type", own)
            wrong = not (own or str(said)).startswith(str(said))  # "clip" holds a "clip_text_model"
        else:
            wrong = said not in (own, None)
        if wrong:
            raise ValueError(f"{folder / name} is of another class: {shown(said)}, where {own} is wanted.")


def _check_vocabulary(made: object, where: str) -> None:
    """Refuse a tokenizer made of nothing: without its files transformers builds one that knows no words."""
    names = set(getattr(getattr(made, "tokenizer", made), "vocab_files_names", {}).values())
    if names and not any(os.path.isfile(os.path.join(where, name)) for name in names):
        raise ValueError(f"{where} is no tokenizer: it holds none of {', '.join(sorted(names))}.")


def _misfit(entry: tuple) -> str:
    name, *shapes = entry
    return f"{name} {' instead of '.join(str(tuple(shape)) for shape in shapes)}"


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number in settings, with its name, also those further inside."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        values = value if isinstance(value, list) else [value]
        yield from ((name, number) for number in values if isinstance(number, int | float))
