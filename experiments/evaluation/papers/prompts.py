"""Lists of prompts: sets of objects, each set in one style, from a file that anyone can write.

    template = "{object}, {style} style"

    [[sets]]
    style = "watercolor"
    objects = ["a boat", "a cat", "a house", "a tree"]

Two come with the project: ``tiny-scenes`` (10 styles x 6 quadruples of what the offline models can draw) and
``hundred-styles`` (100 styles x 4 objects, for models that draw anything).
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from context_diffusion.checks import hint
from context_diffusion.files import DATA
from context_diffusion.fusion.template import fields_of

FOLDER = DATA / "prompts"


@dataclass(frozen=True)
class PromptSet:
    """Objects to draw in one style."""

    style: str
    objects: tuple[str, ...]
    template: str = "{object}, {style} style"

    @property
    def prompts(self) -> list[str]:
        """Every object in the style, in words."""
        return [self.template.format(object=object, style=self.style) for object in self.objects]


def load_prompts(name: str | Path) -> tuple[PromptSet, ...]:
    """Read a list by its name or path; ``FileNotFoundError`` where there is none, ``ValueError`` for a broken one."""
    path = Path(name)
    if path.suffix != ".toml" and "/" not in str(name):
        path = FOLDER / f"{name}.toml"
    if not path.is_file():
        known = sorted(file.stem for file in FOLDER.glob("*.toml"))
        there = f"there are {', '.join(known)}{hint(name, known)}"
        raise FileNotFoundError(f"There is no list of prompts {str(name)!r}; {there}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not TOML: {error}") from None
    template, sets = content.get("template", PromptSet.template), content.get("sets")
    if not isinstance(template, str) or set(fields_of(template)) != {"object", "style"}:
        raise ValueError(f'{path.name}: template holds {{object}} and {{style}}, e.g. "{PromptSet.template}".')
    if not isinstance(sets, list) or not sets:
        raise ValueError(f"{path.name} holds no [[sets]]; each has a style and at least two objects.")
    return tuple(_checked(one, template, f"{path.name}, set {number}") for number, one in enumerate(sets, start=1))


def noun(thing: str) -> str:
    """A thing without its article.

    >>> noun("a boat"), noun("an umbrella")
    ('boat', 'umbrella')
    """
    return thing.removeprefix("a ").removeprefix("an ")


def _checked(one: object, template: str, where: str) -> PromptSet:
    style, objects = (one.get("style"), one.get("objects")) if isinstance(one, dict) else (None, None)
    if not isinstance(style, str) or not style.strip():
        raise ValueError(f'{where}: style is a few words, such as "watercolor"; got {style!r}.')
    words = isinstance(objects, list) and all(isinstance(each, str) and each.strip() for each in objects)
    if not words or len(set(objects)) != len(objects) or len(objects) < 2:
        raise ValueError(f"{where}: objects are at least two different texts; got {objects!r}.")
    return PromptSet(style, tuple(objects), template)
