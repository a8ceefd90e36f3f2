"""A piece as numbers: what its mood and its genre make likely.

Moods differ in the cues that listeners have been found to use. On the circumplex of affect (Russell 1980), arousal
comes with tempo, density, brightness and loudness, valence with mode and register, and tension with dissonance (Eerola
and Vuoskoski 2011; Eerola, Friberg and Bresin 2013 measured the weights of such cues one by one). Genre is timbre and
rhythm. Mood and genre are drawn independently, and every cue of a mood overlaps with those of its neighbours.
"""

from dataclasses import dataclass

import numpy as np

from ..checks import LIMITS, check_choice, check_count, check_number
from ..signatures import check_fields, check_fixed, checked
from .music_vocabulary import GENRES, INSTRUMENTS, MODES, MOODS

RATE = 16_000  # samples per second
SECONDS = 6.0
HELD_OUT = 1_000_000  # seeds from here up are never trained on
STRAY = 0.08  # how often a cue is drawn as some other mood would have it

# Mean and standard deviation of each cue; Piece gives the units.
CUES = {
    "happy": {
        "tempo": (126, 13), "register": (5, 3), "density": (1.6, 0.35), "articulation": (0.6, 0.12),
        "brightness": (0.7, 0.12), "reverb": (0.15, 0.08), "tension": (0.05, 0.05), "swell": (0, 2),
        "percussion": (0.7, 0.15), "contour": (0.3, 0.3),
    },
    "energetic": {
        "tempo": (160, 13), "register": (0, 3), "density": (2.4, 0.4), "articulation": (0.5, 0.12),
        "brightness": (0.85, 0.1), "reverb": (0.1, 0.06), "tension": (0.15, 0.1), "swell": (2, 2),
        "percussion": (1.0, 0.12), "contour": (0, 0.3),
    },
    "tense": {
        "tempo": (116, 18), "register": (-5, 3), "density": (1.8, 0.5), "articulation": (0.45, 0.15),
        "brightness": (0.5, 0.15), "reverb": (0.3, 0.12), "tension": (0.75, 0.15), "swell": (8, 3),
        "percussion": (0.5, 0.15), "contour": (0, 0.3),
    },
    "sad": {
        "tempo": (64, 8), "register": (-3, 3), "density": (0.8, 0.25), "articulation": (0.97, 0.06),
        "brightness": (0.25, 0.1), "reverb": (0.35, 0.12), "tension": (0.12, 0.08), "swell": (-4, 2),
        "percussion": (0.15, 0.1), "contour": (-0.6, 0.3),
    },
    "calm": {
        "tempo": (74, 9), "register": (1, 3), "density": (0.7, 0.25), "articulation": (0.93, 0.08),
        "brightness": (0.42, 0.1), "reverb": (0.25, 0.1), "tension": (0, 0.04), "swell": (0, 2),
        "percussion": (0.2, 0.1), "contour": (0, 0.3),
    },
    "dreamy": {
        "tempo": (86, 10), "register": (9, 3), "density": (1.3, 0.35), "articulation": (1.1, 0.1),
        "brightness": (0.45, 0.12), "reverb": (0.75, 0.12), "tension": (0.15, 0.08), "swell": (0, 3),
        "percussion": (0.2, 0.1), "contour": (0.2, 0.3),
    },
}  # fmt: skip
RANGES = {  # beyond these limits a cue means nothing
    "tempo": (45, 200), "register": (-12, 14), "density": (0.3, 3.5), "articulation": (0.25, 1.3),
    "brightness": (0, 1), "reverb": (0, 0.95), "tension": (0, 1), "swell": (-12, 14), "percussion": (0, 1.2),
    "contour": (-1, 1),
}  # fmt: skip
MODE_CHANCES = {
    "happy": {"major": 0.7, "mixolydian": 0.2, "lydian": 0.1},
    "energetic": {"mixolydian": 0.4, "dorian": 0.35, "major": 0.25},
    "tense": {"phrygian": 0.7, "minor": 0.3},
    "sad": {"minor": 0.8, "phrygian": 0.1, "dorian": 0.1},
    "calm": {"major": 0.75, "mixolydian": 0.15, "lydian": 0.1},
    "dreamy": {"lydian": 0.55, "major": 0.3, "dorian": 0.15},
}
BANDS = {  # genre -> timbres of lead, chords and bass; how the chords are played; the drums
    "ambient": (("flute", "pad"), ("pad",), ("pad",), "held", "none"),
    "classical piano": (("piano",), ("piano",), ("piano",), "broken", "none"),
    "jazz": (("brass", "electric piano"), ("electric piano", "piano"), ("bass",), "offbeat", "swing"),
    "rock": (("distorted guitar",), ("distorted guitar",), ("bass",), "driven", "backbeat"),
    "electronic": (("synthesizer", "square"), ("synthesizer",), ("square", "synthesizer"), "pulsed", "four"),
    "folk": (("fiddle", "flute", "guitar"), ("guitar",), ("guitar",), "picked", "brushed"),
}


