"""One prompt from many sources: the most important words first, nothing said twice, nothing the encoder will not read.

A text encoder reads 77 tokens (CLIP) or 32 (the offline one) and never sees the rest. If what the sources say does not
all fit, they share the room as users share a network line, by **weighted fair queueing** (Demers, Keshav and Shenker
1989). Phrase k of source i, c_ik tokens long, gets the finishing time

    F_ik = (c_i1 + ... + c_ik) / s_i,        s_i = weight_i confidence_i / sum_j weight_j confidence_j,    (1)

and phrases are admitted in order of these times while they fit: a talkative source does not silence a brief one, and a
source with twice the share gets twice as many words.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..checks import LIMITS, check_list, normalized_weights
from ..signatures import checked
from .description import Description, Source, as_description
from .phrases import USED, Phrase, join_phrases, meanings, shortened, split_phrases
from .template import check_order, check_template, fill_template, literal_text, token_counter

NO_ROOM = "no room"
Said = dict[int, list[Phrase]]  # number of a source -> its phrases; the most important source first


@dataclass(frozen=True)
class Part:
    """What became of one source: its share of the prompt, and the fate of each of its phrases."""

    description: Description
    share: float  # s_i of Eq. (1)
    phrases: tuple[Phrase, ...]

    @property
    def used(self) -> str:
        """The words of this source that are in the prompt."""
        return join_phrases([phrase for phrase in self.phrases if phrase.fate == USED])


@dataclass(frozen=True)
class FusedPrompt:
    """A prompt, the parts it was made of (most important first), and how much of the encoder's length it uses."""

    text: str
    parts: tuple[Part, ...]
    tokens: int  # start and end included
    limit: int

    def __str__(self) -> str:
        return self.text

    @property
    def cut(self) -> list[str]:
        """The phrases that did not fit."""
        return [phrase.text for part in self.parts for phrase in part.phrases if phrase.fate == NO_ROOM]

    def table(self) -> str:
        """Lay out as text what each source contributed, what was left out, and why."""
        rows = [f"{self.text!r} ({self.tokens} of {self.limit} tokens)"]
        for part in self.parts:
            rows.append(f"  {part.share:4.0%}  {part.description.source}: {part.used or '-'}")
            rows += [
                f"        left out, {phrase.fate}: {phrase.text}" for phrase in part.phrases if phrase.fate != USED
            ]
            rows += [f"        note: {note}" for note in part.description.notes]
        return "\n".join(rows)


@checked
def fuse_prompts(
    sources: Source | str | Iterable,
    weights: Iterable[float] | None = None,
    template: str = "{prompt}",
    *,
    tokenizer=None,
    max_tokens: int | None = None,
    order: str | None = None,
) -> FusedPrompt:
    """Make one prompt from what several sources say, within a text encoder's length; warn about what is cut.

    Sources are ordered by weight times confidence, the most important first; within a source, the first words matter
    most. A phrase that adds no new word is left out, and so is a second background, palette, style or sun in the words
    of the offline world. ``template`` says where the words go: ``"{prompt}, oil on canvas"``, or by the number of a
    source, ``"{0} seen through {1}"``. ``tokenizer`` counts the tokens and its ``model_max_length`` is the limit (by
    default the offline model's); with ``max_tokens`` alone, words and punctuation marks are counted.

    ``order="sentence"`` arranges the admitted phrases as the captions of the offline world do: object, background, sun,
    style, palette. The offline model has learned no other grammar, and draws no boat for "by the sea, a boat". This is
    the default when its tokenizer does the counting; otherwise the default is ``"importance"``.

    Raises ``TypeError`` or ``ValueError`` for an invalid source, weights or template, or if no source says anything.

    >>> print(fuse_prompts(["a boat, neon style", "rain, neon style"], [1, 3], max_tokens=77))
    rain, neon style, a boat
    """
    one = isinstance(sources, (str, Source)) and not isinstance(sources, type)
    listed = [sources] if one else check_list("sources", sources, LIMITS["sources"])
    descriptions = [as_description(source, number) for number, source in enumerate(listed)]
    if not descriptions:
        raise ValueError("A prompt needs at least one source: a string, a picture, the weather, ...")
    check_template(template, len(descriptions))
    order = check_order(order, offline=tokenizer is None and max_tokens is None)
    count, limit = token_counter(tokenizer, max_tokens)
    shares = shares_of(descriptions, weights)
    ranked = sorted(range(len(descriptions)), key=lambda i: -shares[i])  # stable: equals stay in the caller's order
    said = {i: split_phrases(descriptions[i].text) for i in ranked}
    if not any(phrases and shares[i] for i, phrases in said.items()):
        raise ValueError(f"None of the sources says anything: {', '.join(one.source for one in descriptions)}.")

    said = without_repetition(said, shares, literal_text(template))
    said = admit(said, shares, lambda kept: count(fill_template(template, kept, order)), count, limit)
    parts = tuple(Part(descriptions[i], shares[i], tuple(phrases)) for i, phrases in said.items())
    text = fill_template(template, said, order)
    fused = FusedPrompt(text, parts, count(text), limit)
    if not any(part.used for part in parts):
        raise ValueError(f"No phrase fits into {limit} tokens next to the template {template!r}; shorten it.")
    if fused.cut:
        warnings.warn(f"The prompt is full at {limit} tokens; this is cut: {', '.join(fused.cut)!r}", stacklevel=2)
    return fused


