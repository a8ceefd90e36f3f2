"""The repository as a package: one version, complete requirements, an editable installation or a clear refusal."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import clone_only
import context_diffusion as cd
from context_diffusion.notebook import COLAB_NEEDS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAMES = {"PIL": "pillow", "cv2": "opencv-python-headless", "skimage": "scikit-image"}  # import name -> package
OURS = {"context_diffusion", "experiments", "clone_only"} | {path.stem for path in (ROOT / "tests").glob("*.py")}
BY_OTHERS = {  # imported here, and required by what is listed
    "IPython": "ipykernel", "traitlets": "ipykernel", "zmq": "ipykernel", "jupyter_client": "ipykernel",
    "setuptools": "torch",
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
    found = subprocess.run([sys.executable, "-S", "-c", ask], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert Path(found.stdout.strip()) == made / "context_diffusion" / "__init__.py"


def test_a_type_checker_of_its_users_reads_the_package():
    assert (ROOT / "context_diffusion" / "py.typed").read_bytes() == b""
