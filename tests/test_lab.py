"""`make lab` as a reader meets it: the real server, a real browser, a lesson with its pictures, dials and recorder."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from browser import CHROMIUM, chromium

ROOT = Path(__file__).parent.parent
TOKEN = "reader"
PICTURES = os.environ.get("SCREENSHOTS")  # a folder that keeps what was seen
READY = "!!(window.jupyterapp && document.querySelector('.jp-Notebook .jp-MarkdownOutput img'))"
IDLE = "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"
RUN_ALL = "void window.jupyterapp.commands.execute('notebook:run-all-cells')"
COUNTS = (
    "[...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map(one => one.textContent.trim())"
)
DONE = (
    f"{COUNTS}.filter(one => /\\d/.test(one)).length >= document.querySelectorAll('.jp-Notebook .jp-CodeCell').length"
)
# Cells out of sight are not drawn by JupyterLab; a window as high as the page shows all of them.
WIDE, HIGH = 1400, 30_000

pytestmark = [
    pytest.mark.lesson,
    pytest.mark.skipif("BROWSER" not in os.environ, reason="`make browser` runs it: two whole lessons in JupyterLab"),
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium here: `apt-get install chromium`, or another package of it"
    ),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that `make lab` has started, on a copy of the lessons' surroundings."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("context_diffusion", "data", "experiments"):
        (clone / name).symlink_to(ROOT / name)
    for name in ("docs", "figures"):  # the server shows no file that lies elsewhere
        shutil.copytree(ROOT / name, clone / name)
    for name in ("README.md", "Makefile", "set_up.py", "requirements.txt", "constraints-cpu.txt", ".gitignore"):
        shutil.copyfile(ROOT / name, clone / name)
    shutil.copytree(ROOT / "notebooks", clone / "notebooks")  # a lesson that runs is saved
    for command in (["init"], ["add", "notebooks", ".gitignore"]):
        subprocess.run(["git", *command], cwd=clone, check=True, capture_output=True)
    environment = os.environ | {"JUPYTER_RUNTIME_DIR": str(clone / "runtime"), "JUPYTER_CONFIG_DIR": str(clone / "c")}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(clone / "s"), "JUPYTERLAB_WORKSPACES_DIR": str(clone / "w")}
    environment.pop("MPLBACKEND", None)
    given = f"--no-browser --allow-root --IdentityProvider.token={TOKEN} --ServerApp.port=0"
    given += " --LabApp.expose_app_in_browser=True"
    command = ["make", "lab", f"VENV={ROOT / '.venv'}", f"ARGS={given}", f"RUNTIME={clone / 'stamp'}"]
    (clone / "stamp").touch()  # the environment is there: these tests run in it
    log = (clone / "log").open("w+")
    server = subprocess.Popen(
        command, cwd=clone, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        end = time.monotonic() + 240
        while not (found := re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/\S*", (clone / "log").read_text())):
            assert server.poll() is None and time.monotonic() < end, (clone / "log").read_text()
            time.sleep(0.5)
        yield found[0], int(found[1])
        changed = subprocess.run(["git", "diff", "--stat"], cwd=clone, check=True, capture_output=True, text=True)
        assert changed.stdout == ""  # the lessons have run, and were saved
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
        log.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        page.look(WIDE, 900)
        yield page


def seen(page, name: str) -> None:
    if PICTURES:
        page.picture(Path(PICTURES) / f"{name}.png")


def open_lesson(page, port: int, name: str) -> None:
    page.open(f"http://127.0.0.1:{port}/lab/tree/notebooks/{name}.ipynb?reset&token={TOKEN}", READY, 300)


def pictures_that_failed(page) -> list:
    """Pictures of the lesson's text that the browser could not show."""
    loaded = "[...document.querySelectorAll('.jp-MarkdownOutput img')]"
    page.wait(f"{loaded}.every(one => one.complete)", 60)
    return page.ask(f"{loaded}.filter(one => !one.naturalWidth).map(one => one.src)")


