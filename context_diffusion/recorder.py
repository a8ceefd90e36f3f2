"""A recording from the reader of a notebook: an uploaded file, or the microphone if the browser lends one.

ipywidgets has no microphone. So a button runs a few lines of JavaScript (``recorder.js``) that record in the browser
and put a WAV file into a hidden text area, whose value ipywidgets carries to the kernel like any other.
"""

import base64
import html
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .fusion.sound import Recording, Sound, read_sound
from .signatures import checked
from .widgets import has_kernel

RATE = 32_000  # Hz, of recordings and, after resampling, of uploaded files
LONGEST = 30  # seconds from the microphone
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
MARK = "context-diffusion-recorder"  # the class by which the script finds its widget
SCRIPT = Path(__file__).with_suffix(".js")


class Recorder:
    """Upload or record; :attr:`recording` is what came last, or the ``default`` if nothing has come yet.

    With ``draw``, each new recording is passed to it, and what it returns is shown below: a transcript, a picture.
    Without a kernel there is only the default.

    >>> recorder = Recorder("data/audio/boat.flac")
    Without a kernel there is nothing to record with: using boat.flac.
    >>> recorder.recording
    'data/audio/boat.flac'
    """

    @checked
    def __init__(self, default: Recording | Sound, draw: Callable[[Recording | Sound], object] | None = None):
        self.recording, self.draw = default, draw
        self.box: Any = None  # the ipywidgets.VBox, where there is a kernel
        used = Path(default).name if isinstance(default, (str, os.PathLike)) else "the default"
        if not has_kernel():
            print(f"Without a kernel there is nothing to record with: using {used}.")
            return
        self.state = f"Nothing recorded or uploaded yet: using {used}."
        self._build()

    def __repr__(self) -> str:
        return "Recorder" if self.box is None else self.state

    def _repr_mimebundle_(self, **options) -> dict | None:
        """Show the widget, or its state as text if the front end shows no widgets."""
        if self.box is None:
            return None
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}  # ipywidgets 7 makes no bundle
        return {"text/plain": repr(self), "application/vnd.jupyter.widget-view+json": view}

    def _build(self) -> None:
        import ipywidgets

        click = f"({SCRIPT.read_text(encoding='utf-8')})(this, {RATE}, {LONGEST})"
        button = f'<button class="jupyter-button widget-button" onclick="{html.escape(click)}">record</button>'
        self.upload = ipywidgets.FileUpload(accept=",".join(SUFFIXES), multiple=False, description="a file")
        self.area = ipywidgets.Textarea(continuous_update=False, layout={"display": "none"})
        self.said, self.output = ipywidgets.Label(self.state), ipywidgets.Output()
        row = ipywidgets.HBox([self.upload, ipywidgets.HTML(button), self.area])
        self.box = ipywidgets.VBox([row, self.said, self.output])
        self.box.add_class(MARK)
        self.upload.observe(self._uploaded, names="value")
        self.area.observe(self._recorded, names="value")

    def _uploaded(self, change: Mapping) -> None:
        if found := last_file(change["new"]):
            self._take(*found)

    def _recorded(self, change: Mapping) -> None:
        text = change["new"]
        if not text:
            return
        self.area.value = ""  # so that an identical recording counts as a change
        if text.startswith("!"):
            self._say(f"Nothing recorded: {text[1:]}.")
        else:
            self._take("microphone.wav", base64.b64decode(text.partition(",")[2]))

    def _take(self, name: str, content: bytes) -> None:
        """Read a recording and keep it; if that fails, say why and keep the one before."""
        try:
            sound = read_bytes(name, content)
        except ValueError as error:
            self._say(str(error))
            return
        self.recording = sound
        self._say("; ".join((f"{name}: {sound.seconds:.1f} s at {sound.level:.0f} dBFS", *sound.notes)))
        self._redraw()

    def _say(self, text: str) -> None:
        self.state = self.said.value = text

    def _redraw(self) -> None:
        from IPython.display import display

        if self.draw is not None:
            self.output.clear_output(wait=True)
            with self.output:
                try:
                    display(self.draw(self.recording))
                except ValueError as error:  # for example, nothing was heard
                    print(error)


def last_file(value: Sequence[Mapping] | Mapping) -> tuple[str, bytes] | None:
    """Find the name and content of the last file uploaded; the value is a tuple since ipywidgets 8, a dict in 7."""
    if not value:
        return None
    if isinstance(value, Mapping):
        name, file = list(value.items())[-1]
    else:
        name, file = value[-1]["name"], value[-1]
    return Path(name).name or "a recording", bytes(file["content"])


def read_bytes(name: str, content: bytes) -> Sound:
    """Read the bytes of a file as :func:`.fusion.sound.read_sound` reads the file; raises ``ValueError`` as it does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        try:
            return read_sound(file, RATE)
        except ValueError as error:
            message = str(error).replace(f"{folder}{os.sep}", "")
    raise ValueError(message)
