"""Speech as words: Whisper (Radford et al. 2023), offline or from the hub."""

import math
import string
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from ..checkpoints import find_network, load_part
from ..metrics.inputs import batched
from ..signatures import check_fields, checked
from .caption import confidence
from .description import Description
from .sound import Recording, Sound, check_sounds, read_sound, without_quiet_ends

OFFLINE = "tiny-fusion"
RATE = 16_000  # Hz; every Whisper's
BATCH_SIZE = 16  # windows at once
PAUSE = 0.2  # seconds; long speech is cut where a stretch of this length is quietest


class Transcriber:
    """A Whisper ``network`` with its ``processor``; call it with a :class:`.sound.Sound` at its ``rate``.

    ``language`` (None: the model finds out) and ``task`` (``"translate"`` gives English) are for multilingual Whispers;
    the others ignore them.

    >>> transcribe = Transcriber.from_pretrained()  # doctest: +SKIP
    >>> transcribe(read_sound("boat.wav", transcribe.rate)).text  # doctest: +SKIP
    'a boat by the sea'
    """

    @checked
    def __init__(
        self, network: torch.nn.Module, processor, language: str | None = None,
        task: Literal["transcribe", "translate"] = "transcribe",
    ):  # fmt: skip
        self.network, self.processor = network, processor
        self.language, self.task = language, task

    @classmethod
    @checked
    def from_pretrained(
        cls, name: str | Path = OFFLINE, *, device: str | torch.device = "cpu", **options
    ) -> "Transcriber":
        """Load ``"tiny-fusion"`` (offline), ``"whisper"`` (hub), or a Whisper by its folder or repository id, onto
        ``device``.

        ``options`` are ``language`` and ``task``. Raises ``ValueError`` for an unknown name, ``FileNotFoundError``
        if the weights cannot be found.
        """
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        location = find_network("transcriber", name)
        network = load_part(WhisperForConditionalGeneration, location, device=device).eval().requires_grad_(False)
        return cls(network, load_part(WhisperProcessor, location, dtype=None), **options)

    @property
    def rate(self) -> int:
        """Samples per second that the network was trained on."""
        return self.processor.feature_extractor.sampling_rate

    @property
    def window(self) -> int:
        """Samples that the network hears at once."""
        return self.processor.feature_extractor.n_samples

    @checked
    def __call__(self, sound: Sound) -> Description:
        """Write down what is said in one recording."""
        return self.describe_all([sound])[0]

    @checked
    def describe_all(self, sounds: Iterable[Sound]) -> list[Description]:
        """Write down what is said in each recording, always taking the likeliest next word.

        The confidence is the geometric mean of the tokens' probabilities, exp(1/n sum_k log p_k), the ends included; it
        is 0 if no words are heard, and for silence, which never reaches the network. Quiet before and after the speech
        is left out, and speech longer than the window is cut at its pauses (:func:`cut_at_pauses`). Raises
        ``ValueError`` for a sound at another rate.
        """
        sounds = check_sounds(sounds, self.rate)
        cut = [[] if sound.silent else self._windows(sound) for sound in sounds]
        pieces = [piece for windows in cut for piece in windows]
        heard = iter([said for batch in batched(pieces, BATCH_SIZE) for said in self._hear(batch)])
        return [
            self._describe(sound, [next(heard) for _ in windows]) for sound, windows in zip(sounds, cut, strict=True)
        ]

    def _windows(self, sound: Sound) -> list[Float[np.ndarray, " _"]]:
        """Cut off the quiet ends, in which a Whisper hears words that nobody says, and cut the rest at its pauses."""
        return cut_at_pauses(without_quiet_ends(sound.samples, sound.rate), self.window, self.rate)

    @torch.inference_mode()
    def _hear(self, windows: list[Float[np.ndarray, " _"]]) -> list[tuple[str, float, int]]:
        """Give the text of each window, its confidence, and the number of tokens behind the confidence."""
        inputs = self.processor(windows, sampling_rate=self.rate, return_tensors="pt", return_attention_mask=True)
        many = getattr(self.network.generation_config, "is_multilingual", None)
        if many is None and (self.language is not None or self.task != "transcribe"):
            raise ValueError(
                "This model does not say whether it knows several languages (is_multilingual in its "
                "generation_config.json), so language and task cannot be asked of it."
            )
        with _without_remarks():
            written = self.network.generate(
                **inputs.to(self.network.device), do_sample=False, num_beams=1, output_scores=True,
                return_dict_in_generate=True, **({"language": self.language, "task": self.task} if many else {}),
            )  # fmt: skip
        logits = torch.stack(list(written.scores), dim=1).float()
        tokens = written.sequences[:, -logits.shape[1] :]  # without the start, language and task
        end = self.network.generation_config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        sure = confidence(logits, tokens, end).tolist()
        counts = ((tokens == end).int().cumsum(dim=1) == 0).sum(dim=1).add(1).clamp(max=tokens.shape[1]).tolist()
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [(text.strip(), value, count) for text, value, count in zip(texts, sure, counts, strict=True)]

    def _describe(self, sound: Sound, heard: list[tuple[str, float, int]]) -> Description:
        """Join the windows of one recording."""
        source, notes = f"speech in {sound.name}", sound.notes
        text = join_texts([said for said, *_ in heard])
        if not text:
            return Description("", 0.0, source, notes if sound.silent else (*notes, "no words are heard"))
        if len(heard) > 1:
            notes = (*notes, f"{sound.seconds:.0f} s, heard in {len(heard)} pieces")
        total = sum(count * math.log(max(value, 1e-30)) for _, value, count in heard)
        return Description(text, min(1.0, math.exp(total / sum(count for *_, count in heard))), source, notes)


