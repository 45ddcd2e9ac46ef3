"""Names are file names: found without import, resolved on use."""

import subprocess
import sys

import pytest

from halfmask import plugins
from halfmask.errors import RecipeError


@pytest.mark.parametrize("kind", ["methods", "encoders", "decoders", "datasets"])
def test_every_name_resolves_to_a_documented_class(kind: plugins.Kind) -> None:
    found = plugins.names(kind)
    assert found
    for name in found:
        cls = plugins.resolve(kind, name)
        assert cls.__doc__
        assert plugins.documentation(kind, name)
        plugins.params_model(cls)


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from halfmask import plugins;"
        "[plugins.documentation('methods', name) for name in plugins.names('methods')];"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_shows_near_and_known_names() -> None:
    with pytest.raises(RecipeError, match=r"no method 'fixmach'\. Did you mean `fixmatch`\? Known: "):
        plugins.resolve("methods", "fixmach")


def test_import_path_of_a_missing_class() -> None:
    with pytest.raises(RecipeError, match=r"halfmask\.methods\.fixmatch has no FixMatsch"):
        plugins.resolve("methods", "halfmask.methods.fixmatch:FixMatsch")
