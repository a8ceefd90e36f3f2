"""A process that dies at a moment of its work: forked, so that it takes no time to start."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


def died(work: Callable[[], object], number: int, under_way: Callable[[], bool], moment: float) -> int:
    """Let a child do some ``work``, send it a signal ``moment`` seconds after it is ``under_way``; its exit status.

    The status is minus the number of a signal that ended it, 3 for ``KeyboardInterrupt``, 4 for another exception, or
    the number that the work returns.
    """
    child = multiprocessing.get_context("fork").Process(target=_quietly, args=(work,))
    child.start()
    deadline = time.monotonic() + 60
    while not under_way() and child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(moment)
    if child.is_alive():
        os.kill(child.pid, number)
    child.join(60)
    assert child.exitcode is not None, "it does not end"
    return child.exitcode


def moments(seed: int, count: int, longest: float) -> list[float]:
    """Random seconds to wait."""
    return [random.Random(f"{seed} {i}").uniform(0, longest) for i in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too, with its bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _quietly(work: Callable[[], object]) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        status = work()
    except KeyboardInterrupt:
        os._exit(3)
    except BaseException:
        os._exit(4)
    os._exit(status if isinstance(status, int) else 0)
