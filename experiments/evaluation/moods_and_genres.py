"""Mood and genre of 500 unseen pieces by zero-shot descriptions, against the nearest class mean of simple features."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from PIL import Image
from tqdm.auto import tqdm

from context_diffusion.fusion.music import MusicTagger
from context_diffusion.fusion.music_words import GENRE_DESCRIPTIONS, MOOD_DESCRIPTIONS
from context_diffusion.fusion.sound import read_sound
from context_diffusion.melodies import GENRES, HELD_OUT, MOODS, RATE, Piece, render
from context_diffusion.metrics import estimate_difference, estimate_mean, estimate_rate

from .bench import Bench
from .curves import picture_of
from .hand_features import NearestMean, hand_features
from .report import Report

KINDS = {"mood": (MOODS, MOOD_DESCRIPTIONS), "genre": (GENRES, GENRE_DESCRIPTIONS)}
AIMS = {"mood": 0.85, "genre": 0.9}
LEARNED_FROM = 500  # pieces behind the means of the baseline, of the seeds that the model was trained on


def run(bench: Bench) -> Report:
    """Two accuracies of the model and two of the baseline on the same pieces, and how sure the model is."""
    tagger = MusicTagger.from_pretrained()
    known = [Piece.draw(seed) for seed in range(bench.count(LEARNED_FROM, 60))]
    asked = [Piece.draw(HELD_OUT + number) for number in range(bench.count(500, 24))]
    sounds = [render(piece) for piece in tqdm(asked, desc="synthesising music", mininterval=5)]
    by_hand = [hand_features(render(piece), RATE) for piece in tqdm(known, desc="hand features", mininterval=5)]
    measured = [hand_features(sound, RATE) for sound in sounds]
    heard = [read_sound(sound, tagger.rate, rate=RATE) for sound in sounds]
    report = Report(notes=[
        "one piece is one unit; moods and genres are equally frequent, so chance is 1/6",
        f"baseline: the nearest class mean of {len(measured[0])} hand-made features, learned from {len(known)} pieces",
    ])  # fmt: skip
    every = [text for _, descriptions in KINDS.values() for text in descriptions.values()]
    logits = tagger.logits(heard, every).split([len(names) for names, _ in KINDS.values()], dim=1)
    confusions = {}
    for (kind, (names, _)), of_kind in zip(KINDS.items(), logits, strict=True):
        wanted = np.array([names.index(getattr(piece, kind)) for piece in asked])
        chances = of_kind.softmax(dim=1).numpy()
        right = chances.argmax(axis=1) == wanted
        model = NearestMean.fit(np.array(by_hand), [names.index(getattr(piece, kind)) for piece in known])
        simple = model(np.array(measured)) == wanted
        report.add(f"{kind} right", estimate_rate(right), at_least=AIMS[kind])
        report.add(f"{kind} right, baseline", estimate_rate(simple))
        report.add(f"{kind}: model minus baseline", estimate_difference(1.0 * right, 1.0 * simple), at_least=0.0)
        for name, among in (("right", right), ("wrong", ~right)):
            if among.any():
                report.add(
                    f"mean confidence where the {kind} is {name}",
                    estimate_mean(chances[among].max(axis=1).astype(float)).within(0, 1),
                )
        confusions[kind] = confusion(wanted, chances.argmax(axis=1), len(names))
    report.sheets = {"confusions": draw_confusions(confusions, {kind: names for kind, (names, _) in KINDS.items()})}
    return report


def confusion(
    wanted: Int[np.ndarray, " n"], found: Int[np.ndarray, " n"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """How often class i was called class j.

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return np.bincount(wanted * classes + found, minlength=classes**2).reshape(classes, classes)


def draw_confusions(
    counts: Mapping[str, Int[np.ndarray, "classes classes"]], names: Mapping[str, Sequence[str]]
) -> Image.Image:
    """Draw each table of counts: what a piece is (rows), what it is called (columns); the shade is the row's share."""
    figure = Figure(figsize=(5.2 * len(counts), 4.6), layout="constrained")
    for axes, (kind, table) in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts.items(), strict=True):
        shares: Float[np.ndarray, "classes classes"] = table / np.maximum(1, table.sum(axis=1, keepdims=True))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.argwhere(table):
            shade = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(table[row, column]), ha="center", va="center", color=shade)
        axes.set_xticks(range(len(table)), names[kind], rotation=45, ha="right")
        axes.set_yticks(range(len(table)), names[kind])
        right = table.trace() / max(1, table.sum())
        axes.set(xlabel="called", ylabel="is", title=f"{kind}: {right:.0%} of {table.sum()} pieces right")
    return picture_of(figure)
