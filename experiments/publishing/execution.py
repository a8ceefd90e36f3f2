"""Run notebooks from top to bottom, without ever waiting long for a reply that has already arrived.

python -m experiments.publishing.execution notebooks/*.ipynb    # -> build/notebooks/, with outputs and as HTML
"""

import argparse
import os
import sys
import time
from pathlib import Path
from queue import Empty

import nbformat
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets import Type

from context_diffusion.commands import Parser, run_command
from context_diffusion.files import ROOT, check_output_folder, written_whole

SLICE = 1.0  # seconds until a waiting client looks again
EXECUTED = ROOT / "build" / "notebooks"


class ImpatientChannel(AsyncZMQSocketChannel):
    """A kernel's channel that looks at its socket again at least once every ``SLICE`` seconds.

    zmq.asyncio can miss the wake-up of a message (zeromq/pyzmq#2173). The message is in the socket, the kernel is idle,
    and only the end of the timeout makes the client look: after ``timeout`` seconds, or never without one.
    """

    async def get_msg(self, timeout: float | None = None) -> dict:
        """Return the next message; raises ``queue.Empty`` after ``timeout`` seconds without one."""
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            left = max(0.0, end - time.monotonic())
            try:
                return await self.look(min(SLICE, left))
            except Empty:
                if left <= SLICE:
                    raise

    async def look(self, seconds: float) -> dict:
        """Wait once, for at most ``seconds``; raises ``queue.Empty``."""
        return await super().get_msg(seconds)


class ImpatientClient(AsyncKernelClient):
    """A kernel's client whose replies and outputs come through an ``ImpatientChannel`` each."""

    shell_channel_class = Type(ImpatientChannel)
    iopub_channel_class = Type(ImpatientChannel)


class Execution(NotebookClient):
    """nbclient's executor, waiting in short slices."""

    client_class = ImpatientClient

    def create_kernel_manager(self):
        """Make a manager whose clients are impatient."""
        manager = super().create_kernel_manager()
        manager.client_factory = self.client_class
        return manager


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: float = 900) -> nbformat.NotebookNode:
    """Run a notebook in place, in ``folder``, with this repository importable; a cell has ``timeout`` seconds.

    Raises nbclient's ``CellExecutionError`` with the traceback of the first cell that fails.
    """
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    environment["PYTHONPATH"] = str(ROOT)
    resources = {"metadata": {"path": str(folder)}}
    return Execution(notebook, timeout=timeout, kernel_name="python3", resources=resources).execute(env=environment)


def executed(path: Path) -> nbformat.NotebookNode:
    """Read a notebook and run it; prints the cell that fails, and raises ``RuntimeError`` for it."""
    try:
        return execute(nbformat.read(path, as_version=4), path.parent)
    except CellExecutionError as error:
        print(error)
        raise RuntimeError(f"{path.name} stops at a cell with {error.ename}: {error.evalue}") from error


def main() -> None:
    """Execute each notebook into ``build/notebooks/``, and write its page beside it."""
    from nbconvert import HTMLExporter

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=EXECUTED, metavar="FOLDER", help="default: build/notebooks")
    asked = parser.parse_args()
    check_output_folder(asked.out, "--out")
    for path in asked.notebooks:
        start = time.perf_counter()
        notebook = executed(path)
        page, _ = HTMLExporter().from_notebook_node(notebook)
        for name, text in {path.name: nbformat.writes(notebook), f"{path.stem}.html": page}.items():
            with written_whole(asked.out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        print(f"{path.name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    sys.exit(run_command(main))
