"""Which rows a comparison has, and the recipe of each of its runs.

All rows share encoder, decoder, data, optimizer, steps and evaluation, which come from one base recipe. What is a
method's own comes from its `METHOD/folder` recipe: its parameters, a bottleneck between encoder and decoder, and
whether its networks take labeled images in a pass of their own (`run.passes`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from halfmask.errors import RecipeError, nearest
from halfmask.method import Method
from halfmask.plugins import names, params_model, resolve
from halfmask.recipe.read import Recipe, load, parse_override
from halfmask.recipe.shipped import find_recipe, recipe_names

Against = Literal["control", "supervised"]
BASE = "fixmatch/folder"
SUPERVISED = "supervised"
CONTROL = "-control"  # ends the name of a control's folder


@dataclass(frozen=True)
class Form:
    """One row of the table: a method with parameters."""

    label: str  # name of the row and of its folder
    method: str  # name, or `package.module:Class`
    overrides: tuple[str, ...] = ()  # dotted keys that only this row has
    control_of: str = ""  # label of the row whose control this is; "": it is no control


class Cell(NamedTuple):
    """One run: a form with a seed."""

    form: Form
    seed: int

    def folder(self, out: Path) -> Path:
        """Return its run folder."""
        return out / self.form.label / f"seed-{self.seed}"


@dataclass(frozen=True)
class Settings:
    """What a comparison was asked for."""

    base: str | Path | None = None  # recipe whose model, data, optim, eval and run sections all runs share
    # rows: `NAME`, `LABEL=NAME` for another form of a method, or `package.module:Class`; none: all methods that learn
    # from masks and images alone
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)  # of the runs; each draws its own masks, where the recipe says how many
    overrides: tuple[str, ...] = ()  # dotted keys of all rows, or `LABEL:KEY=VALUE` of one row
    against: Against = "control"  # what each row is compared with: its own control, or only method `supervised`
    part: str = "test"  # images that are scored, once, at the end of a run
    shared: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        common = [item for item in self.overrides if not _is_of_one(item)]
        found = load(find_recipe(self.base or BASE), [*_quiet(self.base, common), *common])
        object.__setattr__(self, "shared", found.model_dump(mode="json"))
        fixed = [key for key, _ in map(parse_override, common) if key.startswith(("method", "run.seed", "run.twin"))]
        if fixed:
            raise RecipeError(
                f"{', '.join(fixed)}: rows differ in their methods and seeds. For one row write LABEL:KEY=VALUE, for "
                "example fixmatch:method.cutmix=0; seeds are named by --seeds."
            )
        if self.shared["run"]["steps"] is None:
            raise RecipeError("methods are compared at equal steps, not epochs: give --steps.")

    def forms(self) -> list[Form]:
        """Return the rows in order, each followed by its control.

        Raises:
            RecipeError: an unknown method, two rows of one name, or an override of a row that there is not.
        """
        named = [_labeled(item) for item in self.methods or default_methods()]
        labels = [label for label, _ in named]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise RecipeError(f"{', '.join(twice)} is named twice. Give each row a name of its own: LABEL=METHOD.")
        of_one = [item for item in self.overrides if _is_of_one(item)]
        unknown = [item for item in of_one if item.partition(":")[0] not in labels]
        if unknown:
            raise RecipeError(
                f"{unknown[0]}: no row is called {unknown[0].partition(':')[0]!r}."
                f"{nearest(unknown[0].partition(':')[0], labels)} Rows: {', '.join(labels)}."
            )
        forms = []
        for label, method in named:
            own = tuple(item.partition(":")[2] for item in of_one if item.startswith(f"{label}:"))
            forms.append(Form(label, method, own))
            cls = resolve("methods", method)  # an unknown one is told here
            params = cls.control_params() if self.against == "control" else None
            if params is not None and cls.draws:
                without = tuple(f"method.{key}={json.dumps(value)}" for key, value in params.items())
                forms.append(Form(f"{label}{CONTROL}", method, (*own, *without), label))
        return forms

    def cells(self) -> list[Cell]:
        """Return all runs; the seeds one after the other, so that a table that is stopped early has all rows."""
        forms = self.forms()
        return [Cell(form, seed) for seed in self.seeds for form in forms]

    def recipe(self, cell: Cell) -> Recipe:
        """Return the recipe of one run."""
        own, shared = _own_recipe(cell.form.method), self.shared
        network = {key: shared["model"][key] for key in ("name", "encoder", "decoder", "arch")}
        raw = {
            **shared,
            "method": own["method"],
            "model": {"bottleneck": shared["model"]["bottleneck"], **own.get("model", {}), **network},
            "run": {**shared["run"], **{key: own["run"][key] for key in ("passes",) if key in own.get("run", {})}},
            "expected": None,
        }
        common = [item for item in self.overrides if not _is_of_one(item)]
        drawn = {"data.labeled_seed": cell.seed} if isinstance(shared["data"]["labeled"], int | float) else {}
        changed = {"run.seed": cell.seed, "run.twin": None, **drawn}
        return load(raw, dict(map(parse_override, [*common, *cell.form.overrides])) | changed)


def default_methods() -> list[str]:
    """Return the methods that need no more than masks and images: those with a folder recipe that any folder fits."""
    found = []
    for name in names("methods"):
        cls: type[Method] = resolve("methods", name)
        raw = _raw(f"{name}/folder") if f"{name}/folder" in recipe_names() else {}
        if raw and "domains" not in raw["data"] and "weak" not in raw["data"] and "segmentation" in cls.tasks:
            found.append(name)
    return sorted(found, key=lambda name: (name != SUPERVISED, name))


def _own_recipe(method: str) -> dict[str, Any]:
    """Return the folder recipe of a method; for one without a recipe its defaults."""
    if f"{method}/folder" in recipe_names():
        return _raw(f"{method}/folder")
    missing = [key for key, one in params_model(resolve("methods", method)).model_fields.items() if one.is_required()]
    if missing:
        raise RecipeError(f"{method}: {', '.join(missing)} has no default. Give it: LABEL:method.{missing[0]}=VALUE")
    return {"method": {"name": method}}


def _raw(name: str) -> dict[str, Any]:
    import yaml

    content: dict[str, Any] = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))
    return content


def _labeled(item: str) -> tuple[str, str]:
    """Take apart what names a row.

    >>> _labeled("cct"), _labeled("lite=cct"), _labeled("mine:Mine")
    (('cct', 'cct'), ('lite', 'cct'), ('Mine', 'mine:Mine'))
    """
    label, _, method = item.rpartition("=")
    return label or method.rpartition(":")[2], method


def _is_of_one(item: str) -> bool:
    """Say whether an override is of one row.

    >>> _is_of_one("fixmatch:method.threshold=0.9"), _is_of_one("data.root=C:/images")
    (True, False)
    """
    return ":" in item.partition("=")[0]


def _quiet(base: str | Path | None, overrides: Sequence[str]) -> list[str]:
    """Return what a comparison changes in the base recipe where the user says nothing."""
    given = {key for key, _ in map(parse_override, overrides)}
    wanted = ["run.logger=none"]
    # Each mask is worth more in training than in choosing a checkpoint. The last weights are scored as they are: their
    # average would lift plain methods to those that have an averaged teacher.
    wanted += ["data.val=none", "run.average_last=0"] if base is None else []
    return [item for item in wanted if item.partition("=")[0] not in given]
