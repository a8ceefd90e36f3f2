"""Run notebooks from top to bottom, without ever waiting long for a reply that has already arrived."""

import os
import time
from pathlib import Path
from queue import Empty

import nbformat
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets import Type

from context_diffusion.files import ROOT

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


def executed(path: Path, *more: str) -> nbformat.NotebookNode:
    """Read a notebook and run it, with ``more`` cells of code at its end.

    Prints the cell that fails, and raises ``RuntimeError`` for it.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in more]
    try:
        return execute(notebook, path.parent)
    except CellExecutionError as error:
        print(error)
        raise RuntimeError(f"{path.name} stops at a cell with {error.ename}: {error.evalue}") from error
