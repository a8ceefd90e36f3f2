"""One prompt from many sources: pictures, the weather, speech and music.

    fused = cd.fuse_prompts([cd.ImageSource("boat.png"), cd.WeatherSource("Lisbon"), "neon style"], weights=[2, 1, 1])

A source is anything with a method ``describe()`` that returns a :class:`Description`: words, how sure the source is of
them, and where they came from. A plain string is a source too.
"""

from .description import Description, Source, as_description
from .prompt import FusedPrompt, Part, fuse_prompts

__all__ = ["Description", "FusedPrompt", "Part", "Source", "as_description", "fuse_prompts"]
