"""Recipes of AllSpark and its baselines: sizes, schedules and numbers of the paper and the published configuration."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from halfmask.method import Method
from halfmask.models.build import Builder
from halfmask.plugins import arguments, resolve
from halfmask.recipe.read import Recipe, load
from halfmask.recipe.shipped import recipe_names, recipes_folder
from halfmask.run.loop.optim import base_rate, make_optimizers, rate_factor, set_rates
from halfmask.task import Task

CLASSES = {"pascal": 21, "cityscapes": 19, "coco": 81}
PUBLISHED = [name for name in recipe_names() if name.startswith("allspark/") and not name.endswith("folder")]
SPLITS = {"original": "", "augmented": "", "augmented_u2pl": "u2pl_", "standard": ""}
# Recipe -> rows of the paper: (table, method, backbone). Augmented splits stand in the file of the original ones.
ROWS = {
    "allspark/pascal": [(1, "AllSpark", "SegFormer-B5"), (3, "AllSpark", "SegFormer-B5")],
    "allspark/cityscapes": [(2, "AllSpark", "SegFormer-B5")],
    "allspark/coco": [(4, "AllSpark", "SegFormer-B5")],
    "allspark/pascal_cca": [(5, "SemiBaseline + cross-attention", "SegFormer-B5")],
    "allspark/pascal_smem": [(5, "SemiBaseline + cross-attention + memory", "SegFormer-B5")],
    "allspark/pascal_b4": [(6, "AllSpark", "SegFormer-B4")],
    "allspark/pascal_resnet": [(6, "AllSpark", "ResNet-101 + DeepLabV3+")],
    "pseudo_label/pascal": [(5, "SemiBaseline (naive pseudo-labelling)", "SegFormer-B5")],
    "supervised/pascal_mit": [(1, "SupBaseline-ViT", "SegFormer-B5"), (3, "SupBaseline-ViT", "SegFormer-B5")],
    "supervised/cityscapes_mit": [(2, "SupBaseline-ViT", "SegFormer-B5")],
    "supervised/coco_mit": [(4, "SupBaseline-ViT", "SegFormer-B5")],
    "supervised/pascal_resnet": [(1, "SupBaseline-CNN", "ResNet-101 + DeepLabV3+")],
    "supervised/pascal_resnet_513": [(3, "SupBaseline-CNN", "ResNet-101 + DeepLabV3+")],
    "supervised/cityscapes_resnet": [(2, "SupBaseline-CNN", "ResNet-101 + DeepLabV3+")],
    "supervised/coco_resnet": [(4, "SupBaseline-CNN", "ResNet-101 + DeepLabV3+")],
}


def read(name: str) -> Recipe:
    return load(recipes_folder() / f"{name}.yaml")


@pytest.fixture(scope="module")
def printed(shared: Path) -> list[dict[str, Any]]:
    """Rows of the paper's tables."""
    text = (shared / "specs/paper_results_allspark.yaml").read_text(encoding="utf-8")
    return list(yaml.load(text, yaml.CSafeLoader)["results"])


@cache
def on_meta(name: str) -> Method:
    """The whole method, shapes only."""
    recipe = read(name)
    task = Task("segmentation", tuple(f"class {number}" for number in range(CLASSES[recipe.data.dataset.name])))
    with torch.device("meta"):
        build = Builder(recipe.model, task, crop=recipe.data.crop, pretrained=False)
        cls = resolve("methods", recipe.method.name)
        method: Method = cls(task, build, **arguments(cls, recipe.method.params))
    return method


def split_of(row: dict[str, Any]) -> str:
    counted = row["split_family"] == "original"
    return str(row["n_labels"]) if counted else SPLITS[row["split_family"]] + row["ratio"].replace("/", "_")


@pytest.mark.parametrize("name", ROWS)
def test_expected_numbers_are_the_printed_ones(name, printed):
    wanted = {
        split_of(row): round(row["miou"] / 100, 4)
        for row in printed
        if (row["table"], row["method"], row["backbone"]) in ROWS[name]
    }
    assert wanted
    assert read(name).expected.value == wanted


def test_every_published_recipe_of_the_method_is_compared_with_the_paper():
    assert set(PUBLISHED) <= set(ROWS)


