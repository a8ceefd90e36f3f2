"""Synthesised music for the offline models: a piece is a pure function of its seed, in NumPy alone.

    piece = Piece.draw(seed=4, mood="sad", genre="jazz")
    samples, words = render(piece), describe(piece)

It is to music what :mod:`..scenes` is to pictures: a small world in which everything is known, from mood, genre, tempo
and key down to every note.
"""

from .music_vocabulary import GENRES, MODES, MOODS, words
from .piece import HELD_OUT, RATE, SECONDS, Piece
from .render import describe, render
from .score import Note, write_score

__all__ = [
    "GENRES", "HELD_OUT", "MODES", "MOODS", "RATE", "SECONDS", "Note", "Piece", "describe", "render", "words",
    "write_score",
]  # fmt: skip
