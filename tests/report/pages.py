"""Read a report as a browser would, and say what would not open offline."""

import re
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

_VOID = {"meta", "link", "img", "br", "hr", "input", "line", "polyline", "circle"}


@dataclass
class Page:
    """What a page holds."""

    text: str = ""
    tags: Counter = field(default_factory=Counter)
    references: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)  # pictures without a text
    unclosed: list[str] = field(default_factory=list)

    def chapter(self, name: str) -> str:
        """Text of one section."""
        return self._chapters[name]

    _chapters: dict[str, str] = field(default_factory=dict)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page, self.open, self.section = Page(), [], ""

    def handle_starttag(self, tag, attrs) -> None:
        found = dict(attrs)
        self.page.tags[tag] += 1
        self.page.ids += [found["id"]] if "id" in found else []
        self.page.references += [
            found[name] for name in ("src", "srcset", "data", "poster", "xlink:href") if name in found
        ]
        if "href" in found:
            (self.page.links if tag == "a" else self.page.references).append(found["href"])
        self.page.references += re.findall(r"url\(([^)]*)\)", found.get("style") or "")
        if (tag == "img" and not found.get("alt")) or (found.get("role") == "img" and not found.get("aria-label")):
            self.page.silent.append(self.get_starttag_text() or tag)
        if tag == "section":
            self.section = found["id"]
            self.page._chapters[self.section] = ""
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if tag in _VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.page.unclosed.append(tag)
        if tag == "section":
            self.section = ""

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] == "style":
            self.page.references += re.findall(r"url\(([^)]*)\)|@import[^;]*", data)
            return
        self.page.text += data
        if self.section:
            self.page._chapters[self.section] += data


def read(path: Path) -> Page:
    """Parse a page."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.page.unclosed += reader.open
    return reader.page


def assert_offline(page: Page, folder: Path) -> None:
    """Nothing is fetched, every picture has a text, every link leads somewhere, the markup is whole."""
    assert [found for found in page.references if not found.startswith("data:")] == []
    assert page.tags["script"] == page.tags["iframe"] == page.tags["object"] == 0
    assert page.silent == []
    assert page.unclosed == []
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    inside = [link.removeprefix("#") for link in page.links if link.startswith("#")]
    assert set(inside) <= set(page.ids)
    assert [link for link in page.links if not link.startswith("#") and not (folder / link).is_file()] == []
