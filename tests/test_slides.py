"""Slides: what begins one, what is left out, and that all of a slide is seen, in headless Chromium."""

from pathlib import Path

import nbformat
import pytest
from browser import CHROMIUM, chromium

from experiments.publishing import slides
from experiments.publishing.doors import FIRST_CELL, FOLDER

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell


def picture() -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", {"image/png": PIXEL, "text/plain": "a picture"})


def kinds(*cells: nbformat.NotebookNode) -> list[str]:
    """Where each cell is shown."""
    shown = slides.with_slides(nbformat.v4.new_notebook(cells=list(cells))).cells
    return [cell.metadata.slideshow.slide_type for cell in shown]


def test_sections_go_right_what_no_longer_fits_goes_down_and_some_are_left_out():
    cells = [markdown("# T"), code(FIRST_CELL.format(address="a")), markdown("## 1. A"), code("a = 1")]
    cells += [code("\n".join("abcdefghijklmnop")), markdown("### B"), markdown("## 2. Exercises"), markdown("**2.1**")]
    assert kinds(*cells) == ["slide", "skip", "slide", "-", "subslide", "subslide", "skip", "skip"]


def test_a_text_stays_with_the_code_that_it_announces():
    filling, text, short = code("a\n" * 12), markdown("So:"), code("a = 1\nb = 2")
    assert kinds(markdown("# T"), filling, text, short) == ["slide", "subslide", "subslide", "-"]
    assert kinds(markdown("# T"), filling, markdown("So."), short) == ["slide", "subslide", "-", "subslide"]
    assert kinds(markdown("# T"), text, code("a\n" * 17)) == ["slide", "-", "subslide"]


def test_no_text_is_lost_where_a_long_one_is_divided():
    text = "\n\n".join(f"{number} " + "word " * 60 for number in range(12)) + "\n\n### Next\n\nend"
    parts = [cell.source for cell in slides.split_texts([markdown(text)])]
    assert "\n\n".join(parts).split() == text.split() and len(parts) > 2 and "### Next\n\nend" in parts
    assert all(slides.height(part) <= slides.LINES for part in parts)


def test_a_picture_leaves_its_code_and_the_rest_of_the_output_stays():
    text = nbformat.v4.new_output("stream", text="1")
    first, second = slides.split_outputs([code("draw()", outputs=[text, picture()])])
    assert first.outputs == [text] and second.outputs[0].data["image/png"] == PIXEL
    assert kinds(first, second) == ["-", "subslide"]


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: `apt-get install chromium`")
needs_reveal = pytest.mark.skipif(not slides.REVEAL.is_dir(), reason="no reveal.js here: `make slides` gets it")
LOOK = """(async () => {
  const seen = [];
  for (const slide of Reveal.getSlides()) {
    const {h, v} = Reveal.getIndices(slide);
    Reveal.slide(h, v || 0);
    await new Promise(done => setTimeout(done, 20));
    const box = slide.getBoundingClientRect();
    const ends = [...slide.querySelectorAll("img")].map(one => one.getBoundingClientRect().bottom);
    const inside = ends.every(end => end <= innerHeight + 1);
    const cut = [...slide.querySelectorAll("*")].filter(one => getComputedStyle(one).overflowX !== "visible" &&
      !one.closest("mjx-container") && one.clientWidth && one.scrollWidth > one.clientWidth + 1);
    const wide = [...slide.querySelectorAll("pre, table")].some(
      one => one.getBoundingClientRect().left + one.scrollWidth * slide.style.zoom > innerWidth + 1);
    const small = slide.style.zoom < 0.55;
    if (box.bottom > innerHeight + 1 || box.right > innerWidth + 1 || !inside || cut.length || wide || small)
      seen.push([h, v, slide.style.zoom, box.bottom, box.right, cut.length, wide]);
  }
  return seen;
})()"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The slides of every lesson, with the outputs there are."""
    folder = tmp_path_factory.mktemp("slides")
    (folder / "faults.txt").write_text("\n".join(slides.build(folder, sorted(FOLDER.glob("*.ipynb")))))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        page.look(1280, 720)
        yield page


@pytest.mark.slow
@needs_reveal
@needs_browser
@pytest.mark.parametrize("lesson", sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def test_all_of_every_slide_is_seen_and_nothing_is_fetched(built, page, lesson):
    found = (built / "faults.txt").read_text().splitlines()  # links that lead nowhere, and what would be fetched
    assert [one for one in found if one.startswith((lesson, "assets"))] == []
    page.asked.clear()
    page.open((built / f"{lesson}.html").as_uri(), "window.slidesReady === true", 180)
    assert page.ask("Reveal.getSlides().length") > 10
    assert page.ask(LOOK) == []
    assert page.failed == [] and all(one.startswith(("file:", "data:")) for one in page.asked.values())
    assert page.ask("document.querySelectorAll('mjx-merror, [data-mjx-error]').length") == 0
