"""The site: built without running a lesson, then every link, every formula, both widths and both kinds of light."""

import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import nbformat
import pytest
from browser import CHROMIUM, chromium

from experiments.publishing import links, site
from experiments.publishing.still_widgets import NOTE, STATE, VIEW, with_still_widgets

ROOT = site.ROOT
LESSONS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PICTURES = os.environ.get("SCREENSHOTS")  # a folder that keeps what was seen
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: `apt-get install chromium`")


# --- widgets -------------------------------------------------------------------------------------------------


def widget_of(models: dict[str, tuple[str, dict]]) -> nbformat.NotebookNode:
    """A notebook that shows the widget named ``top``."""
    output = nbformat.v4.new_output("display_data", {VIEW: {"model_id": "top"}, "text/plain": "VBox(...)"})
    state = {name: {"model_name": kind, "state": held} for name, (kind, held) in models.items()}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("play()", outputs=[output])])
    notebook.metadata.widgets = {STATE: {"state": state}}
    return notebook


def box(*names: str) -> tuple[str, dict]:
    return "VBoxModel", {"children": [f"IPY_MODEL_{name}" for name in names]}


def test_a_widget_becomes_its_dials_and_what_it_drew():
    picture = {"output_type": "display_data", "data": {"image/png": "AAAA"}, "metadata": {}}
    slider = {"description": "shift", "value": 0.25, "min": 0.0, "max": 1.0, "step": 0.05}
    menu = {"description": "mode", "_options_labels": ["linear", "SLERP & more"], "index": 1}
    models = {"top": box("row", "drawn"), "row": box("slider", "menu", "hidden")}
    models |= {"slider": ("FloatSliderModel", slider), "menu": ("DropdownModel", menu)}
    models |= {"hidden": ("TextareaModel", {"value": "secret", "layout": "IPY_MODEL_none"})}
    models |= {"none": ("LayoutModel", {"display": "none"}), "drawn": ("OutputModel", {"outputs": [picture]})}
    notebook = with_still_widgets(widget_of(models))
    dials, drawn = notebook.cells[0].outputs
    text = dials.data["text/html"]
    assert 'min="0.0" max="1.0" step="0.05" value="0.25" disabled' in text and "<output>0.25</output>" in text
    assert "SLERP &amp; more" in text and NOTE in text and "secret" not in text
    assert drawn.data == picture["data"] and "widgets" not in notebook.metadata


def test_a_button_with_a_script_of_its_own_is_still():
    button = ("HTMLModel", {"value": '<button onclick="record()">record</button>'})
    (output,) = with_still_widgets(widget_of({"top": box("one"), "one": button})).cells[0].outputs
    assert "onclick" not in output.data["text/html"] and ">record</button>" in output.data["text/html"]


def test_an_unknown_widget_leaves_its_text():
    (output,) = with_still_widgets(widget_of({})).cells[0].outputs
    assert output.data == {"text/plain": "VBox(...)"}


def test_a_bar_that_has_gone_leaves_nothing():
    gone = ("LayoutModel", {"visibility": "hidden"})
    bar = ("HBoxModel", {"children": [], "layout": "IPY_MODEL_gone"})
    assert with_still_widgets(widget_of({"top": bar, "gone": gone})).cells[0].outputs == []


# --- links ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (
            '<a href="b.html#there">b</a> <a href="https://example.org/">e</a> <img src="data:image/png;base64,AA">',
            None,
        ),
        ('<a href="c.html">c</a>', "a.html links to c.html, which is not there"),
        ('<a href="b.html#gone">b</a>', "a.html links to b.html#gone, and there is no such place on that page"),
        ('<img src="gone.png">', "a.html links to gone.png, which is not there"),
        ('<script src="https://cdn.example.org/x.js"></script>', "a.html fetches https://cdn.example.org/x.js"),
        ('<link rel="stylesheet" href="//cdn.example.org/x.css">', "a.html fetches //cdn.example.org/x.css"),
    ],
)
def test_a_fault_of_a_page_is_found(tmp_path, body, fault):
    (tmp_path / "a.html").write_text(body)
    (tmp_path / "b.html").write_text('<h1 id="there">b</h1>')
    assert list(links.faults(tmp_path)) == ([fault] if fault else [])


