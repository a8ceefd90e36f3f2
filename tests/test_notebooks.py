"""Every lesson and every solution runs top to bottom without a word on stderr, and reads as a lesson should."""

import asyncio
import os
import re
import signal
import time
from pathlib import Path
from queue import Empty
from statistics import median

import nbformat
import pytest
import zmq.asyncio
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.session import Session

from experiments.publishing.execution import SLICE, ImpatientChannel, execute

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(path for path in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
LESSONS = [path for path in NOTEBOOKS if path.parent == FOLDER]
FORBIDDEN = {
    r"\.cuda\(": "a device written into a lesson",
    r"/content|/home/|/Users/|[A-Z]:\\\\": "an absolute path",
    r"^\s*[!%]\s*(pip|conda|apt)": "an installation outside setup",
    r"https?://[^\s\"')]*": "the network",
}

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(FOLDER)))
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.name)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def unwelcome(output: nbformat.NotebookNode) -> str | None:
    """What a reader should not have to see: a traceback, or anything on stderr."""
    if output.output_type == "error":
        return "\n".join(output.traceback)
    return output.text if output.output_type == "stream" and output.name == "stderr" else None


@pytest.mark.lesson
@each
def test_it_runs_without_an_error_or_a_warning(path):
    notebook = read(path)
    execute(notebook, path.parent)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert unwelcome(output) is None, f"after\n{cell.source}\n\n{unwelcome(output)}"


@each
def test_it_is_stripped(path):
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@each
def test_its_code_goes_nowhere_it_should_not(path):
    for source in code_cells(read(path))[1:]:  # the first is everywhere the same: tests/test_colab.py
        for pattern, what in FORBIDDEN.items():
            assert not re.search(pattern, source, re.MULTILINE), f"{what}: {source}"


@each_lesson
def test_its_rhythm_is_a_lessons(path):
    notebook = read(path)
    lengths = sorted(len(source.strip().splitlines()) for source in code_cells(notebook))
    assert median(lengths) <= 6
    assert sum(length <= 25 for length in lengths) >= 0.9 * len(lengths) and lengths[-1] <= 40
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert 2 * len(prose) >= len(notebook.cells) - 1  # the first cell is no part of the lesson
    assert prose[0].source.startswith("# ") and notebook.cells[0].cell_type == "markdown"


@each_lesson
def test_its_name_has_a_number_of_its_own(path):
    assert re.fullmatch(r"\d\d_[a-z0-9]+(_[a-z0-9]+)*\.ipynb", path.name)
    assert [other.name[:2] for other in LESSONS].count(path.name[:2]) == 1


@each_lesson
def test_pictures_it_shows_are_there(path):
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for name in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]*src=[\"']([^\"']+)", text):
        target = next(part for part in name if part)
        assert target.startswith("http") or (path.parent / target).is_file(), f"{target} is not in the repository"


@pytest.mark.parametrize(
    ("source", "expected"),
    [("1 / 0", "ZeroDivisionError"), ("import warnings; warnings.warn('look')", "look"), ("print(1)", None)],
)
def test_the_check_sees_errors_and_warnings(tmp_path, source, expected):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    try:
        execute(notebook, tmp_path)
    except Exception as error:
        assert expected is not None and expected in str(error)
    found = [unwelcome(output) for output in notebook.cells[0].outputs]
    assert (expected is None and found == [None]) or expected in "".join(filter(None, found))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_stops_a_run_ends_its_kernel_and_is_told_as_ever(tmp_path, number):
    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    source = (
        f"import os, time; open('pid', 'w').write(str(os.getpid()));os.kill(os.getppid(), {number:d}); time.sleep(60)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    before = signal.signal(number, stop)
    try:
        with pytest.raises(Stopped):
            execute(notebook, tmp_path)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_lesson_shows_each_figure_once_and_in_colour(tmp_path):
    source = "from context_diffusion import notebook, plotting\nnotebook.quiet()\nplotting.lines({'a': [1, 2]})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    execute(notebook, tmp_path)
    pictures = [output for output in notebook.cells[0].outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == len(notebook.cells[0].outputs) == 1


class SleepySocket(zmq.asyncio.Socket):
    """A socket whose every wake-up is missed: messages arrive, and nobody is told."""

    def _handle_events(self, fd=0, events=0):
        pass


async def wait_for_message(channel_class: type[AsyncZMQSocketChannel], timeout: float | None, send: bool) -> float:
    """Seconds until the channel gives a message out that was sent 0.1 s after it began to wait."""
    context, session = zmq.asyncio.Context(), Session()
    receiver, sender = SleepySocket(context, zmq.PAIR), context.socket(zmq.PAIR)
    try:
        sender.bind(f"inproc://{channel_class.__name__}")
        receiver.connect(f"inproc://{channel_class.__name__}")
        start = time.monotonic()
        waiting = asyncio.ensure_future(channel_class(receiver, session).get_msg(timeout))
        await asyncio.sleep(0.1)
        if send:
            session.send(zmq.Socket.shadow(sender.underlying), "status", {"execution_state": "idle"})
        assert (await waiting)["content"] == {"execution_state": "idle"}
        return time.monotonic() - start
    finally:
        for socket in (receiver, sender):
            socket.close(linger=0)
        context.term()


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_missed_wake_up_costs_a_slice_and_not_the_timeout(timeout):
    assert 0.1 < asyncio.run(wait_for_message(ImpatientChannel, timeout, send=True)) < 20 * SLICE


def test_the_plain_channel_waits_for_its_timeout():
    assert asyncio.run(wait_for_message(AsyncZMQSocketChannel, 2.5, send=True)) >= 2.5


@pytest.mark.parametrize("timeout", [0.0, 0.3, 1.5 * SLICE])
def test_without_a_message_the_timeout_counts_as_ever(timeout):
    start = time.monotonic()
    with pytest.raises(Empty):
        asyncio.run(wait_for_message(ImpatientChannel, timeout, send=False))
    assert time.monotonic() - start >= timeout
