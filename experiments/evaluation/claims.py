"""Whether an ordering that a paper reports holds here: the sign of a paired difference, by its interval."""

from collections.abc import Iterable
from dataclasses import dataclass

from context_diffusion.metrics import Estimate

from .results import Results

SIDES = ("above", "below", "not below", "not above")


@dataclass(frozen=True)
class Claim:
    """A sentence, the difference that tests it, and the side of zero on which that has to lie.

    "above" holds where the whole interval is above 0, fails where none of it is, and is open in between; "not below"
    holds where the interval goes no further down than ``-slack``, fails where it does and is wholly below 0, and is
    open in between. "below" and "not above" mirror them.
    """

    text: str
    difference: Estimate
    side: str
    slack: float = 0.03  # what "no" means in "costs no": by default, at most three points of accuracy

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ValueError(f"A difference lies {', '.join(SIDES[:-1])} or {SIDES[-1]} zero; got {self.side!r}.")

    @property
    def verdict(self) -> str:
        """Whether the claim "holds", "fails" or is "open"."""
        flip = self.side in ("below", "not above")
        low, high = (
            (-self.difference.high, -self.difference.low) if flip else (self.difference.low, self.difference.high)
        )
        if self.side in ("above", "below"):
            return "holds" if low > 0 else "fails" if high <= 0 else "open"
        return "fails" if high < 0 and low < -self.slack else "holds" if low >= -self.slack else "open"

    def __str__(self) -> str:
        return f"{self.verdict:5s}  {self.text}: {self.difference}"


Asked = tuple[str, str, str, str, str]  # sentence, first setting, second setting, score, side of first - second


def decide(results: Results, asked: Iterable[Asked]) -> list[Claim]:
    """Decide each claim whose score was measured."""
    made = [(text, results.difference(first, second, score), score, side) for text, first, second, score, side in asked]
    slack = {"palette distance": 1.0, "CLIP, object": 0.01}  # a Delta E that an eye can just see; a cosine
    return [Claim(text, found, side, slack.get(score, 0.03)) for text, found, score, side in made if found is not None]
