"""The repository as a package: one version, complete requirements, an editable installation or a clear refusal."""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

import clone_only
import context_diffusion as cd
import set_up
from context_diffusion.notebook import COLAB_NEEDS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAMES = {"PIL": "pillow", "cv2": "opencv-python-headless", "skimage": "scikit-image"}  # import name -> package
OURS = {"context_diffusion", "experiments", "clone_only", "set_up"} | {
    path.stem for path in (ROOT / "tests").glob("*.py")
}
BY_OTHERS = {  # imported here, and required by what is listed
    "IPython": "ipykernel", "traitlets": "ipykernel", "zmq": "ipykernel", "jupyter_client": "ipykernel",
    "setuptools": "torch", "httpcore": "httpx", "pygments": "sphinx", "websocket": "websocket-client",
    "myst_parser": "myst-nb", "jupyter_server": "jupyterlab",
}  # fmt: skip


def required(*files: str) -> dict[str, str]:
    """The packages that requirement files list, by name in lower case, each with its whole line."""
    lines = [line.split("#")[0].strip() for file in files for line in (ROOT / file).read_text().splitlines()]
    return {re.match(r"[\w-]+", line)[0].lower().replace("_", "-"): line for line in lines if line}


def imported(*folders: str) -> set[str]:
    """The packages of others that any file in some folders imports, by import name."""
    found = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return found - OURS - set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("folders", "files"),
    [
        (["context_diffusion"], ["requirements.txt"]),
        (["context_diffusion", "experiments", "tests"], ["requirements.txt", "requirements-dev.txt"]),
    ],
)
def test_every_package_that_is_imported_is_required(folders, files):
    needed = {NAMES.get(name, BY_OTHERS.get(name, name)) for name in imported(*folders) - {"google"}}
    missing = {name for name in needed if name.lower().replace("_", "-") not in required(*files)}
    assert not missing, f"{', '.join(sorted(missing))}: imported in {folders}, and not in {' or '.join(files)}"


def test_colab_is_given_the_versions_that_everybody_is_given():
    lines = set(required("requirements.txt").values())
    assert set(COLAB_NEEDS.values()) <= lines
    assert not {"torch", "numpy", "jupyterlab", "ipykernel"} & {
        re.match(r"[\w-]+", one)[0] for one in COLAB_NEEDS.values()
    }


def test_the_version_has_one_source():
    assert re.fullmatch(r"\d+\.\d+\.\d+", cd.__version__)
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "context_diffusion.__version__"}
    assert "version" not in PROJECT["project"] and "version" in PROJECT["project"]["dynamic"]
    assert f"\nversion: {cd.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{cd.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "hook", ["get_requires_for_build_wheel", "get_requires_for_build_sdist", "build_wheel", "build_sdist"]
)
def test_anything_but_an_editable_installation_is_refused_in_one_sentence(hook):
    call = f"import {PROJECT['build-system']['build-backend']} as backend; backend.{hook}('.')"
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and done.stderr == f"{clone_only.SENTENCE}\n"
    assert "pip install -e ." in clone_only.SENTENCE


def test_pip_is_told_before_it_resolves_a_dependency():
    assert not hasattr(clone_only, "prepare_metadata_for_build_wheel")  # the fallback is build_wheel, which refuses


