"""The command line: a picture from a query, contexts and a prompt, written whole or not at all."""

import argparse
import difflib
import glob
import importlib
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from .checks import LIMITS, check_choice, check_count, check_number, check_text, normalized_weights
from .commands import Parser, run_command
from .files import DATA, ROOT, as_path, shown_path

DEMO_QUERY = DATA / "query" / "boat.png"
DEMO_CONTEXTS = [DATA / "context" / f"mosaic-{number}.png" for number in (1, 2, 3)]
DEMO_PROMPT = "a boat among hills"
BATCH = 8  # pictures drawn together; an interrupt loses no more

DESCRIPTION = """\
Draw a picture with the layout of a query image, the style of context images, and the meaning of a prompt.
Each of the three may be left out, not all. Without --model everything runs offline on a CPU."""

EXAMPLES = """\
examples:
  the whole thing, in seconds, offline:
    python -m context_diffusion demo
  your own pictures, four variants, the third context counting double:
    python -m context_diffusion generate --query me.jpg --context a.png b.png c.png --weights 1 1 2 \\
        --prompt "a house, mosaic style" --num-images 4 --seed 7 --out out/house.png
  layout from depth instead of edges, and less of it:
    python -m context_diffusion generate --query me.jpg --prompt "a cat" --layout depth --control-scale 0.6
  contexts only, all pictures of a folder:
    python -m context_diffusion generate --context paintings/
  Stable Diffusion XL, on a GPU (downloads many gigabytes, once):
    python -m context_diffusion generate --model sdxl --query me.jpg --context painting.jpg --prompt "a harbour"

The offline model knows twelve objects (house, tree, boat, car, fish, flower, mushroom, rocket, cup, umbrella, cat,
balloon), four backgrounds (plain, field, hills, sea) and ten styles (flat, line art, watercolor, halftone, hatching,
mosaic, pixel art, neon, crayon, blueprint), at 128x128 pixels."""


def build_parser() -> argparse.ArgumentParser:
    """Describe every argument of ``generate`` and ``demo``."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m context_diffusion", None, DESCRIPTION, EXAMPLES, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{generate,demo}")
    make = commands.add_parser(
        "generate",
        help="a picture from your own images",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=form,
    )
    add = make.add_argument
    add("--query", metavar="IMAGE", help="image that gives the layout")
    add("--context", metavar="IMAGE", nargs="+", default=[], help="images, folders or patterns: palette and texture")
    add("--prompt", default="", help='what to draw, e.g. "a boat among hills"')
    add("--negative-prompt", default="", metavar="TEXT", help="what not to draw")
    add("--weights", type=float, nargs="+", metavar="W", help="one for each context (default: equal)")
    add("--layout", metavar="NAME", help="how the query acts: canny (the default), depth or img2img")
    add("--control-scale", type=float, metavar="S", help="how strongly edges or depth bind (default: the model's)")
    add(
        "--strength", type=float, metavar="S", help="1: from noise, less: from the query's colours, 0: the query itself"
    )
    add("--num-images", type=int, default=1, metavar="N", help="how many, with seeds SEED, SEED+1, ... (default: 1)")
    add("--out", default="out/picture.png", metavar="PATH", help="file to write (default: %(default)s)")
    _add_common(make)
    demo = commands.add_parser(
        "demo", help="query + contexts + prompt -> picture, offline",
        description=f"The main job on committed inputs: the layout of {DEMO_QUERY.relative_to(ROOT)}, the style of "
        f"three pictures in {DEMO_CONTEXTS[0].parent.relative_to(ROOT)}/, and the prompt {DEMO_PROMPT!r}. Writes the "
        "picture and, next to it, a sheet of inputs and result.",
    )  # fmt: skip
    demo.add_argument("--out", default="out/demo.png", metavar="PATH", help="file to write (default: %(default)s)")
    _add_common(demo)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="tiny-scenes", help="tiny-scenes (offline), sd15, sdxl, a folder, or owner/name of the hub")
    add("--steps", type=int, metavar="N", help="denoising steps (default: the model's own, 20 for tiny-scenes)")
    add(
        "--guidance-scale", type=float, metavar="S", help="how strongly prompt and contexts pull (default: the model's)"
    )
    add("--seed", type=int, default=0, help="same seed, same picture (default: 0)")
    add("--device", metavar="NAME", help="cpu, cuda or mps (default: a GPU if there is one)")
    add("--quiet", action="store_true", help="print nothing but errors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status (:func:`commands.run_command`)."""
    asked = build_parser().parse_args(arguments)

    def work() -> None:
        if asked.quiet:
            warnings.simplefilter("ignore")
        (demo if asked.command == "demo" else generate)(asked)

    return run_command(work)


