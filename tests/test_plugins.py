"""Names are file names: found without import, resolved on use."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from halfmask import plugins
from halfmask.errors import RecipeError
from halfmask.recipe.read import load


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


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[EntryPoint], list[int]]]:
    """What packages declare, to be changed by a test, and a list that grows by one with every look at all of them."""
    declared: list[EntryPoint] = []
    looks: list[int] = []

    def look(**_: Any) -> EntryPoints:
        looks.append(len(looks))
        return EntryPoints(declared)

    monkeypatch.setattr(plugins, "entry_points", look)
    plugins._all_entry_points.cache_clear()
    yield declared, looks
    plugins._all_entry_points.cache_clear()


def test_installed_packages_are_looked_at_once(installed: tuple[list[EntryPoint], list[int]]) -> None:
    declared, looks = installed
    declared.append(EntryPoint("mine", "halfmask.methods.supervised:Supervised", "halfmask.methods"))
    for _ in range(3):
        assert "mine" in plugins.names("methods")
        assert "mine" not in plugins.names("encoders")
        assert plugins.resolve("methods", "mine").__name__ == "Supervised"
        assert plugins.resolve("methods", "fixmatch").__name__ == "FixMatch"
        load({"method": {"name": "mine"}, "model": {"encoder": {"name": "resnet"}, "decoder": {"name": "psp"}}})
    assert len(looks) == 1


def test_a_package_installed_meanwhile_is_found(installed: tuple[list[EntryPoint], list[int]]) -> None:
    declared, _ = installed
    with pytest.raises(RecipeError, match="no method 'mine'"):
        plugins.resolve("methods", "mine")
    declared.append(EntryPoint("mine", "halfmask.methods.supervised:Supervised", "halfmask.methods"))
    assert plugins.resolve("methods", "mine").__name__ == "Supervised"


def test_import_path_of_a_missing_class() -> None:
    with pytest.raises(RecipeError, match=r"halfmask\.methods\.fixmatch has no FixMatsch"):
        plugins.resolve("methods", "halfmask.methods.fixmatch:FixMatsch")
