"""Run many trivial notebooks on a busy machine, and count the messages whose wake-up was missed.

    python -m experiments.benchmarks.missed_polls    # 200 notebooks, two at a time, beside two busy processes
    python -m experiments.benchmarks.missed_polls --notebooks 20 --workers 1 --busy 0

A missed wake-up is a message that had been in the socket for ``STALE`` seconds when a client that was waiting for it
all the while looked again because its slice was over. Without slices, each is a wait for the whole timeout of a cell.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time

import nbformat
from traitlets import Type

from context_diffusion.checks import check_count
from context_diffusion.commands import Parser, run_command

from ..publishing.execution import SLICE, Execution, ImpatientChannel, ImpatientClient

STALE = 0.1  # seconds
CELLS = ("a = 1", "print(a + 1)", "import time; time.sleep(0.003)", "for i in range(5): print(i, flush=True)") * 25
seen = {"messages": 0, "missed": 0, "longest": 0.0}  # of this process


class CountingChannel(ImpatientChannel):
    """An ``ImpatientChannel`` that notes how late each message was taken out."""

    async def look(self, seconds: float) -> dict:
        """Count the messages that were taken out by the end of a slice alone."""
        start = time.time()
        message = await super().look(seconds)
        now = time.time()
        age = now - message["header"]["date"].timestamp()
        late = min(age, now - start)
        seen["messages"] += 1
        if now - start >= seconds > 0 and late > STALE:
            seen["missed"] += 1
        seen["longest"] = max(seen["longest"], late)
        return message


class CountingClient(ImpatientClient):
    """A client whose channels count."""

    shell_channel_class = Type(CountingChannel)
    iopub_channel_class = Type(CountingChannel)


class CountingExecution(Execution):
    """An ``Execution`` whose client counts."""

    client_class = CountingClient


def run_one(number: int) -> dict[str, float]:
    """Run one trivial notebook in a kernel of its own; what was counted, and the seconds it took."""
    seen.update(messages=0, missed=0, longest=0.0)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        CountingExecution(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    assert notebook.cells[1].outputs[0].text == "2\n" and len(notebook.cells[3].outputs) >= 1
    return {**seen, "seconds": time.monotonic() - start}


def spin() -> None:
    """Keep a core busy."""
    while True:
        sum(range(10_000))


def main() -> None:
    """Run the notebooks and print what was counted."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notebooks", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2, help="notebooks at a time")
    parser.add_argument("--busy", type=int, default=2, help="processes that keep the cores busy beside them")
    asked = parser.parse_args()
    for name, least in (("notebooks", 1), ("workers", 1), ("busy", 0)):
        check_count(f"--{name}", getattr(asked, name), 10**5, low=least)
    context = multiprocessing.get_context("spawn")
    spinners = [context.Process(target=spin, daemon=True) for _ in range(asked.busy)]
    for process in spinners:
        process.start()
    try:
        with context.Pool(asked.workers) as pool:
            counts = list(pool.imap_unordered(run_one, range(asked.notebooks)))
    finally:
        for process in spinners:
            process.terminate()
    messages, missed = (int(sum(one[key] for one in counts)) for key in ("messages", "missed"))
    longest, slowest = (max(one[key] for one in counts) for key in ("longest", "seconds"))
    print(f"{len(counts)} notebooks, {messages} messages, {missed} missed wake-ups.")
    print(f"The latest message waited {longest:.2f} s, where a slice is {SLICE:g} s.")
    print(f"The slowest notebook took {slowest:.1f} s.")


if __name__ == "__main__":
    sys.exit(run_command(main))
