"""The command line: a picture from a query, contexts and a prompt, written whole or not at all."""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from .checks import check_choice
from .files import DATA, ROOT

DEMO_QUERY = DATA / "query" / "boat.png"
DEMO_CONTEXTS = [DATA / "context" / f"mosaic-{number}.png" for number in (1, 2, 3)]
DEMO_PROMPT = "a boat among hills"

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
  contexts only:
    python -m context_diffusion generate --context a.png b.png
  Stable Diffusion XL, on a GPU (downloads many gigabytes, once):
    python -m context_diffusion generate --model sdxl --query me.jpg --context painting.jpg --prompt "a harbour"

The offline model knows twelve objects (house, tree, boat, car, fish, flower, mushroom, rocket, cup, umbrella, cat,
balloon), four backgrounds (plain, field, hills, sea) and ten styles (flat, line art, watercolor, halftone, hatching,
mosaic, pixel art, neon, crayon, blueprint), at 128x128 pixels."""


def build_parser() -> argparse.ArgumentParser:
    """Describe every argument of ``generate`` and ``demo``."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m context_diffusion", None, DESCRIPTION, EXAMPLES, formatter_class=form)
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
    add("--context", metavar="IMAGE", nargs="+", default=[], help="one or more images that give palette and texture")
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
    add("--steps", type=int, metavar="N", help="denoising steps (default: the model's, 30)")
    add(
        "--guidance-scale", type=float, metavar="S", help="how strongly prompt and contexts pull (default: the model's)"
    )
    add("--seed", type=int, default=0, help="same seed, same picture (default: 0)")
    add("--device", metavar="NAME", help="cpu, cuda or mps (default: a GPU if there is one)")
    add("--quiet", action="store_true", help="no progress bar")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 for success, 2 for an error the user can mend, which is told in one sentence."""
    asked = build_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
            (demo if asked.command == "demo" else generate)(asked)
    except (ValueError, TypeError, FileNotFoundError, PermissionError, IsADirectoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing is half-written", file=sys.stderr)
        return 130
    return 0


def generate(asked: argparse.Namespace) -> list[Path]:
    """Draw and write what ``generate`` asks for; return the paths."""
    start = time.perf_counter()
    from .control import LAYOUTS

    out = check_out(asked.out)
    if not (asked.query or asked.context or asked.prompt.strip()):
        raise ValueError("Give at least one of --query, --context and --prompt; --help has examples.")
    if asked.layout is not None:
        check_choice("--layout", asked.layout, LAYOUTS)
        if not asked.query:
            raise ValueError(f"--layout {asked.layout} says how the query acts; pass --query as well.")
    model, query, contexts = _load(asked, asked.query, asked.context)
    images = model(
        query, contexts, asked.prompt, negative_prompt=asked.negative_prompt, layout=asked.layout,
        control_scale=asked.control_scale, weights=asked.weights, strength=asked.strength,
        num_images=asked.num_images, **_common(asked),
    )  # fmt: skip
    images = images if isinstance(images, list) else [images]
    names = [out if i == 0 else out.with_stem(f"{out.stem}-{i + 1}") for i in range(len(images))]
    paths = [write(image, name) for image, name in zip(images, names, strict=True)]
    report(paths, images, time.perf_counter() - start)
    return paths


def demo(asked: argparse.Namespace) -> list[Path]:
    """Do the main job on the committed inputs; return the paths of the picture and the sheet."""
    start = time.perf_counter()
    out = check_out(asked.out)
    model, query, contexts = _load(asked, DEMO_QUERY, DEMO_CONTEXTS)
    image = model(query, contexts, DEMO_PROMPT, **_common(asked))
    paths = [write(image, out)]
    report(paths, [image], time.perf_counter() - start)
    from .plotting import save_figure, show

    titles = ["query: layout", "context: style", "context: style", "context: style", f'"{DEMO_PROMPT}"']
    sheet = save_figure(show([query, *contexts, image], titles), out.with_stem(f"{out.stem}-sheet"))
    print(f"{sheet}  (query, contexts, result)")
    return [*paths, sheet]


def check_out(path: str) -> Path:
    """Return the path, or refuse one that cannot be written, before any work is done."""
    from PIL import Image

    out = Path(path)
    if out.is_dir():
        raise ValueError(f"--out names a file, and {out} is a folder.")
    if out.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"The suffix of --out {out.name!r} names no image format; use .png, .jpg or .webp.")
    return out


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


def report(paths: Sequence[Path], images: Sequence, seconds: float) -> None:
    """Print a line for each picture: its path, size and seed, and the seconds that the whole command took."""
    for path, image in zip(paths, images, strict=True):
        print(f"{path}  {image.width}x{image.height}, seed {image.info.get('seed')}, {seconds:.1f} s")


def _load(asked: argparse.Namespace, query: str | Path | None, contexts: Sequence[str | Path]):
    """Read the images first, so that a wrong path costs no waiting, then load the model."""
    from .notebook import quiet

    quiet()
    from .images import load_image

    pictures = [load_image(path) for path in contexts]
    layout = None if query is None else load_image(query)
    from .context import ContextDiffusion

    return ContextDiffusion.from_pretrained(asked.model, device=asked.device), layout, pictures


def _common(asked: argparse.Namespace) -> dict:
    return {
        "num_inference_steps": asked.steps,
        "guidance_scale": asked.guidance_scale,
        "seed": asked.seed,
        "progress": not asked.quiet,
    }