def shares_of(descriptions: Sequence[Description], weights: Iterable[float] | None = None) -> tuple[float, ...]:
    """Give each source its share s_i of Eq. (1): weight times confidence, scaled to sum to 1."""
    scaled = normalized_weights(weights, len(descriptions), "source")
    products = [weight * one.confidence for weight, one in zip(scaled, descriptions, strict=True)]
    if not any(products):
        raise ValueError("No source with a weight is confident of anything: every weight times confidence is 0.")
    return normalized_weights(products, len(products), "source")


def without_repetition(said: Said, shares: Sequence[float], before: str = "") -> Said:
    """Mark the phrases that add nothing to what more important sources, or the text ``before``, already say."""
    heard, kinds = set(meanings(before)), set()
    marked: Said = {}
    for number, phrases in said.items():
        marked[number] = []
        for phrase in phrases:
            if not shares[number]:
                fate = "no weight"
            elif meanings(phrase.text) <= heard:
                fate = "said before"
            elif phrase.kind in kinds:
                fate = f"another {phrase.kind}"
            else:
                fate = USED
                heard |= meanings(phrase.text)
                kinds |= {phrase.kind} - {None}
            marked[number].append(phrase.with_fate(fate))
    return marked


def admit(
    said: Said, shares: Sequence[float], total: Callable[[Said], int], count: Callable[[str], int], limit: int
) -> Said:
    """Admit phrases in order of their finishing times, Eq. (1), while the ``total`` of tokens stays within the limit.

    A source that would otherwise fall silent has its first phrase shortened to the words that fit.
    """
    around, queue = count(""), []
    for rank, (number, phrases) in enumerate(said.items()):
        tokens = 0
        for place, phrase in enumerate(phrases):
            if phrase.fate == USED:
                tokens += count(phrase.text) - around + 1  # 1 for the comma
                queue.append((tokens / shares[number], rank, number, place))
    slots = {
        number: [[phrase.with_fate(NO_ROOM) if phrase.fate == USED else phrase] for phrase in phrases]
        for number, phrases in said.items()
    }

    def kept() -> Said:
        return {number: [phrase for slot in slot_list for phrase in slot] for number, slot_list in slots.items()}

    for *_, number, place in sorted(queue):
        phrase, refused = said[number][place], slots[number][place]
        silent = all(other.fate != USED for slot in slots[number] for other in slot)
        for trial in [[phrase], *(shortened(phrase, limit, NO_ROOM) if silent else [])]:
            slots[number][place] = trial
            if total(kept()) <= limit:
                break
            slots[number][place] = refused
    return kept()