@dataclass(frozen=True)
class Piece:
    """The parameters of a piece; together with ``seed`` they determine its every sample."""

    mood: str
    genre: str
    seed: int
    tempo: float  # beats per minute
    mode: str  # a key of music_vocabulary.MODES
    tonic: int  # semitones above C
    register: float  # of the melody, semitones above G4
    density: float  # notes of the melody per beat
    articulation: float  # part of a note's time that sounds; above 1, notes overlap
    brightness: float  # 0: hardly any overtones, 1: many
    reverb: float  # share of the room in the sound
    tension: float  # chance that a chord is dissonant
    swell: float  # change in level from start to end, in decibels
    percussion: float  # loudness of the drums
    contour: float  # where the melody goes: -1 down, 1 up
    lead: str
    chords: str
    bass: str

    def __post_init__(self) -> None:
        check_fields(self)
        words = {"mood": MOODS, "genre": GENRES, "mode": MODES}
        for name, known in (words | dict.fromkeys(("lead", "chords", "bass"), INSTRUMENTS)).items():
            check_choice(name, getattr(self, name), known)
        for name, (low, high) in RANGES.items():
            check_number(name, getattr(self, name), low, high)
        check_count("tonic", self.tonic, 11, low=0)
        check_count("seed", self.seed, LIMITS["seed"], low=0)

    @classmethod
    @checked
    def draw(cls, seed: int, **fixed) -> "Piece":
        """Draw every parameter from the seed, except those fixed by keyword.

        Raises ``TypeError`` for an unknown parameter, ``ValueError`` for an unknown mood or genre.

        >>> Piece.draw(3, mood="sad") == Piece.draw(3, mood="sad")
        True
        """
        check_count("seed", seed, LIMITS["seed"], low=0)
        check_fixed(cls, fixed)
        generator = np.random.default_rng([seed, 7])
        mood, genre = MOODS[generator.integers(len(MOODS))], GENRES[generator.integers(len(GENRES))]
        mood, genre = fixed.get("mood", mood), fixed.get("genre", genre)
        check_choice("mood", mood, MOODS)
        check_choice("genre", genre, GENRES)
        leads, chords, basses, *_ = BANDS[genre]
        drawn = {
            "mood": mood, "genre": genre, "seed": seed, **_cues(mood, generator), "mode": _mode(mood, generator),
            "tonic": int(generator.integers(12)), "lead": str(generator.choice(leads)),
            "chords": str(generator.choice(chords)), "bass": str(generator.choice(basses)),
        }  # fmt: skip
        return cls(**drawn | fixed)

    @property
    def scale(self) -> tuple[int, ...]:
        """The mode's notes, in semitones above the tonic."""
        return MODES[self.mode]


def _cues(mood: str, generator: np.random.Generator) -> dict[str, float]:
    """Draw each cue as the mood has it, and now and then as another mood would."""
    drawn = {}
    for cue, (low, high) in RANGES.items():
        whose = MOODS[generator.integers(len(MOODS))] if generator.random() < STRAY else mood
        drawn[cue] = float(np.clip(generator.normal(*CUES[whose][cue]), low, high))
    return drawn


def _mode(mood: str, generator: np.random.Generator) -> str:
    chances = MODE_CHANCES[mood]
    return str(generator.choice(list(chances), p=list(chances.values())))
