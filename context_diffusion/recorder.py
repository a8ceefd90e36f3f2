"""A recording from a notebook's reader: a file that is uploaded, or the microphone where the browser lends one.

ipywidgets has no microphone. A button's few lines of JavaScript (``recorder.js``) record in the browser and put a WAV
file into a hidden text area, whose value ipywidgets brings to the kernel as any other.
"""

import base64
import html
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .fusion.sound import Recording, Sound, read_sound
from .widgets import has_kernel

RATE = 32_000  # Hz; of what is recorded, and of what an uploaded file is brought to
LONGEST = 30  # seconds of a recording from the microphone
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
MARK = "context-diffusion-recorder"  # by which the script finds its widget
SCRIPT = Path(__file__).with_suffix(".js")


class Recorder:
    """Upload or record; :attr:`recording` is what came last, and the ``default`` until something does.

    With ``draw``, each recording that comes is passed to it, and what it returns is shown below: a transcript, a
    picture. Without a kernel the default is all there is.

    >>> recorder = Recorder("data/audio/boat.flac")
    No kernel to record in: boat.flac is taken.
    >>> recorder.recording
    'data/audio/boat.flac'
    """

    def __init__(self, default: Recording | Sound, draw: Callable[[Recording | Sound], object] | None = None):
        self.recording, self.draw, self.box = default, draw, None
        taken = Path(default).name if isinstance(default, (str, os.PathLike)) else "what was given"
        if not has_kernel():
            print(f"No kernel to record in: {taken} is taken.")
            return
        self.state = f"Nothing recorded or uploaded yet: {taken} is taken."
        self._build()

    def __repr__(self) -> str:
        return "Recorder" if self.box is None else self.state

    def _repr_mimebundle_(self, **options) -> dict | None:
        """Show the widget, and where a front end shows none, what is taken."""
        return None if self.box is None else self.box._repr_mimebundle_(**options) | {"text/plain": repr(self)}

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
        self.area.value = ""  # so that the same recording would count again
        if text.startswith("!"):
            self._say(f"Nothing recorded: {text[1:]}.")
        else:
            self._take("microphone.wav", base64.b64decode(text.partition(",")[2]))

    def _take(self, name: str, content: bytes) -> None:
        """Read a recording and keep it; what cannot be read is said, and the one before stays."""
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
                except ValueError as error:  # nothing was heard, say
                    print(error)


def last_file(value: Sequence[Mapping] | Mapping) -> tuple[str, bytes] | None:
    """Find name and content of the last file in an upload's value: a tuple since ipywidgets 8, in 7 a dict by name."""
    if not value:
        return None
    if isinstance(value, Mapping):
        name, file = list(value.items())[-1]
    else:
        name, file = value[-1]["name"], value[-1]
    return Path(name).name or "a recording", bytes(file["content"])


def read_bytes(name: str, content: bytes) -> Sound:
    """Read a file's content as :func:`.fusion.sound.read_sound` reads the file; raises ``ValueError`` as it does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        try:
            return read_sound(file, RATE)
        except ValueError as error:
            message = str(error).replace(f"{folder}{os.sep}", "")
    raise ValueError(message)
