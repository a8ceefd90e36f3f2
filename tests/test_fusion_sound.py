"""Recordings: any rate, channels and kind of samples come to the same mono float32, and what is wrong is said."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import signal

from context_diffusion.fusion.sound import FULL_SCALE, Sound, check_rate, clipped_share, read_sound, without_quiet_ends


def sine(rate: int, hertz: float = 440.0, seconds: float = 0.5, gain: float = 0.5) -> np.ndarray:
    """A tone."""
    return gain * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


# --- rates, channels, kinds of samples -------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_a_tone_is_the_same_tone_at_another_rate(rate):
    sound = read_sound((sine(rate), rate), 16000)
    inner = slice(800, 7200)  # away from the ends, where the filter sees zeros
    assert (sound.rate, sound.samples.dtype, len(sound.samples)) == (16000, np.float32, 8000)
    np.testing.assert_allclose(sound.samples[inner], sine(16000)[inner], atol=2e-3)


def test_the_rate_is_changed_as_scipy_does():
    tone = sine(44100).astype(np.float32)
    expected = signal.resample_poly(tone, 160, 441)
    np.testing.assert_allclose(read_sound((tone, 44100), 16000).samples, expected, atol=1e-6)


def test_a_tone_above_the_new_band_is_filtered_out_and_not_folded_back():
    assert read_sound((sine(48000, hertz=15000), 48000), 16000).level < -45


@pytest.mark.parametrize(("end", "subtype"), [("wav", "PCM_16"), ("wav", "PCM_U8"), ("wav", "FLOAT"), ("wav", "PCM_24"),
                                              ("flac", "PCM_16"), ("ogg", "VORBIS")])  # fmt: skip
def test_a_file_holds_what_was_written(tmp_path, end, subtype):
    file = tmp_path / f"tone.{end}"
    soundfile.write(file, np.stack([sine(16000), sine(16000, gain=0.3)], axis=1), 16000, subtype=subtype)
    sound = read_sound(file, 16000)
    assert (sound.name, sound.notes) == (f"tone.{end}", ())
    coarse = {"PCM_U8": 0.01, "VORBIS": 0.1}.get(subtype, 1e-4)
    np.testing.assert_allclose(sound.samples[500:7500], sine(16000, gain=0.4)[500:7500], atol=coarse)


@given(
    arrays.arrays(np.int16, st.tuples(st.integers(1, 60), st.integers(1, 4))),
    st.sampled_from(["uint8", "int16", "int32", "float32", "float64"]),
)
@settings(deadline=None)
def test_integers_are_scaled_by_their_range_and_channels_averaged(samples, kind):
    exact = samples.astype(np.int64) << 8 >> 8  # in units of 2^-15
    given_as = {
        "uint8": (exact >> 8) + 128, "int16": exact, "int32": exact << 16, "float32": exact / 2**15,
        "float64": exact / 2**15,
    }[kind].astype(kind)  # fmt: skip
    values = (exact >> 8) / 2**7 if kind == "uint8" else exact / 2**15
    found = read_sound((given_as, 16000), 16000).samples
    np.testing.assert_allclose(found, values.mean(axis=1), atol=1e-6)


@given(arrays.arrays(np.float64, st.integers(1, 400), elements=st.floats(-16, 16)), st.sampled_from([8000, 22050]))
@settings(deadline=None)
def test_whatever_comes_in_lies_within_one(samples, rate):
    sound = read_sound(samples, 16000, rate=rate)
    assert np.abs(sound.samples).max() <= 1 and sound.samples.ndim == 1
    assert sound.seconds == pytest.approx(len(samples) / rate, abs=1 / 16000)


def test_a_sound_can_be_read_again_and_keeps_its_notes():
    loud = read_sound((sine(16000, gain=4), 16000), 16000)
    again = read_sound(loud, 8000)
    assert (again.rate, again.notes, len(again.samples)) == (8000, loud.notes, 4000)


# --- what people should know -----------------------------------------------------------------------------


def by_hand(samples: np.ndarray) -> float:
    """The share of samples in runs of three or more at full scale, run by run."""
    count = 0
    for channel in samples.T:
        run = 0
        for value in [*channel, 0.0]:
            if abs(value) >= FULL_SCALE:
                run += 1
            else:
                count, run = count + run * (run >= 3), 0
    return count / samples.size


@given(arrays.arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(1, 2)),
                     elements=st.sampled_from([0.0, 0.5, 1.0, -1.0])))  # fmt: skip
def test_clipped_samples_are_those_of_flat_peaks(samples):
    assert clipped_share(samples) == pytest.approx(by_hand(samples))


def test_an_overdriven_recording_is_noted_with_its_share_and_a_full_scale_one_is_not():
    over = sine(16000, hertz=211.7, gain=2)  # |sin| > 1/2 two thirds of the time
    assert read_sound((over, 16000), 16000).notes == ("67% of the samples are clipped",)
    assert read_sound((sine(16000, hertz=200, gain=1), 16000), 16000).notes == ()


@given(st.integers(0, 5000), st.integers(0, 5000), st.sampled_from([0.0, 1e-4]), st.sampled_from([0.0, 0.2]))
@settings(deadline=None, max_examples=40)
def test_quiet_ends_are_cut_and_nothing_else(before, after, noise, constant):
    rate, tone = 8000, sine(8000)
    quiet = np.random.default_rng(0).normal(size=(before + len(tone) + after)) * noise
    whole = (quiet + np.pad(tone, (before, after)) + constant).astype(np.float32)
    kept = without_quiet_ends(whole, rate)
    where = [i for i in range(len(whole) - len(kept) + 1) if np.array_equal(whole[i : i + len(kept)], kept)]
    assert any(
        before - 0.13 * rate <= start <= before + 8  # the margin and a stretch; a tone begins at 0
        and before + len(tone) - 8 <= start + len(kept) <= before + len(tone) + 0.13 * rate
        for start in where
    )


def test_a_pause_between_words_and_silence_itself_stay():
    words = np.concatenate([sine(8000), np.zeros(8000), sine(8000)]).astype(np.float32)
    assert len(without_quiet_ends(words, 8000)) == len(words)
    for still in (np.zeros(100), np.full(100, 0.3), np.ones(1)):
        assert len(without_quiet_ends(still.astype(np.float32), 8000)) == len(still)


def test_silence_is_noted_with_its_level():
    rate = 16000
    assert read_sound((np.zeros(rate), rate), rate).notes == ("silence: the samples do not move",)
    assert read_sound((np.full(rate, 0.4), rate), rate).silent  # an offset is no sound
    faint = read_sound((sine(rate, gain=1e-4 * 2**0.5), rate), rate)  # its root mean square is 1e-4
    assert faint.silent and faint.notes == ("near silence: -80 dBFS",)
    assert not read_sound((sine(rate, gain=0.01), rate), rate).silent


def test_channels_that_cancel_are_told_from_silence():
    tone = sine(16000)
    found = read_sound((np.stack([tone, -tone], axis=1), 16000), 16000)
    assert found.notes == ("the channels cancel each other: their average is silent",)


@given(st.floats(-50, 0))
def test_the_level_of_a_tone_is_its_amplitude_less_three_decibels(decibels):
    sound = Sound(sine(16000, gain=10 ** (decibels / 20)).astype(np.float32), 16000)
    assert sound.level == pytest.approx(decibels - 10 * np.log10(2), abs=0.01)


# --- what cannot be read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (np.zeros(0), ValueError, "empty: it holds no samples"),
        (np.zeros((2, 16000)), ValueError, r"\(samples, channels\).*transpose"),
        (np.zeros((2, 2, 2)), ValueError, r"these have \(2, 2, 2\)"),
        (np.float64(0.5), ValueError, r"these have \(\)"),
        (np.array([0, np.nan, 0]), ValueError, "number 1 of a recording is .nan"),
        (np.array([0, np.inf]), ValueError, "finite; number 1"),
        (np.array([0.0, 3000.0]), ValueError, "reaches 3000: divide"),
        (np.zeros(5, complex), TypeError, "these are complex128"),
        (np.zeros(5, np.int64), TypeError, "uint8, int16, int32; these are int64"),
        (["a", "b"], TypeError, "these are <U1"),
        ([[1.0], [1.0, 2.0]], TypeError, "array of numbers"),
        (np.zeros(16000 * 11), ValueError, "lasts 11 s and at most 10 s"),
    ],
)
def test_invalid_samples_get_one_sentence(samples, error, message):
    with pytest.raises(error, match=message):
        read_sound((samples, 16000), 16000, longest=10)


@pytest.mark.parametrize("rate", [None, 0, -16000, 16000.5, float("nan"), float("inf"), "16 kHz", True, 10, 10**7])
def test_a_rate_is_a_positive_number(rate):
    with pytest.raises(ValueError, match="A sampling rate is a whole number of Hz"):
        check_rate(rate)


def test_a_rate_is_asked_for_where_there_are_samples_alone():
    with pytest.raises(ValueError, match=r"given as \(samples, rate\) or rate=; got None"):
        read_sound(np.zeros(100), 16000)
    assert read_sound(np.zeros(100), 16000, rate=8000).seconds == pytest.approx(100 / 8000)


def test_files_that_are_no_recordings_get_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.wav does not exist"):
        read_sound(tmp_path / "no.wav", 16000)
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_sound(tmp_path, 16000)
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "words.flac").write_text("a boat by the sea " * 99)
    for name in ("zero.wav", "words.flac"):
        with pytest.raises(ValueError, match=rf"{name} \([\d,]+ bytes\) cannot be read as a recording"):
            read_sound(tmp_path / name, 16000)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match=r"none\.wav is empty"):
        read_sound(tmp_path / "none.wav", 16000)
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan]), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"finite; number 1 of nan\.wav"):
        read_sound(tmp_path / "nan.wav", 16000)
    soundfile.write(tmp_path / "long.flac", np.zeros(16000 * 3), 16000)
    with pytest.raises(ValueError, match=r"long\.flac lasts 3 s and at most 2 s"):
        read_sound(tmp_path / "long.flac", 16000, longest=2)
    with pytest.raises(TypeError, match="A file names its own rate"):
        read_sound(tmp_path / "long.flac", 16000, rate=8000)


@given(st.integers(0, 2**32 - 1), st.integers(0, 400))
@settings(max_examples=30, deadline=None)
def test_a_broken_file_is_read_or_refused_in_a_sentence(tmp_path_factory, seed, cut):
    """A few bytes changed, the end missing: a recording within [-1, 1], or an error that teaches; nothing else."""
    file = tmp_path_factory.mktemp("broken") / "tone.flac"
    soundfile.write(file, sine(16000, seconds=0.1), 16000)
    data, generator = bytearray(file.read_bytes()), np.random.default_rng(seed)
    for place in generator.integers(0, len(data), 6):
        data[place] = generator.integers(256)
    file.write_bytes(bytes(data[: len(data) - cut]))
    try:
        assert np.abs(read_sound(file, 16000).samples).max() <= 1
    except ValueError as error:
        assert "tone.flac" in str(error) or "sampling rate" in str(error)


ENDS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}


@pytest.mark.parametrize("end", ENDS)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8), st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_a_file_changed_anywhere_is_a_sound_or_a_sentence(tmp_path_factory, end, changes, length):
    """The first bytes, where the headers are, are changed most: the place is squared."""
    file = tmp_path_factory.mktemp("mutated") / f"x.{end}"
    soundfile.write(file, sine(16000, seconds=0.2), 16000, subtype=ENDS[end])
    content = bytearray(file.read_bytes())
    for place, value in changes:
        content[int(place**2 * len(content))] = value
    file.write_bytes(content[: round(length * len(content))] if length < 0.5 else content)
    try:
        assert np.isfinite(read_sound(file, 16000).samples).all()
    except ValueError as error:
        assert "x." in str(error) or "sampling rate" in str(error) or "Samples" in str(error), error
        assert "\n" not in str(error)


@pytest.mark.parametrize("error", [MemoryError, RecursionError("deep"), AttributeError("no frames"), OSError("disk")])
def test_whatever_a_decoder_raises_becomes_a_sentence(monkeypatch, tmp_path, error):
    file = tmp_path / "x.wav"
    soundfile.write(file, sine(16000), 16000)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(ValueError, match=r"x\.wav .* cannot be read as a recording"):
        read_sound(file, 16000)
