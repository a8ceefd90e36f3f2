"""Make or mend the environment that the Makefile uses; it needs nothing but Python.

python set_up.py .venv -r requirements.txt     # whatever follows the folder is given to pip

Where there is no NVIDIA GPU, Linux gets PyTorch's CPU build: PyPI has only the one that brings CUDA along.
"""

import re
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST = (3, 11)
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
PINNED = ROOT / "constraints-cpu.txt"  # the torch of a machine without a GPU
PIP_WORKS = "import pip._internal.cli.main"
PATIENCE = ["--timeout", "30", "--retries", "2"]  # of pip, where a host is silent; PIP_ARGS may say otherwise
SIZES = {
    True: "6 GB, most of it CUDA",
    False: "1.8 GB, of which 0.5 GB are downloaded; 2.2 GB with what the tests need",
}


def has_gpu() -> bool:
    """Say whether the system has an NVIDIA GPU: a device of its driver, or one that ``nvidia-smi`` lists."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def answers(address: str, seconds: float = 6.0) -> bool:
    """Say whether a web server answers in time; looking up its name counts, which no timeout of a socket covers."""
    heard: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(address, timeout=seconds):
                heard.append(True)
        except OSError:
            heard.append(False)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds + 1)
    return heard == [True]


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def works(python: Path, code: str) -> bool:
    """Say whether an interpreter runs some code without an error."""
    try:
        return subprocess.run([python, "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def make_environment(folder: Path) -> None:
    """Make a virtual environment; one that was left half made is mended, or else made anew.

    Exits with one sentence if the folder holds other things, or the interpreter is too old.
    """
    python = python_of(folder)
    recent = f"import sys; sys.exit(sys.version_info < {OLDEST})"
    if works(python, PIP_WORKS):
        if not works(python, recent):
            sys.exit(f"{folder} was made with a Python older than 3.11: remove it, or give VENV another name.")
        return
    if sys.version_info < OLDEST:
        sys.exit("Python 3.11 or newer is needed: name one, as in `make PYTHON=python3.12`.")
    if works(python, "import ensurepip; ensurepip.bootstrap(upgrade=True)") and works(python, PIP_WORKS):
        return
    ours = (folder / "pyvenv.cfg").is_file() or python.is_symlink()
    if folder.exists() and not ours and any(folder.iterdir()):
        sys.exit(f"{folder} is not an environment, and it is not empty: give VENV another name.")
    if folder.exists():
        print(f"{folder} was left half made: making it anew.", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)


def pip(folder: Path, *arguments: str, quiet: bool = False) -> bool:
    """Run ``pip install`` in an environment; return whether it succeeded."""
    command = [python_of(folder), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PATIENCE]
    return subprocess.run([*command, *arguments], stderr=subprocess.DEVNULL if quiet else None).returncode == 0


def without_files(arguments: list[str]) -> list[str]:
    """Keep pip's arguments without the requirement files among them."""
    return [one for before, one in zip(["", *arguments], arguments, strict=False) if "-r" not in (before, one)]


def install_cpu_torch(folder: Path, arguments: list[str]) -> None:
    """Install PyTorch's CPU build, if it is to be had; otherwise say what will come in its place."""
    pinned = re.search(r"^torch==([\w.]+)", PINNED.read_text(encoding="utf-8"), re.MULTILINE)[1]
    if works(python_of(folder), f"import importlib.metadata as m; assert m.version('torch') == '{pinned}+cpu'"):
        return
    index = ["--extra-index-url", CPU_BUILDS] if answers(f"{CPU_BUILDS}/torch/") else []
    if pip(folder, f"torch=={pinned}+cpu", *index, *without_files(arguments), quiet=True):
        return
    why = "has no build for this machine" if index else "does not answer"
    print(f"{CPU_BUILDS} {why}: torch comes from PyPI, with CUDA ({SIZES[True]}); it runs on the CPU.", flush=True)


def remember_clone(folder: Path) -> None:
    """Make this clone importable from every folder, unless another clone with the same environment is so already."""
    ask = [python_of(folder), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    site = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    link = Path(site) / "context_diffusion.pth"
    owner = Path(link.read_text(encoding="utf-8").strip()) if link.is_file() else ROOT
    if owner != ROOT and (owner / "context_diffusion" / "__init__.py").is_file():
        print(
            f"{folder} serves {owner} too: commands run in this clone and its lessons use this clone, "
            f"and anything else that imports context_diffusion gets the other; for one of your own, set VENV.",
            flush=True,
        )
    else:
        link.write_text(f"{ROOT}\n", encoding="utf-8")


def main(folder: Path, arguments: list[str]) -> None:
    """Make the environment in ``folder``, and install what pip's ``arguments`` ask for."""
    make_environment(folder)
    gpu = has_gpu()
    linux_cpu = not gpu and sys.platform == "linux"
    known = works(python_of(folder), "import torch")
    if not known:
        print(f"Setting up {folder} (once; {SIZES[gpu]}) ...", flush=True)
    if linux_cpu:
        install_cpu_torch(folder, arguments)
    held = [] if gpu else ["-c", str(PINNED)]
    check = "import torch, diffusers, transformers, ipywidgets"
    if not pip(folder, *arguments, *held):
        sys.exit(
            "pip could not install everything (see above); once that is mended, the same command goes on from here."
        )
    if not works(python_of(folder), check):
        print(f"Something in {folder} is incomplete: installing all of it again.", flush=True)
        pip(folder, "--force-reinstall", *arguments, *held)
        if not works(python_of(folder), check):
            sys.exit(f"`{check}` still fails in {folder}: remove that folder, and run the same command again.")
    remember_clone(folder)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
