"""Run notebooks from top to bottom, without ever waiting long for a reply that has already arrived."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty

import nbformat
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from traitlets import Type

from context_diffusion.files import ROOT

SLICE = 1.0  # seconds until a waiting client looks again
STOPS = (signal.SIGINT, signal.SIGTERM)
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
    """nbclient's executor, waiting in short slices; what stops it ends the kernel before anything else is done."""

    client_class = ImpatientClient
    stopped_by: signal.Signals | None = None

    def create_kernel_manager(self):
        """Make a manager whose clients are impatient."""
        manager = super().create_kernel_manager()
        manager.client_factory = self.client_class
        return manager

    async def async_start_new_kernel(self, **options) -> None:
        """Start the kernel; a signal now cancels the run, where nbclient takes the kernel from under it."""
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            self.stopped_by = number
            for task in asyncio.all_tasks(loop):  # the run, and what watches its kernel
                task.cancel()

        for number in STOPS:
            loop.add_signal_handler(number, stop, number)
        await super().async_start_new_kernel(**options)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Give Ctrl-C and SIGTERM the handlers back that they had before: nbclient leaves the default ones."""
    handlers = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: float = 900) -> nbformat.NotebookNode:
    """Run a notebook in place, in ``folder``, with this repository importable; a cell has ``timeout`` seconds.

    Raises nbclient's ``CellExecutionError`` with the traceback of the first cell that fails. Runs in the main thread.
    """
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    environment["PYTHONPATH"] = str(ROOT)
    resources = {"metadata": {"path": str(folder)}}
    run = Execution(notebook, timeout=timeout, kernel_name="python3", resources=resources)
    try:
        with handlers_kept():
            return run.execute(env=environment)
    except (asyncio.CancelledError, DeadKernelError):  # a cancelled cell looks like a dead kernel to nbclient
        if run.stopped_by is not None:
            signal.raise_signal(run.stopped_by)  # for whoever is told of it here: Ctrl-C is KeyboardInterrupt
        raise


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
