"""A piece as notes: chords, melody, bass and drums, each a list of notes timed in beats."""

from dataclasses import dataclass

import numpy as np

from ..signatures import checked
from .piece import BANDS, SECONDS, Piece

PROGRESSIONS = {  # the mode's third, in semitones -> degrees of the scale, from 0
    4: ((0, 3, 4, 0), (0, 4, 0, 3), (0, 3, 0, 4), (0, 5, 3, 0)),
    3: ((0, 3, 4, 0), (0, 5, 0, 6), (0, 3, 0, 6), (0, 5, 3, 0)),
}
PATTERNS = {  # how chords are played -> the beats of a bar on which they start
    "held": (0,), "broken": (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5), "offbeat": (0, 1.5, 3), "driven": (0, 1, 2, 3),
    "pulsed": (0.5, 1.5, 2.5, 3.5), "picked": (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5),
}  # fmt: skip
DRUMS = {  # how drums are played -> the beats of a bar on which each strikes
    "none": {},
    "swing": {"ride": (0, 1, 1.67, 2, 3, 3.67), "hat": (1, 3)},
    "backbeat": {"kick": (0, 2, 2.5), "snare": (1, 3), "hat": (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5)},
    "four": {"kick": (0, 1, 2, 3), "hat": (0.5, 1.5, 2.5, 3.5), "snare": (1, 3)},
    "brushed": {"shaker": (0, 1, 1.5, 2, 3, 3.5), "kick": (0,)},
}
BAR = 4  # beats
LEAD, CHORDS, BASS = 67, 55, 38  # the MIDI pitches around which they play: G4, G3, D2


@dataclass(frozen=True)
class Note:
    """One note: ``start`` and ``length`` in beats, ``pitch`` in MIDI (0 for a drum), ``loudness`` as an amplitude."""

    instrument: str
    start: float
    length: float
    pitch: float
    loudness: float


@checked
def write_score(piece: Piece) -> list[Note]:
    """Write every note of a piece, in no particular order; a pure function of the piece."""
    generator = np.random.default_rng([piece.seed, 11])
    beats = SECONDS * piece.tempo / 60
    span = BAR if piece.tempo > 100 else BAR / 2  # beats to a chord, which is some two seconds
    options = PROGRESSIONS[piece.scale[2]]
    degrees = options[generator.integers(len(options))]
    roots = [degrees[number % len(degrees)] for number in range(int(np.ceil(beats / span)))]
    notes = []
    for number, root in enumerate(roots):
        notes += _chord(piece, root, number * span, span, generator) + _bass(piece, root, number * span, span)
    notes += _melody(piece, roots, span, beats, generator)
    for drum, places in DRUMS[BANDS[piece.genre][4]].items():
        for bar in range(int(np.ceil(beats / BAR))):
            loudness = piece.percussion * {"kick": 0.9, "snare": 0.5}.get(drum, 0.3)
            notes += [Note(drum, bar * BAR + place, 0, 0, loudness) for place in places]
    return [note for note in notes if note.start < beats]


def pitch_of(piece: Piece, degree: int, around: float) -> float:
    """The pitch of a degree of the scale, in the octave that brings it nearest to ``around``."""
    octave, step = divmod(degree, 7)
    pitch = piece.tonic + piece.scale[step] + 12 * octave
    return pitch + 12 * round((around - pitch) / 12)


def _chord(piece: Piece, root: int, start: float, span: float, generator: np.random.Generator) -> list[Note]:
    """A triad: with its seventh in jazz and dreams, open in rock, with dissonance and tremolo under tension."""
    steps = (0, 2, 4, 6) if piece.genre == "jazz" or piece.mood == "dreamy" else (0, 2, 4)
    steps = (0, 4, 9) if piece.genre == "rock" else steps
    around = CHORDS + piece.register / 2
    pitches = sorted(pitch_of(piece, root + step, around + step) for step in steps)
    if generator.random() < piece.tension:
        pitches.append(pitches[0] + float(generator.choice([1, 6, 13])))
    places = [place for place in PATTERNS[BANDS[piece.genre][3]] if place < span]
    if generator.random() < piece.tension - 0.3:
        places = list(np.arange(0, span, 0.5))
    one_by_one = BANDS[piece.genre][3] in ("broken", "picked")
    gaps = np.diff([*places, span])
    notes = []
    for number, (place, gap) in enumerate(zip(places, gaps, strict=True)):
        chosen = [pitches[(0, 2, 1, 2)[number % 4] % len(pitches)]] if one_by_one else pitches
        length = gap * min(1.0, piece.articulation) * (2 if one_by_one else 1)
        loudness = 0.35 / len(chosen) ** 0.7
        notes += [Note(piece.chords, start + place, length, pitch, loudness) for pitch in chosen]
    return notes


def _bass(piece: Piece, root: int, start: float, span: float) -> list[Note]:
    """The root, held; in jazz it walks up the chord, driven it plays eighths, pulsed it plays off the beat."""
    style = BANDS[piece.genre][3]
    low = pitch_of(piece, root, BASS)
    if style == "offbeat":
        return [
            Note(piece.bass, start + beat, 0.9, pitch_of(piece, root + (0, 2, 4, 5)[beat % 4], BASS), 0.5)
            for beat in range(int(span))
        ]
    places = {"driven": np.arange(0, span, 0.5), "pulsed": np.arange(0.5, span, 1)}.get(style, (0,))
    length = {"driven": 0.45, "pulsed": 0.4}.get(style, span)
    return [Note(piece.bass, start + float(place), length, low, 0.4) for place in places]


def _melody(piece: Piece, roots: list[int], span: float, beats: float, generator: np.random.Generator) -> list[Note]:
    """A walk on the scale: chord tones on the beat, steps in between, drifting with the contour."""
    grid = 0.25 if piece.density > 1.8 else 0.5
    slots = np.arange(0, beats, grid)
    chance = np.clip(piece.density * grid * np.where(slots % 1 == 0, 1.5, 0.75), 0.05, 1.0)
    starts = slots[generator.random(len(slots)) < chance]
    around = LEAD + piece.register
    degree, notes = 0, []
    for number, start in enumerate(starts):
        until = starts[number + 1] if number + 1 < len(starts) else beats
        if start % 1 == 0 and generator.random() < 0.7:
            root = roots[int(start // span)]
            degree = min((root + step + 7 * octave for step in (0, 2, 4) for octave in (-1, 0, 1)),
                         key=lambda one: abs(one - degree - generator.normal(0, 1)))  # fmt: skip
        else:
            degree += int(generator.choice([-2, -1, 1, 2], p=[0.1, 0.4, 0.4, 0.1]))
        degree = int(np.clip(degree, -4, 6))
        drift = 8 * piece.contour * (start / beats - 0.5)
        pitch = pitch_of(piece, degree, around + drift + degree * 12 / 7)
        length = min(until - start, 2.0) * piece.articulation
        notes.append(Note(piece.lead, float(start), float(length), pitch, 0.45 * generator.uniform(0.8, 1.0)))
    return notes
