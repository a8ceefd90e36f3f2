"""What a scene can be made of, and the words for it."""

OBJECTS = (
    "house", "tree", "boat", "car", "fish", "flower", "mushroom", "rocket", "cup", "umbrella", "cat", "balloon",
)  # fmt: skip
BACKGROUNDS = ("plain", "field", "hills", "sea")
STYLES = (
    "flat", "line art", "watercolor", "halftone", "hatching", "mosaic", "pixel art", "neon", "crayon", "blueprint",
)  # fmt: skip
PALETTE_FAMILIES = ("warm", "cool", "pastel", "earth", "vivid", "mono")

# Synonyms: one caption in five uses one.
SYNONYMS = {
    "house": ("home", "cottage"), "tree": ("forest", "oak"), "boat": ("ship", "sailboat"), "car": ("automobile",),
    "flower": ("blossom",), "rocket": ("spaceship",), "cup": ("mug",), "cat": ("kitten",),
    "umbrella": ("parasol",), "mushroom": ("toadstool",),
}  # fmt: skip
PLACES = {  # background -> phrases; the first is the usual one
    "plain": ("", "on a plain background"),
    "field": ("in a field", "on a meadow"),
    "hills": ("among hills", "with mountains"),
    "sea": ("by the sea", "by the ocean"),
}
SUN = ("under the sun", "on a sunny day")

# The structural and everyday words that a prompt may also hold; each is one token.
OTHER_WORDS = (
    "a", "an", "the", "style", "colors", "in", "on", "of", "with", "by", "and", "no", "under", "among", "at",
    "picture", "image", "drawing", "painting", "photo", "background", "plain", "stylized", "misty",
    "rain", "snow", "night", "day", "dawn", "dusk", "cloudy", "clear", "calm", "bright", "dark",
)  # fmt: skip


def words() -> list[str]:
    """Every word of the captions and the lessons' prompts, sorted; the tokenizer makes each a single token."""
    phrases = [*OBJECTS, *STYLES, *PALETTE_FAMILIES, *BACKGROUNDS, *OTHER_WORDS, *SUN]
    phrases += [w for group in (*SYNONYMS.values(), *PLACES.values()) for w in group]
    return sorted({word for phrase in phrases for word in phrase.split()})


def article(noun: str) -> str:
    """``"a boat"``, ``"an umbrella"``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
