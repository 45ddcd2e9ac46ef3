"""A recipe, a run and its bundle, as a version wrote them that had `ohem_threshold` and `ohem_min_kept`."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from halfmask.infer.bundle import load_bundle
from halfmask.infer.evaluate import evaluate
from halfmask.methods.cps import Cps
from halfmask.recipe.read import Recipe, load
from halfmask.run.checkpoint import begin_from, open_predictors, read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.prepare import prepare
from tests.run.same import differences, records
from tests.run.tiny import failing_at, recipe, write_dataset

LOSS = {"name": "ohem", "threshold": 0.61, "min_kept": 51}


def aged(value: Any) -> Any:
    """The same recipe in the keys of before, wherever it stands in a file."""
    if not isinstance(value, dict):
        return value
    found = {key: aged(item) for key, item in value.items()}
    if value.get("loss") == LOSS:
        found |= {"loss": "ohem", "ohem_threshold": LOSS["threshold"], "ohem_min_kept": LOSS["min_kept"]}
    return found


def asked(root: Path) -> Recipe:
    return recipe(write_dataset(root / "data"), "run.steps=4", "run.eval_every=2", method="cps", loss=LOSS)


def age_files(run: Path) -> Path:
    """Rewrite the files of a run that hold its recipe: recipe.yaml, beside the bundle, and each checkpoint."""
    path = run / "recipe.yaml"
    path.write_text(yaml.safe_dump(aged(yaml.safe_load(path.read_text()))))
    texts = [path.read_text()]
    for path in (run / "checkpoints").glob("*.ckpt"):
        torch.save(aged(read_checkpoint(path)), path)
        texts.append(str(read_checkpoint(path)["halfmask"]))
    assert len(texts) > 1
    assert all("ohem_min_kept" in text and "'name': 'ohem'" not in text for text in texts)
    return run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose power failed in its last step; the checkpoint before it is there."""
    root = tmp_path_factory.mktemp("older")
    made = asked(root)
    with failing_at(Cps, 3, RuntimeError("power")), pytest.raises(RuntimeError, match="power"):
        fit(made, root / "run", quiet=True)
    return root / "run"


@pytest.fixture(scope="module")
def finished(stopped: Path) -> Path:
    whole = stopped.parent / "whole"
    shutil.copytree(stopped, whole)
    fit(None, whole, resume=True, quiet=True)
    return whole


def test_an_older_recipe_trains_with_the_same_loss(tmp_path: Path) -> None:
    path, now = tmp_path / "older.yaml", asked(tmp_path)
    path.write_text(yaml.safe_dump(aged(now.model_dump(mode="json"))))
    assert "ohem_threshold: 0.61" in path.read_text()
    made = prepare(load(path), look=False)
    assert made.recipe.method.params["loss"] == LOSS
    assert made.recipe.method == now.method


@pytest.mark.slow
def test_an_older_run_goes_on_to_the_same_weights(stopped: Path, finished: Path, tmp_path: Path) -> None:
    older = age_files(Path(shutil.copytree(stopped, tmp_path / "run")))
    assert fit(None, older, resume=True, quiet=True).steps == 4
    ours, theirs = (read_checkpoint(run / "checkpoints/last.ckpt") for run in (finished, older))
    assert differences(ours["state_dict"], theirs["state_dict"]) == []
    assert differences(ours["optimizer_states"], theirs["optimizer_states"]) == []
    assert records(older) == records(finished)


@pytest.mark.slow
def test_an_older_bundle_predicts_the_same_and_can_be_trained_on(finished: Path, tmp_path: Path) -> None:
    older = age_files(Path(shutil.copytree(finished, tmp_path / "run")))
    assert evaluate(older, quiet=True).to_dict() == evaluate(finished, quiet=True).to_dict()
    networks = open_predictors(load_bundle(older), torch.device("cpu"))
    assert set(networks) == set(open_predictors(load_bundle(finished), torch.device("cpu")))
    assert begin_from(older, ()).recipe.method.params["loss"] == LOSS
