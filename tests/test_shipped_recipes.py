"""Every shipped recipe is valid, short, and describes a network that can be built."""

from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from halfmask.models.build import Builder
from halfmask.plugins import arguments, names, resolve
from halfmask.recipe.read import ModelRecipe, Recipe, load
from halfmask.recipe.shipped import recipe_names, recipe_summary, recipes_folder
from halfmask.task import Task
from halfmask.testing import tiny_builder

NAMES = recipe_names()
CLASSES = {"pascal": 21, "cityscapes": 19, "ade20k": 150, "coco": 81, "camvid": 11}
PAIRS = {"levir", "whu", "change_folder"}
LABELS = {"class_folder", "cifar", "stl10"}


def path(name: str) -> Path:
    return recipes_folder() / f"{name}.yaml"


def task_of(recipe: Recipe, classes: int) -> Task:
    dataset = recipe.data.dataset.name
    kind = "change" if dataset in PAIRS else "classification" if dataset in LABELS else "segmentation"
    foreground = tuple(number > 0 for number in range(classes))
    return Task(kind, tuple(f"class {number}" for number in range(classes)), foreground=foreground)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_valid_and_names_its_method(name):
    recipe = load(path(name))
    assert recipe.method.name == name.partition("/")[0]
    assert recipe.run.steps or recipe.run.epochs


@pytest.mark.parametrize("name", NAMES)
def test_recipe_fits_on_a_page_and_says_what_it_is(name):
    assert len(path(name).read_text(encoding="utf-8").splitlines()) <= 60
    assert len(recipe_summary(name)) > 20


@cache
def output_shape(task: Task, section: str, crop: int) -> tuple[int, ...]:
    """What a network gives for two images; many recipes share one network."""
    recipe = ModelRecipe.model_validate_json(section)
    # Shapes only: no memory for 80 million weights, no computation.
    with torch.device("meta"):
        model = Builder(recipe, task, crop=crop, pretrained=False)()
        dates = (2,) if task.kind == "change" else ()
        return tuple(model(torch.empty(2, *dates, 3, crop, crop)).shape)


@pytest.mark.parametrize("name", NAMES)
def test_network_of_the_recipe_can_be_built_and_takes_its_crop(name):
    recipe = load(path(name))
    classes = CLASSES.get(recipe.data.dataset.name, 2)
    task = task_of(recipe, classes)
    crop = recipe.data.crop
    pixels = () if task.kind == "classification" else (crop, crop)
    assert output_shape(task, recipe.model.model_dump_json(), crop) == (2, classes, *pixels)


@pytest.mark.parametrize("name", [name for name in NAMES if load(path(name)).expected is not None])
def test_expected_numbers_are_fractions_with_a_source_and_name_the_split(name):
    recipe = load(path(name))
    value = recipe.expected.value
    numbers = value if isinstance(value, dict) else {recipe.data.split: value}
    assert all(0 < number < 1 for number in numbers.values())
    if recipe.data.domains:
        assert set(numbers) == {*recipe.data.domains, "mean"}
    else:
        assert recipe.data.split in numbers
    assert len(recipe.expected.source) > 10


@pytest.mark.parametrize("name", NAMES)
def test_published_settings_are_written_out(name):
    """Values that change numbers stand in the file, so that a later default does not change the run."""
    written = yaml.safe_load(path(name).read_text(encoding="utf-8"))
    where = "domains" if "domains" in written["data"] else "dataset"
    required = {
        "data": {where, "crop", "batch", "scale", "flip", "pad", "labeled_cut"},
        "optim": {"name", "lr", "decoder_lr_scale", "weight_decay", "schedule", "schedule_lag"},
        "eval": {"mode", "fit", "absent_classes"},
        "run": {"seed", "precision"},
    }
    for section, keys in required.items():
        assert keys <= written[section].keys(), section


@pytest.mark.shared
@pytest.mark.parametrize("name", ["cityscapes_camvid", "cityscapes_camvid_100", "cityscapes_sun_rgbd"])
def test_numbers_of_two_domains_are_those_of_the_table_with_its_confidence(name, shared):
    recipe = load(path(f"multi_domain/{name}"))
    table = yaml.safe_load((shared / "specs/paper_results_cct.yaml").read_text(encoding="utf-8"))["results"]
    domains = recipe.data.domains
    (count,) = {own.labeled for own in domains.values()}
    dataset = "+".join(domains).replace("_", "")
    (row,) = [r for r in table if (r["dataset"], r["n_labels"], r["method"]) == (dataset, count, "CCT")]
    percent = {{"sunrgbd": "sun_rgbd", "avg": "mean"}.get(key, key): number for key, number in row["miou"].items()}
    assert recipe.expected.value == {key: pytest.approx(number / 100) for key, number in percent.items()}
    assert recipe.expected.confidence == row["confidence"]
    assert {own.dataset.name for own in domains.values()} == set(domains)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "weak"), [("cct/pascal", 0), ("cct/pascal_weak", 9118)])
def test_numbers_of_pascal_are_those_of_the_table_with_their_confidence(name, weak, shared):
    expected = load(path(name)).expected
    table = yaml.safe_load((shared / "specs/paper_results_cct.yaml").read_text(encoding="utf-8"))["results"]
    wanted = (expected.metric, "pascal_voc2012_val", "CCT", weak)
    rows = {str(r["n_labels"]): r for r in table if ("miou", r["dataset"], r["method"], r.get("weak")) == wanted}
    assert expected.value == {split: pytest.approx(row["miou"] / 100) for split, row in rows.items()}
    given = expected.confidence if isinstance(expected.confidence, dict) else dict.fromkeys(rows, expected.confidence)
    assert given == {split: row["confidence"] for split, row in rows.items()}


@pytest.mark.parametrize("name", ["cct/pascal", "cct/pascal_weak"])
def test_the_published_cct_has_its_number_of_parameters_and_learning_rates(name):
    recipe = load(path(name))
    with torch.device("meta"):
        task = task_of(recipe, 21)
        method = resolve("methods", "cct")(
            task, Builder(recipe.model, task, crop=320, pretrained=False), **recipe.method.params
        )
    assert sum(parameter.numel() for parameter in method.parameters()) == 47_210_776
    assert sum(parameter.numel() for parameter in method.student.encoder.parameters()) == 23_631_808
    assert (recipe.optim.lr, recipe.optim.lr * recipe.optim.decoder_lr_scale) == (0.001, pytest.approx(0.01))


def test_every_method_has_a_recipe():
    assert {name.partition("/")[0] for name in NAMES} >= set(names("methods"))


@pytest.mark.parametrize("name", NAMES)
def test_method_of_the_recipe_is_made_from_its_parameters(name):
    recipe = load(path(name))
    task = task_of(recipe, 3)
    cls = resolve("methods", recipe.method.name)
    method = cls(task, tiny_builder(task), **arguments(cls, recipe.method.params))
    assert method.draws in (0, 1, 2)
