"""What the offline captioner says of 500 unseen scenes: are object, background, sun and style right?"""

import re

import numpy as np

from context_diffusion.fusion.caption import Captioner
from context_diffusion.metrics import estimate_mean, estimate_rate
from context_diffusion.scenes import BACKGROUNDS, OBJECTS, STYLES, Rendering, labels
from context_diffusion.scenes.vocabulary import PLACES, SUN, SYNONYMS

from .accuracy import accuracy
from .bench import Bench
from .report import Report
from .sheets import labelled_sheet
from .unseen import sample

AIMS = {"object": 0.95, "background": 0.9, "style": 0.95}
UNSAID = -1


def read_caption(text: str) -> dict[str, int]:
    """Read the class indices off a caption, ``-1`` for what it does not say; without a place it means ``plain``.

    >>> read_caption("a ship by the ocean, neon style")
    {'object': 2, 'background': 3, 'style': 7, 'sun': 0}
    """
    nouns = {noun: name for name in OBJECTS for noun in (name, *SYNONYMS.get(name, ()))}
    found = [nouns[word] for word in re.findall(r"\w+", text.split(",")[0]) if word in nouns]
    places = [name for name, phrases in PLACES.items() if any(phrase and phrase in text for phrase in phrases)]
    styles = [style for style in STYLES if f"{style} style" in text]
    return {
        "object": OBJECTS.index(found[0]) if found else UNSAID,
        "background": BACKGROUNDS.index(places[0]) if places else BACKGROUNDS.index("plain"),
        "style": STYLES.index(styles[0]) if styles else UNSAID,
        "sun": int(any(phrase in text for phrase in SUN)),
    }


def truth(drawn: Rendering) -> dict[str, int]:
    """The true class indices of a scene, under the same names."""
    return labels(drawn) | {"sun": int(drawn.scene.sun)}


def run(bench: Bench) -> Report:
    """Four accuracies, how often all four are right, and whether the confidence tells right from wrong."""
    captioner, drawn = Captioner.from_pretrained(), sample(bench.count(500, 40))
    said = captioner.describe_all(one.image for one in drawn)
    read, known = [read_caption(one.text) for one in said], [truth(one) for one in drawn]
    report = Report(notes=["one picture is one unit; the confidence is the geometric mean of the words' probabilities"])
    for head in ("object", "background", "style", "sun"):
        seen, wanted = np.array([row[head] for row in read]), [row[head] for row in known]
        report.add(f"{head} right in the caption", accuracy(seen, wanted), at_least=AIMS.get(head))
    right = np.array([row == wanted for row, wanted in zip(read, known, strict=True)])
    report.add("all four right", estimate_rate(right))
    for name, among in (("right in all four", right), ("with a mistake", ~right)):
        sure = [one.confidence for one, counted in zip(said, among, strict=True) if counted]
        if sure:
            report.add(f"mean confidence of captions {name}", estimate_mean(sure).within(0, 1))
    rows = {f"{i + 1}. {one.text}\n{one.confidence:.2f}": [drawn[i].image] for i, one in enumerate(said[: len(STYLES)])}
    report.sheets = {"pictures": labelled_sheet(rows)}
    return report
