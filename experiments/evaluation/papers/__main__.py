"""The papers' protocols: draw, score, and write tables, claims and figures to figures/evaluation/.

python -m experiments.evaluation.papers                                 all protocols on the offline models
python -m experiments.evaluation.papers style-sets --seeds 3            one of them
python -m experiments.evaluation.papers style-sets --model sdxl --prompts hundred-styles
torchrun --nproc-per-node 4 -m experiments.evaluation.papers --model sdxl

Every picture and score is written to --work as it is made: interrupt it at any time and start it again.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from context_diffusion.files import ROOT, written_whole

COMMAND = "python -m experiments.evaluation.papers"
NAMES = ("style-sets", "references", "blends", "settings", "control")
STEPS = {"tiny-scenes": 15}  # every other model: 50
QUICK = {"style-sets": 8, "references": 4, "blends": 2, "settings": 8, "control": 3}


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    parser = argparse.ArgumentParser(COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="*", metavar="PROTOCOL", help=f"which: {', '.join(NAMES)} (default: all)")
    add(
        "--model", default="tiny-scenes", help="a name of the table, a folder or a repository id (default: %(default)s)"
    )
    add("--prompts", metavar="LIST", help="of style-sets: a name or a .toml file (default: the model's own)")
    add("--seeds", type=int, default=3, metavar="N", help="of style-sets: seeds of each set (default: %(default)s)")
    add("--steps", type=int, metavar="N", help="sampling steps (default: 15 offline, 50 else)")
    add("--quick", action="store_true", help="few sets and one seed: the tables' shape in minutes, not to be quoted")
    add("--limit", type=int, metavar="N", help="only the first N sets, references or pairs; not to be quoted")
    add("--work", type=Path, default=ROOT / "build" / "evaluation", metavar="FOLDER", help="pictures and scores")
    add("--out", type=Path, metavar="FOLDER", help="tables and figures (default: figures/evaluation, or WORK/MODEL)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; of several processes the last one writes the tables."""
    parser = build_parser()
    asked = parser.parse_args(arguments)
    if unknown := sorted(set(asked.names) - set(NAMES)):
        parser.error(f"no protocol is named {', '.join(unknown)}; there are {', '.join(NAMES)}")
    for option in ("seeds", "steps", "limit"):
        value = getattr(asked, option)
        if value is not None and value < 1:
            parser.error(f"--{option} is at least 1; got {value}")
    from context_diffusion.notebook import quiet

    quiet()
    use_own_gpu()
    from ..bench import Bench

    bench = Bench(asked.model, steps=asked.steps or STEPS.get(asked.model, 50))
    part = asked.quick or asked.limit or asked.steps or asked.prompts or asked.seeds != 3
    whole = asked.model == "tiny-scenes" and not part
    out = asked.out or (ROOT / "figures" / "evaluation" if whole else asked.work / Path(asked.model).name)
    names = asked.names or list(NAMES)
    for name in names:
        run(name, protocol(name, bench, asked), asked.work, out, arguments or sys.argv[1:])
    return 0


def use_own_gpu() -> None:
    """Give each process of a machine the GPU of its number."""
    import torch

    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def protocol(name: str, bench, asked: argparse.Namespace):
    """Set up a protocol; what is wrong with its inputs is said before anything is drawn."""
    if name == "style-sets":
        from .prompts import load_prompts
        from .sets import StyleSets

        listed = asked.prompts or ("tiny-scenes" if bench.has("judge") else "hundred-styles")
        sets = load_prompts(listed)
        if asked.quick:  # from end to end, so that all styles come in
            sets = sets[:: max(1, len(sets) // QUICK[name])]
        seeds = 1 if asked.quick else asked.seeds
        return StyleSets(bench, sets[: asked.limit], seeds=seeds, listed=Path(listed).stem)
    module, kind = {
        "references": ("references", "StyleReferences"),
        "blends": ("blends", "StyleBlends"),
        "settings": ("contexts", "ContextSettings"),
        "control": ("control", "ControlScales"),
    }[name]
    made = getattr(importlib.import_module(f".{module}", __package__), kind)
    count = asked.limit or (QUICK[name] if asked.quick else None)
    return made(bench, **({"count": count} if count else {}))


def command(name: str, arguments: Sequence[str]) -> str:
    """The command that makes one protocol's record, without the folders, which change nothing in it.

    >>> command("blends", ["blends", "settings", "--limit", "2", "--out", "here"])
    'python -m experiments.evaluation.papers blends --limit 2'
    """
    kept, skipped = [name], ("--out", "--work")
    for before, word in zip(["", *arguments], arguments, strict=False):
        if word not in NAMES and before not in skipped and not word.startswith(skipped):
            kept.append(word)
    return f"{COMMAND} {' '.join(kept)}"


def run(name: str, protocol, work_folder: Path, out: Path, arguments: Sequence[str]) -> None:
    """Work through one protocol; print its table and write its files once everybody's part is there."""
    from .units import work

    start = time.perf_counter()
    results = work(protocol, work_folder)
    minutes = (time.perf_counter() - start) / 60
    if results is None:
        print(f"{name}: this process's share is done ({minutes:.0f} min); others are still at work on theirs.")
        return
    report = protocol.report(results)
    about = {"protocol": name, "command": command(name, arguments), "interval": "95 %"}
    print(f"\n{name} ({minutes:.1f} min)\n{report.table()}")
    values = out / f"{name}-units.csv"
    with written_whole(values) as temporary:
        temporary.write_text(results.csv(), encoding="utf-8")
    for path in (*report.write(out, name, about), values):
        print(f"  -> {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
