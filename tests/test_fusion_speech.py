"""Speech: the likeliest word each time, a confidence that is its probability, long recordings cut where they pause."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging
from worlds import misplace

import context_diffusion as cd
from context_diffusion.checkpoints import find_network
from context_diffusion.files import DATA, TINY_FUSION
from context_diffusion.fusion import speech
from context_diffusion.fusion.sound import Sound, read_sound, without_quiet_ends
from context_diffusion.fusion.speech import AudioSource, Transcriber, cut_at_pauses, join_texts
from experiments.training import speech as training

RATE = 16_000
LANGUAGES = {"<|en|>": 5, "<|fr|>": 6}  # any tokens do for a random network
TASKS = {"transcribe": 7, "translate": 8}


def random_whisper() -> WhisperForConditionalGeneration:
    """A Whisper on the words of the scenes, wide awake: its outputs differ from sound to sound."""
    offline = training.new_whisper(training.new_processor().tokenizer)
    small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    model = WhisperForConditionalGeneration(WhisperConfig(**offline.config.to_dict() | small)).eval()
    model.generation_config = offline.generation_config
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5)
    return model


@cache
def whisper_folder(many_languages: bool = False) -> Path:
    """A saved random Whisper with its processor: of one language, or of many as those of the hub are."""
    folder = Path(mkdtemp(prefix="whisper-"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = random_whisper()
    if many_languages:
        known = model.generation_config.to_dict() | {"is_multilingual": True}
        model.generation_config = GenerationConfig(**known, lang_to_id=LANGUAGES, task_to_id=TASKS)
    model.save_pretrained(folder)
    training.new_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    return Transcriber.from_pretrained(whisper_folder())


def tone(hertz: float, seconds: float = 0.6) -> np.ndarray:
    """A tone that swells and fades."""
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * hertz * t) * np.sin(np.pi * t / seconds)).astype(np.float32)


SOUNDS = [Sound(tone(hertz), RATE) for hertz in (150, 800, 3000)]


# --- what is written down --------------------------------------------------------------------------------


def by_hand(sound: Sound, start: tuple[int, ...]) -> tuple[str, list[float]]:
    """Greedy decoding word by word from whole forward passes; the logarithms of the words' probabilities."""
    network = WhisperForConditionalGeneration.from_pretrained(whisper_folder()).eval()
    processor = WhisperProcessor.from_pretrained(whisper_folder())
    features = processor(sound.samples, sampling_rate=RATE, return_tensors="pt").input_features
    tokens, logs = list(start), []
    with torch.no_grad():
        while len(tokens) < training.LENGTH and tokens[-1] != training.END:
            logits = network(input_features=features, decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
            tokens.append(int(logits.argmax()))
            logs.append(float(logits.log_softmax(dim=0).max()))
    return processor.tokenizer.decode(tokens[len(start) :], skip_special_tokens=True).strip(), logs


@pytest.mark.parametrize("sound", SOUNDS)
def test_what_is_heard_is_the_likeliest_word_each_time_and_its_confidence_their_probability(transcriber, sound):
    text, logs = by_hand(sound, (training.START, training.PLAIN))
    said = transcriber(sound)
    assert said.text == text
    assert said.confidence == pytest.approx(float(np.exp(np.mean(logs))), rel=1e-3)


@pytest.mark.parametrize(("language", "task"), [("english", "transcribe"), ("fr", "translate")])
def test_a_whisper_of_many_languages_is_told_which_and_what_to_do(language, task):
    token = LANGUAGES["<|en|>" if language == "english" else "<|fr|>"]
    transcriber = Transcriber.from_pretrained(whisper_folder(True), language=language, task=task)
    text, logs = by_hand(SOUNDS[0], (training.START, token, TASKS[task], training.PLAIN))
    said = transcriber(SOUNDS[0])
    assert (said.text, said.confidence) == (text, pytest.approx(float(np.exp(np.mean(logs))), rel=1e-3))


def test_a_recording_does_not_depend_on_the_others_in_its_batch(transcriber, monkeypatch):
    alone = [transcriber(sound) for sound in SOUNDS]
    together = transcriber.describe_all(SOUNDS)
    monkeypatch.setattr(speech, "BATCH_SIZE", 2)
    for other in (together, transcriber.describe_all(iter(SOUNDS))):
        assert [one.text for one in other] == [one.text for one in alone]
        assert [one.confidence for one in other] == pytest.approx([one.confidence for one in alone], rel=1e-3)
    assert len({one.confidence for one in alone}) == 3


def test_listening_leaves_the_verbosity_of_transformers_as_it_was(transcriber):
    before = logging.get_verbosity()
    logging.set_verbosity_info()
    transcriber(SOUNDS[0])
    found = logging.get_verbosity()
    logging.set_verbosity(before)
    assert found == logging.INFO


# --- long, silent, wordless ------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(8, 60), st.integers(0, 99))
@settings(deadline=None)
def test_pieces_are_short_enough_and_make_the_whole(length, longest, seed):
    samples = np.random.default_rng(seed).standard_normal(length).astype(np.float32)
    pieces = cut_at_pauses(samples, longest, rate=20)
    np.testing.assert_array_equal(np.concatenate(pieces), samples)
    assert all(0 < len(piece) <= longest for piece in pieces)
    assert len(pieces) <= np.ceil(length / (longest // 2))


def test_long_speech_is_cut_in_its_pauses():
    words = np.concatenate([part for hertz in (200, 300, 400, 500, 600) for part in (tone(hertz, 1.7), np.zeros(4800))])
    pieces = cut_at_pauses(words.astype(np.float32), 6 * RATE, RATE)
    ends = np.cumsum([len(piece) for piece in pieces])[:-1] / RATE
    assert len(ends) == 1 and 3 * 2.0 - 0.3 < ends[0] < 3 * 2.0  # within the third pause


def test_the_confidence_of_long_speech_is_that_of_all_its_words(transcriber):
    whole = np.concatenate([part for sound in SOUNDS for part in (sound.samples, np.zeros(4 * RATE, np.float32))])
    pieces = cut_at_pauses(without_quiet_ends(whole, RATE), transcriber.window, RATE)
    heard = [by_hand(Sound(piece, RATE), (training.START, training.PLAIN)) for piece in pieces]
    said = transcriber(Sound(whole, RATE))
    assert len(pieces) == 2 and said.notes == ("14 s, heard in 2 pieces",)
    assert said.text == join_texts(text for text, _ in heard)
    logs = [log for _, of_piece in heard for log in of_piece]
    assert said.confidence == pytest.approx(float(np.exp(np.mean(logs))), rel=1e-3)


@pytest.mark.parametrize("name", ["boat", "boat-noisy", "cat-neon"])
@pytest.mark.parametrize(("before", "after", "noise"), [(0.7, 0, 0), (3, 2, 1e-4), (9, 0, 0), (30, 30, 1e-4)])
def test_a_pause_before_speech_or_after_it_invents_no_words(name, before, after, noise):
    transcribe = offline()
    sound = read_sound(DATA / "audio" / f"{name}.flac", RATE)
    quiet = np.random.default_rng(1).normal(size=round((before + after) * RATE)).astype(np.float32) * np.float32(noise)
    parts = [quiet[: round(before * RATE)], sound.samples, quiet[round(before * RATE) :]]
    assert transcribe(Sound(np.concatenate(parts), RATE)).text == transcribe(sound).text


@cache
def offline() -> Transcriber:
    return Transcriber.from_pretrained()


def test_a_model_that_does_not_say_whether_it_knows_languages_is_not_asked_for_one(transcriber):
    said = Transcriber(transcriber.network, transcriber.processor, language="fr")
    known = transcriber.network.generation_config
    before = known.is_multilingual
    try:
        known.is_multilingual = None
        with pytest.raises(ValueError, match="does not say whether it knows several languages"):
            said(SOUNDS[0])
        assert transcriber(SOUNDS[0]).text is not None
    finally:
        known.is_multilingual = before


def test_texts_are_joined_by_a_comma_where_there_is_no_mark():
    assert join_texts(["A boat.", "A cat", "", "by the sea"]) == "A boat. A cat, by the sea"


def test_silence_says_nothing_and_needs_no_model():
    said = AudioSource((np.zeros(RATE), RATE), model="no-such-model").describe()
    assert (said.text, said.confidence) == ("", 0.0)
    assert said.notes == ("silence: the samples do not move",)
    assert cd.fuse_prompts([said, "a neon cat"], max_tokens=32).text == "a neon cat"
    with pytest.raises(ValueError, match="weight times confidence is 0"):
        cd.fuse_prompts([said], max_tokens=32)


def test_no_words_are_told_from_silence(transcriber, monkeypatch):
    monkeypatch.setattr(transcriber, "_hear", lambda windows: [("", 0.9, 1) for _ in windows])
    said = transcriber.describe_all([SOUNDS[0], Sound(np.zeros(RATE, np.float32), RATE, notes=("silence",))])
    assert [(one.text, one.confidence, one.notes) for one in said] == [
        ("", 0.0, ("no words are heard",)), ("", 0.0, ("silence",)),
    ]  # fmt: skip


# --- as a source -----------------------------------------------------------------------------------------


def test_a_recording_is_a_source_of_its_words(transcriber, tmp_path):
    file = tmp_path / "boat.wav"
    soundfile.write(file, np.stack([SOUNDS[0].samples] * 2, axis=1), RATE, subtype="FLOAT")
    expected = transcriber(SOUNDS[0])
    by_folder, by_model = AudioSource(file, model=whisper_folder()).describe(), AudioSource(file, model=transcriber)
    for said in (by_folder, by_model.describe()):
        assert (said.text, said.confidence) == (expected.text, pytest.approx(expected.confidence))
        assert said.source == "speech in boat.wav"
    given_as = (
        AudioSource(SOUNDS[0].samples, RATE, transcriber),
        AudioSource((SOUNDS[0].samples, RATE), None, transcriber),
    )
    assert [one.describe().text for one in given_as] == [expected.text] * 2
    assert given_as[0].describe().source == "speech in a recording"
    loud = AudioSource((np.clip(8 * SOUNDS[1].samples, -1, 1), RATE), model=transcriber).describe()
    assert len(loud.notes) == 1 and loud.notes[0].endswith("of the samples are clipped")


def test_what_is_no_recording_is_reported_before_a_model_is_looked_for(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    for recording, error, hint in (
        ("no.wav", FileNotFoundError, r"no\.wav"),
        (tmp_path / "empty.wav", ValueError, "0 bytes"),
        ((np.zeros(5), 0), ValueError, "sampling rate"),
    ):
        with pytest.raises(error, match=hint):
            AudioSource(recording, model="no-such-model").describe()


def test_another_rate_is_refused_by_the_model_itself(transcriber):
    with pytest.raises(ValueError, match="hears 16000 Hz; a recording has 8000"):
        transcriber(Sound(SOUNDS[0].samples, 8000))


def test_an_unknown_or_missing_transcriber_gets_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no transcriber 'whimper': give tiny-fusion or whisper.*mean 'whisper'"):
        find_network("transcriber", "whimper")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        find_network("transcriber", tmp_path)
    misplace(monkeypatch, "transcriber", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"python -m experiments\.training\.speech"):
        Transcriber.from_pretrained()
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        Transcriber.from_pretrained("nobody/nothing")
    assert find_network("transcriber", "whisper") == "openai/whisper-base"


# --- the shipped model on the shipped recordings ---------------------------------------------------------


@pytest.mark.skipif(not (TINY_FUSION / "speech" / "config.json").is_file(), reason="not trained yet")
@pytest.mark.parametrize(
    ("name", "text"),
    [("boat", "a boat by the sea"), ("boat-scottish", "a boat by the sea"), ("boat-noisy", "a boat by the sea"),
     ("boat-clipped", "a boat by the sea"), ("cat-neon", "a cat in a field, neon style"), ("silence", "")],
)  # fmt: skip
def test_the_offline_model_understands_the_shipped_recordings(name, text):
    said = AudioSource(DATA / "audio" / f"{name}.flac").describe()
    assert said.text == text
    assert said.source == f"speech in {name}.flac"
    assert bool(said.notes) == (name in ("boat-clipped", "silence"))


def test_the_shipped_recordings_are_small():
    files = [file for file in (DATA / "audio").glob("*.flac") if not file.name.startswith("music")]
    assert len(files) == 6 and all(file.stat().st_size < 100_000 for file in files)
    assert all(read_sound(file, RATE).seconds < training.WINDOW for file in files)
