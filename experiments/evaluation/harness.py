"""Score models: draw, measure, print, and write tables, claims and figures.

python -m experiments.evaluation offline                      every score of the offline models -> figures/offline/
python -m experiments.evaluation text context                 two of them
python -m experiments.evaluation papers                       the papers' protocols -> figures/evaluation/
python -m experiments.evaluation papers offline --quick       just enough to prove that they run; do not quote it
python -m experiments.evaluation methods --method mine.py:method             your method beside every other
python -m experiments.evaluation methods --references FOLDER --model sd15    on your own pictures
python -m experiments.evaluation style-sets --model sdxl --prompts hundred-styles
torchrun --nproc-per-node 4 -m experiments.evaluation papers --model sdxl

The offline scores take some ten minutes on two cores, the papers' protocols hours. The latter keep every picture and
score in --work as it is made: interrupt them at any time, and the same command resumes. What a protocol needs and
cannot have is said before it draws anything; the others still run.

With --references FOLDER your own pictures take the place of the toy world's, and scores for which one has to know how a
picture was made drop out. A caption says "a mountain, woodblock print": what is shown, then its style.

  references, methods   each picture is a reference
  blends                each is mixed with the next two; needs two pictures
  control               each lends its style, and the next one its layout; needs two pictures
  settings              each is a query, and those of its style are the contexts; needs two pictures of each style
"""

import argparse
import importlib
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from context_diffusion.checkpoints import DEFAULT, Model, find_model
from context_diffusion.checks import hint
from context_diffusion.commands import Parser
from context_diffusion.files import ROOT, as_path, check_output, check_output_folder

from .papers.prompts import load_prompts

if TYPE_CHECKING:
    from .bench import Bench

COMMAND = "python -m experiments.evaluation"
OFFLINE = {  # name -> module; each has run(bench) -> Report
    "reconstruction": "reconstruction", "clip": "zero_shot", "text": "text_to_image", "layout": "edges_and_depth",
    "context": "context_palettes", "domain": "domain", "finetuned": "finetuned", "captions": "caption_accuracy",
    "dino": "answers", "reader": "styles.scores_reader", "guidance": "guidance_scales", "music": "moods_and_genres",
    "speech": "transcripts", "fusion": "microphone_and_camera", "speed": "speed",
}  # fmt: skip
PAPERS = {  # by units, so run(bench) is None while others are at work; OWN_PICTURES(folder) stands for the world's
    "style-sets": "papers.sets", "references": "papers.references", "methods": "styles.comparison",
    "blends": "papers.blends", "settings": "papers.three_settings", "control": "papers.control_scales",
}  # fmt: skip
PROTOCOLS = OFFLINE | PAPERS
WORK = ROOT / "build" / "evaluation"
OFFLINE_STEPS = 20
SEEDS = 1
OPTIONS = (  # that change what is recorded
    "model", "quick", "limit", "prompts", "seeds", "steps", "method", "only", "references", "test",
)  # fmt: skip
TAKERS = {  # of some of them, the protocols that heed them
    "limit": tuple(PAPERS), "prompts": ("style-sets",), "seeds": ("style-sets",), "method": ("methods",),
    "only": ("methods",), "references": ("references", "methods", "blends", "control", "settings"),
    "test": ("methods",),
}  # fmt: skip
PUBLISHED = {"methods": " --test"}  # options of the published record, where there are any
MOST = {"limit": 10**6, "seeds": 10**4, "steps": 1000, "batch_size": 1024}  # steps: as many as models are trained with
GROUPS = {"offline": OFFLINE, "papers": PAPERS}
FOLDERS = {"offline": ROOT / "figures" / "offline", "papers": ROOT / "figures" / "evaluation"}


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    parser = Parser(COMMAND, None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="+", metavar="PROTOCOL", help=f"{', '.join((*GROUPS, *PROTOCOLS))}")
    add("--model", default=DEFAULT, help="a name of the table, a folder or a repository id (default: %(default)s)")
    add("--quick", action="store_true", help="tiny numbers, from end to end in minutes")
    add("--limit", type=int, metavar="N", help="of the papers' protocols: the first N sets, references or queries")
    add("--prompts", metavar="LIST", help="of style-sets: a name or a .toml file (default: the model's own)")
    add("--seeds", type=int, default=SEEDS, metavar="N", help="of style-sets: seeds of each set (default: %(default)s)")
    add(
        "--method",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="of methods: one more row (or FILE.py:NAME)",
    )
    add("--only", action="append", default=[], metavar="ROW", help="of methods: this row alone; may be repeated")
    add(
        "--references",
        metavar="FOLDER",
        help=f"of {listed(TAKERS['references'])}: your own pictures, captioned by captions.toml or a .txt beside each",
    )
    add("--test", action="store_true", help="of methods: the held-out test set, for the published table alone")
    add("--steps", type=int, metavar="N", help="sampling steps (default: those of the published tables)")
    add("--batch-size", type=int, default=16, metavar="N", help="pictures drawn at once (default: %(default)s)")
    add("--work", default=WORK, metavar="FOLDER", help="where pictures and scores are kept")
    add("--out", metavar="FOLDER", help="tables and figures (default: figures/..., or WORK/MODEL)")
    return parser


