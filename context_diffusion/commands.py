"""How every command line answers: one line on stderr and an exit status, never a traceback."""

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

# What a sentence of ours is built on.
MENDABLE = (ValueError, TypeError, OSError, RuntimeError, ImportError, FloatingPointError, Warning)
NOTHING_HALF = "nothing is half-written"
REPORT = "a fault of the program; please report it"


class Parser(argparse.ArgumentParser):
    """An argument parser that tells a wrong argument in one line, without the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        """Print the ``message`` and end with status 2."""
        self.exit(2, f"error: {in_one_line(message)} ({self.prog} --help explains)\n")


class Terminated(BaseException):
    """SIGTERM, as an exception: every ``finally`` on the way out does its work."""


def run_command(work: Callable[[], object]) -> int:
    """Do the ``work`` of a command line and return its exit status; whatever stops it is told in one line on stderr.

    0 is success (or the number that ``work`` returns), 2 what the user can mend, 1 a fault of the program, 130 Ctrl-C,
    143 SIGTERM, and 141 that nobody reads what is printed any more. Warnings are lines that begin with ``note:``.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no umlaut shows \xfc
    try:
        with warnings.catch_warnings(), _terminable():
            warnings.showwarning = lambda message, *_, **__: _tell("note", message)
            status = work()
            sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()
        return 141
    except MENDABLE as error:
        _tell("error", error)
        _close_stdout()
        return 2
    except KeyboardInterrupt as error:  # long work says where it stopped, and how it goes on
        _tell("interrupted", error if error.args else NOTHING_HALF)
        return 130
    except Terminated:
        _tell("terminated", NOTHING_HALF)
        return 143
    except MemoryError:
        _tell("error", "There is not enough memory; ask for fewer or smaller pictures.")
        return 2
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        _tell("error", f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno}: {REPORT})")
        return 1
    return status if isinstance(status, int) else 0


def answer_while_loading() -> None:
    """Let Ctrl-C be one line also in the seconds in which ``python -m`` imports what a command needs."""
    before = sys.excepthook

    def hook(kind, error, trace) -> None:
        if issubclass(kind, KeyboardInterrupt):
            _tell("interrupted", NOTHING_HALF)
        else:
            before(kind, error, trace)

    sys.excepthook = hook


def in_one_line(message: object) -> str:
    """Join the lines of a message, which a foreign library may have broken.

    >>> in_one_line("two" + chr(10) + "  lines")
    'two lines'
    """
    return " ".join(str(message).split()) or type(message).__name__


def _tell(what: str, message: object) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr may be full or closed as well
        print(f"{what}: {in_one_line(message)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated`, where nothing else is to be done about it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(*_) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _close_stdout() -> None:
    """Keep Python from failing once more, at its end, with what could not be printed."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
