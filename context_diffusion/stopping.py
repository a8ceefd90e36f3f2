"""Long work that is told to stop, dies, or diverges: what it was doing is finished, and the same call goes on."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMPATIENT = 1.0  # seconds after which a second Ctrl-C is no slip of the finger


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM in a list instead of obeying them, so that a step can be finished and saved.

    Another SIGINT, more than a second after the first, raises ``KeyboardInterrupt`` at once.
    """
    noted: list[int] = []
    first = math.inf

    def note(number: int, frame: object) -> None:
        nonlocal first
        if number == signal.SIGINT and time.monotonic() > first + IMPATIENT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            first = min(first, time.monotonic())
        noted.append(number)

    listens = threading.current_thread() is threading.main_thread()  # Python allows handlers nowhere else
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM) if listens}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def taken_up(file: Path) -> Iterator[None]:
    """Read a checkpoint in the block; whatever that raises becomes a ``ValueError`` that names the ``file``.

    A file that is cut, empty, of another kind or of another model raises anything from inside torch.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{file} is damaged or of other work: move it away to begin anew.") from error


def check_step(what: str, step: int, *, loss: float, gradient: float, lower: str = "learning_rate") -> None:
    """Raise ``FloatingPointError`` for a loss or a length of the gradient that is not finite.

    To be called before the optimizer's step, so that neither reaches the weights. ``lower`` names what is too high.
    """
    for name, value in (("loss", loss), ("length of the gradient", gradient)):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{what}: the {name} is {value} at step {step}; lower {lower}. The last checkpoint is as it was."
            )
