"""Read the pages of the documentation: their blocks of code, and what the tests may do with each.

A block's first line is its language and options, of which readers see only the language:

    ```bash                            run in the page's folder, after the blocks above it
    ```python                          run in one interpreter per page
    ```python file=mylab/x.py          written to that file (as the text above it tells the reader to do)
    ```bash no-run="needs four GPUs"   not run, for the reason given
    ```text output                     every line of it is printed by the commands above it
    ```text                            anything else: a folder, equations, a script for a cluster

What a test changes stands in a comment of the page before the block:

    <!-- tested with: --out runs/first -> --out runs/first --limit 4 -->
"""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"bash", "python", "yaml", "text", "bibtex"}
OPTIONS = {"file", "no-run", "output"}

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_SUBSTITUTION = re.compile(r"<!-- tested with: (?P<shown>.+?) -> (?P<used>.+?) -->")


@dataclass(frozen=True)
class Block:
    """One block of code of a page."""

    page: Path
    line: int
    language: str
    options: dict[str, str]
    code: str
    substitutions: tuple[tuple[str, str], ...] = field(default=())

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        return "file" in self.options or (self.language in {"bash", "python"} and "no-run" not in self.options)

    @property
    def tested_code(self) -> str:
        """The code with what the page's comments say is different in tests."""
        code = self.code
        for shown, used in self.substitutions:
            if shown not in code:
                raise ValueError(f"{self.where}: the comment before this block replaces {shown!r}, which is not in it")
            code = code.replace(shown, used)
        return code


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found, end = [], 0
    for match in _FENCE.finditer(text):
        language, *options = shlex.split(match["info"]) or [""]
        found.append(
            Block(
                page,
                text.count("\n", 0, match.start()) + 1,
                language,
                dict(option.partition("=")[::2] for option in options),
                match["code"],
                tuple((item["shown"], item["used"]) for item in _SUBSTITUTION.finditer(text, end, match.start())),
            )
        )
        end = match.end()
    return found
