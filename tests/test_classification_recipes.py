"""Recipes of UniMatch V2's classification runs against what the authors' logs say (Tables 15 to 17)."""

from statistics import mean

import pytest
import torch
import yaml

from halfmask.models.build import Builder
from halfmask.recipe.read import load
from halfmask.recipe.shipped import recipes_folder
from halfmask.run.loop.optim import base_rate
from halfmask.task import Task

RECIPES = {name: load(recipes_folder() / f"unimatch_v2/{name}.yaml") for name in ("cifar10", "stl10", "svhn")}
# Millions of parameters, as logged of STL-10 and SVHN; the log of CIFAR-10 does not tell its network.
PARAMETERS = {"cifar10": 1.47, "stl10": 5.93, "svhn": 1.47}
CLASSES = 10


def runs(shared, name: str, per_class: int) -> list[dict]:
    text = (shared / "specs/paper_results_unimatch.yaml").read_text(encoding="utf-8")
    logs = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["classification_runs"]
    found = [run for run in logs if (run["dataset"], run["labels_per_class"]) == (name, per_class)]
    assert sorted(run["seed"] for run in found) == [0, 1, 2]
    return found


def best(run: dict) -> float:
    return run.get("best_ema", run.get("best_acc")) / 100


@pytest.mark.shared
@pytest.mark.parametrize("name", RECIPES)
def test_settings_and_numbers_are_those_of_the_logged_runs(shared, name):
    recipe = RECIPES[name]
    assert recipe.data.labeled == 25 * CLASSES
    logged = runs(shared, name, 25)
    for run in logged:
        assert recipe.method.params["threshold"] == run["conf_thresh"]
        assert (recipe.method.params["distribution_alignment"] != "none") == run["distribution_alignment"]
        assert recipe.run.steps == run.get("iterations", run.get("epochs", 0) * run.get("iters_per_epoch", 0))
        assert run.get("best_at_iter", 0) % recipe.run.eval_every == 0
    assert recipe.expected.value == pytest.approx(mean(map(best, logged)), abs=0.00006)
    assert (recipe.expected.metric, recipe.expected.part or recipe.eval.select_on) == ("acc", "test")


@pytest.mark.shared
def test_the_number_of_four_labels_per_class_is_that_of_the_logs(shared):
    text = (recipes_folder() / "unimatch_v2/svhn.yaml").read_text(encoding="utf-8")
    value = mean(map(best, runs(shared, "svhn", 4)))
    assert f"data.labeled=40 expected.value={value:.3f}" in text


@pytest.mark.parametrize("name", RECIPES)
def test_updates_are_those_of_the_published_optimizer_on_the_sum_of_the_losses(name):
    """The method divides the sum by 1 + lambda; SGD with momentum undoes that by its rate and its decay."""
    recipe = RECIPES[name]
    divisor = 1 + recipe.method.params["unlabeled_weight"]
    assert base_rate(recipe.optim, recipe.data.batch.labeled) / divisor == 0.03
    assert recipe.optim.weight_decay * divisor == 5e-4
    assert (recipe.optim.name, recipe.optim.momentum, recipe.optim.schedule) == ("sgd", 0.9, "cosine_7_16")

    def weights(lr: float, decay: float, scale: float) -> torch.Tensor:
        w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=lr, momentum=recipe.optim.momentum, weight_decay=decay)
        for _ in range(5):
            optimizer.zero_grad()
            (w.exp().sum() * scale).backward()
            optimizer.step()
        return w.detach()

    ours = weights(recipe.optim.lr, recipe.optim.weight_decay, 1 / divisor)
    torch.testing.assert_close(ours, weights(0.03, 5e-4, 1.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_batch_average_and_network_are_those_of_the_logs(name):
    recipe = RECIPES[name]
    assert recipe.data.batch.labeled == 64
    assert recipe.data.batch.unlabeled == 7 * 64
    assert recipe.method.params["ema_decay"] == 0.999
    task = Task("classification", tuple(map(str, range(CLASSES))))
    with torch.device("meta"):
        model = Builder(recipe.model, task, crop=recipe.data.crop, pretrained=False)()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total / 1e6 == pytest.approx(PARAMETERS[name], abs=0.005)
