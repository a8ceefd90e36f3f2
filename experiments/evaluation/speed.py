"""Seconds and memory: one picture, the whole command, and the import. Seconds belong to a machine, so it is named."""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from context_diffusion.cli import DEMO_CONTEXTS, DEMO_PROMPT, DEMO_QUERY
from context_diffusion.files import ROOT
from context_diffusion.images import load_image
from context_diffusion.metrics import estimate_mean

from .bench import Bench
from .report import Report

IMPORT = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
MEASURE = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
print(time.perf_counter() - start, usage.ru_maxrss, process.returncode)
"""


def run(bench: Bench) -> Report:
    """Time one 128x128 picture as ``make demo`` draws it, the demo from a shell, and ``import context_diffusion``."""
    import torch

    bench.need("controlnet-canny")
    model, repeats = bench.model, bench.count(5, 2)
    query, contexts = load_image(DEMO_QUERY), [load_image(path) for path in DEMO_CONTEXTS]
    model(query, contexts, DEMO_PROMPT, seed=0, progress=False)  # the first call loads the ControlNet
    report = Report(notes=[f"{cpu_name()}, {os.cpu_count()} cores, torch on {torch.get_num_threads()} thread(s)"])
    seconds = []
    for seed in range(repeats):
        start = time.perf_counter()
        model(query, contexts, DEMO_PROMPT, seed=seed, progress=False)
        seconds.append(time.perf_counter() - start)
    report.add(f"seconds for one picture, {model.model.steps} steps", estimate_mean(seconds).within(0))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "context_diffusion", "demo", "--quiet", "--out", f"{folder}/demo.png"]
        walls, peaks = zip(*(run_apart(command) for _ in range(bench.count(3, 1))), strict=True)
    report.add("seconds for the whole demo command", estimate_mean(walls).within(0))
    report.add("peak memory of the demo command, MB", estimate_mean(peaks).within(0))
    package, model_class = "import context_diffusion", "from context_diffusion import ContextDiffusion"
    report.add(f"seconds for {package}", estimate_mean(import_seconds(package, repeats)).within(0), at_most=0.5)
    report.add(f"seconds for {model_class}", estimate_mean(import_seconds(model_class, bench.count(3, 1))).within(0))
    return report


def import_seconds(statement: str, repeats: int) -> list[float]:
    """Time an import in fresh interpreters."""
    fresh = [sys.executable, "-c", IMPORT.format(statement)]
    return [float(subprocess.run(fresh, cwd=ROOT, check=True, stdout=-1).stdout) for _ in range(repeats)]


def run_apart(command: Sequence[str]) -> tuple[float, float]:
    """Run a command to its end; return its seconds and its peak resident memory in megabytes (Unix only).

    A small interpreter starts it, because on Linux a process inherits the peak of the one that forked it.
    """
    between = [sys.executable, "-c", MEASURE, *command]
    done = subprocess.run(between, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak, status = done.stdout.split()[-3:]
    if int(status):
        raise RuntimeError(f"{' '.join(command)} ended with status {status}.")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return float(seconds), int(peak) * unit / 1e6


def cpu_name() -> str:
    """Name the processor as precisely as the system does."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
