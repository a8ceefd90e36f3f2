"""Some of what a source says: the style of a picture without the things in it."""

from dataclasses import dataclass, replace

from ..signatures import check_fields
from .description import Description, Source, as_description
from .phrases import exclusive_phrases, join_phrases, split_phrases


@dataclass(frozen=True)
class Only:
    """A source that keeps only the phrases of some ``kind``: its style, background, palette or sun.

    The kinds are those of the offline world's words (:attr:`.phrases.Phrase.kind`); give several as a tuple.

    >>> Only("a cat among hills, neon style, cool colors", "style").describe().text
    'neon style'
    """

    source: Source | str
    kind: str | tuple[str, ...] = "style"

    def __post_init__(self) -> None:
        check_fields(self)
        known = sorted(set(exclusive_phrases().values()))
        unknown = [kind for kind in self.kinds if kind not in known]
        if unknown or not self.kinds:
            raise ValueError(f"A kind is one of {', '.join(known)}; got {self.kind!r}.")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds as a tuple."""
        return (self.kind,) if isinstance(self.kind, str) else tuple(self.kind)

    def describe(self) -> Description:
        """Ask the source and keep its phrases of these kinds; the confidence is still that of everything it said."""
        said = as_description(self.source)
        kept = [phrase for phrase in split_phrases(said.text) if phrase.kind in self.kinds]
        return replace(said, text=join_phrases(kept), source=f"{' and '.join(self.kinds)} in {said.source}")