@pytest.mark.parametrize(
    ("name", "parameters", "memory", "tokens"),
    [
        ("allspark/pascal", 89.33, (21, 512), 17**2),
        ("allspark/pascal_b4", 89.33 - (81.44 - 60.84), (21, 512), 17**2),
        ("allspark/cityscapes", 89.33, (19, 512), 26**2),
        ("allspark/coco", 89.33 + 60 * 769e-6, (81, 512), 17**2),
        # 59.47 of the network, 4.72 of the bottleneck, and 1536 more channels into and out of it.
        ("allspark/pascal_resnet", 59.47 + 4.72 + 2 * 1536 * 512e-6, (21, 512), 33**2),
    ],
)
def test_networks_and_memories_have_the_published_sizes(name, parameters, memory, tokens):
    method = on_meta(name)
    count = sum(parameter.numel() for parameter in method.student.parameters())
    assert count / 1e6 == pytest.approx(parameters, abs=0.012)
    assert tuple(method.memory.slots.shape) == (*memory, tokens)
    bottleneck = method.student.bottleneck
    if bottleneck.channels == 512:
        assert sum(parameter.numel() for parameter in bottleneck.parameters()) == 4_721_664


@pytest.mark.parametrize(
    ("name", "rate", "scale", "steps"),
    [
        ("allspark/pascal", 0.001, 10, 80 * (9850 // 8)),
        ("allspark/cityscapes", 0.005, 1, 240 * (2789 // 8)),
        ("allspark/coco", 0.001, 10, 10 * (117_362 // 16)),
        ("pseudo_label/cityscapes", 0.001, 1, 240 * (2789 // 8)),
        ("supervised/pascal_mit", 0.001, 10, 80 * (732 // 16)),
        ("supervised/cityscapes_mit", 0.001, 1, 240 * (186 // 16)),
        ("supervised/coco_mit", 0.001, 10, 10 * (925 // 32)),
    ],
)
def test_schedules_are_those_of_the_published_configuration(name, rate, scale, steps):
    """Poly with power 0.9, set after each step: step t >= 1 runs at the rate of t - 1, the last one above 0."""
    recipe = read(name)
    method = on_meta(name)
    optimizers = make_optimizers(method, recipe.optim, base_rate(recipe.optim, recipe.data.batch.labeled))
    encoder, rest = optimizers["main"].param_groups
    assert (encoder["name"], rest["name"]) == ("encoder", "decoder")
    assert {id(p) for p in encoder["params"]} == {id(p) for p in method.student.encoder.parameters()}
    assert all((group["momentum"], group["weight_decay"]) == (0.9, 1e-4) for group in (encoder, rest))
    for step in (0, 1, 2, steps // 2, steps - 1):
        set_rates(optimizers, rate_factor(step, steps, recipe.optim))
        expected = rate * (1 - max(step - 1, 0) / steps) ** 0.9
        assert encoder["lr"] == pytest.approx(expected, rel=1e-12)
        assert rest["lr"] == pytest.approx(scale * expected, rel=1e-12)
        assert encoder["lr"] > 0


@pytest.mark.parametrize("name", [f"{method}/{data}" for data in CLASSES for method in ("pseudo_label", "supervised")])
def test_baselines_get_the_augmentation_of_the_method(name):
    """In the published code they change the colors of the labeled images, too."""
    recipe = read(f"{name}_mit" if name.startswith("supervised/") else name)
    method = read(f"allspark/{recipe.data.dataset.name}")
    assert recipe.method.params["labeled_color"] is method.method.params["labeled_color"] is True
    kept = ("crop", "scale", "flip", "pad", "resample")
    assert [getattr(recipe.data, key) for key in kept] == [getattr(method.data, key) for key in kept]


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_that_claim_numbers_set_the_published_behavior(name):
    recipe = read(name)
    method, data = recipe.method.params, recipe.data
    assert (method["memory_sync"], method["ignore_padding"], method["eval_keys"]) == ("rank0", False, "batch")
    assert (data.pad, data.labeled_cut, data.independent_shuffle) == ("black", True, False)
    assert data.batch.labeled == data.batch.unlabeled == recipe.optim.reference_batch
    assert (recipe.eval.absent_classes, recipe.run.precision) == ("zero", "32-true")
    warmup = {"pascal": 5, "cityscapes": 15, "coco": 1}[data.dataset.name]
    assert method["warmup_epochs"] == warmup
    mined = {"name": "ohem", "threshold": 0.7, "min_kept": 200_000}
    assert (method["loss"], recipe.eval.mode, recipe.eval.border) == (
        (mined, "slide", "clip") if data.dataset.name == "cityscapes" else ("ce", "whole", "shift")
    )
