"""Synthesised music for the offline models: a piece is a pure function of its seed, numpy alone.

    piece = Piece.draw(seed=4, mood="sad", genre="jazz")
    samples, words = render(piece), describe(piece)

What :mod:`..scenes` is for pictures: a small world of which everything is known, mood, genre, tempo, key, every note.
"""

from .piece import HELD_OUT, RATE, SECONDS, Piece
from .render import describe, render
from .score import Note, write_score
from .vocabulary import GENRES, MODES, MOODS, words

__all__ = [
    "GENRES", "HELD_OUT", "MODES", "MOODS", "RATE", "SECONDS", "Note", "Piece", "describe", "render", "words",
    "write_score",
]  # fmt: skip
