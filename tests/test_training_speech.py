"""Spoken captions, the joint loss that hears them, and the protocol that counts their errors."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from context_diffusion.fusion import Description
from context_diffusion.fusion.sound import Sound
from context_diffusion.fusion.speech import Transcriber
from context_diffusion.scenes import words
from experiments.evaluation import harness
from experiments.evaluation import transcripts as protocol
from experiments.evaluation.bench import Bench
from experiments.training import speech as training
from experiments.training import speech_data as data
from experiments.training.draws import Draws
from experiments.training.speech_data import RATE, Speech, Utterance

talking = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def spoken_tones(count: int = 12) -> Speech:
    """Utterances that are tones, their texts those of the first seeds."""
    samples = [
        (1e4 * np.sin(0.05 * (k + 1) * np.arange(4000 + 1500 * k))).astype(np.int16) for k in range(count)
    ]  # fmt: skip
    texts = [data.draw_text(k) for k in range(count)]
    voices = [data.UNSEEN[k % 3] for k in range(count)]
    return Speech(texts, voices, np.cumsum([len(one) for one in samples]), np.concatenate(samples))


# --- what is said ----------------------------------------------------------------------------------------


def test_no_voice_of_the_score_was_trained_on():
    accents, variants = zip(*(voice.split("+") for voice in data.UNSEEN), strict=True)
    assert not set(variants) & set(data.VARIANTS)
    assert {"en-gb-scotland", "en-gb-x-rp"} == set(accents) - set(data.ACCENTS)
    drawn = [Utterance.draw(seed).voice.split("+") for seed in range(100)]
    assert {accent for accent, _ in drawn} == set(data.ACCENTS)
    assert {Utterance.draw(seed, data.UNSEEN).voice for seed in range(data.HELD_OUT, data.HELD_OUT + 10)} == set(
        data.UNSEEN
    )


def test_every_text_is_made_of_words_that_the_tokenizer_has_and_comes_back():
    processor = training.new_processor()
    texts = [*words(), *(data.draw_text(seed) for seed in range(150))]
    ids = processor.tokenizer([f" {text}" for text in texts]).input_ids
    assert max(map(len, ids)) <= training.LENGTH
    for row, text in zip(ids, texts, strict=True):
        assert row[:2] == [training.START, training.PLAIN] and row[-1] == training.END
        assert len(row) == 3 + len(text.replace(",", " ,").split())
        assert processor.tokenizer.decode(row, skip_special_tokens=True).strip() == text
    assert len({tuple(row) for row in ids[: len(words())]}) == len(words())


def test_one_text_in_four_is_words_in_any_order():
    loose = [data.in_any_order(seed) for seed in range(2000)]
    assert np.mean(loose) == pytest.approx(0.25, abs=0.03)
    texts = [data.draw_text(seed) for seed in range(100)]
    assert not any("," in text for text, any_order in zip(texts, loose, strict=False) if any_order)
    assert any("," in text for text in texts)


@talking
def test_every_unseen_voice_is_another_than_its_accent_alone():
    """espeak-ng takes a variant that it does not know, or that an accent does not take, for none at all."""
    for voice in (*data.UNSEEN, *(f"{accent}+f3" for accent in data.ACCENTS)):
        plain, variant = (data.say(Utterance("a boat", name)) for name in (voice.split("+")[0], voice))
        assert len(plain) != len(variant) or not np.array_equal(plain, variant), voice


@talking
def test_what_is_said_is_short_loud_and_the_same_each_time():
    slow = Utterance("an umbrella on a plain background on a sunny day, watercolor style, pastel colors", "en-us", 120)
    samples = data.say(slow)
    assert samples.dtype == np.float32 and len(samples) <= data.SECONDS * RATE
    assert np.abs(samples).max() == pytest.approx(0.9)
    np.testing.assert_array_equal(samples, data.say(slow))
    fast = data.say(Utterance("a boat by the sea", "en-us", 200))
    assert len(fast) < 0.8 * len(data.say(Utterance("a boat by the sea", "en-us", 120)))


@talking
def test_what_was_said_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path)
    first = data.speech(3, 7)
    monkeypatch.setattr(data, "say", lambda utterance: pytest.fail("said again"))
    again = data.speech(3, 7)
    assert again.texts == [data.draw_text(seed) for seed in (7, 8, 9)] and len(again) == 3
    assert again.lengths().tolist() == [len(first[index]) for index in range(3)]
    one = Utterance.draw(8)
    monkeypatch.undo()
    np.testing.assert_allclose(again[1], data.say(one), atol=2**-15)


def test_without_the_speaking_program_its_package_is_named_and_the_protocol_is_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data.shutil, "which", lambda name: None)
    monkeypatch.setattr(data, "CACHE", tmp_path)
    with pytest.raises(FileNotFoundError, match="install the Debian package espeak-ng"):
        data.say(Utterance("a boat", "en-us"))
    monkeypatch.setattr(protocol.Transcriber, "from_pretrained", lambda: None)
    assert "speech" in harness.OFFLINE
    assert not harness.run("speech", Bench(quick=True), tmp_path)
    assert "speech: not run. espeak-ng speaks" in capsys.readouterr().out


# --- noise -----------------------------------------------------------------------------------------------


@given(st.floats(-5, 30), st.integers(0, 500), st.integers(0, 99))
@settings(deadline=None)
def test_noise_lies_as_far_below_speech_as_asked_for(decibels, longer, seed):
    generator = np.random.default_rng(seed)
    samples = (0.05 * generator.standard_normal(4000)).astype(np.float32)
    added = data.noise("white", 4000 + longer, generator)
    mixed = data.with_noise(samples, added, decibels).astype(np.float64)
    lead = longer // 2
    clean = np.pad(samples, (lead, longer - lead)).astype(np.float64)
    scale = np.linalg.lstsq(np.stack([clean, added], axis=1), mixed, rcond=None)[0]  # what of each is in the sum
    ratio = np.mean((scale[0] * samples) ** 2) / np.mean((scale[1] * added.astype(np.float64)) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(decibels, abs=0.05)
    assert np.abs(mixed).max() <= 1


@pytest.mark.parametrize("kind", data.NOISES)
def test_noise_has_unit_power_and_its_colour(kind):
    samples = data.noise(kind, 2**15, np.random.default_rng(0), spoken_tones())
    assert np.mean(samples.astype(np.float64) ** 2) == pytest.approx(1, rel=1e-4)
    if kind == "babble":
        return
    power = np.abs(np.fft.rfft(samples)) ** 2
    octaves = [power[2**k : 2 ** (k + 1)].mean() for k in range(6, 14)]
    slope = np.polyfit(np.arange(8), 10 * np.log10(octaves), 1)[0]  # decibels an octave
    assert slope == pytest.approx({"white": 0.0, "pink": -3.01}[kind], abs=0.25)


def test_an_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="no noise 'blue'; take white, pink, babble"):
        data.noise("blue", 10, np.random.default_rng(0))


# --- the loss --------------------------------------------------------------------------------------------


def test_the_encoder_of_training_is_whispers_own():
    model = training.new_whisper(training.new_processor().tokenizer).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1) if weight.ndim > 1 else None
    features = torch.randn(2, training.BANDS, training.WINDOW * RATE // training.HOP)
    expected = model.model.encoder(features).last_hidden_state
    torch.testing.assert_close(training.encode(model, features), expected)
    assert training.encode(model, features[..., :50]).shape == (2, 25, training.WIDTH)


def test_the_joint_loss_is_its_two_parts_without_padding_and_marks():
    torch.manual_seed(1)
    tokenizer = training.new_processor().tokenizer
    model = training.Listener(training.new_whisper(tokenizer)).eval()
    features = torch.randn(3, training.BANDS, 80)
    texts = [" a boat by the sea", "", " neon style"]
    ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    hidden = training.encode(model.whisper, features)
    said, heard = [], []
    for row, text in enumerate(texts):
        own = tokenizer(text, return_tensors="pt").input_ids  # alone: no padding
        logits = model.whisper(encoder_outputs=(hidden[row : row + 1],), decoder_input_ids=own[:, :-1]).logits[0]
        said.append(F.cross_entropy(logits[1:], own[0, 2:], reduction="none"))
        logs = model.words(hidden[row]).log_softmax(dim=-1)[:, None]
        target = own[:, 2:-1]
        lengths = torch.tensor([len(logs)]), torch.tensor([target.shape[1]])
        heard.append(F.ctc_loss(logs, target, *lengths, blank=training.END, reduction="sum") / max(1, target.shape[1]))
    expected = training.CTC * torch.stack(heard).mean() + (1 - training.CTC) * torch.cat(said).mean()
    torch.testing.assert_close(training.joint_loss(model, features, ids), expected, rtol=1e-4, atol=1e-4)


def test_batches_come_again_with_their_draws_and_are_no_longer_than_they_need_be():
    draw = training.Batches(spoken_tones(), training.new_processor(), 4)
    frames = set()
    for step in range(20):
        features, ids = draw(Draws(0, range(4 * step, 4 * step + 4), step))
        with torch.autocast("cpu", torch.bfloat16):  # as in training
            again, _ = draw(Draws(0, range(4 * step, 4 * step + 4), step))
        assert torch.equal(features, again) and len(features) == len(ids) == 4
        assert features.shape[2] % 2 == 0
        frames.add(features.shape[2])
    assert max(frames) <= training.WINDOW * RATE // training.HOP and len(frames) > 5


def test_an_utterance_is_heard_in_the_same_way_in_every_share_of_its_batch(monkeypatch):
    monkeypatch.setattr(training, "masked", lambda features, draws: features)  # stripes are as wide as the padding lets
    draw = training.Batches(spoken_tones(), training.new_processor(), 4)
    for step in range(5):
        numbers = range(4 * step, 4 * step + 4)
        features, ids = draw(Draws(0, numbers, step))
        for place, number in enumerate(numbers):
            alone, own = draw(Draws(0, [number], step))
            assert torch.equal(ids[place][ids[place] != training.END], own[0][own[0] != training.END])
            frames = alone.shape[2] - 4  # the last ones see the padding
            torch.testing.assert_close(features[place, :, :frames], alone[0, :, :frames], rtol=0, atol=1e-4)


@pytest.mark.parametrize("seconds", [1.0, 5.2])
def test_silence_around_an_utterance_is_seldom_long_and_leaves_the_words_whole(seconds, monkeypatch):
    monkeypatch.setattr(training, "NOISY", 0.0)
    clean, window = np.ones(round(seconds * RATE), dtype=np.float32), training.WINDOW * RATE
    sounds = [training.heard(clean, np.random.default_rng(seed), ()) for seed in range(300)]
    assert max(map(len, sounds)) <= window
    said = [np.flatnonzero(samples) for samples in sounds]
    lengths = np.array([places[-1] - places[0] + 1 for places in said]) / len(clean)
    assert lengths.min() >= training.FASTER - 0.01 and lengths.max() <= training.SLOWER + 0.01
    before = np.array([places[0] for places in said]) / RATE
    longest = min(training.SILENCE, training.WINDOW - training.FASTER * seconds)
    assert 0.3 * longest < before.max() <= longest and np.median(before) < 0.35 * training.SILENCE


def test_words_in_any_order_are_taken_more_often():
    pool = training.Batches(spoken_tones(), training.new_processor(), 4).pool
    times = [training.OFTEN if data.in_any_order(seed) else 1 for seed in range(12)]
    assert np.bincount(pool).tolist() == times and 1 < np.mean(times) < training.OFTEN


def test_masks_hide_stripes_and_leave_the_rest():
    features = torch.randn(6, training.BANDS, 100)
    masked = training.masked(features, Draws(0, range(6), 0))
    changed = masked != features
    rows, columns = changed.all(dim=2).sum(dim=1), changed.all(dim=1).sum(dim=1)
    assert (rows <= training.BANDS // 4).all() and (columns <= 16).all() and rows.sum() > 0 and columns.sum() > 0
    stripes = changed.all(dim=2)[:, :, None] | changed.all(dim=1)[:, None, :]
    assert torch.equal(changed, stripes)


def test_two_sounds_learned_by_heart_are_told_apart_in_words(monkeypatch):
    monkeypatch.setattr(training, "WIDTH", 32)
    torch.manual_seed(0)
    processor, spoken = training.new_processor(), spoken_tones()
    model = training.Listener(training.new_whisper(processor.tokenizer))
    sounds = [spoken[0], spoken[11]]
    features = processor(sounds, sampling_rate=RATE, return_tensors="pt").input_features
    texts = ["kitten", "a boat, neon style"]
    ids = processor.tokenizer([f" {text}" for text in texts], padding=True, return_tensors="pt").input_ids
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1) if weight.ndim > 1 else None
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], 5e-3)
    for _ in range(100):
        training.joint_loss(model, features, ids).backward()
        optimizer.step()
        optimizer.zero_grad()
    transcriber = Transcriber(model.whisper.eval(), processor)
    said = transcriber.describe_all(Sound(samples, RATE) for samples in sounds)
    assert [one.text for one in said] == texts
    assert min(one.confidence for one in said) > 0.5


def test_the_features_are_those_of_whispers_extractor():
    extractor = training.new_processor().feature_extractor
    assert isinstance(extractor, WhisperFeatureExtractor)
    assert extractor.nb_max_frames == training.WINDOW * RATE // training.HOP
    quiet = extractor(np.zeros(RATE, np.float32), sampling_rate=RATE).input_features
    assert np.ptp(quiet) == 0


# --- the protocol ----------------------------------------------------------------------------------------


def test_the_protocol_counts_what_the_transcriber_writes(monkeypatch):
    spoken = spoken_tones(9)
    monkeypatch.setattr(protocol, "speech", lambda *_: spoken)

    def describe_all(sounds):
        """Write the truth, but leave out the first word of every third utterance, of which it is not sure."""
        said = []
        for sound in sounds:
            index = int(sound.name.split()[1])
            text = spoken.texts[index] if index % 3 else " ".join(spoken.texts[index].split()[1:])
            said.append(Description(text, 0.9 if index % 3 else 0.3))
        return said

    monkeypatch.setattr(protocol.Transcriber, "from_pretrained", lambda: SimpleNamespace(describe_all=describe_all))
    report = protocol.run(Bench(quick=True))
    found = {line.name: line.estimate.value for line in report.lines}
    counts = [len(text.replace(",", "").split()) for text in spoken.texts]
    for name in ("clean", "20 dB", "10 dB", "5 dB"):
        assert found[f"word error rate, {name}"] == pytest.approx(3 / sum(counts))
    assert found["utterances without an error, clean"] == pytest.approx(2 / 3)
    assert found["mean confidence of utterances with one, clean"] == pytest.approx(0.3)
    assert found[f"{data.UNSEEN[0]}: word error rate"] == pytest.approx(3 / sum(counts[::3]))
    assert found[f"{data.UNSEEN[1]}: word error rate"] == 0
    for how in ("cut off", "heard as well"):
        name = f"word error rate, clean, captions and prompts, 1 s of silence before, {how}"
        assert 0 < found[name] < 1
    assert report.sheets["noise"].width > 300


def test_quiet_ends_are_heard_where_the_protocol_says_so():
    late = protocol.recording(spoken_tones(3), 1, before=RATE)
    parts = (
        torch.nn.Identity(),
        SimpleNamespace(feature_extractor=SimpleNamespace(n_samples=30 * RATE, sampling_rate=RATE)),
    )
    whole, cut = (kind(*parts)._windows(late)[0] for kind in (protocol.WholeTranscriber, protocol.Transcriber))
    np.testing.assert_array_equal(whole, late.samples)
    assert len(whole) - len(cut) > 0.8 * RATE


def test_a_recording_of_the_protocol_has_noise_around_it_too():
    spoken = spoken_tones(3)
    clean, noisy = protocol.recording(spoken, 1), protocol.recording(spoken, 1, "white", 10)
    assert len(clean.samples) == len(noisy.samples) == len(spoken[1]) + 2 * protocol.AROUND
    assert np.abs(clean.samples[: protocol.AROUND]).max() == 0
    assert noisy.samples[: protocol.AROUND].std() > 0.01
    again = protocol.recording(spoken, 1, "white", 10)
    np.testing.assert_array_equal(noisy.samples, again.samples)
