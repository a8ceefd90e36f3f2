"""Train the transcriber: a small Whisper (Radford et al. 2023) that hears the offline world's words.

    python -m experiments.training.speech        # needs espeak-ng, which says the sentences

Log-mel features every 25 ms, an encoder at 20 Hz, a decoder with one token for each word. Attention that starts from
nothing takes long to find which sound belongs to which word, so the encoder alone must also name the words in order, by
connectionist temporal classification (Graves et al. 2006), as in hybrid CTC/attention (Watanabe et al. 2017, Eq. 9):

    L = lambda L_ctc + (1 - lambda) L_attention.                                                              (1)

The linear layer that reads words off the encoder is thrown away afterwards. How many words the model gets wrong in
voices that it never heard: ``python -m experiments.evaluation speech``.

Utterances are padded to the longest of their pass, and each word counts the same: more processes or ``--accumulate``
hear the same utterances, but sum their errors a little differently.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from context_diffusion.commands import run_command
from context_diffusion.scenes import words

from .draws import Draws
from .loop import train
from .machine import device, processes
from .recipe import Recipe
from .saving import load_weights, save_half
from .speech_data import NOISES, RATE, Speech, in_any_order, noise, speech, with_noise

SPOKEN = (",", *(f" {word}" for word in words()))  # with the space before, as Whisper's tokens have it
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")  # last: beyond them, Whisper keeps times
END, START, PLAIN = range(len(SPOKEN), len(SPOKEN) + len(SPECIAL))
WINDOW = 6  # seconds
HOP = 400  # samples: 25 ms
BANDS = 64
WIDTH = 128
LENGTH = 32  # tokens at most
CTC = 0.4  # lambda of Eq. (1)
IGNORED = -100  # a label that cross-entropy leaves out
SILENCE = 1.5  # seconds before and after the words, at most
NOISE_SECONDS = 60  # of each noise, of which pieces are taken
EMPTY = 0.03  # share of samples with noise and no words
NOISY = 0.75  # share of samples with noise
FASTER, SLOWER = 0.86, 1.16  # of the length, at which an utterance is played
OFTEN = 4  # times that words in any order are taken: most words of the world are in no caption, and heard nowhere else
FULL = 0.1  # share of batches that are padded to the whole window


def new_processor() -> WhisperProcessor:
    """Whisper's features of a short window, and its tokenizer with one token for each word and the comma."""
    extractor = WhisperFeatureExtractor(BANDS, RATE, hop_length=HOP, chunk_length=WINDOW, n_fft=512)
    vocabulary = {token: number for number, token in enumerate((*SPOKEN, *SPECIAL))}
    tokenizer = WhisperTokenizer(
        vocab=vocabulary, merges=[], pad_token=SPECIAL[0], additional_special_tokens=list(SPECIAL)
    )
    tokenizer.add_tokens(list(SPOKEN))  # so that they are found whole: without merges, all else is read by letters
    return WhisperProcessor(extractor, tokenizer)


def new_whisper(tokenizer: WhisperTokenizer) -> WhisperForConditionalGeneration:
    """Three encoder layers and two decoder layers of a width of 128."""
    both = {"attention_heads": 4, "ffn_dim": 4 * WIDTH}
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in both.items()}
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=BANDS, d_model=WIDTH, encoder_layers=3, decoder_layers=2, dropout=0.0,
        max_source_positions=WINDOW * RATE // HOP // 2, max_target_positions=LENGTH, decoder_start_token_id=START,
        pad_token_id=END, bos_token_id=END, eos_token_id=END, suppress_tokens=None, begin_suppress_tokens=None, **sides,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    ids = {
        key: getattr(config, key) for key in ("decoder_start_token_id", "pad_token_id", "bos_token_id", "eos_token_id")
    }
    model.generation_config = GenerationConfig(
        max_length=LENGTH, is_multilingual=False, no_timestamps_token_id=PLAIN, return_timestamps=False, **ids
    )
    return model


class Listener(nn.Module):
    """A Whisper, and the layer that reads words off its encoder during training."""

    def __init__(self, whisper: WhisperForConditionalGeneration):
        super().__init__()
        self.whisper = whisper
        self.words = nn.Linear(whisper.config.d_model, whisper.config.vocab_size)


def encode(
    whisper: WhisperForConditionalGeneration, features: Float[Tensor, "n bands frames"]
) -> Float[Tensor, "n half dim"]:
    """Whisper's encoder for any even number of frames; the class itself insists on a whole window."""
    encoder = whisper.model.encoder
    hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).transpose(1, 2)  # n half dim
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    for layer in encoder.layers:
        hidden = layer(hidden, None)
    return encoder.layer_norm(hidden)


def joint_loss(model: Listener, features: Float[Tensor, "n bands frames"], ids: Int[Tensor, "n length"]) -> Tensor:
    """Eq. (1) for ``ids`` as the tokenizer gives them: start, "no timestamps", words, end, padding (also the end)."""
    hidden = encode(model.whisper, features)
    inputs, labels = ids[:, :-1], ids[:, 1:]
    ended = (labels == END).cumsum(dim=1)
    counts = (ended == 0).sum(dim=1) - 1  # words; the first label is the mark PLAIN
    attention = model.whisper(encoder_outputs=(hidden,), decoder_input_ids=inputs, use_cache=False).logits.float()
    kept = labels.masked_fill((ended > 1) | (labels == PLAIN), IGNORED)
    said = F.cross_entropy(attention.flatten(0, 1), kept.flatten(), ignore_index=IGNORED)
    logs = model.words(hidden).float().log_softmax(dim=-1).transpose(0, 1)  # half n words
    frames = torch.full_like(counts, len(logs))
    heard = F.ctc_loss(logs, labels[:, 1:], frames, counts, blank=END, zero_infinity=True)
    return CTC * heard + (1 - CTC) * said


