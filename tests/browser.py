"""A headless Chromium for tests, spoken to by its own debugging protocol: pages, clicks, pictures of what is seen."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless=new", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0"]


class Page:
    """One page. :attr:`failed` holds the addresses that could not be loaded, each with its status or reason."""

    def __init__(self, address: str):
        import websocket

        self.socket = websocket.create_connection(address, timeout=30, suppress_origin=True)
        self.numbers, self.failed, self.asked = itertools.count(1), [], {}
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        """Call a method of the protocol and return its result; what else arrives meanwhile is noted."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message.get('error')}"
                return message["result"]
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, event: str, told: dict) -> None:
        if event == "Network.requestWillBeSent":
            self.asked[told["requestId"]] = told["request"]["url"]
        elif event == "Network.responseReceived" and told["response"]["status"] >= 400:
            self.failed.append((told["response"]["url"], told["response"]["status"]))
        elif event == "Page.javascriptDialogOpening":  # such as "leave this page?"
            accept = {"method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self.socket.send(json.dumps({"id": next(self.numbers), **accept}))
        elif event == "Network.loadingFailed" and not told.get("canceled"):
            self.failed.append((self.asked.get(told["requestId"]), told["errorText"]))

    def ask(self, script: str) -> object:
        """The value of an expression of JavaScript; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> object:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.ask(script)):
            assert time.monotonic() < end, f"after {seconds} s there is still no {script}"
            time.sleep(0.25)
        return value

    def open(self, address: str, ready: str = "document.readyState === 'complete'", seconds: float = 60) -> None:
        """Load a page, and wait until it is ready."""
        self.failed.clear()
        self.call("Page.navigate", url=address)
        time.sleep(0.2)
        self.wait(ready, seconds)

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the window, and whether its reader prefers the dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key, where the focus is."""
        code = {"ArrowRight": 39, "ArrowLeft": 37, "Enter": 13}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=8 * shift
            )

    def picture(self, file: Path, *, whole: bool = False) -> None:
        """Save what is seen, or the whole page, as PNG."""
        file.parent.mkdir(parents=True, exist_ok=True)
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium(folder: Path):
    """A page of a browser of its own, whose profile lies in a folder; the browser ends with the block."""
    flags = [*FLAGS, f"--user-data-dir={folder}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    browser = subprocess.Popen([CHROMIUM, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port, end = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (port.is_file() and port.read_text().strip()):
            assert browser.poll() is None and time.monotonic() < end, "Chromium did not start"
            time.sleep(0.1)
        listed = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"
        while True:
            with urllib.request.urlopen(listed, timeout=30) as answer:
                pages = [one for one in json.load(answer) if one["type"] == "page"]
            if pages:
                break
            time.sleep(0.1)
        page = Page(pages[0]["webSocketDebuggerUrl"])
        yield page
        page.socket.close()
    finally:
        browser.terminate()
        browser.wait(30)
