"""What a piece of music can be, and the words for it."""

MOODS = ("happy", "energetic", "tense", "sad", "calm", "dreamy")
GENRES = ("ambient", "classical piano", "jazz", "rock", "electronic", "folk")

# Synonyms: a caption uses the first one half of the time, otherwise any of them.
MOOD_WORDS = {
    "happy": ("happy", "cheerful", "joyful"), "energetic": ("energetic", "driving", "exciting"),
    "tense": ("tense", "anxious", "threatening"), "sad": ("sad", "melancholy", "sorrowful"),
    "calm": ("calm", "peaceful", "gentle"), "dreamy": ("dreamy", "floating", "ethereal"),
}  # fmt: skip
GENRE_WORDS = {
    "ambient": ("ambient",), "classical piano": ("classical piano", "solo piano"), "jazz": ("jazz", "swing"),
    "rock": ("rock",), "electronic": ("electronic", "dance"), "folk": ("folk", "acoustic"),
}  # fmt: skip

# Semitones above the tonic. The third, 4 or 3, decides between "major" and "minor" in a caption.
MODES = {
    "lydian": (0, 2, 4, 6, 7, 9, 11), "major": (0, 2, 4, 5, 7, 9, 11), "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10), "minor": (0, 2, 3, 5, 7, 8, 10), "phrygian": (0, 1, 3, 5, 7, 8, 10),
}  # fmt: skip
INSTRUMENTS = {  # timbre -> the words for it in a caption
    "pad": "soft pads", "flute": "a flute", "piano": "a piano", "electric piano": "an electric piano",
    "brass": "brass", "guitar": "an acoustic guitar", "distorted guitar": "a distorted guitar", "fiddle": "a fiddle",
    "synthesizer": "a synthesizer", "square": "a square wave", "bass": "a bass",
}  # fmt: skip
TEMPO_WORDS = (("slow", 82), ("moderate", 120), ("fast", float("inf")))  # below, in beats per minute
OTHER_WORDS = ("a", "an", "and", "in", "key", "major", "minor", "music", "of", "piece", "tempo", "track", "with")


def key_word(mode: str) -> str:
    """``"major"`` or ``"minor"``, by the third of the mode."""
    return "major" if MODES[mode][2] == 4 else "minor"


def tempo_word(tempo: float) -> str:
    """``"slow"``, ``"moderate"`` or ``"fast"``, from beats per minute."""
    return next(word for word, below in TEMPO_WORDS if tempo < below)


def words() -> list[str]:
    """Every word that captions of music use, sorted."""
    phrases = [*OTHER_WORDS, *INSTRUMENTS.values(), *(word for word, _ in TEMPO_WORDS)]
    phrases += [phrase for group in (*MOOD_WORDS.values(), *GENRE_WORDS.values()) for phrase in group]
    return sorted({word for phrase in phrases for word in phrase.split()})


def article(words: str) -> str:
    """``"a calm"``, ``"an energetic"``: the words after their article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
