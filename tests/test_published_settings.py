"""Recipes of UniMatch and its baselines against what the authors' logs and recordings say: settings, sizes, rates.

The logs are summarized in `specs/paper_results_unimatch.yaml` of the reference data, one entry per run with its
learning rates, batch, epochs, crop, threshold, number of parameters and scores. Its companion of per-epoch curves has
no column of learning rates, so schedules are compared with the rates recorded from the authors' training loops.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
import yaml

from halfmask.data.datasets.ade20k import CLASSES as ADE20K
from halfmask.data.datasets.coco import CLASSES as COCO
from halfmask.models.build import Builder
from halfmask.recipe.read import ModelRecipe, Recipe, load
from halfmask.recipe.shipped import recipe_names, recipes_folder
from halfmask.run.loop.optim import base_rate, rate_factor
from halfmask.task import Task

FAMILIES = ("unimatch_v2/", "unimatch/", "fixmatch/", "supervised/")
CLASSES = {"pascal": 21, "cityscapes": 19, "ade20k": len(ADE20K), "coco": len(COCO), "levir": 2, "whu": 2}
TABLES = ("v1/", *(f"v2/table{number}" for number in ("01", "02", "03", "04", "05", "08", "09", "13", "14")))
# Images drawn per epoch by the supervised baseline of UniMatch V2, at least.
DRAWN = {"pascal": 3000, "cityscapes": 3000, "ade20k": 6000, "coco": 30000}
RECIPES = {name: load(recipes_folder() / f"{name}.yaml") for name in recipe_names() if name.startswith(FAMILIES)}
RECIPES = {name: recipe for name, recipe in RECIPES.items() if recipe.data.dataset.name in CLASSES}
# The labeled-only rows of other papers have their own tests.
RECIPES = {name: r for name, r in RECIPES.items() if r.expected is None or r.expected.source.startswith("UniMatch")}
PUBLISHED = {name: recipe for name, recipe in RECIPES.items() if recipe.expected is not None}
# The labeled-only rows of UniMatch V1 and its splits of 92 to 1464 come from a table; there is no log of the former.
TABLE_ONLY = ("supervised/pascal_resnet", "supervised/cityscapes_resnet", "supervised/cityscapes_resnet_r50")


@pytest.fixture(scope="session")
def specs(shared: Path) -> dict[str, list[dict[str, Any]]]:
    text = (shared / "specs/paper_results_unimatch.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@pytest.fixture(scope="session")
def logs(specs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [run for run in specs["runs"] if run["id"].startswith(TABLES) and not run.get("frozen_encoder")]


def encoder_name(recipe: Recipe) -> str:
    encoder = recipe.model.encoder
    if encoder.name == "dinov2":
        return f"dinov2_{encoder.params['size']}"
    if encoder.name == "mit":
        return f"mit{encoder.params['size']}"
    return "xception" if encoder.name == "xception" else f"resnet{encoder.params['depth']}"


def method_name(name: str, recipe: Recipe) -> str:
    if "large_scale" in name or "larger_scale" in name:
        return "unimatch_v2_large_scale"
    if recipe.method.name == "unimatch":
        return "unimatch_v1_with_ema_teacher" if recipe.method.params["teacher"] == "ema" else "unimatch_v1"
    return recipe.method.name


def runs_of(name: str, logs: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """The logged runs that a recipe stands for, with the number the recipe expects."""
    recipe = PUBLISHED[name]
    for run in logs:
        same = (run["dataset"], run["method"], run["encoder"], run["crop"]) == (
            recipe.data.dataset.name,
            method_name(name, recipe),
            encoder_name(recipe),
            recipe.data.crop,
        )
        if not same or (run.get("decoder") == "pspnet") != (recipe.model.decoder.name == "psp"):
            continue
        one = not isinstance(recipe.expected.value, dict)
        # Two runs add COCO to ADE20K: they differ in the number of images.
        if one and ("241K" in run["id"]) != ("larger_scale" in name):
            continue
        number = recipe.expected.number(run["split"].replace("%", "pct"))
        if number is not None:
            yield run, number


def reported(run: dict[str, Any]) -> float:
    """The score behind the table, where the rule is known; else the teacher's where it was logged."""
    if run["reported_value_rule"] == "best_student":
        return float(run["best_student"])
    return float(run.get("best_ema", run["best_student"]))


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in TABLE_ONLY])
def test_settings_are_those_of_the_logged_runs(logs, name):
    recipe = PUBLISHED[name]
    found = list(runs_of(name, logs))
    splits = {run["split"].replace("%", "pct") for run, _ in found}
    assert splits >= (set(recipe.expected.value) if isinstance(recipe.expected.value, dict) else {"all"})
    for run, _ in found:
        assert recipe.optim.lr == run["lr_encoder"], run["id"]
        assert recipe.optim.decoder_lr_scale == run["lr_multi"], run["id"]
        if "gpus" in run:
            assert recipe.data.batch.labeled == run["batch_per_gpu"] * run["gpus"], run["id"]
        assert (recipe.eval.mode == "slide") == (run.get("eval_mode") == "sliding_window"), run["id"]
        if recipe.method.name != "supervised":
            assert recipe.method.params["threshold"] == run["conf_thresh_cfg"], run["id"]
            assert recipe.run.epochs == run["epochs"], run["id"]
        elif recipe.data.dataset.name in DRAWN:
            per_gpu = -(-DRAWN[recipe.data.dataset.name] // run["gpus"])
            assert recipe.run.steps == run["epochs"] * (per_gpu // run["batch_per_gpu"]), run["id"]
        else:
            assert recipe.run.epochs == run["epochs"], run["id"]
    assert base_rate(recipe.optim, recipe.data.batch.labeled) == recipe.optim.lr


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in TABLE_ONLY])
def test_expected_numbers_are_those_of_the_logged_runs(logs, name):
    by_split: dict[str, list[tuple[float, float]]] = {}
    for run, number in runs_of(name, logs):
        by_split.setdefault(run["split"], []).append((reported(run) / 100, number))
    assert by_split
    for split, pairs in by_split.items():
        logged, expected = mean(value for value, _ in pairs), pairs[0][1]
        # The table of UniMatch V1 gives one decimal, and is not the mean of the three logged runs.
        tolerance = 0.006 if name == "unimatch/pascal" and split.isdecimal() else 0.00011
        assert expected == pytest.approx(logged, abs=tolerance), split


