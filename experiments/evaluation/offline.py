"""Score the offline models, print a table, and write every number and picture to figures/offline/.

python -m experiments.evaluation.offline                        all protocols, some ten minutes on two cores
python -m experiments.evaluation.offline --only text,context    some of them
python -m experiments.evaluation.offline --quick                the least that proves they run, not to be quoted
"""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from context_diffusion.files import ROOT

PROTOCOLS = (
    "reconstruction", "clip", "text", "layout", "context", "domain", "finetuned", "captions", "music", "speech",
    "fusion", "speed",
)  # fmt: skip
COMMAND = "python -m experiments.evaluation.offline"


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    parser = argparse.ArgumentParser(COMMAND, None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", type=chosen, default=PROTOCOLS, metavar="NAMES", help=f"comma-separated: {','.join(PROTOCOLS)}")
    add("--quick", action="store_true", help="tiny numbers, written to build/evaluation/")
    add("--out", type=Path, metavar="FOLDER", help="where to write (default: figures/offline)")
    add("--batch-size", type=int, default=16, metavar="N", help="pictures drawn at once (default: %(default)s)")
    return parser


def chosen(names: str) -> tuple[str, ...]:
    """Read ``--only``; keep the order of the protocols."""
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = sorted(set(asked) - set(PROTOCOLS))
    if unknown or not asked:
        given = f"; {', '.join(unknown)} is none of them" if unknown else ""
        raise argparse.ArgumentTypeError(f"name some of {', '.join(PROTOCOLS)}{given}")
    return tuple(name for name in PROTOCOLS if name in asked)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 0 when all of it ran, 1 when weights are missing for some."""
    asked = build_parser().parse_args(arguments)
    from context_diffusion.notebook import quiet

    quiet()
    from .bench import Bench

    bench = Bench(quick=asked.quick, batch_size=asked.batch_size)
    out = asked.out or (ROOT / "build" / "evaluation" if asked.quick else ROOT / "figures" / "offline")
    missing = [name for name in asked.only if not run(name, bench, out)]
    if missing:
        print(f"not run for want of weights: {', '.join(missing)}")
    return int(bool(missing))


def run(name: str, bench, out: Path) -> bool:
    """Run one protocol, print its table and write its files; False where a part is missing."""
    import torch

    start = time.perf_counter()
    try:
        report = importlib.import_module(f".{name}", __package__).run(bench)
    except FileNotFoundError as error:
        print(f"\n{name}: not run. {error}", flush=True)
        return False
    seconds = time.perf_counter() - start
    about = {
        "protocol": name,
        "command": f"{COMMAND} --only {name}" + " --quick" * bench.quick,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "steps": bench.steps,
        "interval": "95 %",
    }
    print(f"\n{name} ({seconds:.0f} s)\n{report.table()}")
    for path in report.write(out, name, about):
        print(f"  -> {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
