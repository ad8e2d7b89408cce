"""Say whether the pages of a folder ask anything of elsewhere: a script, a style, a font, a picture, a frame.

    python .ci/check_site.py site        # exit code 1 where one does

A link that a reader may follow is no request.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

ELSEWHERE = re.compile(r"\s*(?:https?:)?//")
LINKS = {"canonical", "alternate", "prev", "next", "license", "author", "help", "me"}  # of <link>: what a browser does not fetch
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s]+)""")


class Requests(HTMLParser):
    """Collects the addresses elsewhere that a page has a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        fetched = [given[name] for name in ("src", "srcset", "poster", "data", "background") if name in given]
        if tag == "link" and not set(given.get("rel", "").split()) <= LINKS:
            fetched.append(given.get("href", ""))
        if tag in ("use", "image"):
            fetched += [given[name] for name in ("href", "xlink:href") if name in given]
        self.found += [address for address in fetched if ELSEWHERE.match(address)]
        self.found += IN_STYLE.findall(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.found += IN_STYLE.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = self._in_style and tag != "style"


def requests_elsewhere(folder: Path) -> list[str]:
    """What the pages and styles of a folder fetch from elsewhere, as "FILE: ADDRESS".

    A diagram of mermaid counts: its script would come from elsewhere.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".svg"):
            page = path.read_text(encoding="utf-8")
            reader = Requests()
            reader.feed(page)
            found += [f"{path.relative_to(folder)}: {address}" for address in reader.found + ['class="mermaid"'] * ('class="mermaid"' in page)]
        elif path.suffix == ".css":
            found += [f"{path.relative_to(folder)}: {address}" for address in IN_STYLE.findall(path.read_text(encoding="utf-8"))]
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = requests_elsewhere(folder)
    print(*found, f"{len(list(folder.rglob('*.html')))} pages, {len(found)} requests to elsewhere", sep="\n")
    sys.exit(bool(found) or not (folder / "index.html").is_file())