def heard(
    clean: Float32[np.ndarray, " _"], generator: np.random.Generator, noises: Sequence[Float32[np.ndarray, " _"]]
) -> Float32[np.ndarray, " _"]:
    """An utterance as a microphone may hear it from another speaker: amid silence, in noise, louder or softer.

    Played faster or slower, a voice comes from a smaller or larger head (Jaitly and Hinton 2013): a few voices become
    many. Noise is 3 to 30 dB below.
    """
    longest = min(SLOWER * len(clean), WINDOW * RATE)
    places = np.linspace(0, len(clean) - 1, int(generator.uniform(FASTER * len(clean), longest)))
    around = SILENCE * RATE * generator.random(2) ** 2  # seldom long
    around = np.minimum(around, (WINDOW * RATE - len(places)) / 2).astype(int)
    samples = np.pad(np.interp(places, np.arange(len(clean)), clean).astype(np.float32), tuple(around))
    if generator.random() < NOISY:
        long = noises[generator.integers(len(noises))]
        start = generator.integers(len(long) - len(samples))
        samples = with_noise(samples, long[start : start + len(samples)], generator.uniform(3, 30))
    return samples * np.float32(10 ** (-generator.uniform(0, 25) / 20))


def masked(features: Float[Tensor, "n bands frames"], draws: Draws) -> Float[Tensor, "n bands frames"]:
    """SpecAugment (Park et al. 2019): two stripes of bands and two of frames set to the mean."""
    for axis, widest in ((1, BANDS // 8), (1, BANDS // 8), (2, 8), (2, 8)):
        size, width = features.shape[axis], draws.randint(widest + 1, 1)
        start = (draws.rand(1) * (size - width)).long()
        place = torch.arange(size)
        hidden = (place >= start) & (place < start + width)
        features = torch.where(hidden.unsqueeze(3 - axis), features.mean(dim=(1, 2), keepdim=True), features)
    return features


class Batches:
    """Draws batches of ``size`` utterances of similar length, noisy, each with its tokens."""

    def __init__(self, spoken: Speech, processor: WhisperProcessor, size: int):
        self.spoken, self.processor, self.size = spoken, processor, size
        loose = [in_any_order(seed) for seed in range(len(spoken))]
        self.pool = np.repeat(np.arange(len(spoken)), np.where(loose, OFTEN, 1))
        generator = np.random.default_rng(0)
        self.noises = [noise(kind, NOISE_SECONDS * RATE, generator, spoken) for kind in NOISES for _ in range(4)]

    @torch.autocast("cpu", enabled=False)  # the extractor's features are of fp32
    def __call__(self, draws: Draws) -> tuple[Float[Tensor, "n bands frames"], Int[Tensor, "n length"]]:
        """Draw those samples of a batch that ``draws`` holds, padded to the longest of them."""
        common = np.random.default_rng(int(torch.randint(2**31, (), generator=draws.common)))
        lengths = self.spoken.lengths()[self.pool] * common.uniform(0.8, 1.25, len(self.pool))
        order, first = self.pool[np.argsort(lengths)], int(common.integers(len(self.pool) - self.size + 1))
        full, samples, texts = common.random() < FULL, [], []
        for number, generator in zip(draws.samples, draws.numpy(), strict=True):
            index, empty = int(order[first + number % self.size]), generator.random() < EMPTY
            loud = generator.uniform(0.003, 0.2)
            clean = loud * noise("pink", 2 * RATE, generator) if empty else self.spoken[index]
            samples.append(heard(clean.astype(np.float32), generator, self.noises))
            texts.append("" if empty else f" {self.spoken.texts[index]}")
        longest = WINDOW * RATE if full else max(map(len, samples))
        even = min(longest + -longest % (2 * HOP), WINDOW * RATE)
        samples[0] = np.pad(samples[0], (0, even - len(samples[0])))
        features = self.processor(samples, sampling_rate=RATE, padding="longest", return_tensors="pt").input_features
        ids = self.processor.tokenizer(texts, padding=True, return_tensors="pt").input_ids
        return masked(features, draws), ids


def main() -> None:
    """Train the transcriber."""
    recipe = Recipe.from_command_line(__doc__, steps=8000, batch_size=32, learning_rate=1e-3, warmup=300)
    with processes().main_process_first():
        spoken = speech()
    processor = new_processor()
    batches = Batches(spoken, processor, recipe.batch_size)
    torch.manual_seed(recipe.seed)
    model = Listener(new_whisper(processor.tokenizer))
    if recipe.start:
        load_weights(model.whisper, Path(recipe.start) / "speech")

    def loss(model: Listener, draws: Draws) -> Tensor:
        features, ids = batches(draws)
        return joint_loss(model, features.to(device()), ids.to(device()))

    def save(average: Listener, folder: Path) -> None:
        save_half(average.whisper, folder / "speech", processor)

    train("speech", model, loss, recipe, save=save)


if __name__ == "__main__":
    sys.exit(run_command(main))
