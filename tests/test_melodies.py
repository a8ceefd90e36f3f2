"""Synthesised music: a pure function of its seed, its notes, tempo and key found again in the sound, true captions."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from context_diffusion import melodies
from context_diffusion.files import DATA
from context_diffusion.melodies import GENRES, MODES, MOODS, RATE, SECONDS, Piece, describe, render, write_score
from context_diffusion.melodies.__main__ import EXAMPLES, example
from context_diffusion.melodies.instruments import TIMBRES, hertz, stroke, tone
from context_diffusion.melodies.music_vocabulary import GENRE_WORDS, INSTRUMENTS, MOOD_WORDS, key_word, tempo_word
from context_diffusion.melodies.piece import BANDS, CUES, MODE_CHANCES, RANGES
from context_diffusion.melodies.render import ROOM, _in_room
from experiments.evaluation.hand_features import FEATURES, NearestMean, chroma, hand_features, key_fits

SEEDS = st.integers(0, 10**7)


# --- from the seed ---------------------------------------------------------------------------------------


def test_a_piece_is_a_pure_function_of_its_seed():
    for seed in (0, 5):
        first = render(Piece.draw(seed))
        np.random.default_rng(1).random()
        np.testing.assert_array_equal(first, render(Piece.draw(seed)))
        assert first.dtype == np.float32 and len(first) == SECONDS * RATE
        assert np.abs(first).max() == pytest.approx(0.7)
    assert not np.array_equal(render(Piece.draw(0)), render(Piece.draw(1)))


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_every_draw_lies_in_its_ranges_and_in_its_genre(seed):
    piece = Piece.draw(seed)
    assert all(low <= getattr(piece, cue) <= high for cue, (low, high) in RANGES.items())
    assert piece.mode in MODE_CHANCES[piece.mood] and 0 <= piece.tonic < 12
    assert piece.lead in BANDS[piece.genre][0] and piece.chords in BANDS[piece.genre][1]


def test_what_is_fixed_stays_and_the_rest_is_drawn_as_before():
    free, bound = Piece.draw(3), Piece.draw(3, tempo=60.0)
    assert bound.tempo == 60.0
    assert {**vars(free), "tempo": 60.0} == vars(bound)
    with pytest.raises(ValueError, match="mood is 'happy', .*'angry'"):
        Piece.draw(0, mood="angry")
    with pytest.raises(TypeError, match="has no 'speed'; it has .*tempo"):
        Piece.draw(0, speed=3)


def test_mood_and_genre_are_independent_and_all_occur():
    drawn = [Piece.draw(seed) for seed in range(3000)]
    counts = np.zeros((len(MOODS), len(GENRES)))
    for piece in drawn:
        counts[MOODS.index(piece.mood), GENRES.index(piece.genre)] += 1
    expected = counts.sum() / counts.size
    assert ((counts - expected) ** 2 / expected).sum() < 66.6  # chi-squared, 35 degrees of freedom: 0.1 %


def test_each_mood_has_its_cues_and_they_overlap():
    tempo = {mood: [Piece.draw(seed, mood=mood).tempo for seed in range(200)] for mood in MOODS}
    for mood, values in tempo.items():
        assert np.median(values) == pytest.approx(CUES[mood]["tempo"][0], abs=6)
    assert max(tempo["sad"]) > np.median(tempo["calm"]) and min(tempo["energetic"]) < np.median(tempo["happy"])
    thirds = {mood: {key_word(mode) for mode in chances} for mood, chances in MODE_CHANCES.items()}
    assert thirds["sad"] == {"minor"} and thirds["happy"] == {"major"}


# --- notes and tones -------------------------------------------------------------------------------------


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_melody_and_bass_keep_to_the_scale_and_so_do_chords_without_tension(seed):
    piece = Piece.draw(seed, tension=0.0)
    scale = {(piece.tonic + step) % 12 for step in piece.scale}
    notes = write_score(piece)
    assert {note.pitch % 12 for note in notes if note.instrument in TIMBRES} <= scale
    assert all(0 <= note.start < SECONDS * piece.tempo / 60 for note in notes)


def test_dissonance_comes_with_tension():
    def strangers(tension: float) -> int:
        found = 0
        for seed in range(30):
            piece = Piece.draw(seed, tension=tension, mode="major", genre="jazz")
            scale = {(piece.tonic + step) % 12 for step in MODES["major"]}
            found += any(note.pitch % 12 not in scale for note in write_score(piece) if note.instrument in TIMBRES)
        return found

    assert strangers(0.0) == 0
    assert strangers(1.0) > 20


@pytest.mark.parametrize("name", TIMBRES)
def test_a_tone_has_its_pitch(name):
    generator = np.random.default_rng(0)
    for pitch in (50, 69, 84):
        wave = tone(name, pitch, 1.0, 0.5, generator)
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 8 * len(wave)))
        frequency = np.fft.rfftfreq(8 * len(wave), 1 / RATE)
        harmonics = sum(np.interp(np.arange(20, 1400, 0.5) * k, frequency, spectrum) / k for k in (1, 2, 3))
        found = np.arange(20, 1400, 0.5)[harmonics.argmax()]
        assert found == pytest.approx(hertz(pitch), rel=0.012)


def test_a_bright_high_tone_has_no_energy_between_its_overtones():
    wave = tone("square", 88, 1.0, 1.0, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(wave[1600:14400] * np.hanning(12800))) ** 2
    frequency = np.fft.rfftfreq(12800, 1 / RATE)
    nearest = np.abs(frequency / hertz(88) - np.round(frequency / hertz(88))) * hertz(88)
    assert power[(nearest > 20)].sum() < 1e-3 * power.sum()


@pytest.mark.parametrize("drum", ["kick", "snare", "hat", "ride", "shaker"])
def test_a_stroke_dies_away(drum):
    wave = stroke(drum, np.random.default_rng(0))
    third = len(wave) // 3
    assert (wave[-third:] ** 2).sum() < 0.2 * (wave**2).sum()


# --- found again in the sound ----------------------------------------------------------------------------


def tempo_of(samples: np.ndarray) -> float:
    return 2 ** hand_features(samples, RATE)[FEATURES.index("log tempo")]


@pytest.mark.parametrize("genre", ["classical piano", "rock", "electronic"])
def test_the_tempo_is_found_in_the_sound_up_to_its_metre(genre):
    close = []
    for seed in range(8):
        piece = Piece.draw(seed, genre=genre)
        octaves = np.log2(tempo_of(render(piece)) / piece.tempo)
        close.append(min(abs(octaves - metre) for metre in (-1, -np.log2(1.5), 0, np.log2(1.5), 1)) < 0.06)
    assert np.mean(close) > 0.8


def test_the_third_of_the_mode_is_found_in_the_sound():
    right = []
    for seed in range(16):
        for mode in ("major", "minor"):
            piece = Piece.draw(seed, genre="classical piano", mode=mode, tension=0.0)
            tones = np.roll(chroma(render(piece), RATE), -piece.tonic)
            right.append((tones[4] > tones[3]) == (mode == "major"))
    assert np.mean(right) > 0.9


def test_the_room_adds_an_echo_of_its_share():
    click = np.zeros(6 * RATE, dtype=np.float32)
    click[0] = 1.0
    for share in (0.3, 0.9):
        heard = _in_room(click, share, np.random.default_rng(0))
        assert heard[0] == pytest.approx(1 - 0.6 * share, abs=0.03)
        assert (heard[1:] ** 2).sum() == pytest.approx(share**2, rel=0.01)
        half = int(RATE * (ROOM[0] + share * (ROOM[1] - ROOM[0])) / 2)
        assert (heard[half:] ** 2).sum() == pytest.approx(share**2 * np.exp(-3), rel=0.15)


def test_a_swell_makes_it_louder_by_its_decibels():
    steady, rising = (render(Piece.draw(2, genre="rock", reverb=0.0, swell=swell)) for swell in (0.0, 12.0))
    ratio = rising / np.where(np.abs(steady) > 1e-3, steady, np.nan)
    rise = 20 * np.log10(np.nanmedian(ratio[-RATE:]) / np.nanmedian(ratio[:RATE]))
    assert rise == pytest.approx(10.0, abs=0.2)  # 12 dB over six seconds, from the first second's middle to the last's


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_shipped_pieces_are_those_that_the_script_writes(number):
    mood, genre = EXAMPLES[number]
    samples, rate = soundfile.read(DATA / "audio" / f"music-{mood}-{genre.replace(' ', '-')}.flac")
    assert rate == RATE
    np.testing.assert_allclose(samples, example(number), atol=2**-15)


# --- in words --------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(0, 50))
@settings(max_examples=200, deadline=None)
def test_a_caption_never_lies(seed, wording):
    piece = Piece.draw(seed)
    for said in (describe(piece), describe(piece, wording)):
        moods = {mood for mood, words in MOOD_WORDS.items() if any(word in said.split() or f"{word}," in said
                                                                  for word in words)}  # fmt: skip
        assert moods <= {piece.mood}
        genres = {genre for genre, words in GENRE_WORDS.items() if any(f" {word} " in f" {said} " for word in words)}
        assert genres - {"folk"} <= {piece.genre}  # "an acoustic guitar" is not folk
        assert key_word(piece.mode) in said or "key" not in said
        assert not {"slow", "moderate", "fast"} - {tempo_word(piece.tempo)} & set(said.replace(",", "").split())
        assert INSTRUMENTS[piece.lead] in said or "with" not in said
        assert set(said.replace(",", "").split()) <= set(melodies.words())


def test_captions_of_a_piece_differ_and_its_full_one_says_everything():
    piece = Piece.draw(1)
    full = describe(piece)
    assert len({describe(piece, wording) for wording in range(20)}) > 8
    for word in (piece.mood, piece.genre, key_word(piece.mode), tempo_word(piece.tempo), INSTRUMENTS[piece.lead]):
        assert word in full


# --- the hand features ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tempo", [75, 100, 130])
def test_the_tempo_of_clicks_is_theirs(tempo):
    clicks = np.zeros(6 * RATE)
    clicks[(np.arange(0, 6, 60 / tempo) * RATE).astype(int)] = 1.0
    assert tempo_of(clicks) == pytest.approx(tempo, rel=0.03)


def test_a_key_is_found_in_its_scale_and_moves_with_it():
    for tonic in (0, 7):
        time = np.arange(RATE * 4) / RATE
        notes = [60 + tonic + step for step in (0, 2, 4, 5, 7, 9, 11, 0, 4, 7, 0)]
        wave = sum(np.sin(2 * np.pi * hertz(note) * time) for note in notes)
        major, minor = key_fits(chroma(wave, RATE))
        assert major.argmax() == tonic and major.max() > minor.max()


def test_the_nearest_mean_does_not_depend_on_the_units():
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    points = generator.normal(size=(300, 4)) + 3 * labels[:, None] * np.array([1, 0, 0.5, 0])
    scale = np.array([1e3, 1, 1e-3, 5])
    plain, scaled = NearestMean.fit(points, labels), NearestMean.fit(points * scale, labels)
    np.testing.assert_array_equal(plain(points), scaled(points * scale))
    assert (plain(points) == labels).mean() > 0.9


def test_hand_features_of_louder_music_differ_only_where_they_are_told_to():
    wave = render(Piece.draw(4))
    assert np.isfinite(hand_features(wave, RATE)).all() and np.isfinite(hand_features(np.zeros(RATE), RATE)).all()
    soft, loud = hand_features(0.5 * wave, RATE), hand_features(wave, RATE)
    np.testing.assert_allclose(soft[[0, 1, 3, 4, 9]], loud[[0, 1, 3, 4, 9]], rtol=0.02, atol=0.02)
