"""Read docstrings: find the paper that is cited, and the meaning of each argument."""

import re
from typing import NamedTuple

# Authors, title, venue with year, perhaps the number at arXiv. A sentence may lead to the authors with ", as":
#     Two decoders over one encoder, as Roe and Poe, "A title: with colon", CVPR 2020, arXiv:2001.00001, section 3.
_CITATION = re.compile(
    r'(?:[^".]*, as )?(?P<authors>[^".]+(?:\bet al\.)?),? "(?P<title>[^"]+)",? '
    r'(?P<venue>[^,;:."]+?)(?:, arXiv:(?P<arxiv>\d+\.\d+))?[,;:.]'
)


class Paper(NamedTuple):
    """The paper that a method follows.

    Args:
        authors: "Sohn et al.".
        title: of the paper.
        venue: with the year.
        arxiv: number there, or "".
    """

    authors: str
    title: str
    venue: str
    arxiv: str

    def __str__(self) -> str:
        return f"{self.authors}, {self.venue}" + (f", arXiv:{self.arxiv}" if self.arxiv else "")


def cited(docstring: str) -> Paper | None:
    r"""Find the first paper that a docstring cites.

    >>> str(cited('A method.\n\nSohn et al., "FixMatch", NeurIPS 2020, arXiv:2001.07685; the form for pixels.'))
    'Sohn et al., NeurIPS 2020, arXiv:2001.07685'
    """
    for paragraph in docstring.split("\n\n"):
        found = _CITATION.match(" ".join(paragraph.split()))
        if found is not None:
            return Paper(found["authors"].strip(", "), found["title"], found["venue"], found["arxiv"] or "")
    return None


def argument_docs(docstring: str) -> dict[str, str]:
    r"""Return the meaning of each argument that a Google-style docstring describes.

    >>> argument_docs("Do.\n\nArgs:\n    a, *b: first,\n        and more.\n    c: second.\n")
    {'a': 'first, and more.', '*b': 'first, and more.', 'c': 'second.'}
    """
    from docstring_parser.google import parse  # here: lists of names cite papers, and describe no argument

    return {
        name.strip(): " ".join((found.description or "").split())
        for found in parse(docstring).params
        for name in found.arg_name.split(",")
    }