def generate(asked: argparse.Namespace) -> list[Path]:
    """Draw and write what ``generate`` asks for; return the paths."""
    start = time.perf_counter()
    outputs = check_generate(asked)
    model, query, contexts = _load(asked, asked.query, find_contexts(asked.context, asked.weights))
    note_unknown_words(asked.prompt, model)

    def drawn() -> Iterator:
        for first in range(0, len(outputs), BATCH):
            images = model(
                query, contexts, asked.prompt, negative_prompt=asked.negative_prompt, layout=asked.layout,
                control_scale=asked.control_scale, weights=asked.weights, strength=asked.strength,
                num_images=min(BATCH, len(outputs) - first), **(_common(asked) | {"seed": asked.seed + first}),
            )  # fmt: skip
            yield from images if isinstance(images, list) else [images]

    return write_all(drawn(), outputs, _reporter(asked, start))


def demo(asked: argparse.Namespace) -> list[Path]:
    """Do the main job on the committed inputs; return the paths of the picture and the sheet."""
    start = time.perf_counter()
    out = check_out(asked.out)
    outputs = [out, check_out(out.with_stem(f"{out.stem}-sheet"))]
    check_numbers(asked)
    model, query, contexts = _load(asked, DEMO_QUERY, DEMO_CONTEXTS)

    def drawn() -> Iterator:
        image = model(query, contexts, DEMO_PROMPT, **_common(asked))
        yield image
        yield sheet(query, contexts, image)

    return write_all(drawn(), outputs, _reporter(asked, start))


def check_generate(asked: argparse.Namespace) -> list[Path]:
    """Return the paths to write, one for each picture, or refuse what can be refused before anything is loaded."""
    from .control import LAYOUTS

    count = check_count("--num-images", asked.num_images, LIMITS["num_images"])
    out = as_path(asked.out, "--out")
    outputs = [check_out(out if i == 0 else out.with_stem(f"{out.stem}-{i + 1}")) for i in range(count)]
    check_text("--prompt", asked.prompt)
    check_text("--negative-prompt", asked.negative_prompt)
    if not (asked.query or asked.context or asked.prompt.strip()):
        raise ValueError("Give at least one of --query, --context and --prompt; --help has examples.")
    if asked.layout is not None:
        check_choice("--layout", asked.layout, LAYOUTS)
    check_numbers(asked)
    for name, most in (("control_scale", LIMITS["control_scale"]), ("strength", 1)):
        if getattr(asked, name) is not None:
            check_number(f"--{name.replace('_', '-')}", getattr(asked, name), 0, most)
    for name in ("layout", "control_scale", "strength"):
        if getattr(asked, name) is not None and not asked.query:
            value = f"--{name.replace('_', '-')} {getattr(asked, name)}"
            raise ValueError(f"{value} says how the query acts; pass --query as well.")
    return outputs


def check_numbers(asked: argparse.Namespace) -> None:
    """Refuse numbers out of range; the model, once loaded, may know a lower limit of steps."""
    if asked.steps is not None:
        check_count("--steps", asked.steps)
    if asked.guidance_scale is not None:
        check_number("--guidance-scale", asked.guidance_scale, 0, LIMITS["guidance_scale"])
    check_count("--seed", asked.seed, LIMITS["seed"] - LIMITS["num_images"], low=0)


def check_out(path: str | Path) -> Path:
    """Return the path, or refuse one that cannot be written, before any work is done."""
    from .images import check_picture_path

    return check_picture_path(path, "--out")


def find_contexts(names: Iterable[str], weights: Sequence[float] | None) -> list[Path]:
    """Return the files that ``--context`` names: pictures, all pictures of a folder, or those that match a pattern."""
    found = [file for name in names for file in _pictures(name)]
    check_count("the number of context images", len(found), LIMITS["num_images"], low=0)
    if weights is not None:
        normalized_weights(weights, len(found), "context image")
    return found


