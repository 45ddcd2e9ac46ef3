"""The table of mutations fits the source: it can only show that tests are good while its patterns are found."""

import ast

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: f"{one.file}: {one.old.strip()} -> {one.new.strip()}")
def test_a_mutation_changes_one_place_into_other_code(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1
    changed = text.replace(mutation.old, mutation.new)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))  # not only a comment, and no syntax error
    assert all((ROOT / path).is_file() for path in mutation.tests)


def test_every_part_of_the_package_that_computes_has_mutations() -> None:
    parts = {mutation.file.split("/")[1] for mutation in MUTATIONS}
    assert parts == {"losses", "views", "teaching", "methods", "models", "run", "data", "infer"}
    assert len(MUTATIONS) == len(set(MUTATIONS)) >= 25
