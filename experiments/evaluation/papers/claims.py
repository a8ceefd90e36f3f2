"""Whether an ordering that a paper reports holds here: a paired difference, and on which side of zero it lies."""

from collections.abc import Iterable
from dataclasses import dataclass

from context_diffusion.metrics import Estimate

from .units import Results

SIDES = ("above", "below", "not below", "not above")


@dataclass(frozen=True)
class Claim:
    """A sentence, the difference that tests it, and the side of zero on which it has to lie.

    "above" holds where the whole interval is above 0, fails where none of it is, and is open in between; "not below"
    fails where the whole interval is below 0, holds where none of it reaches further down than ``slack``, and is open
    in between.
    """

    text: str
    difference: Estimate
    side: str
    slack: float = 0.03  # what "no" means in "costs no": three points of accuracy, unless said otherwise

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ValueError(f"A difference lies {', '.join(SIDES)}; got {self.side!r}.")

    @property
    def verdict(self) -> str:
        """One of "holds", "fails", "open"."""
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
    slack = {"palette distance": 1.0, "CLIP, object": 0.01}  # Delta E that an eye just tells apart; a cosine
    return [Claim(text, found, side, slack.get(score, 0.03)) for text, found, score, side in made if found is not None]