def _pictures(name: str) -> list[Path]:
    from PIL import Image

    path = as_path(name, "--context")
    known = Image.registered_extensions()
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in known and file.name[0] != ".")
        files = [file for file in inside if file.is_file()]
        if not files:
            raise ValueError(f"{shown_path(path)} is a folder without a picture; --context takes pictures.")
        return files
    if glob.has_magic(name) and not path.exists():
        matching = [Path(file) for file in sorted(glob.glob(str(path), recursive=True)) if Path(file).is_file()]
        if not matching:
            raise FileNotFoundError(f"No file matches --context {shown_path(path)} (looked from {Path.cwd()}).")
        return matching
    return [path]


def note_unknown_words(prompt: str, model) -> None:
    """Warn of words that a model with a word list of its own has never seen."""
    if not model.model.word_list:
        return
    tokenizer = model.pipeline.tokenizer
    words = dict.fromkeys(re.findall(r"[^\W\d_]+", prompt.lower()))
    unknown = [word for word in words if len(tokenizer.tokenize(word)) > 1]
    if unknown:
        known = [token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>")]
        near = difflib.get_close_matches(unknown[0], [word for word in known if len(word) > 2], n=1, cutoff=0.75)
        meant = f"; did you mean {near[0]!r}?" if near else "."
        shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        warnings.warn(f"{model.model.name} has never seen {shown}, and guesses{meant}", stacklevel=2)


def write_all(images: Iterable, paths: Sequence[Path], report: Callable) -> list[Path]:
    """Write each picture as soon as it is drawn, and return where; one that cannot be written is kept elsewhere.

    Raises ``OSError`` at the end, with where the pictures are that could not be written where they belong.
    """
    written, astray = [], []
    for image, path in zip(images, paths, strict=True):
        try:
            written.append(write(image, path))
        except (OSError, ValueError) as error:
            astray.append(f"{str(error).rstrip('.')}; {_keep(image, path)}")
        else:
            report(path, image)
    if astray:
        raise OSError(" ".join(f"{each}." for each in astray))
    return written


def _keep(image, path: Path) -> str:
    """Write a picture into a temporary folder, and say so."""
    place = Path(tempfile.mkdtemp(prefix="context-diffusion-")) / f"{path.stem}.png"
    try:
        return f"the picture is {write(image, place)}"
    except (OSError, ValueError):
        return "nor can it be written elsewhere: the picture is lost"


def write(image, path: Path) -> Path:
    """Write a picture; a PNG also carries prompt, seed and model as text."""
    from PIL.PngImagePlugin import PngInfo

    from .images import save_image

    options = {}
    if path.suffix.lower() == ".png":
        options["pnginfo"] = PngInfo()
        for key, value in image.info.items():
            options["pnginfo"].add_itxt(key, str(value))
    return save_image(image, path, **options)


def sheet(query, contexts: Sequence, image):
    """Draw inputs and result side by side, as a picture."""
    import io

    from PIL import Image

    from .plotting import show

    titles = ["query: layout", *["context: style"] * len(contexts), f'"{DEMO_PROMPT}"']
    buffer = io.BytesIO()
    show([query, *contexts, image], titles).savefig(buffer, format="png", dpi=110)
    drawn = Image.open(buffer).convert("RGB")
    drawn.info = {"title": "query, contexts, result"}
    return drawn


def _reporter(asked: argparse.Namespace, start: float) -> Callable:
    """Print a line for each picture: its path, size and seed, and the seconds since the ``start``; or nothing."""

    def report(path: Path, image) -> None:
        if asked.quiet:
            return
        if "seed" in image.info:
            seconds = time.perf_counter() - start
            print(f"{path}  {image.width}x{image.height}, seed {image.info['seed']}, {seconds:.1f} s", flush=True)
        else:
            print(f"{path}  ({image.info['title']})", flush=True)

    return report


def _load(asked: argparse.Namespace, query: str | Path | None, contexts: Sequence[str | Path]):
    """Read the images first, so that a wrong path costs no waiting, then load the model."""
    from .images import load_image

    pictures = [load_image(path) for path in contexts]
    layout = None if query is None else load_image(query)
    from .notebook import quiet

    for library in ("diffusers", "transformers"):  # imported first: no environment variable hides their loading bars
        importlib.import_module(f"{library}.utils.logging")
    quiet()
    from .context import ContextDiffusion

    return ContextDiffusion.from_pretrained(asked.model, device=asked.device), layout, pictures


def _common(asked: argparse.Namespace) -> dict:
    return {
        "num_inference_steps": asked.steps,
        "guidance_scale": asked.guidance_scale,
        "seed": asked.seed,
        "progress": not asked.quiet,
    }
