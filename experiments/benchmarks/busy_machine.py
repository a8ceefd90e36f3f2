"""Draw a picture on every core, alone and beside one busy process, for several lengths of the spin before a sleep.

    python -m experiments.benchmarks.busy_machine

PyTorch's threads wait for each other hundreds of times in a step. One that waits spins, so that it goes on at once; on
a core that another program wants as well, it spins away the time of the thread that it waits for. GOMP_SPINCOUNT is how
often it looks before it sleeps; ``context_diffusion`` sets it where nobody has.
"""

import argparse
import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator

from context_diffusion.checks import check_count
from context_diffusion.commands import Parser, run_command

SPINS = ("300000", "100000", "30000", "10000", "3000", "1000")  # the first is GNU's default
DRAW = """
import sys, time
import context_diffusion as cd
pipe = cd.load_pipeline()
pipe.set_progress_bar_config(disable=True)
draw = lambda steps: pipe("a boat", num_inference_steps=steps, generator=cd.generators(0, 1))
draw(2)
start = time.perf_counter()
draw(int(sys.argv[1]))
print((time.perf_counter() - start) / int(sys.argv[1]))
"""


def seconds_a_step(spins: str, steps: int) -> float:
    """Draw in a process of its own, and return the seconds of one step."""
    environment = os.environ | {"GOMP_SPINCOUNT": spins}
    command = [sys.executable, "-c", DRAW, str(steps)]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep as many cores busy while the block runs."""
    running = [multiprocessing.Process(target=count, daemon=True) for _ in range(processes)]
    for one in running:
        one.start()
    try:
        yield
    finally:
        for one in running:
            one.kill()


def count() -> None:
    """Use one core up."""
    while True:
        pass


def main(arguments: list[str] | None = None) -> None:
    """Print the milliseconds of a step, and how many times slower each is beside a busy process."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps of each picture (default 20)")
    steps = check_count("--steps", parser.parse_args(arguments).steps, 1000)
    print(f"{os.cpu_count()} cores\n{'spins':>8} {'alone':>10} {'one busy':>10}")
    for spins in SPINS:
        alone = seconds_a_step(spins, steps)
        with busy(1):
            beside = seconds_a_step(spins, steps)
        print(f"{spins:>8} {1000 * alone:>7.0f} ms {1000 * beside:>7.0f} ms {beside / alone:>6.1f} x", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
