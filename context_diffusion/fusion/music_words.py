"""From the mood of a piece of music to the words of a picture; :func:`music_table` shows every mapping.

The colours follow those that people choose for music: lighter, yellower and more saturated for happier music, darker
and bluer for sadder; emotion makes the match (Palmer, Schloss, Xu and Prado-Leon 2013). The places are this project's
own choice.
"""

from dataclasses import dataclass

from ..melodies.music_vocabulary import GENRES, MOODS, article


@dataclass(frozen=True)
class Picture:
    """What a mood looks like: background, palette and sun in the offline world, and the same in plain English."""

    background: str
    palette: str
    sun: bool
    open: str


PICTURES = {  # mood -> what it looks like
    "happy": Picture("field", "vivid", True, "a sunny meadow in vivid colors"),
    "energetic": Picture("hills", "warm", True, "bold shapes in glowing warm colors"),
    "tense": Picture("sea", "mono", False, "a stormy sea in stark, nearly colorless light"),
    "sad": Picture("sea", "cool", False, "a lonely shore in cool blue colors"),
    "calm": Picture("field", "earth", False, "a quiet field in soft earth colors"),
    "dreamy": Picture("hills", "pastel", False, "misty hills in pastel colors"),
}
MOOD_DESCRIPTIONS = {mood: f"{article(mood)} piece of music" for mood in MOODS}  # what a recording is compared with
GENRE_DESCRIPTIONS = {genre: f"{genre} music" for genre in GENRES}


def offline_words(mood: str) -> str:
    """Express a mood in words that the offline model was trained on: background, sun, palette.

    >>> offline_words("happy")
    'in a field under the sun, vivid colors'
    """
    from ..scenes.vocabulary import PLACES, SUN

    picture = PICTURES[mood]
    place = next(phrase for phrase in PLACES[picture.background] if phrase)
    return f"{place}{' ' + SUN[0] if picture.sun else ''}, {picture.palette} colors"


def open_words(mood: str, genre: str) -> str:
    """Express a mood and a genre in plain English, for models that know it.

    >>> open_words("sad", "jazz")
    'a lonely shore in cool blue colors, a sad mood, like jazz music'
    """
    return f"{PICTURES[mood].open}, {article(mood)} mood, like {genre} music"


def music_table() -> str:
    """Show as Markdown the description that stands for each mood, and the words it becomes."""
    rows = ["| mood | description | offline words | open words |", "|---|---|---|---|"]
    rows += [
        f"| {mood} | {MOOD_DESCRIPTIONS[mood]} | {offline_words(mood)} | {picture.open} |"
        for mood, picture in PICTURES.items()
    ]
    return "\n".join(rows)
