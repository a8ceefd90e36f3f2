import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from context_diffusion.commands import Parser, answer_while_loading, run_command

ROOT = Path(__file__).parent.parent


def raising(error: BaseException):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("steps is 1 or more,\n   not 0."), 2, "error: steps is 1 or more, not 0."),
        (FileNotFoundError("There is no a.png."), 2, "error: There is no a.png."),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device"),
        (RuntimeError(""), 2, "error: RuntimeError"),
        (MemoryError(), 2, "error: There is not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted: nothing is half-written"),
        (KeyError("unet"), 1, "error: KeyError: 'unet' ("),
    ],
)
def test_whatever_stops_a_command_is_one_line_and_a_status(capsys, error, status, line):
    assert run_command(raising(error)) == status
    printed = capsys.readouterr()
    assert printed.err.startswith(line) and printed.err.count("\n") == 1 and not printed.out


def test_success_is_0_and_a_warning_is_a_note(capsys):
    def work():
        warnings.warn("The prompt\nis cut.", stacklevel=1)
        print("done")

    assert run_command(work) == 0
    assert capsys.readouterr() == ("done\n", "note: The prompt is cut.\n")


def test_a_wrong_argument_is_one_line(capsys):
    parser = Parser("command")
    parser.add_argument("--steps", type=int)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--steps", "many"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: argument --steps") and error.count("\n") == 1


def command(work: str, **options) -> subprocess.Popen:
    code = f"import sys, time\nfrom context_diffusion.commands import run_command\ndef work():\n {work}\n"
    code += "sys.exit(run_command(work))"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **options)


@pytest.mark.parametrize(
    ("end", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "inter")]
)
def test_a_signal_lets_every_finally_do_its_work(end, status, word):
    process = command("try: print('at work', flush=True); time.sleep(60)\n finally: print('tidied')")
    assert process.stdout.readline() == "at work\n"
    process.send_signal(end)
    out, error = process.communicate()
    assert process.returncode == status and out == "tidied\n"
    assert error.startswith(word) and error.count("\n") == 1


def test_a_reader_that_leaves_is_no_error():
    process = command("time.sleep(0.3); print('x' * 10**6); print('y')")
    process.stdout.close()
    assert process.wait() == 141 and process.stderr.read() == ""
    process.stderr.close()


def test_an_output_that_is_full_is_one_line():
    with open("/dev/full", "w") as full:
        process = command("print('x')", stdout=full)
        error = process.communicate()[1]
    assert process.returncode == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_a_terminal_without_umlauts_shows_them_escaped():
    process = command(r"print('\u00fc')", env={"PYTHONIOENCODING": "ascii", "PATH": ""})
    assert process.communicate() == ("\\xfc\n", "") and process.returncode == 0


def test_an_interrupt_while_a_command_is_being_loaded_is_one_line(monkeypatch, capsys):
    told = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: told.append(error))
    answer_while_loading()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "interrupted: nothing is half-written\n" and not told
    sys.excepthook(KeyError, KeyError("a"), None)
    assert len(told) == 1  # a fault stays one


@pytest.mark.parametrize("module", ["context_diffusion", "experiments"])
def test_commands_of_the_repository_answer_from_the_first_import(module):
    code = f"import sys; sys.argv = ['-m']; import {module}; print(sys.excepthook.__module__, 'torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "context_diffusion.commands False\n"
