"""A process that dies at a moment of its work: forked, so that it takes no time to start."""

import gc
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


def died(work: Callable[[], object], number: int, under_way: Callable[[], bool], moment: float) -> int:
    """Let a child do some ``work``, send it a signal ``moment`` seconds after it is ``under_way``; its exit status.

    The status is minus the number of a signal that ended it, 3 for ``KeyboardInterrupt``, 4 for another exception, or
    the number that the work returns. What it says is printed once it has ended, for a test that fails to show.
    """
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed below, when the child has written into it
    child = multiprocessing.get_context("fork").Process(target=_quietly, args=(work, said))
    child.start()
    deadline = time.monotonic() + 60
    while not under_way() and child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(moment)
    if child.is_alive():
        os.kill(child.pid, number)
    child.join(60)
    assert child.exitcode is not None, "it does not end"
    with said:
        said.seek(0)
        print(f"exit status {child.exitcode}: {said.read()}")
    return child.exitcode


def moments(seed: int, count: int, longest: float) -> list[float]:
    """Random seconds to wait."""
    return [random.Random(f"{seed} {i}").uniform(0, longest) for i in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too, with its bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _quietly(work: Callable[[], object], said: TextIO) -> None:
    sys.stdout = sys.stderr = said
    gc.callbacks.clear()  # of hypothesis: what a signal raises in a callback of the collector is lost
    gc.freeze()
    try:
        status = work()
    except KeyboardInterrupt:
        status = 3
    except BaseException:
        traceback.print_exc()
        status = 4
    said.flush()
    os._exit(status if isinstance(status, int) else 0)
