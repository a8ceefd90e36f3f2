"""The recorder: what an upload and the browser's script hand over, without a front end."""

import base64
import io
from datetime import datetime

import numpy as np
import pytest
import soundfile

from context_diffusion import recorder, widgets
from context_diffusion.fusion.sound import Sound
from context_diffusion.recorder import RATE, Recorder, last_file, read_bytes

DEFAULT = "data/audio/boat.flac"


def file_of(samples, rate: int = RATE, kind: str = "WAV") -> bytes:
    held = io.BytesIO()
    soundfile.write(held, samples, rate, format=kind)
    return held.getvalue()


def tone(seconds: float, rate: int = RATE, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(recorder, "has_kernel", lambda: True)


def upload(box: Recorder, name: str, content: bytes) -> None:
    """What the front end does when a file is chosen."""
    file = {"name": name, "type": "audio/wav", "size": len(content), "content": memoryview(content)}
    box.upload.value = (file | {"last_modified": datetime(2026, 1, 1)},)


def speak(box: Recorder, content: bytes) -> None:
    """What the script of the button does when a recording ends."""
    box.area.value = "data:audio/wav;base64," + base64.b64encode(content).decode()


def test_without_a_kernel_the_default_is_taken_and_said_in_one_line(capsys):
    assert Recorder(DEFAULT).recording == DEFAULT
    assert capsys.readouterr().out == "Without a kernel there is nothing to record with: using boat.flac.\n"
    assert not widgets.has_kernel()


def test_before_anything_is_recorded_the_default_is_taken_and_a_page_without_widgets_says_so(kernel):
    box = Recorder(DEFAULT)
    assert box.recording == DEFAULT
    shown = box._repr_mimebundle_()
    assert shown["text/plain"] == "Nothing recorded or uploaded yet: using boat.flac."
    assert "application/vnd.jupyter.widget-view+json" in shown


@pytest.mark.parametrize(("name", "kind", "rate"), [("a.wav", "WAV", 44_100), ("b.flac", "FLAC", 16_000)])
def test_an_uploaded_file_becomes_a_sound(kernel, name, kind, rate):
    box = Recorder(DEFAULT)
    upload(box, name, file_of(tone(0.5, rate), rate, kind))
    assert isinstance(box.recording, Sound) and box.recording.name == name and box.recording.rate == RATE
    np.testing.assert_allclose(box.recording.samples[800:-800], tone(0.5)[800:-800], atol=2e-3)
    assert box.said.value == f"{name}: 0.5 s at -9 dBFS"


def test_what_is_said_into_the_microphone_is_heard_sample_by_sample(kernel):
    box = Recorder(DEFAULT)
    speak(box, file_of(tone(0.25)))
    np.testing.assert_allclose(box.recording.samples, tone(0.25), atol=2**-15)
    assert box.recording.name == "microphone.wav" and box.area.value == ""


def test_the_same_recording_counts_again(kernel):
    heard = []
    box = Recorder(DEFAULT, heard.append)
    for _ in range(2):
        speak(box, file_of(tone(0.1)))
    assert [one.name for one in heard] == ["microphone.wav"] * 2


def test_silence_is_noted(kernel):
    box = Recorder(DEFAULT)
    speak(box, file_of(np.zeros(RATE)))
    assert box.said.value == "microphone.wav: 1.0 s at -inf dBFS; silence: the samples do not move"


def test_where_nothing_can_be_drawn_the_reason_is_said(kernel, capsys):
    def draw(recording):
        raise ValueError("None of the sources says anything.")

    box = Recorder(DEFAULT, draw)
    speak(box, file_of(np.zeros(RATE)))
    assert capsys.readouterr().out.endswith("None of the sources says anything.\n")
    assert box.recording.silent


@pytest.mark.parametrize("content", [b"", b"RIFF but no more", file_of(tone(0.1))[:40]])
def test_what_cannot_be_read_is_said_and_the_last_recording_stays(kernel, content):
    box = Recorder(DEFAULT)
    speak(box, file_of(tone(0.1)))
    before = box.recording
    upload(box, "memo.m4a", content)
    assert box.recording is before
    assert box.said.value.startswith("memo.m4a") and "/" not in box.said.value.split("cannot")[0]


def test_a_refused_microphone_is_said_and_nothing_is_taken(kernel):
    box = Recorder(DEFAULT)
    box.area.value = "!no microphone here (Permission denied); upload a file"
    assert box.recording == DEFAULT
    assert repr(box) == "Nothing recorded: no microphone here (Permission denied); upload a file."


def test_both_forms_of_an_uploads_value_are_read():
    assert last_file({}) is None and last_file(()) is None
    old = {"a.wav": {"metadata": {}, "content": b"1"}, "folder/b.wav": {"metadata": {}, "content": b"2"}}
    assert last_file(old) == ("b.wav", b"2")
    assert last_file(({"name": "c.wav", "content": memoryview(b"3")},)) == ("c.wav", b"3")


def test_no_message_names_the_folder_it_was_read_in(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ValueError, match=r"^memo\.wav \(4 bytes\) cannot be read") as caught:
        read_bytes("memo.wav", b"nope")
    assert caught.value.__context__ is None
