"""Codes of errors: each that is given is in the table, and each in the table can occur."""

import ast
from pathlib import Path

import pytest

from halfmask.codes import CODES
from halfmask.data.images import read_image
from halfmask.errors import DataError

SOURCES = [path for path in Path(__file__).parents[1].joinpath("halfmask").rglob("*.py") if path.name != "codes.py"]


def given() -> dict[str, str]:
    """Codes that stand in the source as whole strings, and one place of each."""
    found = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if len(text) == 4 and text[0] == "H" and text[1:].isdigit():
                found[text] = f"{path.name}:{node.lineno}"
    return found


def test_every_code_that_is_given_is_in_the_table() -> None:
    assert {code: place for code, place in given().items() if code not in CODES} == {}


def test_every_code_says_what_was_found_and_what_mends_it() -> None:
    assert [code for code, entry in CODES.items() if not entry.meaning or not entry.cure] == []


def test_data_errors_that_name_a_file_carry_a_code() -> None:
    """`DataError(message)` without a code is for summaries and for places to write to."""
    bare = []
    for path in SOURCES:
        if path.parent.name != "data" or path.name in {"cache.py", "_places.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "DataError" and len(node.args) < 2:
                bare.append(f"{path.name}:{node.lineno}")
    assert bare == []


def test_the_code_travels_with_the_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "absent.png")
    assert caught.value.code == "H201"
