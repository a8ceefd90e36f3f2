"""A piece as sound and as words."""

import numpy as np
from jaxtyping import Float

from ..checks import LIMITS, check_count
from ..signatures import checked
from .instruments import TIMBRES, stroke, tone
from .music_vocabulary import GENRE_WORDS, INSTRUMENTS, MOOD_WORDS, article, key_word, tempo_word
from .piece import RATE, SECONDS, Piece
from .score import write_score

PEAK = 0.7
ROOM = (0.25, 2.0)  # seconds in which the reverberation decays to 1/e^3, for reverb 0 and 1


@checked
def render(piece: Piece) -> Float[np.ndarray, " samples"]:
    """Play a piece: float32 in [-0.7, 0.7], ``SECONDS`` long at ``RATE``; a pure function of the piece.

    Notes start up to 8 ms early or late, as players do. The room's echo is exponentially decaying noise.
    """
    generator = np.random.default_rng([piece.seed, 13])
    total = int(SECONDS * RATE)
    mix, beat = np.zeros(total, dtype=np.float32), 60 / piece.tempo
    played: dict[tuple, np.ndarray] = {}
    for note in write_score(piece):
        key = (note.instrument, note.pitch, round(note.length, 2))
        if key not in played:
            pitched = note.instrument in TIMBRES
            played[key] = (
                tone(note.instrument, note.pitch, max(0.05, note.length * beat), piece.brightness, generator)
                if pitched else stroke(note.instrument, generator)
            )  # fmt: skip
        start = int(np.clip((note.start * beat + generator.uniform(-0.008, 0.008)) * RATE, 0, total))
        sound = played[key][: total - start]
        mix[start : start + len(sound)] += note.loudness * sound
    mix = _in_room(mix, piece.reverb, generator)
    mix *= 10 ** (piece.swell * np.linspace(-0.5, 0.5, total) / 20)
    return (mix * PEAK / max(1e-6, float(np.abs(mix).max()))).astype(np.float32)


def _in_room(
    dry: Float[np.ndarray, " samples"], share: float, generator: np.random.Generator
) -> Float[np.ndarray, " samples"]:
    """Add the echo of a room: convolve with noise of unit energy that decays as exp(-3 t / T)."""
    seconds = ROOM[0] + share * (ROOM[1] - ROOM[0])
    time = np.arange(int(seconds * RATE)) / RATE
    response = generator.standard_normal(len(time)) * np.exp(-3 * time / seconds)
    response /= np.sqrt((response**2).sum())
    size = 1 << (len(dry) + len(response) - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(dry, size) * np.fft.rfft(response, size), size)[: len(dry)]
    return (1 - 0.6 * share) * dry + share * wet


@checked
def describe(piece: Piece, wording: int | None = None) -> str:
    """Describe a piece in full, or, with the seed ``wording``, in other words and with some parts left out.

    >>> describe(Piece.draw(0, mood="calm", genre="ambient", lead="pad", tempo=60, mode="minor"))
    'a calm ambient piece with soft pads, slow, in a minor key'
    """
    parts = [f"with {INSTRUMENTS[piece.lead]}", tempo_word(piece.tempo), f"in a {key_word(piece.mode)} key"]
    if wording is None:
        return f"{article(piece.mood)} {piece.genre} piece {parts[0]}, {parts[1]}, {parts[2]}"
    check_count("wording", wording, LIMITS["seed"], low=0)
    generator = np.random.default_rng([piece.seed, wording, 17])
    mood, genre = (_one_of(table, generator) for table in (MOOD_WORDS[piece.mood], GENRE_WORDS[piece.genre]))
    kept = [part for part in parts if generator.random() < 0.5]
    form = generator.random()
    if form < 0.15:
        head = f"{article(mood)} piece"
    elif form < 0.3:
        head, kept = f"{article(genre)} {generator.choice(['piece', 'track'])}", [*kept, mood]
    elif form < 0.65:
        head = f"{article(mood)} {genre} {generator.choice(['piece', 'track', 'piece of music'])}"
    else:
        head = f"{mood} {genre} music"
    instrument = f" {kept.pop(0)}" if parts[0] in kept else ""
    return ", ".join([head + instrument, *kept])


def _one_of(options: tuple[str, ...], generator: np.random.Generator) -> str:
    return options[0] if generator.random() < 0.5 else str(generator.choice(options))