def test_a_style_that_fetches_a_font_is_found(tmp_path):
    (tmp_path / "a.css").write_text('@font-face { src: url("https://fonts.example.org/a.woff2"), url(b.woff2); }')
    assert list(links.faults(tmp_path)) == ["a.css fetches https://fonts.example.org/a.woff2"]


def test_a_run_is_kept_until_something_that_it_used_changes(tmp_path, monkeypatch):
    lesson, executed, runs = tmp_path / "00_a.ipynb", tmp_path / "executed", []
    used = tmp_path / "used.py"
    used.write_text("1")

    def run_lesson(path):
        runs.append(path)
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[0].outputs = [nbformat.v4.new_output("stream", text=f"run {len(runs)}")]
        notebook.metadata[site.KEY] = site.digest(["00_a.ipynb", "used.py"])
        return notebook

    def write(text):
        cells = [nbformat.v4.new_code_cell("f()", id="0"), nbformat.v4.new_markdown_cell(text, id="1")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), lesson)

    monkeypatch.setattr(site, "ROOT", tmp_path)
    monkeypatch.setattr(site, "run_lesson", run_lesson)
    write("a sentence")
    assert site.with_outputs(lesson, executed, run=False).cells[0].outputs == []
    assert site.with_outputs(lesson, executed, run=True).cells[0].outputs[0].text == "run 1"
    write("a better sentence")
    again = site.with_outputs(lesson, executed, run=True)
    assert again.cells[0].outputs[0].text == "run 1" and again.cells[1].source == "a better sentence"
    used.write_text("2")
    assert site.with_outputs(lesson, executed, run=True).cells[0].outputs[0].text == "run 2"


# --- the whole site ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The pages: those of `make site` that SITE names, or else built here with the outputs there are."""
    if "SITE" in os.environ:
        return Path(os.environ["SITE"]).resolve()
    folder = tmp_path_factory.mktemp("site")
    assert site.build(folder, run=(), kept=site.SITE / "executed") == []
    return folder / "html"


@pytest.mark.slow
def test_every_link_leads_somewhere_and_nothing_comes_from_elsewhere(built):
    assert list(links.faults(built)) == []
    for place in [*(f"notebooks/{name}" for name in LESSONS), *PLACES, "search", "code/context_diffusion/encoders"]:
        assert (built / f"{place}.html").is_file()
    assert (built / "searchindex.js").stat().st_size > 100_000


@pytest.fixture(scope="module")
def address(built):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(built)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


TYPESET = (
    "document.readyState === 'complete' && "
    "(!window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true))"
)
LOOKED_AT = ("00_quickstart", "01_encoding", "05_adain_and_shared_attention")
PLACES = [*(f"notebooks/{name}" for name in LOOKED_AT), "index", "tables", "reference/alignment", "docs/glossary"]
PLACES += ["docs/bench", "data/checkpoints/tiny-scenes/README"]


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("place", PLACES)
def test_a_page_fits_its_window_and_loads_from_here_alone(address, page, place, width, dark):
    page.look(width, 900, dark=dark)
    page.asked.clear()
    page.open(f"{address}/{place}.html", TYPESET)
    if PICTURES:
        name = f"{place.replace('/', '-')}-{width}-{'dark' if dark else 'light'}.png"
        page.picture(Path(PICTURES) / name, whole=True)
    assert page.failed == [] and all(one.startswith((address, "data:")) for one in page.asked.values())
    assert page.ask("document.documentElement.scrollWidth <= window.innerWidth + 1"), "it is wider than its window"
    assert page.ask("[...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.src)") == []
    assert page.ask("getComputedStyle(document.body).colorScheme") is not None


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("name", LESSONS)
def test_every_formula_of_a_lesson_is_set(address, page, name):
    page.look(1280, 900)
    page.open(f"{address}/notebooks/{name}.html", TYPESET)
    assert page.ask("[...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(one => one.innerText)") == []
    written = page.ask("document.querySelectorAll('.math').length")
    assert page.ask("document.querySelectorAll('mjx-container').length") >= written


@pytest.mark.slow
@needs_browser
def test_the_search_finds_a_lesson(address, page):
    page.open(f"{address}/search.html?q=inversion")
    page.wait("document.querySelectorAll('#search-results li a').length > 2", 30)
    assert "06_ddim_inversion" in page.ask(
        "[...document.querySelectorAll('#search-results a')].map(a => a.href).join()"
    )
