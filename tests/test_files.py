import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from context_diffusion import files
from context_diffusion.files import as_path, check_output, check_output_folder, sweep, written_whole

ROOT = Path(__file__).parent.parent
PICTURES = (".png", ".jpg")

BAD_OUTPUTS = {
    "nothing": ("", ValueError, "is empty"),
    "no path": (3, TypeError, "a text or a pathlib.Path"),
    "none": (None, TypeError, "a text or a pathlib.Path"),
    "a NUL": ("a\0b.png", ValueError, "no file name may have"),
    "half a character": ("a\ud800.png", ValueError, "no file name may have"),
    "another format": ("a.psd", ValueError, "take one of .jpg, .png"),
    "no suffix": ("a", ValueError, "take one of"),
    "a folder": ("folder.png", ValueError, "is a folder"),
    "below a file": ("note.png/a.png", ValueError, "is not a folder"),
    "far below a file": ("note.png/a/b/c.png", ValueError, "is not a folder"),
    "a pipe": ("pipe.png", ValueError, "a device or a pipe"),
    "a long name": ("n" * 300 + ".png", ValueError, "name too long"),
    "a long folder": ("new/" + "n" * 300 + "/a.png", ValueError, "name too long"),
    "a long way": ("d/" * 3000 + "a.png", ValueError, "name too long"),
    "where nobody writes": ("/proc/a.png", ValueError, "cannot be written"),
    "below where nobody writes": ("/proc/new/a.png", ValueError, "cannot be written"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("note.png").write_text("a file")
    os.mkfifo("pipe.png")
    return tmp_path


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_an_output_that_cannot_be_is_told_in_one_sentence_and_leaves_nothing(place, case):
    path, error, sentence = BAD_OUTPUTS[case]
    before = sorted(place.rglob("*"))
    with pytest.raises(error, match=sentence) as caught:
        check_output(path, PICTURES)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    if error is ValueError and "take one of" not in sentence:  # whoever did not ask first is told the same
        with pytest.raises(error, match=sentence), written_whole(path):
            raise AssertionError("no block runs for such a path")
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("path", ["a.png", "new/deep/a.PNG", "note.png", "n" * 250 + ".png", "日本語/ü.png", b"b.png"])
def test_an_output_that_can_be_is_returned_and_not_made(place, path):
    before = sorted(place.rglob("*"))
    target = check_output(path, PICTURES)
    assert target == Path(os.fsdecode(path)) and sorted(place.rglob("*")) == before
    with written_whole(path) as temporary:
        temporary.write_text("x")
    assert target.read_text() == "x"


def test_a_folder_for_outputs_is_tried_out_too(place):
    assert check_output_folder("new/deep") == Path("new/deep") and not Path("new").exists()
    bad = {"note.png": "is not a folder", "/proc/new": "cannot be written", "a\0": "no file name"}
    for path, sentence in bad.items():
        with pytest.raises(ValueError, match=sentence):
            check_output_folder(path)


def test_home_is_written_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/a.png") == check_output("~/a.png") == tmp_path / "a.png"
    assert as_path("~nobody-here/a.png") == Path("~nobody-here/a.png")
    with written_whole("~/new/a.txt") as temporary:
        temporary.write_text("here")
    assert (tmp_path / "new" / "a.txt").read_text() == "here"


def test_a_file_has_reached_the_disk_before_it_has_its_name_and_its_name_after(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace

    def noted(handle):
        done.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("rename"), replace(self, to))[1])
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert done == [str(temporary), "rename", str(tmp_path)]


WRITER = """
import sys, time
from context_diffusion.files import written_whole
with written_whole(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def writer(path: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_writer_left_is_swept_by_the_next_and_what_a_living_one_writes_is_not(tmp_path, end):
    target = tmp_path / "a.txt"
    dead, alive, other = writer(target), writer(target), writer(tmp_path / "b.txt")
    try:
        for process in (dead, other):
            process.send_signal(end)
        assert len(list(tmp_path.iterdir())) == 3 or end is signal.SIGTERM
        dead.stdout.read(), other.stdout.read()  # until they are gone; not yet waited for: even a zombie counts as dead
        with written_whole(target) as temporary:
            temporary.write_text("whole")
            assert len([file for file in tmp_path.iterdir() if file.name.startswith(".a")]) == 2
        assert target.read_text() == "whole"
        assert {file.name[:3] for file in tmp_path.iterdir()} == {"a.t", ".a.", ".b."}
    finally:
        for process in (dead, alive, other):
            process.kill()
            process.communicate()
    sweep(target)
    assert {file.name[:3] for file in tmp_path.iterdir()} == {"a.t", ".b."}


def test_where_locks_are_unknown_only_what_is_a_day_old_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    old, new, other = (tmp_path / f".{name}" for name in ("a.part-1.txt", "a.part-2.txt", "ab.part-3.txt"))
    for file in (old, new, other):
        file.write_text("half")
    for file in (old, other):
        os.utime(file, (time.time() - 2 * 24 * 3600,) * 2)
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert {file.name for file in tmp_path.iterdir()} == {"a.txt", new.name, other.name}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), OSError(errno.EDQUOT, "Quota exceeded")])
def test_a_full_disk_is_one_sentence_and_what_was_there_stays(tmp_path, error):
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(OSError, match=r"a\.txt cannot be written: the disk is full"), written_whole(tmp_path / "a.txt"):
        raise error
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "before")]


def test_whatever_an_encoder_raises_on_a_full_disk_is_that_the_disk_is_full(tmp_path, monkeypatch):
    with pytest.raises(KeyError), written_whole(tmp_path / "a.txt"):
        raise KeyError("of another cause")
    usage = files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage._replace(free=0))
    with pytest.raises(OSError, match="the disk is full"), written_whole(tmp_path / "a.txt"):
        raise KeyError("encoder error -2")
    with pytest.raises(ValueError, match="the disk is full"):
        check_output(tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())
