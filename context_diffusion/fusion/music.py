"""Music as words: CLAP (Wu et al. 2023) says which of several descriptions fits a recording best, with no training.

    MusicSource("sad-piano.flac").describe()                                         # the offline model
    MusicSource("song.wav", model="clap", descriptions={"a storm in music": "a stormy sea", ...})

Sound and text become unit vectors a and t_k in one space; the probability of description k is

    p_k = exp(s a . t_k) / sum_j exp(s a . t_j),                                                                (1)

where s is the model's learned scale for sound, an inverse temperature. Long recordings are heard window by window, and
the logits s a . t_k are averaged over the windows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoints import find_network, load_part
from ..checks import shown
from ..metrics.inputs import batched
from ..signatures import check_fields, checked
from .description import Description
from .music_words import GENRE_DESCRIPTIONS, MOOD_DESCRIPTIONS, offline_words, open_words
from .sound import Recording, Sound, check_sounds, read_sound

OFFLINE = "tiny-fusion"
BATCH_SIZE = 16  # windows at once


class MusicTagger:
    """A CLAP with its tokenizer and feature extractor; it hears sound at ``rate`` Hz.

    >>> tagger = MusicTagger.from_pretrained()  # doctest: +SKIP
    >>> tagger(read_sound("sad-piano.flac", tagger.rate), ["a happy piece", "a sad piece"])  # doctest: +SKIP
    tensor([0.0101, 0.9899])
    """

    def __init__(self, network: torch.nn.Module, tokenizer, extractor):
        self.network, self.tokenizer, self.extractor = network, tokenizer, extractor

    @classmethod
    @checked
    def from_pretrained(cls, name: str | Path = OFFLINE, *, device: str | torch.device = "cpu") -> "MusicTagger":
        """Load ``"tiny-fusion"`` (offline), ``"clap"`` (hub), or a CLAP by its folder or repository id.

        Raises ``ValueError`` for an unknown name, ``FileNotFoundError`` if the weights cannot be found.
        """
        from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel

        location = find_network("music model", name)
        network = load_part(ClapModel, location, device=device).eval().requires_grad_(False)
        return cls(network, *(load_part(kind, location, dtype=None) for kind in (AutoTokenizer, AutoFeatureExtractor)))

    @property
    def rate(self) -> int:
        """Samples per second that the network was trained on."""
        return self.extractor.sampling_rate

    @checked
    def __call__(self, sound: Sound, descriptions: Sequence[str]) -> Float[Tensor, " texts"]:
        """Give the probability of each description, Eq. (1), for a sound at :attr:`rate`."""
        return self.logits([sound], descriptions)[0].softmax(dim=0)

    @torch.inference_mode()
    @checked
    def logits(self, sounds: Iterable[Sound], descriptions: Sequence[str]) -> Float[Tensor, "sounds texts"]:
        """Give s a . t_k of Eq. (1) for each sound and description, averaged over the windows of each sound.

        Raises ``ValueError`` for a sound at another rate, and for words that the tokenizer does not know.
        """
        sounds = check_sounds(sounds, self.rate)
        texts = self._read(descriptions)
        scale = self.network.logit_scale_a.exp()
        rows = []
        for sound in sounds:
            heard = [self._hear(batch) for batch in batched(self.windows(sound.samples), BATCH_SIZE)]
            rows.append((scale * torch.cat(heard) @ texts.T).mean(dim=0))
        return torch.stack(rows).cpu()

    @checked
    def windows(self, samples: Float[np.ndarray, " samples"]) -> list[Float[np.ndarray, " heard"]]:
        """Cut into the fewest evenly spaced windows that cover everything; a sound shorter than one stays whole."""
        size = self.extractor.nb_max_samples
        count = max(1, -(-len(samples) // size))
        starts = np.linspace(0, max(0, len(samples) - size), count).round().astype(int)
        return [samples[start : start + size] for start in starts]

    def _hear(self, windows: Sequence[Float[np.ndarray, " _"]]) -> Float[Tensor, "windows dim"]:
        inputs = self.extractor(list(windows), sampling_rate=self.rate, return_tensors="pt")
        longer = torch.zeros(len(windows), 1, dtype=torch.bool)  # else the extractor marks one at random as longer
        features = inputs["input_features"].float().to(self.network.device)
        return self.network.get_audio_features(input_features=features, is_longer=longer).pooler_output

    def _read(self, descriptions: Sequence[str]) -> Float[Tensor, "texts dim"]:
        if isinstance(descriptions, str) or len(descriptions) < 2:
            raise ValueError(f"Give two descriptions or more to compare the music with; got {descriptions!r:.80}.")
        inputs = self.tokenizer(list(descriptions), padding=True, truncation=True, return_tensors="pt")
        unknown = (inputs.input_ids == self.tokenizer.unk_token_id).any(dim=1).tolist()
        if any(unknown):
            known = ", ".join(word for word in sorted(self.tokenizer.get_vocab()) if word.isalpha())
            raise ValueError(
                f"The model does not know every word of {descriptions[unknown.index(True)]!r}. It knows: {known:.900}."
            )
        return self.network.get_text_features(**inputs.to(self.network.device)).pooler_output


@dataclass(frozen=True)
class MusicSource:
    """A piece of music as a source of words; ``model`` is a :class:`MusicTagger` or its name.

    ``recording`` is a file, samples with their ``rate`` in Hz, or ``(samples, rate)``. ``descriptions`` maps sentences
    to compare the music with to words for the prompt; without it, the moods and genres of :func:`music_table` serve,
    and ``vocabulary`` says whether the words are the offline model's or plain English.
    """

    recording: Recording | Sound
    rate: float | None = None
    model: MusicTagger | str | Path = OFFLINE
    descriptions: Mapping[str, str] | None = None
    vocabulary: Literal["offline", "open"] = "offline"

    def __post_init__(self) -> None:
        check_fields(self, "rate", "model", "vocabulary")
        given = self.descriptions
        if given is not None and not (isinstance(given, Mapping) and len(given) >= 2):
            raise ValueError(
                "descriptions maps two or more sentences about music to words for the prompt, for example "
                f"{{'a happy piece of music': 'a sunny meadow', ...}}; got {shown(given)}."
            )

    def describe(self) -> Description:
        """Say what the music suggests; the confidence is the probability of its mood (or description), Eq. (1).

        Silence says nothing, with confidence 0. Raises what :func:`.sound.read_sound`,
        :meth:`MusicTagger.from_pretrained` and :meth:`MusicTagger.logits` raise.
        """
        tagger = self.model if isinstance(self.model, MusicTagger) else None
        # Read first, so that a bad or silent recording costs no loading; 48 kHz because the tagger's rate is unknown.
        sound = read_sound(self.recording, tagger.rate if tagger else 48_000, rate=self.rate)
        if tagger is None and not sound.silent:
            tagger = _loaded(str(self.model))
            sound = read_sound(self.recording, tagger.rate, rate=self.rate)
        source = f"music in {sound.name}"
        if tagger is None or sound.silent:
            return Description("", 0.0, source, sound.notes)
        if self.descriptions is not None:
            best, sure = likeliest(tagger(sound, list(self.descriptions)), list(self.descriptions))
            return Description(self.descriptions[best], sure, source, (f"{best} ({sure:.2f})", *sound.notes))
        logits = tagger.logits([sound], [*MOOD_DESCRIPTIONS.values(), *GENRE_DESCRIPTIONS.values()])[0]
        moods, genres = (
            part.softmax(dim=0) for part in logits.split([len(MOOD_DESCRIPTIONS), len(GENRE_DESCRIPTIONS)])
        )
        mood, sure = likeliest(moods, list(MOOD_DESCRIPTIONS))
        genre, of_genre = likeliest(genres, list(GENRE_DESCRIPTIONS))
        text = offline_words(mood) if self.vocabulary == "offline" else open_words(mood, genre)
        return Description(text, sure, source, (f"{mood} ({sure:.2f}), {genre} ({of_genre:.2f})", *sound.notes))


def likeliest(chances: Float[Tensor, " labels"], labels: Sequence[str]) -> tuple[str, float]:
    """Give the label with the highest probability, and that probability."""
    best = int(chances.argmax())
    return labels[best], min(1.0, float(chances[best]))


@cache
def _loaded(name: str) -> MusicTagger:
    return MusicTagger.from_pretrained(name)