ALL_LABELS = r"# All labels \(published: ([\d.]+)\): data\.split=null run\.steps=(\d+)\n"


@pytest.mark.parametrize("name", [f"supervised/{data}{size}" for data in DRAWN for size in ("", "_base")])
def test_the_command_for_all_labels_is_the_logged_run(logs, name):
    recipe, text = RECIPES[name], (recipes_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    published, steps = re.search(ALL_LABELS, text).groups()
    place = {"dataset": recipe.data.dataset.name, "method": "supervised", "encoder": encoder_name(recipe)}
    place |= {"split": "all", "crop": recipe.data.crop}
    (run,) = [run for run in logs if place.items() <= run.items()]
    assert float(published) == run["best_student"]
    per_gpu = -(-max(run["n_labels"], DRAWN[run["dataset"]]) // run["gpus"])
    assert int(steps) == run["epochs"] * (per_gpu // run["batch_per_gpu"])
    assert recipe.data.batch.labeled == run["batch_per_gpu"] * run["gpus"]


# Recipe -> table, method and encoder of the projects' READMEs.
PRINTED = {
    "unimatch_v2/pascal_base": ("v2 pascal", "unimatch_v2", "dinov2_base"),
    "unimatch_v2/cityscapes_base": ("v2 cityscapes", "unimatch_v2", "dinov2_base"),
    "unimatch_v2/ade20k_base": ("v2 ade20k", "unimatch_v2", "dinov2_base"),
    "unimatch_v2/coco_base": ("v2 coco", "unimatch_v2", "dinov2_base"),
    "unimatch_v2/levir_base": ("v2 levir", "unimatch_v2", "dinov2_base"),
    "unimatch_v2/whu_base": ("v2 whu", "unimatch_v2", "dinov2_base"),
    "unimatch_v2/coco_large_scale": ("v2 large scale", "coco 118K + coco unlabeled2017 123K", "dinov2_base"),
    "unimatch_v2/ade20k_large_scale": ("v2 large scale", "ade20k 20K + coco train 118K", "dinov2_base"),
    "unimatch_v2/ade20k_larger_scale": ("v2 large scale", "ade20k 20K + coco train+unlabeled 241K", "dinov2_base"),
    "unimatch_v2/cityscapes_large_scale": ("v2 large scale", "cityscapes 3K + train_extra 20K", "dinov2_base"),
    "unimatch/pascal": ("v1 pascal high-quality", "unimatch_v1", "resnet101"),
    "unimatch/cityscapes": ("v1 cityscapes", "unimatch_v1", "resnet101"),
    "unimatch/cityscapes_r50": ("v1 cityscapes", "unimatch_v1", "resnet50"),
    "unimatch/coco": ("v1 coco", "unimatch_v1", "xception65"),
    "unimatch/levir": ("v1 levir", "unimatch_v1", "deeplabv3plus resnet50"),
    "unimatch/whu": ("v1 whu", "unimatch_v1", "deeplabv3plus resnet50"),
    "unimatch/levir_psp": ("v1 levir", "unimatch_v1", "pspnet resnet50"),
    "unimatch/whu_psp": ("v1 whu", "unimatch_v1", "pspnet resnet50"),
    "supervised/pascal_resnet": ("v1 pascal high-quality", "supervised", "resnet101"),
    "supervised/cityscapes_resnet": ("v1 cityscapes", "supervised", "resnet101"),
    "supervised/cityscapes_resnet_r50": ("v1 cityscapes", "supervised", "resnet50"),
}


@pytest.mark.parametrize("name", PRINTED)
def test_expected_numbers_are_those_of_the_printed_tables(specs, name):
    """To the one decimal that is printed."""
    title, *row = PRINTED[name]
    (table,) = [table for table in specs["readme_tables"] if table["name"] == title]
    (values,) = [found["values"] for found in table["rows"] if [found["method"], found["encoder"]] == row]
    expected = PUBLISHED[name].expected
    for column, value in zip(table["columns"], values, strict=True):
        if column == "labelled only":  # of the supervised recipes, with all labels
            continue
        printed = value[0] if isinstance(value, list) else value  # of image pairs: changed IoU, then accuracy
        ours = expected.number(column.replace("%", "pct")) if isinstance(expected.value, dict) else expected.value
        assert ours == pytest.approx(printed / 100, abs=0.00051), column


@cache
def parameters(kind: str, classes: int, section: str, crop: int) -> int:
    """Parameters of a network; many recipes share one."""
    task = Task(kind, tuple(map(str, range(classes))))
    with torch.device("meta"):
        model = Builder(ModelRecipe.model_validate_json(section), task, crop=crop, pretrained=False)()
    total = sum(parameter.numel() for parameter in model.parameters())
    # Of the published networks, unused by any forward pass: a mask token, a unit of the coarsest fusion block.
    if model.spec["model"]["encoder"]["name"] == "dinov2":
        total += model.encoder.channels[0]
    if model.spec["model"]["decoder"]["name"] == "dpt":
        width = model.decoder.embedding
        total += 2 * (9 * width**2 + width)
    return total


@pytest.mark.parametrize("name", RECIPES)
def test_networks_have_the_published_number_of_parameters(logs, name):
    recipe = RECIPES[name]
    if name not in PUBLISHED or name in TABLE_ONLY:
        published = {"resnet50": 40.48, "resnet101": 59.47, "dinov2_small": 24.80}.get(encoder_name(recipe))
        assert published is not None
    else:
        (published,) = {run["params_M"] for run, _ in runs_of(name, logs)}
    dataset = recipe.data.dataset.name
    kind = "change" if dataset in ("levir", "whu") else "segmentation"
    total = parameters(kind, CLASSES[dataset], recipe.model.model_dump_json(), recipe.data.crop)
    assert total / 1e6 == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize("name", RECIPES)
def test_rates_fall_as_recorded_from_the_published_loops(golden, name):
    recipe = RECIPES[name]
    version = "v2" if recipe.optim.name == "adamw" else "v1"
    recorded = golden(f"unimatch/{version}_train_fixmatch")["lr_used"]  # (3 steps, encoder and head), of 20 steps
    factors = torch.tensor([rate_factor(step, 20, recipe.optim) for step in range(3)], dtype=torch.float64)
    torch.testing.assert_close(factors, recorded[:, 0] / recorded[0, 0], rtol=1e-12, atol=0)
    torch.testing.assert_close(factors, recorded[:, 1] / recorded[0, 1], rtol=1e-12, atol=0)
    assert rate_factor(19, 20, recipe.optim) == pytest.approx((2 / 20) ** 0.9)
