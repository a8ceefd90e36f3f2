"""Faults of a folder of web pages: links that lead nowhere, and anything that a page would fetch from elsewhere.

python -m experiments.publishing.links build/site/html
"""

import argparse
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from context_diffusion.commands import Parser, run_command

FETCHED = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("audio", "src"),
           ("video", "src"), ("object", "data"), ("input", "src")}  # fmt: skip
NAMED = {"canonical", "license", "author", "search", "index", "next", "prev"}  # kinds of <link> that fetch nothing
IN_STYLES = re.compile(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)")


class Page(HTMLParser):
    """What a page links to, what it fetches, and the places in it that can be linked to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag refers to."""
        given = {key: value or "" for key, value in attrs}
        self.places |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if not (tag == "link" and NAMED & set(given.get("rel", "").split())):
            self.fetched += [given[key] for key in given if (tag, key) in FETCHED]


def faults(folder: Path) -> Iterator[str]:
    """Each fault of the pages and styles in a folder, in words."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    for path, page in pages.items():
        where = path.relative_to(folder)
        for address in page.fetched:
            if urlsplit(address).netloc:
                yield f"{where} fetches {address[:80]}"
        for address in {*page.links, *page.fetched}:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or not target.is_relative_to(folder.resolve()):
                yield f"{where} links to {address}, which is not there"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                yield f"{where} links to {address}, and there is no such place on that page"
    for path in sorted(folder.rglob("*.css")):
        for found in IN_STYLES.finditer(path.read_text(encoding="utf-8")):
            address = next(filter(None, found.groups()))
            if urlsplit(address).netloc:
                yield f"{path.relative_to(folder)} fetches {address}"


def main() -> int:
    """Print every fault of the folder that is named; return 1 if there is one."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of web pages")
    folder = parser.parse_args().folder.resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: `make site` makes build/site/html.")
    found = list(faults(folder))
    print("\n".join(found) or "No link leads nowhere, and no page fetches anything from elsewhere.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(run_command(main))
