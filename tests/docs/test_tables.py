"""The tables of the documentation are those that docstrings and signatures give."""

import importlib.util
import re

import pytest

from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_up_to_date(tables):
    stale = [page.name for page in tables.PAGES if tables.fill(page) != page.read_text(encoding="utf-8")]
    assert stale == [], "run: python docs/tables.py"


def test_every_table_stands_on_a_page(tables):
    text = "".join(page.read_text(encoding="utf-8") for page in tables.PAGES)
    assert {*re.findall(r"<!-- table: ([\w-]+) -->", text)} == {*tables.TABLES}


@pytest.mark.parametrize("kind", ["method-sections", "encoders", "decoders", "datasets", "recipe"])
def test_every_parameter_has_a_meaning(tables, kind):
    rows = [line for line in tables.TABLES[kind]().splitlines() if line.startswith("| `")]
    assert rows
    assert [row for row in rows if row.rstrip(" |").count(" | ") < 3] == []


def test_the_first_paper_of_a_docstring_is_cited(tables):
    text = 'A method.\n\nLee and\nKim, "A paper: with\ncolon", CVPR 2020, arXiv:2001.00001; form of Roe, "B", 2021.'
    assert tables._citation(text) == "[Lee and Kim, CVPR 2020](https://arxiv.org/abs/2001.00001)"
    assert tables._citation("A method.\n\nNo paper.") == ""