def run_all(page, seconds: float) -> None:
    """Run every cell, until each has a number and the kernel is idle."""
    page.wait(IDLE, 120)  # the kernel is there
    page.look(WIDE, HIGH)
    page.ask(RUN_ALL)
    page.wait(f"{COUNTS}.length > 5 && {DONE}", seconds)
    errors = page.ask(
        "[...document.querySelectorAll('.jp-OutputArea-output[data-mime-type*=error]')].map(o => o.innerText)"
    )
    assert errors == []


def save(page) -> None:
    """Save the lesson, whose outputs stay on the page."""
    shown = "document.querySelectorAll('.jp-Notebook .jp-OutputArea-output').length"
    before = page.ask(shown)
    page.ask("void window.jupyterapp.commands.execute('docmanager:save')")
    page.wait("!document.querySelector('#jp-main-dock-panel .lm-TabBar-tab.lm-mod-current.jp-mod-dirty')", 60)
    assert page.ask(shown) == before and not page.ask("document.querySelector('.jp-Dialog')?.innerText")


def test_it_opens_the_first_lesson(lab):
    address, port = lab
    assert "/lab/tree/notebooks/00_quickstart.ipynb" in address or address.rstrip("/").endswith("lab")
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/lab?token={TOKEN}")
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert answer.status == 200


def test_what_a_lesson_links_to_is_served(lab):
    _, port = lab
    missing = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
        for link in set(re.findall(r"\]\((?!\w+:|#)([^)\s#]+)[^)]*\)", text)):
            target = os.path.normpath(f"notebooks/{link}")
            if not (ROOT / target).exists():
                continue  # brackets of code
            asked = f"http://127.0.0.1:{port}/api/contents/{target}?content=0&token={TOKEN}"
            try:
                with urllib.request.urlopen(asked, timeout=60) as answer:
                    assert json.load(answer)["path"] == target
            except urllib.error.HTTPError as error:
                missing.append((path.name, link, error.code))
    assert not missing


def test_the_first_lesson_runs_with_its_pictures_and_a_dial_draws_again(lab, page):
    _, port = lab
    open_lesson(page, port, "00_quickstart")
    assert pictures_that_failed(page) == []
    seen(page, "lab-00-opened")
    run_all(page, 900)
    slider = "document.querySelector('.widget-slider .noUi-handle, .widget-slider .ui-slider-handle')"
    page.wait(f"!!{slider}", 60)
    readout = f"{slider}.closest('.widget-slider').querySelector('.widget-readout').innerText"
    before = page.ask(readout)
    page.ask(f"{slider}.scrollIntoView({{block: 'center'}}), {slider}.focus()")
    page.press("ArrowRight")
    page.wait(f"{readout} !== {json.dumps(before)}", 30)
    dials = f"{slider}.closest('.widget-vbox')"
    drawn = f"{dials}.querySelector('.jp-OutputArea-output img').src"
    first = page.wait(drawn, 60)
    page.ask(f"{dials}.querySelector('button.jupyter-button').click()")
    page.wait(f"!!{dials}.querySelector('.jp-OutputArea-output img') && {drawn} !== {json.dumps(first)}", 300)
    seen(page, "lab-00-run")
    assert not [one for one in page.failed if "/files/" in str(one[0])]
    save(page)


def test_the_recorder_is_shown(lab, page):
    _, port = lab
    open_lesson(page, port, "14_speech_and_music")
    assert pictures_that_failed(page) == []
    run_all(page, 900)
    page.wait("!!document.querySelector('.context-diffusion-recorder button')", 60)
    text = page.ask("document.querySelector('.context-diffusion-recorder').innerText")
    assert "record" in text and "Nothing recorded or uploaded yet" in text
    page.look(WIDE, 900)
    page.ask("document.querySelector('.context-diffusion-recorder').scrollIntoView({block: 'center'})")
    seen(page, "lab-14-recorder")
    save(page)