def chosen(words: Sequence[str]) -> tuple[str, ...]:
    """The protocols of some names and groups, in the order of the protocols; ``ValueError`` for an unknown one."""
    known = (*GROUPS, *PROTOCOLS)
    for word in words:
        if word not in known:
            raise ValueError(f"There is no protocol {word!r}; there are {', '.join(known)}{hint(word, known)}")
    asked = {name for word in words for name in GROUPS.get(word, (word,))}
    return tuple(name for name in PROTOCOLS if name in asked)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def checked(asked: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[tuple[str, ...], Model]:
    """Say which protocols and which model are asked for; raises for what cannot be, before anything is loaded."""
    for option, most in MOST.items():
        value = getattr(asked, option)
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"--{option.replace('_', '-')} is at least 1 and at most {most}; got {value}.")
    if asked.prompts is not None:
        load_prompts(asked.prompts)
    names = chosen(asked.names)
    for option, takers in TAKERS.items():
        if getattr(asked, option) != parser.get_default(option) and not {*takers} & {*names}:
            raise ValueError(f"--{option} is of {listed(takers)}; {' '.join(asked.names)} would not heed it.")
    if asked.test and asked.references is not None:
        raise ValueError("--test is a set of references of its own; give either it or --references.")
    if asked.method or asked.only or asked.references is not None:
        check_own(asked, names)
    asked.work = check_output_folder(asked.work, "--work")
    asked.out = None if asked.out is None else as_path(asked.out, "--out")
    return names, find_model(asked.model)


def check_own(asked: argparse.Namespace, names: Sequence[str]) -> None:
    """Find the methods, rows and pictures that were named; raises what teaches, before the model is loaded."""
    from context_diffusion.notebook import quiet

    quiet()  # before the libraries that are to be quiet
    from .styles.comparison import REAL, chosen_rows
    from .styles.methods import METHODS
    from .styles.own import load_methods

    own = load_methods(asked.method)
    chosen_rows([*METHODS, REAL, *own], asked.only)
    for name in names:
        if asked.references is not None and name in TAKERS["references"]:
            importlib.import_module(f".{PROTOCOLS[name]}", __package__).OWN_PICTURES(asked.references)


def group_of(name: str) -> str:
    """Whether a protocol is one of the "offline" models' or of the "papers"."""
    return "offline" if name in OFFLINE else "papers"


def place(asked: argparse.Namespace, name: str, options: str) -> Path:
    """Where tables and figures go: where ``figures/`` holds the published ones, only those asked for in full."""
    published = options == PUBLISHED.get(name, "")
    return asked.out or (FOLDERS[group_of(name)] if published else asked.work / Path(asked.model).name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 0 when all of it ran, 1 when a part of the model is missing for some."""
    parser = build_parser()
    asked = parser.parse_args(arguments)
    try:
        names, row = checked(asked, parser)
        options = {name: typed(asked, parser, name) for name in names}
        for name in names:
            check_output(place(asked, name, options[name]) / f"{name}.json", what="--out")
    except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
        parser.error(str(error))
    from context_diffusion.notebook import quiet

    quiet()  # before the libraries that are to be quiet
    from .bench import Bench
    from .units import share_of_process

    use_own_gpu()
    rank, world = share_of_process()
    missing = []
    benches = {
        group: Bench(
            asked.model, quick=asked.quick, limit=asked.limit, seeds=asked.seeds, prompts=asked.prompts,
            steps=asked.steps or steps, batch_size=asked.batch_size, work=asked.work,
            references=asked.references, methods=asked.method, only=asked.only, test=asked.test,
        )
        for group, steps in (("offline", OFFLINE_STEPS), ("papers", row.evaluation_steps))
    }  # fmt: skip
    for number, name in enumerate(names):
        group = group_of(name)
        if group == "offline" and number % world != rank:
            continue  # another process takes it
        if not run(name, benches[group], place(asked, name, options[name]), options[name]):
            missing.append(name)
    if missing:
        print(f"\nnot run: {', '.join(missing)}")
    return int(bool(missing))


def typed(asked: argparse.Namespace, parser: argparse.ArgumentParser, name: str) -> str:
    """The options that change what a protocol records, as they are typed.

    >>> parser = build_parser()
    >>> asked = parser.parse_args(["blends", "methods", "--limit", "2", "--out", "here", "--only", "full sharing"])
    >>> typed(asked, parser, "blends"), typed(asked, parser, "methods")
    (' --limit 2', " --limit 2 --only 'full sharing'")
    """
    words = ""
    for option in OPTIONS:
        value = getattr(asked, option)
        if name not in TAKERS.get(option, PROTOCOLS):
            continue
        if value is True:
            words += f" --{option}"
        elif value != parser.get_default(option):
            for one in value if isinstance(value, list) else [value]:
                words += f" --{option} {shlex.quote(str(one))}"
    return words


def use_own_gpu() -> None:
    """Give each process of a machine the GPU of its number."""
    import torch

    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def run(name: str, bench: "Bench", out: Path, options: str = "") -> bool:
    """Run one protocol, print its table and write its files; False, with a sentence, where a part is missing."""
    start = time.perf_counter()
    try:
        report = importlib.import_module(f".{PROTOCOLS[name]}", __package__).run(bench)
    except FileNotFoundError as error:
        if error.errno is not None:  # a file that should have been written: our fault, and no missing part
            raise
        print(f"\n{name}: not run. {error}", flush=True)
        return False
    minutes = (time.perf_counter() - start) / 60
    if report is None:
        print(f"{name}: this process has done its share ({minutes:.0f} min); others are still at work on theirs.")
        return True
    about = {"protocol": name, "command": f"{COMMAND} {name}{options}", "steps": bench.steps, "interval": "95 %"}
    print(f"\n{name} ({minutes:.1f} min)\n{report.table()}")
    for path in report.write(out, name, about):
        print(f"  -> {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}", flush=True)
    return True
