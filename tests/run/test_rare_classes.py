"""Class-balanced crops and class weights in whole runs: resume, what methods make of them, what is refused."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from halfmask.batch import Batch, Progress
from halfmask.cli.app import app
from halfmask.data.contract import count_classes
from halfmask.errors import Interrupted, RecipeError
from halfmask.losses.cross_entropy import class_weights, cross_entropy
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.methods.fixmatch import FixMatch
from halfmask.plugins import names, resolve
from halfmask.recipe.read import load
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.prepare import prepare
from halfmask.run.prepared import loader_maker
from halfmask.task import Task
from halfmask.testing.tiny import tiny_batch, tiny_builder, tiny_task
from tests.run.tiny import recipe, write_dataset

BOTH = ("data.balance=classes", "optim.class_weights=effective")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


def state(out: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_run_with_both_options_resumes_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(recipe(data, *BOTH), tmp_path / "unbroken", quiet=True)
    fit(recipe(data), tmp_path / "plain", quiet=True)
    after_update = FixMatch.after_update

    def stop(self: FixMatch, progress: Any) -> None:
        after_update(self, progress)
        if progress.step + 1 == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FixMatch, "after_update", stop)
    with pytest.raises(Interrupted):
        fit(recipe(data, *BOTH), tmp_path / "broken", quiet=True)
    monkeypatch.setattr(FixMatch, "after_update", after_update)
    fit(None, tmp_path / "broken", resume=True, quiet=True)
    unbroken, broken, plain = (state(tmp_path / name) for name in ("unbroken", "broken", "plain"))
    assert unbroken.keys() == plain.keys()  # the weights of classes are no part of a checkpoint
    assert all(torch.equal(tensor, broken[name]) for name, tensor in unbroken.items())
    assert not all(torch.equal(tensor, plain[name]) for name, tensor in unbroken.items())


def test_weights_come_from_the_labeled_masks_alone(data: Path) -> None:
    prepared = prepare(recipe(data, "optim.class_weights=inverse", "data.labeled=2", "data.val=none"), look=False)
    counts = count_classes(prepared.dataset, prepared.split.labeled)
    assert prepared.class_weights[""].tolist() == pytest.approx(class_weights(counts.sum(0).tolist(), "inverse"))
    assert prepared.balance is None
    assert prepare(recipe(data, "data.balance=classes"), look=False).balance is not None
    assert prepare(recipe(data), look=False).balance is None


# Tags of images, and networks of their own per domain: they refuse, or weigh nothing.
WITHOUT_WEIGHTS = {"cam", "multi_domain"}


@pytest.mark.parametrize("name", sorted({*names("methods")} - WITHOUT_WEIGHTS))
def test_every_method_takes_weights_of_classes(name: str) -> None:
    task = tiny_task()
    cls = resolve("methods", name)

    def labeled_loss(weights: tuple[float, ...] | None) -> float:
        torch.manual_seed(0)
        method: Method = cls(task, tiny_builder(task))
        torch.manual_seed(1)
        batch = tiny_batch(task, draws=method.draws, share_images=method.draws_share_images, size=4)
        batch.class_weights = None if weights is None else torch.tensor(weights)
        logs = {}
        for update in method.updates(batch, Progress(0, 10, 5)):
            logs |= update.output.logs
        return logs["loss_sup"].item()

    plain = labeled_loss(None)
    assert labeled_loss((1.0, 1.0, 1.0)) == pytest.approx(plain, rel=1e-5)
    assert abs(labeled_loss((0.01, 0.01, 2.98)) - plain) > 1e-4


def test_methods_say_which_of_them_take_weights() -> None:
    silent = {name for name in names("methods") if "class_weights" not in resolve("methods", name).supports}
    assert silent == WITHOUT_WEIGHTS


class Own(Method):
    """Supervised, with a loss that never heard of weights."""

    draws = 0

    def __init__(self, task: Task, build: ModelBuilder) -> None:
        super().__init__(task)
        self.net = build()

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        loss = cross_entropy(self.net(batch.labeled.image), batch.labeled.labels)
        return StepOutput(loss, {"loss_sup": loss})


def test_a_method_that_takes_no_weights_says_what_to_use_instead(data: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.balance=classes"):
        prepare(recipe(data, "optim.class_weights=effective", method=f"{__name__}:Own"), look=False)


@pytest.mark.slow
def test_a_plan_for_rare_classes_trains_a_method_that_takes_no_weights(tmp_path: Path) -> None:
    data, out = write_dataset(tmp_path / "shapes", images=14, masks=8), tmp_path / "run"
    for path in (data / "masks").iterdir():  # discs become specks of 9 pixels
        mask = np.where(np.asarray(Image.open(path)) == 2, 2, 0).astype(np.uint8)
        mask[20:23, 20:23] = 1
        Image.fromarray(mask).save(path)
    small = ["model.encoder={name: timm, model: test_resnet}", "model.decoder={name: segformer, embedding: 16}"]
    flags = {"--data": data, "--method": f"{__name__}:Own", "--steps": 5, "--crop": 32, "--workers": 0, "--out": out}
    done = CliRunner().invoke(app, ["train", *small, *(str(part) for pair in flags.items() for part in pair)])
    assert done.exit_code == 0, done.output
    planned = load(out / "recipe.yaml")
    assert (planned.data.balance, planned.optim.class_weights) == ("classes", "none")
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize("tie", ["data.labeled_cut=true", "data.independent_shuffle=false"])
def test_balance_contradicts_lists_that_are_walked_together(data: Path, tie: str) -> None:
    with pytest.raises(RecipeError, match="independent_shuffle=true"):
        prepare(recipe(data, "data.balance=classes", tie), look=False)


def test_pairs_and_labels_of_whole_images_are_balanced_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        image = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
        label = np.zeros((40, 40), np.uint8)
        label[:4, :4] = 255 * (number == 0)
        for folder, picture in (("A", image), ("B", image), ("label", Image.fromarray(label))):
            (tmp_path / "pairs/train" / folder).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "pairs/train" / folder / f"{number}.png")
        kind = tmp_path / "labels/train" / ("rare" if number == 0 else "common")
        kind.mkdir(parents=True, exist_ok=True)
        image.save(kind / f"{number}.png")
    for root, dataset in (("pairs", "change_folder"), ("labels", "class_folder")):
        keys = (f"data.dataset={dataset}", "data.val=none", "data.balance=classes", "data.batch.labeled=4")
        decoder = ("model.decoder=pool",) if root == "labels" else ()
        prepared = prepare(recipe(tmp_path / root, *keys, *decoder, method="supervised"), look=False)
        batches = [*loader_maker(prepared, tmp_path)(0, 12, 0, 1)]
        indices = torch.cat([batch.streams[0].index for batch in batches])
        rare = next(place for place, id in enumerate(prepared.split.labeled) if "0.png" in id)
        assert (indices == rare).float().mean() > 0.3  # 1 of 6 images, drawn for one of two classes
