"""What a source says: a few words, how sure it is of them, and where they came from."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..checks import shown
from ..signatures import check_fields


@dataclass(frozen=True)
class Description:
    """Words for a prompt: ``text`` holds phrases separated by commas, the most important first.

    ``confidence`` in [0, 1] is the source's own: a caption's likelihood, 1 for what was typed or measured, 0 for
    silence. ``source`` tells people where the words came from (``"caption of boat.png"``); ``notes`` hold what they
    should know about it (``"3 % of the samples are clipped"``).

    >>> Description("a boat, watercolor style", 0.9, "caption of boat.png").describe().confidence
    0.9
    """

    text: str
    confidence: float = 1.0
    source: str = "text"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"A confidence is a number from 0 (a guess) to 1 (certain); got {self.confidence!r}.")

    def describe(self) -> "Description":
        """Return itself: a description is a source too."""
        return self


@runtime_checkable
class Source(Protocol):
    """Anything that can be put into words: a picture, the weather somewhere, a recording."""

    def describe(self) -> Description:
        """Look, listen or ask, and say what is there; raise an error that explains itself if that fails."""
        ...


def as_description(source: object, number: int = 0) -> Description:
    """Take a string as it is and ask any other source; ``number`` is its place in the list, for the message.

    Raises ``TypeError`` for anything that is not a source, and whatever the source raises.
    """
    if isinstance(source, str):
        return Description(source)
    if not isinstance(source, Source) or isinstance(source, type):
        raise TypeError(
            "A source is a string, a Description, or an object with describe(), such as ImageSource(picture); "
            f"source {number} is {'the class ' + source.__name__ if isinstance(source, type) else shown(source, 60)}."
        )
    said = source.describe()
    if not isinstance(said, Description):
        raise TypeError(f"describe() returns a Description; source {number} returned a {type(said).__name__}.")
    return said
