"""Write the pieces in ``data/audio/``: ``python -m context_diffusion.melodies``."""

import numpy as np
from jaxtyping import Float

from ..files import DATA, ROOT, written_whole
from . import HELD_OUT, RATE, Piece, render

EXAMPLES = (("happy", "folk"), ("sad", "classical piano"), ("tense", "electronic"), ("dreamy", "ambient"))
LENGTH, GAIN = 5 * RATE, 0.5  # samples and amplitude: both keep the files small
FIRST_SEED = HELD_OUT + 10_000  # neither trained on nor scored


def example(number: int) -> Float[np.ndarray, " samples"]:
    """The first seconds of a piece with the mood and genre of ``EXAMPLES[number]``, turned down."""
    mood, genre = EXAMPLES[number]
    return GAIN * render(Piece.draw(FIRST_SEED + number, mood=mood, genre=genre))[:LENGTH]


def main() -> None:
    """Synthesise one piece for each mood and genre in :data:`EXAMPLES`, as 16-bit mono FLAC."""
    import soundfile

    for number, (mood, genre) in enumerate(EXAMPLES):
        target = DATA / "audio" / f"music-{mood}-{genre.replace(' ', '-')}.flac"
        with written_whole(target) as temporary:
            soundfile.write(temporary, example(number), RATE, subtype="PCM_16", compression_level=1.0)
        print(f"{target.relative_to(ROOT)}  {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