@dataclass(frozen=True)
class AudioSource:
    """Speech as a source of words; ``model`` is a :class:`Transcriber` or its name.

    ``recording`` is a file, samples with their ``rate`` in Hz, or ``(samples, rate)``.
    """

    recording: Recording | Sound
    rate: float | None = None
    model: Transcriber | str | Path = OFFLINE

    def __post_init__(self) -> None:
        check_fields(self, "rate", "model")

    def describe(self) -> Description:
        """Write down what is said; silence says nothing, with confidence 0 and a note.

        Raises what :func:`.sound.read_sound` and :meth:`Transcriber.from_pretrained` raise.
        """
        sound = read_sound(self.recording, RATE, rate=self.rate)  # first: a bad recording costs no loading
        if sound.silent:
            return Description("", 0.0, f"speech in {sound.name}", sound.notes)
        transcriber = self.model if isinstance(self.model, Transcriber) else _loaded(str(self.model))
        return transcriber(read_sound(sound, transcriber.rate))


def cut_at_pauses(samples: Float[np.ndarray, " samples"], longest: int, rate: int) -> list[Float[np.ndarray, " _"]]:
    """Cut into pieces of at most ``longest`` samples, each at the quietest :data:`PAUSE` in a window's second half.

    The pieces, joined, are the samples again.
    """
    pieces, width = [], max(1, min(round(PAUSE * rate), longest // 4))
    while len(samples) > longest:
        half = longest // 2
        power = np.concatenate([[0.0], np.cumsum(samples[half:longest].astype(np.float64) ** 2)])
        loud = power[width:] - power[:-width]
        cut = half + len(loud) - 1 - int(np.argmin(loud[::-1])) + width // 2  # the last of equals, for fewer pieces
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]


def join_texts(texts: Iterable[str]) -> str:
    """Join what was heard in several windows, with a comma unless the text already ends in punctuation.

    >>> join_texts(["a boat by the sea", "", "neon style"])
    'a boat by the sea, neon style'
    """
    joined = ""
    for text in filter(None, texts):
        between = "" if not joined else " " if joined[-1] in string.punctuation else ", "
        joined += between + text
    return joined


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Silence Whisper's warnings about arguments it passes to itself: the reader cannot act on them."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@cache
def _loaded(name: str) -> Transcriber:
    return Transcriber.from_pretrained(name)
