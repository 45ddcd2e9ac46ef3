"""Codes of errors: each that is given is in the table, and each in the table can occur."""

import ast
import errno
from pathlib import Path

import pytest

from halfmask import errors
from halfmask.cli.exits import describe_failure
from halfmask.codes import CODES
from halfmask.data.folder.images.decode import read_image
from halfmask.errors import DataError, HalfmaskError, MissingExtraError, RecipeError

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


def test_each_class_of_errors_has_a_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HalfmaskError)]
    bare = {kind.__name__ for kind in kinds if kind.code not in CODES}
    assert bare == {"HalfmaskError", "Interrupted"}  # the base, and what is no error
    assert len(kinds) > len(bare)


def test_data_errors_carry_a_code_of_their_own() -> None:
    """The data is what goes wrong most, in many ways; `H200` is for plugins and for misuse from Python."""
    bare = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "DataError" and len(node.args) < 2:
                bare.append(path.name)
    # The last two: what a method of one's own gave back.
    assert set(bare) <= {"batch.py", "multi_domain.py", "stages.py", "sampler.py"}


@pytest.mark.parametrize(
    ("error", "code"), [(RecipeError("no", "H303"), "H303"), (MissingExtraError("export", "export"), "H213")]
)
def test_a_code_is_that_of_the_error_or_of_its_class(error: HalfmaskError, code: str) -> None:
    assert describe_failure(error) == (f"{type(error).__name__}[{code}]: {error}", error.exit_code)
    assert RecipeError("no").code == "H301"  # that of the class did not change


def test_a_class_of_a_plugin_needs_no_code() -> None:
    class FieldError(HalfmaskError):
        """Of a plugin."""

    assert describe_failure(FieldError("no")) == ("FieldError: no", 2)


@pytest.mark.parametrize(
    ("error", "code", "cure"),
    [(MemoryError("too much"), "H501", "smaller batch"), (OSError(errno.ENOSPC, "full", "runs/a"), "H502", "Free")],
)
def test_what_the_machine_lacks_has_a_code(error: Exception, code: str, cure: str) -> None:
    told, _ = describe_failure(error)
    assert f"[{code}]: " in told
    assert cure in told


def test_the_code_travels_with_the_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "absent.png")
    assert caught.value.code == "H201"
