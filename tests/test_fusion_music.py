"""Music as words: probabilities as transformers computes them, windows, silence, a table without gaps, the training."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, pipeline
from worlds import misplace

import context_diffusion as cd
from context_diffusion.checkpoints import find_network
from context_diffusion.files import DATA, TINY_FUSION
from context_diffusion.fusion import music
from context_diffusion.fusion.music import MusicSource, MusicTagger, likeliest
from context_diffusion.fusion.music_words import (
    GENRE_DESCRIPTIONS,
    MOOD_DESCRIPTIONS,
    PICTURES,
    music_table,
    offline_words,
    open_words,
)
from context_diffusion.fusion.phrases import exclusive_phrases, split_phrases
from context_diffusion.fusion.sound import Sound, read_sound
from context_diffusion.melodies import GENRES, HELD_OUT, MOODS, Piece, describe, render
from context_diffusion.melodies import RATE as MELODY_RATE
from context_diffusion.scenes import words as scene_words
from experiments.evaluation import harness
from experiments.evaluation import moods_and_genres as protocol
from experiments.evaluation.bench import Bench
from experiments.training import music as training
from experiments.training.draws import Draws

RATE = 8000
TEXTS = list(MOOD_DESCRIPTIONS.values())
EXAMPLES = sorted((DATA / "audio").glob("music-*.flac"))


def random_clap() -> ClapModel:
    """A CLAP over 16 mel bins and 14 frames, wide awake: its outputs differ from sound to sound."""
    tokenizer = training.new_music_tokenizer()
    common = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    text = training.new_clap(tokenizer).config.text_config.to_dict() | common | {"intermediate_size": 32}
    audio = {
        "spec_size": 16, "num_mel_bins": 16, "window_size": 2, "patch_size": 4, "patch_stride": [4, 4],
        "patch_embeds_hidden_size": 16, "hidden_size": 32, "depths": [1, 1], "num_attention_heads": [2, 2],
        "num_hidden_layers": 2, "hidden_dropout_prob": 0.0,
    }  # fmt: skip
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.4)
    model.audio_model.audio_encoder.batch_norm.running_mean.normal_(-20, 3)
    model.audio_model.audio_encoder.batch_norm.running_var.fill_(100.0)
    return model


@cache
def clap_folder() -> Path:
    """A saved random CLAP that hears one second at 8 kHz."""
    folder = Path(mkdtemp(prefix="clap-"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        random_clap().save_pretrained(folder)
    training.new_music_tokenizer().save_pretrained(folder)
    extractor = ClapFeatureExtractor(
        feature_size=16, sampling_rate=RATE, hop_length=600, max_length_s=1, fft_window_size=512, frequency_min=50,
        frequency_max=3500, truncation="rand_trunc", padding="repeatpad",
    )  # fmt: skip
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tagger() -> MusicTagger:
    return MusicTagger.from_pretrained(clap_folder())


def noise(seconds: float = 1.0, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Noise under tones that differ from seed to seed."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * f * time) for f in generator.uniform(80, 3000, 3))
    return (0.1 * tones + 0.02 * generator.standard_normal(len(time))).astype(np.float32)


# --- probabilities ---------------------------------------------------------------------------------------


def test_logits_are_those_of_the_network_itself(tagger):
    sounds = [read_sound(noise(seed=seed), RATE, rate=RATE) for seed in range(3)]
    spectra = tagger.extractor([s.samples for s in sounds], sampling_rate=RATE, return_tensors="pt").input_features
    texts = tagger.tokenizer(TEXTS, padding=True, return_tensors="pt")
    expected = tagger.network(input_features=spectra.float(), **texts).logits_per_audio
    found = tagger.logits(sounds, TEXTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.std(dim=0).min() > 1e-3 and found.std(dim=1).min() > 1e-3  # they depend on sound and text


def test_probabilities_are_those_of_the_pipeline_of_transformers(tagger):
    classify = pipeline(
        "zero-shot-audio-classification", model=tagger.network, tokenizer=tagger.tokenizer,
        feature_extractor=tagger.extractor,
    )  # fmt: skip
    sound = read_sound(noise(0.7), RATE, rate=RATE)
    expected = {row["label"]: row["score"] for row in classify(sound.samples, candidate_labels=TEXTS,
                                                              hypothesis_template="{}")}  # fmt: skip
    assert tagger(sound, TEXTS).tolist() == pytest.approx([expected[text] for text in TEXTS], rel=1e-4)


def test_a_long_piece_is_the_mean_of_its_windows(tagger, monkeypatch):
    long = noise(2.5)
    parts = [long[:RATE], long[6000 : 6000 + RATE], long[-RATE:]]
    expected = tagger.logits([Sound(part, RATE) for part in parts], TEXTS).mean(dim=0)
    torch.testing.assert_close(tagger.logits([Sound(long, RATE)], TEXTS)[0], expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(music, "BATCH_SIZE", 2)
    torch.testing.assert_close(tagger.logits([Sound(long, RATE)], TEXTS)[0], expected, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 60_000))
@settings(deadline=None)
def test_windows_cover_every_sample_and_no_more_than_needed(tagger, count):
    samples = np.arange(count, dtype=np.float32)
    windows = tagger.windows(samples)
    assert set(np.concatenate(windows).tolist()) == set(range(count))
    assert len(windows) == max(1, int(np.ceil(count / RATE)))
    assert all(len(window) == min(count, RATE) for window in windows)


# --- as a source -----------------------------------------------------------------------------------------


def test_music_says_its_likeliest_mood(tagger):
    for seed in range(4):
        sound = read_sound(noise(seed=seed), RATE, rate=RATE)
        moods, genres = tagger(sound, TEXTS), tagger(sound, list(GENRE_DESCRIPTIONS.values()))
        mood, genre = MOODS[int(moods.argmax())], GENRES[int(genres.argmax())]
        said = MusicSource(noise(seed=seed), RATE, tagger).describe()
        assert said.text == offline_words(mood)
        assert said.confidence == pytest.approx(float(moods.max()))
        assert said.source == "music in a recording"
        assert said.notes == (f"{mood} ({moods.max():.2f}), {genre} ({genres.max():.2f})",)
        assert MusicSource(noise(seed=seed), RATE, tagger, vocabulary="open").describe().text == open_words(mood, genre)


def test_the_rate_of_the_recording_is_changed_to_the_models(tagger, tmp_path):
    import soundfile

    fast = noise(rate=24_000)
    soundfile.write(tmp_path / "tones.flac", np.stack([fast, fast], axis=1), 24_000)
    said = MusicSource(tmp_path / "tones.flac", model=clap_folder()).describe()
    expected = tagger(read_sound(fast, RATE, rate=24_000), TEXTS)
    assert said.confidence == pytest.approx(float(expected.max()), abs=0.02)  # the file has 16 bits
    assert said.source == "music in tones.flac"
    assert cd.MusicSource is MusicSource


def test_words_of_ones_own_are_compared_and_said(tagger):
    own = {"a sad piece": "rain on a window", "a happy piece": "kites", "fast music": "a race"}
    chances = tagger(read_sound(noise(), RATE, rate=RATE), list(own))
    best, sure = likeliest(chances, list(own))
    said = MusicSource(noise(), RATE, tagger, descriptions=own).describe()
    assert (said.text, said.confidence, said.notes) == (own[best], pytest.approx(sure), (f"{best} ({sure:.2f})",))


def test_silence_says_nothing_and_loads_no_model():
    said = MusicSource(np.zeros(RATE), RATE, "no-such-model").describe()
    assert (said.text, said.confidence) == ("", 0.0)
    assert "silence" in said.notes[0]
    fused = cd.fuse_prompts([MusicSource(np.zeros(RATE), RATE), "neon style"], max_tokens=32)
    assert fused.text == "neon style"


def test_the_notes_of_the_recording_are_passed_on(tagger):
    clipped = np.clip(20 * noise(), -1, 1)
    assert any("clipped" in note for note in MusicSource(clipped, RATE, tagger).describe().notes)


def test_invalid_input_gets_one_sentence(tagger, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no\.flac"):  # before a model is looked for
        MusicSource("no.flac", model="no-such-model").describe()
    with pytest.raises(ValueError, match="hears 8000 Hz; x has 16000"):
        tagger.logits([Sound(noise(), 16_000, "x")], TEXTS)
    with pytest.raises(ValueError, match="'a purple piece'.*It knows: .*calm"):
        tagger(Sound(noise(), RATE), ["a calm piece", "a purple piece"])
    with pytest.raises(TypeError, match="descriptions is a list of texts, not 'calm'"):
        tagger(Sound(noise(), RATE), "calm")
    with pytest.raises(ValueError, match="two descriptions or more"):
        tagger(Sound(noise(), RATE), ["calm"])
    with pytest.raises(ValueError, match="maps two or more sentences"):
        MusicSource(noise(), RATE, tagger, descriptions={"calm music": "a field"})
    with pytest.raises(ValueError, match="no music model 'clamp': give tiny-fusion or clap.*did you mean 'clap'"):
        find_network("music model", "clamp")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        find_network("music model", tmp_path)
    misplace(monkeypatch, "music model", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"python -m experiments\.training\.music"):
        MusicTagger.from_pretrained()
    assert find_network("music model", "clap") == "laion/clap-htsat-unfused"


# --- the table -------------------------------------------------------------------------------------------


def test_every_mood_has_words_that_the_offline_models_know():
    assert tuple(PICTURES) == MOODS == tuple(MOOD_DESCRIPTIONS)
    assert len({offline_words(mood) for mood in MOODS}) == len(MOODS)
    tokenizer = training.new_music_tokenizer()
    for mood in MOODS:
        phrases = split_phrases(offline_words(mood))
        assert all(phrase.text in exclusive_phrases() for phrase in phrases)
        assert {"background", "palette"} <= {phrase.kind for phrase in phrases}
        assert set(offline_words(mood).replace(",", "").split()) <= set(scene_words())
        assert f"| {mood} | {MOOD_DESCRIPTIONS[mood]} | {offline_words(mood)} |" in music_table()
    for text in (*MOOD_DESCRIPTIONS.values(), *GENRE_DESCRIPTIONS.values()):
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids


# --- training --------------------------------------------------------------------------------------------


def test_every_caption_fits_and_comes_back_from_its_tokens():
    tokenizer = training.new_music_tokenizer()
    for seed in range(300):
        for said in (describe(Piece.draw(seed)), describe(Piece.draw(seed), seed)):
            ids = tokenizer(said).input_ids
            assert len(ids) <= training.LENGTH and tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",") == said


def test_the_spectrogram_is_the_extractors():
    extractor = training.new_feature_extractor()
    heard = noise(5.0, rate=training.RATE)
    expected = extractor(heard, sampling_rate=training.RATE)["input_features"][0][0]
    found = training.log_mel(extractor, heard)
    assert found.shape == (training.FRAMES, training.MELS)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_augmentation_is_a_cut_a_gain_and_a_floor():
    whole = torch.randn(6, 151, 128, generator=torch.Generator().manual_seed(0)) - 60
    whole[:, :, 5] = 40.0 + torch.arange(151) * 0.01  # a loud tone that grows: says where the cut was, and the gain
    found = training.augmented(whole, Draws(1, range(6), 0))[:, 0]
    assert found.shape == (6, training.FRAMES, 128)
    torch.testing.assert_close(found[:, -1, 5] - found[:, 0, 5], torch.full((6,), 1.25), atol=0.05, rtol=0)
    gain = found[:, 0, 5] - 40
    assert (gain > -15.1).all() and (gain < 9.4).all() and gain.std() > 2
    floor = 10 * (10 ** ((found - gain[:, None, None])[:, :, 20:] / 10)).mean(dim=(1, 2)).log10()
    assert (floor > 41 - 95 - 2).all() and (floor < 41 - 35 + 1).all() and floor.std() > 5


def test_equal_labels_share_the_target_at_both_temperatures():
    model = random_clap()
    with torch.no_grad():
        model.logit_scale_a.fill_(np.log(2.0))
        model.logit_scale_t.fill_(np.log(5.0))
    audio, text = (torch.nn.functional.normalize(torch.randn(3, 16)) for _ in range(2))
    text[2] = text[0]
    found = training.contrast(model, audio, text, torch.tensor([4, 1, 4]))
    cosines, target = audio @ text.T, torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
    sides = [-(target * (scale * table).log_softmax(dim=1)).sum(dim=1).mean() for scale, table in
             ((2.0, cosines), (5.0, cosines.T))]  # fmt: skip
    torch.testing.assert_close(found, sum(sides) / 2)


def test_short_texts_name_what_they_are_given():
    from context_diffusion.melodies.music_vocabulary import MOOD_WORDS

    said = training.parts(["sad"] * 200, MOOD_WORDS, Draws(0, range(200), 0))
    assert len(set(said)) == 9 and {"a sad piece of music", "melancholy music"} <= set(said)
    assert all(any(word in text for word in MOOD_WORDS["sad"]) for text in said)


def test_sounds_learned_by_heart_are_told_apart():
    torch.manual_seed(0)
    model, tokenizer = random_clap().train(), training.new_music_tokenizer()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1) if weight.ndim > 1 else None
    spectra = torch.randn(4, 1, 14, 16, generator=torch.Generator().manual_seed(1)) * 10 - 20
    said, which = ["sad music", "a fast piece", "happy rock music", "sad music"], torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(80):
        training.music_loss(model, spectra, [(said, which)], tokenizer).backward()
        optimizer.step()
        optimizer.zero_grad()
    inputs = tokenizer(said[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(input_features=spectra, **inputs).logits_per_audio.argmax(dim=1)
    assert found.tolist() == [0, 1, 2, 0]


# --- the protocol, and what is shipped -------------------------------------------------------------------


def test_the_protocol_counts_what_the_model_says(monkeypatch):
    asked = [Piece.draw(HELD_OUT + number) for number in range(24)]

    class Knows:
        """Says the truth, but for the mood of every fourth piece, of which it is not sure."""

        rate = MELODY_RATE

        def logits(self, sounds, descriptions):
            assert descriptions == [*TEXTS, *GENRE_DESCRIPTIONS.values()]
            rows = torch.zeros(len(sounds), 12)
            for number, (piece, sound) in enumerate(zip(asked, sounds, strict=True)):
                if number < 2:
                    np.testing.assert_array_equal(sound.samples, render(piece))
                wrong = number % 4 == 0
                rows[number, (MOODS.index(piece.mood) + wrong) % 6] = 1.0 if wrong else 9.0
                rows[number, 6 + GENRES.index(piece.genre)] = 9.0
            return rows

    monkeypatch.setattr(protocol.MusicTagger, "from_pretrained", lambda: Knows())
    report = protocol.run(Bench(quick=True))
    found = {line.name: line.estimate.value for line in report.lines}
    assert found["mood right"] == pytest.approx(0.75) and found["genre right"] == 1.0
    assert found["mean confidence where the mood is wrong"] == pytest.approx(np.e / (np.e + 5))
    assert found["mean confidence where the mood is right"] == pytest.approx(np.e**9 / (np.e**9 + 5))
    assert 1 / 6 < found["genre right, baseline"] <= 1
    assert found["genre: model minus baseline"] == pytest.approx(1 - found["genre right, baseline"])
    assert report.sheets["confusions"].width > 800


def test_a_confusion_counts_by_row_what_it_is():
    table = protocol.confusion(np.array([0, 0, 2, 1]), np.array([0, 1, 2, 1]), 3)
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]


def test_the_protocol_is_skipped_with_a_sentence_where_the_model_is_missing(tmp_path, monkeypatch, capsys):
    misplace(monkeypatch, "music model", tmp_path / "none")
    assert "music" in harness.OFFLINE
    assert not harness.run("music", Bench(quick=True), tmp_path)
    assert "music: not run. The offline music model is not at" in capsys.readouterr().out


@pytest.mark.skipif(not (TINY_FUSION / "music" / "config.json").is_file(), reason="no offline model of music")
def test_the_offline_model_hears_what_the_examples_are_named_after():
    genres = []
    for file in EXAMPLES:
        _, mood, genre = file.stem.split("-", 2)
        said = MusicSource(file).describe()
        assert said.text == offline_words(mood) and said.confidence > 0.5, said
        genres.append(genre.replace("-", " ") in said.notes[0])
    assert len(EXAMPLES) >= 3 and sum(genres) >= len(genres) - 1  # one piece for the piano is taken for folk
