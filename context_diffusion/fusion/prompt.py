"""One prompt from many sources: the most important words first, nothing said twice, no longer than is read.

A text encoder reads 77 tokens (CLIP) or 32 (the offline one) and never sees the rest. Where everything that the
sources say does not fit, the room is shared out as a network shares a line among its users, by **weighted fair
queueing** (Demers, Keshav and Shenker 1989). Phrase k of source i, of c_ik tokens, gets the finishing time

    F_ik = (c_i1 + ... + c_ik) / s_i,        s_i = weight_i confidence_i / sum_j weight_j confidence_j,    (1)

and phrases are let in by their times while they fit: a talkative source does not silence a brief one, and a source
whose share is twice as large gets twice as many words.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..checks import normalized_weights
from .description import Description, Source, as_description
from .phrases import USED, Phrase, join_phrases, meanings, shortened, split_phrases
from .template import check_order, check_template, fill_template, literal_text, token_counter

NO_ROOM = "no room"
Said = dict[int, list[Phrase]]  # number of a source -> its phrases; the most important source first


@dataclass(frozen=True)
class Part:
    """What became of one source: its share of the prompt, and each of its phrases with its fate."""

    description: Description
    share: float  # s_i of Eq. (1)
    phrases: tuple[Phrase, ...]

    @property
    def used(self) -> str:
        """The words that are in the prompt."""
        return join_phrases([phrase for phrase in self.phrases if phrase.fate == USED])


@dataclass(frozen=True)
class FusedPrompt:
    """A prompt, the parts it was made of (most important first), and how much of the encoder's length it takes."""

    text: str
    parts: tuple[Part, ...]
    tokens: int  # start and end among them
    limit: int

    def __str__(self) -> str:
        return self.text

    @property
    def cut(self) -> list[str]:
        """The phrases for which there was no room."""
        return [phrase.text for part in self.parts for phrase in part.phrases if phrase.fate == NO_ROOM]

    def table(self) -> str:
        """Lay out as text what was used of each source, and what was left out and why."""
        rows = [f"{self.text!r} ({self.tokens} of {self.limit} tokens)"]
        for part in self.parts:
            rows.append(f"  {part.share:4.0%}  {part.description.source}: {part.used or '-'}")
            rows += [
                f"        left out, {phrase.fate}: {phrase.text}" for phrase in part.phrases if phrase.fate != USED
            ]
            rows += [f"        note: {note}" for note in part.description.notes]
        return "\n".join(rows)


def fuse_prompts(
    sources: Source | str | Iterable,
    weights: Iterable[float] | None = None,
    template: str = "{prompt}",
    *,
    tokenizer=None,
    max_tokens: int | None = None,
    order: str | None = None,
) -> FusedPrompt:
    """Make one prompt of what several sources say, within a text encoder's length; warn with what is cut.

    Sources come by weight times confidence, the most important first; of one source, the first words are the most
    important. A phrase whose words were all said before is left out, and so is a second background, palette, style or
    sun in the words of the offline world. ``template`` says where the words go: ``"{prompt}, oil on canvas"``, or by
    the number of a source, ``"{0} seen through {1}"``. ``tokenizer`` is the one whose ``model_max_length`` counts (the
    offline model's where none is given); with ``max_tokens`` alone, words and marks are counted.

    ``order="sentence"`` arranges what was let in as the captions of the offline world do: object, background, sun,
    style, palette. Its model has learned no other grammar, and draws no boat for "by the sea, a boat". It is the
    default where that model's tokens count; elsewhere ``"importance"`` is.

    Raises ``TypeError`` or ``ValueError`` where a source, the weights or the template are none, or nothing is said.

    >>> print(fuse_prompts(["a boat, neon style", "rain, neon style"], [1, 3], max_tokens=77))
    rain, neon style, a boat
    """
    alone = isinstance(sources, (str, Source))
    descriptions = [as_description(source, number) for number, source in enumerate([sources] if alone else sources)]
    if not descriptions:
        raise ValueError("A prompt needs at least one source: a text, a picture, the weather, ...")
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
        raise ValueError(f"No phrase fits into {limit} tokens beside the template {template!r}; shorten it.")
    if fused.cut:
        warnings.warn(f"The prompt is full at {limit} tokens; this is cut: {', '.join(fused.cut)!r}", stacklevel=2)
    return fused


def shares_of(descriptions: Sequence[Description], weights: Iterable[float] | None = None) -> tuple[float, ...]:
    """Give each source its share s_i of Eq. (1): weight times confidence, scaled to sum 1."""
    scaled = normalized_weights(weights, len(descriptions), "source")
    products = [weight * one.confidence for weight, one in zip(scaled, descriptions, strict=True)]
    if not any(products):
        raise ValueError("No source with a weight is confident of anything: each weight times confidence is 0.")
    return normalized_weights(products, len(products), "source")


def without_repetition(said: Said, shares: Sequence[float], before: str = "") -> Said:
    """Mark the phrases that add nothing to what more important sources, or the text ``before``, say already."""
    heard, kinds, marked = set(meanings(before)), set(), {}
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
    """Let phrases in by their finishing times, Eq. (1), as long as the ``total`` of tokens stays within the limit.

    A source of which nothing would be left gets its first phrase shortened to the words that fit.
    """
    around, queue = count(""), []
    for rank, (number, phrases) in enumerate(said.items()):
        tokens = 0
        for place, phrase in enumerate(phrases):
            if phrase.fate == USED:
                tokens += count(phrase.text) - around + 1  # and the comma
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
