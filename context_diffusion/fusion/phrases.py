"""Split a sentence into phrases: pieces that can be left out of a prompt without breaking the rest."""

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

JOINING = frozenset((
    "a", "an", "the", "of", "to", "and", "or", "is", "are", "was", "were", "be", "been", "it", "its", "this", "that",
    "there", "with", "some",
))  # fmt: skip
BEFORE_PLACES = frozenset((
    "in", "on", "at", "by", "with", "under", "over", "among", "near", "beside", "behind", "between", "above", "below",
    "through", "during", "while", "after", "before", "against", "along", "across", "around", "into", "from",
))  # fmt: skip
USED = "used"
_BETWEEN_CLAUSES = re.compile(r"[,;!?\n]+|[.:](?=\s|$)|\s[-–—]+\s")


@dataclass(frozen=True)
class Phrase:
    """A few words, the number of the clause they belong to, and their fate in a prompt."""

    text: str
    clause: int = 0
    fate: str = USED

    @property
    def kind(self) -> str | None:
        """What it names in the words of the offline world: background, sun, style or palette; else None."""
        return exclusive_phrases().get(self.text.casefold())

    def with_fate(self, fate: str) -> "Phrase":
        """Return the same phrase with another fate."""
        return replace(self, fate=fate)


def split_phrases(text: str) -> list[Phrase]:
    """Split a text at commas and ends of sentences, and before words such as "in", "under" and "with".

    Every phrase keeps at least one word that carries meaning: "in front of the house" stays whole.

    >>> [phrase.text for phrase in split_phrases("a boat among hills, watercolor style")]
    ['a boat', 'among hills', 'watercolor style']
    """
    phrases = []
    for number, clause in enumerate(_BETWEEN_CLAUSES.split(text)):
        pieces: list[list[str]] = [[]]
        for word in clause.split():
            if bare(word) in BEFORE_PLACES and meanings(" ".join(pieces[-1])):
                pieces.append([])
            pieces[-1].append(word)
        if len(pieces) > 1 and not meanings(" ".join(pieces[-1])):  # a preposition at the end
            last = pieces.pop()
            pieces[-1] += last
        phrases += [Phrase(" ".join(piece), number) for piece in pieces if meanings(" ".join(piece))]
    return phrases


def join_phrases(phrases: list[Phrase]) -> str:
    """Join phrases again, with a space inside a clause and a comma between clauses."""
    text = ""
    for before, phrase in zip([None, *phrases], phrases, strict=False):
        text += ("" if before is None else " " if before.clause == phrase.clause else ", ") + phrase.text
    return text


def shortened(phrase: Phrase, words: int, fate: str) -> Iterator[list[Phrase]]:
    """Offer the phrase cut to at most ``words`` words, longest first, each time with its rest under ``fate``.

    What is kept ends in a word that carries meaning.
    """
    said = phrase.text.split()
    for end in range(min(words, len(said) - 1), 0, -1):
        if meanings(said[end - 1]):
            kept, rest = " ".join(said[:end]), " ".join(said[end:])
            yield [replace(phrase, text=kept), replace(phrase, text=rest, fate=fate)]


def bare(word: str) -> str:
    """Return a word in lower case, without the punctuation around it."""
    return word.casefold().strip(string.punctuation + "“”‘’«»…")


def meanings(text: str) -> frozenset[str]:
    """The words of a text that carry meaning, without articles, prepositions and the like."""
    return frozenset(bare(word) for word in text.split()) - JOINING - BEFORE_PLACES - {""}


@cache
def exclusive_phrases() -> dict[str, str]:
    """Phrases of the offline world that exclude each other: phrase -> ``"background"``, ``"palette"``, ..."""
    from ..scenes.vocabulary import PALETTE_FAMILIES, PLACES, STYLES, SUN

    kinds = {phrase: "background" for places in PLACES.values() for phrase in places if phrase}
    kinds |= {f"{family} colors": "palette" for family in PALETTE_FAMILIES}
    kinds |= {f"{style} style": "style" for style in STYLES}
    return kinds | dict.fromkeys(SUN, "sun")
