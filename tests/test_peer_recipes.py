"""Published recipes of the compared methods name the numbers that were printed for them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from halfmask.recipe.read import load
from halfmask.recipe.shipped import recipe_names, recipes_folder

# Names in the tables of AllSpark (1: Pascal by number of labels, 2: Cityscapes, 3: Pascal by share).
PRINTED = {
    "cutmix_seg": "CutMixSeg", "cps": "CPS", "st_plus_plus": "ST++", "fpl": "FPL", "augseg": "AugSeg", "u2pl": "U2PL",
    "gta_seg": "GTA-Seg", "ps_mt": "PS-MT", "ccvc": "CCVC",
}  # fmt: skip
# Names in the authors' own tables, and those of others.
SUCCESSORS = {"prevmatch": "PrevMatch", "rankmatch": "RankMatch", "pixcon": "PixCon"}
UNPRINTED = {"cps/pascal_plain", "st_plus_plus/pascal_st", "cutmix_seg/cityscapes", "ps_mt/cityscapes"}
UNPRINTED |= {"rankmatch/cityscapes"}
# Labels of each split: Pascal by share of its 10582 images, Cityscapes, ADE20K.
SHARES = {
    "pascal": {662: "1_16", 1323: "1_8", 2646: "1_4", 5291: "1_2"},
    "cityscapes": {186: "1_16", 372: "1_8", 744: "1_4", 1488: "1_2"},
    "ade20k": {2526: "1_8"},
}
NAMES = [name for name in recipe_names() if name.partition("/")[0] in PRINTED | SUCCESSORS]
NAMES = [name for name in NAMES if not name.endswith("/folder")]


@pytest.fixture(scope="module")
def tables(shared: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    files = (shared / "specs" / f"paper_results_{name}.yaml" for name in ("allspark", "successors"))
    first, second = (yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)["results"] for file in files)
    return first, second


def split_of(labels: int, dataset: str, family: str) -> str:
    if family == "original":
        return str(labels)
    return ("u2pl_" if "u2pl" in family else "") + SHARES[dataset][labels]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNPRINTED])
def test_expected_numbers_are_the_printed_ones(name, tables):
    recipe = load(recipes_folder() / f"{name}.yaml")
    method, dataset = recipe.method.name, recipe.data.dataset.name
    encoder = recipe.model.encoder.params
    width = f"resnet{encoder['depth']}" if "depth" in encoder else f"dinov2_{encoder['size']}"
    wanted = {
        split_of(row["n_labels"], dataset, row["split_family"]): row["miou"]
        for row in tables[0]
        if (row["method"], row["dataset"]) == (PRINTED.get(method), dataset)
        and row["table"] in (1, 2, 3)
        and width == "resnet101"
    }
    for row in tables[1]:
        names = (row["method"], row["dataset"], row["encoder"])
        if names == ((PRINTED | SUCCESSORS)[method], dataset, width) and "released" not in row.get("note", ""):
            family = row.get("splits", "shares")
            wanted |= {split_of(labels, dataset, family): miou for labels, miou in row["values"].items()}
    assert wanted
    assert recipe.expected.value == {split: round(miou / 100, 4) for split, miou in wanted.items()}


def test_each_method_has_recipes_of_both_datasets_and_only_unprinted_ones_name_no_number():
    without = {name for name in NAMES if load(recipes_folder() / f"{name}.yaml").expected is None}
    assert without == UNPRINTED
    for method in PRINTED | SUCCESSORS:
        assert {f"{method}/pascal", f"{method}/cityscapes"} <= set(NAMES)
