"""Train the small CLAP that hears mood and genre (Wu et al. 2023): pieces of music and words in one space.

    python -m experiments.training.music

The audio tower is HTSAT (Chen et al. 2022) over 128 mel bins and 126 frames of 40 ms, five seconds; the text tower is a
RoBERTa of one layer over the words that captions of music use. Each step contrasts a piece with a caption in some
wording, with its mood alone and with its genre alone; pieces with the same caption, mood or genre share the target. The
contrast is among the pieces of one pass, as in :mod:`.clip`. How often it is right on unseen pieces:
``python -m experiments.evaluation music``.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BertTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel

from context_diffusion.commands import run_command
from context_diffusion.files import ROOT
from context_diffusion.melodies import GENRES, MOODS, RATE, Piece, describe, render, words
from context_diffusion.melodies.music_vocabulary import GENRE_WORDS, MOOD_WORDS, article

from .data import kept
from .draws import Draws
from .loop import train
from .machine import processes
from .recipe import Recipe
from .saving import load_weights, save_half
from .tokenizer import word_tokenizer

PIECES = 3000
WORDINGS = 4  # captions of each piece
MELS, HOP, WINDOW = 128, 640, 2048  # bins, samples, samples: 40 ms a frame
HEARD = 5  # seconds that the model hears at once
FRAMES = HEARD * RATE // HOP + 1
LENGTH = 24  # tokens; the longest caption has 19 words and marks between start and end
CACHE = ROOT / "build" / "music"


def new_music_tokenizer() -> BertTokenizer:
    """The tokenizer of the words in captions of music; RoBERTa has no token types."""
    return word_tokenizer(words(), LENGTH, model_input_names=["input_ids", "attention_mask"])


def new_feature_extractor() -> ClapFeatureExtractor:
    """Log-mel spectrograms (decibels) from 50 Hz to 6.5 kHz; shorter sounds are repeated until they fill it."""
    return ClapFeatureExtractor(
        feature_size=MELS, sampling_rate=RATE, hop_length=HOP, max_length_s=HEARD, fft_window_size=WINDOW,
        frequency_min=50, frequency_max=6500, truncation="rand_trunc", padding="repeatpad",
    )  # fmt: skip


def new_clap(tokenizer: BertTokenizer) -> ClapModel:
    """HTSAT of two stages, 64 and 128 wide, patches of 8x8; text of one layer, 128 wide; 128 shared dimensions."""
    audio = {
        "spec_size": MELS, "num_mel_bins": MELS, "window_size": 8, "patch_size": 8, "patch_stride": [8, 8],
        "patch_embeds_hidden_size": 64, "hidden_size": 128, "depths": [1, 1], "num_hidden_layers": 2,
        "num_attention_heads": [4, 4], "hidden_dropout_prob": 0.0,
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1,
        "num_attention_heads": 4, "max_position_embeddings": LENGTH + 1, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id,
    }  # fmt: skip
    return ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=128))


def pieces(count: int = PIECES, first_seed: int = 0) -> list[Piece]:
    """The pieces of consecutive seeds."""
    return [Piece.draw(seed) for seed in range(first_seed, first_seed + count)]


def spectrograms(count: int = PIECES, first_seed: int = 0) -> Float[np.ndarray, "n frames mels"]:
    """Log-mel spectrograms of whole pieces in float16, synthesised once into ``build/music/``."""
    return kept(CACHE / f"{first_seed}-{count}.npy", np.load, lambda file: np.save(file, _heard(count, first_seed)))


def _heard(count: int, first_seed: int) -> Float[np.ndarray, "n frames mels"]:
    extractor = new_feature_extractor()
    drawn = tqdm(pieces(count, first_seed), desc="synthesising music", mininterval=5)
    return np.stack([log_mel(extractor, render(piece)).astype(np.float16) for piece in drawn])


def log_mel(
    extractor: ClapFeatureExtractor, samples: Float[np.ndarray, " samples"]
) -> Float[np.ndarray, "frames mels"]:
    """The extractor's spectrogram of sound of any length, uncut, in one step instead of frame by frame.

    10 log10(max(1e-10, sum_f m_f |X_f|^2)), X the Fourier transform of frames under a periodic Hann window, about
    the sample in their middle, the ends mirrored; m the triangles of the mel scale.
    """
    window, hop = extractor.fft_window_size, extractor.hop_length
    padded = np.pad(np.asarray(samples, dtype=np.float64), window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window + 1)[:-1], axis=1)) ** 2
    return 10 * np.log10(np.maximum(1e-10, power @ extractor.mel_filters_slaney)).astype(np.float32)


@torch.autocast("cpu", enabled=False)  # which knows no float16
def augmented(whole: Float[Tensor, "n frames mels"], draws: Draws) -> Float[Tensor, "n 1 heard mels"]:
    """Cut FRAMES at random places, change the gain by -15 to 9 dB, and add white noise, 35 to 95 dB below the loudest.

    Powers add: 10 log10(10^(s/10) + 10^(n/10)), with n the level of the noise times a gamma variate of mean 1.
    """
    starts = draws.randint(whole.shape[1] - FRAMES + 1).tolist()
    cut = torch.stack([one[start : start + FRAMES] for one, start in zip(whole, starts, strict=True)]).float()
    level = cut.amax(dim=(1, 2), keepdim=True) - 35 - 60 * draws.rand(1, 1)
    uneven = draws.rand(2, *cut.shape[1:]).clamp(min=1e-6).log().neg().mean(dim=1)
    noisy = 10 * (10 ** (cut / 10) + uneven * 10 ** (level / 10)).log10()
    gain = -15 + 24 * draws.rand(1, 1)
    return (noisy + gain)[:, None]


def parts(labels: list[str], vocabulary: dict[str, tuple[str, ...]], draws: Draws) -> list[str]:
    """For each mood (or genre) a short text: "a sad piece of music", "melancholy music", "a sad piece"."""
    said = []
    for label, (which, form) in zip(labels, draws.rand(2).tolist(), strict=True):
        options = (vocabulary[label][0],) * 2 + vocabulary[label]
        word = options[int(which * len(options))]
        said.append((f"{article(word)} piece of music", f"{word} music", f"{article(word)} piece")[int(form * 3)])
    return said


def contrast(
    model: ClapModel, audio: Float[Tensor, "n dim"], text: Float[Tensor, "n dim"], which: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """The symmetric cross-entropy of CLAP, a temperature for each side; those of equal ``which`` share the target."""
    same = (which[:, None] == which[None]).float()
    target = same / same.sum(dim=1, keepdim=True)
    cosines = audio.float() @ text.float().T
    per_audio = cosines * model.logit_scale_a.exp().clamp(max=100)
    per_text = cosines.T * model.logit_scale_t.exp().clamp(max=100)
    return (F.cross_entropy(per_audio, target) + F.cross_entropy(per_text, target)) / 2


def music_loss(
    model: ClapModel, spectra: Tensor, texts: list[tuple[list[str], Int[Tensor, " n"]]], tokenizer: BertTokenizer
) -> Float[Tensor, ""]:
    """The mean contrast of some pieces with several lists of texts, each with the labels that make texts equal."""
    audio = model.get_audio_features(input_features=spectra).pooler_output
    unique = sorted({text for said, _ in texts for text in said})
    inputs = tokenizer(unique, padding=True, return_tensors="pt").to(audio.device)
    features = model.get_text_features(**inputs).pooler_output
    total = torch.zeros((), device=audio.device)
    for said, which in texts:
        text = features[torch.tensor([unique.index(one) for one in said], device=audio.device)]
        total = total + contrast(model, audio, text, which.to(audio.device)) / len(texts)
    return total


def main() -> None:
    """Train both towers."""
    recipe = Recipe.from_command_line(
        __doc__, steps=4000, batch_size=32, learning_rate=1e-3, weight_decay=0.05, ema=0.995
    )
    with processes().main_process_first():
        drawn, heard = pieces(), torch.from_numpy(spectrograms())
    captions = [[describe(piece, wording) for wording in range(WORDINGS)] for piece in drawn]
    moods, genres = (torch.tensor([names.index(getattr(piece, kind)) for piece in drawn])
                     for kind, names in (("mood", MOODS), ("genre", GENRES)))  # fmt: skip
    numbers = {text: number for number, text in enumerate(sorted({one for said in captions for one in said}))}
    tokenizer = new_music_tokenizer()
    model = new_clap(tokenizer)
    if recipe.start:
        load_weights(model, Path(recipe.start) / "music")

    def loss(model: ClapModel, draws: Draws) -> Tensor:
        index, wordings = draws.randint(len(drawn)), draws.randint(WORDINGS).tolist()
        whole = [captions[i][wording] for i, wording in zip(index.tolist(), wordings, strict=True)]
        texts = [(whole, torch.tensor([numbers[text] for text in whole]))]
        for labels, names, table in ((moods, MOODS, MOOD_WORDS), (genres, GENRES, GENRE_WORDS)):
            which = labels[index]
            texts.append((parts([names[number] for number in which.tolist()], table, draws), which))
        spectra = augmented(heard[index], draws)
        return music_loss(model, spectra.to(model.device), texts, tokenizer)

    def save(average: ClapModel, folder: Path) -> None:
        save_half(average, folder / "music", tokenizer, new_feature_extractor())

    train("music", model, loss, recipe, save=save)


if __name__ == "__main__":
    sys.exit(run_command(main))