def test_an_editable_installation_finds_the_clone(tmp_path):
    build = "import sys, clone_only; print(clone_only.build_editable(sys.argv[1]))"
    made = tmp_path / "clone"
    made.mkdir()
    for name in ("clone_only.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        (made / name).write_bytes((ROOT / name).read_bytes())
    for package in ("context_diffusion", "experiments"):
        (made / package).mkdir()
        (made / package / "__init__.py").write_bytes((ROOT / package / "__init__.py").read_bytes())
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=made, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"context_diffusion-{cd.__version__}-*editable*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    look = "import context_diffusion, experiments; print(context_diffusion.__file__)"
    ask = f"import site; site.addsitedir({str(site)!r}); {look}"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = {"cwd": tmp_path, "env": env, "check": True, "capture_output": True, "text": True}
    found = subprocess.run([sys.executable, "-S", "-c", ask], **run)
    assert Path(found.stdout.strip()) == made / "context_diffusion" / "__init__.py"


def test_a_type_checker_of_its_users_reads_the_package():
    assert (ROOT / "context_diffusion" / "py.typed").read_bytes() == b""


# --- set_up.py -----------------------------------------------------------------------------------------------


def test_a_host_that_takes_a_call_and_never_answers_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not set_up.answers(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.5)
        assert time.monotonic() - start < 10
    assert not set_up.answers("http://127.0.0.1:9/")


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What set_up asks pip to install, in an environment in which nothing is installed and nothing fails."""
    made = []
    monkeypatch.setattr(set_up, "make_environment", lambda folder: None)
    monkeypatch.setattr(set_up, "remember_clone", lambda folder: None)
    monkeypatch.setattr(set_up, "works", lambda python, code: "importlib.metadata" not in code)
    monkeypatch.setattr(set_up, "pip", lambda folder, *given, quiet=False: made.append(given) or True)
    return made


def test_with_a_gpu_torch_comes_from_pypi(calls, monkeypatch):
    monkeypatch.setattr(set_up, "has_gpu", lambda: True)
    set_up.main(Path("e"), ["-r", "requirements.txt"])
    assert calls == [("-r", "requirements.txt")]


def test_without_one_linux_gets_the_cpu_build_first(calls, monkeypatch):
    monkeypatch.setattr(set_up, "has_gpu", lambda: False)
    monkeypatch.setattr(set_up, "answers", lambda address: True)
    monkeypatch.setattr(sys, "platform", "linux")
    set_up.main(Path("e"), ["--proxy", "p", "-r", "requirements.txt"])
    first, second = calls
    assert re.fullmatch(r"torch==[\d.]+\+cpu", first[0]) and set_up.CPU_BUILDS in first
    assert first[-2:] == ("--proxy", "p") and "requirements.txt" not in first
    assert second == ("--proxy", "p", "-r", "requirements.txt", "-c", str(set_up.PINNED))


def test_where_it_is_not_to_be_had_a_word_says_what_comes_instead(calls, monkeypatch, capsys):
    monkeypatch.setattr(set_up, "answers", lambda address: False)
    monkeypatch.setattr(set_up, "pip", lambda folder, *given, quiet=False: calls.append(given) or not quiet)
    set_up.install_cpu_torch(Path("e"), [])
    assert set_up.CPU_BUILDS not in calls[0]
    assert "does not answer: torch comes from PyPI, with CUDA" in capsys.readouterr().out


def test_pip_has_patience_and_the_callers_word_is_the_last(monkeypatch):
    ran = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(set_up.subprocess, "run", lambda command, stderr: ran.append(command) or done)
    assert set_up.pip(Path("e"), "--timeout", "99", "x")
    (command,) = ran
    assert command.index("30") < command.index("99") and "--retries" in command


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A virtual environment with pip, and a link beside it that is its name for one test."""
    folder = tmp_path_factory.mktemp("env") / "good"
    set_up.make_environment(folder)
    return folder


def test_half_made_environments_are_mended(environment, tmp_path, capsys):
    python = set_up.python_of(environment)
    assert set_up.works(python, set_up.PIP_WORKS)
    set_up.make_environment(environment)
    assert capsys.readouterr().out == ""  # a good one is left alone
    shutil.rmtree(next(environment.rglob("pip/_internal")))  # as if pip had been unpacked by half
    set_up.make_environment(environment)
    assert "half made" in capsys.readouterr().out and set_up.works(python, set_up.PIP_WORKS)
    for name in environment.glob("bin/python*"):
        name.unlink()
    python.symlink_to(tmp_path / "a-python-that-was-removed")
    set_up.make_environment(environment)
    assert set_up.works(python, set_up.PIP_WORKS)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit, match="is not an environment, and it is not empty: give VENV another name"):
        set_up.make_environment(tmp_path)
    assert (tmp_path / "thesis.tex").is_file()


def test_an_environment_of_two_clones_says_so_and_serves_the_first(tmp_path, monkeypatch, capsys):
    site = tmp_path / "site"
    site.mkdir()
    told = subprocess.CompletedProcess([], 0, stdout=f"{site}\n")
    monkeypatch.setattr(set_up.subprocess, "run", lambda *_, **__: told)
    first, second = tmp_path / "first", tmp_path / "second"
    for clone in (first, second):
        (clone / "context_diffusion").mkdir(parents=True)
        (clone / "context_diffusion" / "__init__.py").touch()
    for clone in (first, second):
        monkeypatch.setattr(set_up, "ROOT", clone)
        set_up.remember_clone(tmp_path)
    assert (site / "context_diffusion.pth").read_text() == f"{first}\n"
    assert f"serves {first} too" in capsys.readouterr().out
    shutil.rmtree(first)
    set_up.remember_clone(tmp_path)
    assert (site / "context_diffusion.pth").read_text() == f"{second}\n" and capsys.readouterr().out == ""
