"""Where the words of a prompt go, and how many tokens they take."""

import re
import string
from collections.abc import Callable, Mapping, Sequence

from ..checks import check_choice, shown
from .phrases import USED, Phrase, join_phrases

ORDERS = ("importance", "sentence")

ALL = "prompt"  # the field of every source that has no field of its own


def check_template(template: str, sources: int) -> None:
    """Raise ``ValueError`` unless the template can be read and has a place for every source."""
    fields, numbers = fields_of(template), [str(number) for number in range(sources)]
    if not {*fields} <= {ALL, *numbers}:
        raise ValueError(
            f"The fields of a template are {{prompt}} and the numbers of sources, {{0}} to {{{sources - 1}}}, with "
            f"nothing else in the braces; got {template!r:.80}."
        )
    placeless = [] if ALL in fields else [number for number in numbers if number not in fields]
    if placeless:
        raise ValueError(f"The template {template!r} has no place for source {', '.join(placeless)}: add {{prompt}}.")


def fields_of(template: str) -> list[str]:
    """Give the words in a template's braces, in order.

    Raises ``ValueError`` if braces do not pair, or hold a format: ``{0:>999999999}`` would fill the memory.

    >>> fields_of("{object}, {style} style")
    ['object', 'style']
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"A template is text around {{prompt}}, with braces in pairs; got {template!r:.80}."
        ) from error
    if any(form or conversion for _, _, form, conversion in parsed):
        raise ValueError(f"The braces of a template hold names and nothing else in the braces; got {template!r:.80}.")
    return [name for _, name, *_ in parsed if name is not None]


def check_order(order: str | None, *, offline: bool) -> str:
    """Return the order asked for; by default ``"sentence"`` for the offline model, else ``"importance"``."""
    if order is None:
        return "sentence" if offline else "importance"
    return check_choice("order", order, ORDERS)


def literal_text(template: str) -> str:
    """Give the text of a template without its fields."""
    return " ".join(text for text, *_ in string.Formatter().parse(template))


def fill_template(template: str, said: Mapping[int, list[Phrase]], order: str = "importance") -> str:
    """Put the used phrases of each source into its own field, or into ``{prompt}``, arranged by ``order``.

    Commas left behind by an empty field are removed.
    """
    parsed = [(text, name) for text, name, *_ in string.Formatter().parse(template)]
    used = {str(i): [phrase for phrase in phrases if phrase.fate == USED] for i, phrases in said.items()}
    own = {name for _, name in parsed}
    values = {number: join_phrases(phrases) for number, phrases in used.items()}
    values[ALL] = arrange([phrases for number, phrases in used.items() if number not in own], order)
    filled = "".join(text + ("" if name is None else values[name]) for text, name in parsed)
    return re.sub(r"\s*,(?:\s*,)+", ",", re.sub(r"\s+", " ", filled)).strip(" ,")


def arrange(sources: Sequence[list[Phrase]], order: str) -> str:
    """Join what several sources say, one source after the other or as one sentence of the offline world.

    Such a sentence names the object first, then background and sun, then style, then palette.
    """
    if order == "importance":
        return ", ".join(join_phrases(phrases) for phrases in sources if phrases)
    heads = [join_phrases([phrase for phrase in phrases if phrase.kind is None]) for phrases in sources]
    kinds = {phrase.kind: phrase.text for phrases in sources for phrase in phrases}
    scene = [", ".join(filter(None, heads)), kinds.get("background"), kinds.get("sun")]
    return ", ".join(filter(None, [" ".join(filter(None, scene)), kinds.get("style"), kinds.get("palette")]))


def token_counter(tokenizer=None, max_tokens: int | None = None) -> tuple[Callable[[str], int], int]:
    """Choose how tokens are counted, start and end included, and how many are allowed.

    A tokenizer counts its own tokens; a number alone counts words and punctuation marks; with neither, the offline
    model's tokenizer counts.
    """
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 3):
        raise ValueError(f"max_tokens is a whole number of at least 3 (start, a word, end); got {max_tokens!r}.")
    if tokenizer is None and max_tokens is not None:
        return (lambda text: len(re.findall(r"\w+|[^\w\s]", text)) + 2), max_tokens
    if tokenizer is None:
        tokenizer = _offline_tokenizer()
    if not callable(tokenizer) or not isinstance(getattr(tokenizer, "model_max_length", None), int):
        raise TypeError(f"tokenizer is a tokenizer of transformers, with a model_max_length, not {shown(tokenizer)}.")
    limit = min(tokenizer.model_max_length, max_tokens or tokenizer.model_max_length)
    return (lambda text: len(tokenizer(text, truncation=False, verbose=False)["input_ids"])), limit


def _offline_tokenizer():
    from transformers import CLIPTokenizer

    from ..checkpoints import load_part
    from ..files import TINY_SCENES

    return load_part(CLIPTokenizer, str(TINY_SCENES / "tokenizer"), dtype=None)
