"""ST and ST++: reliability against the recorded one, the step against a plain one, and the stages."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from halfmask.batch import Progress
from halfmask.methods.st_plus_plus import StPlusPlus, _choose, stability
from halfmask.recipe.read import load
from halfmask.testing import tiny_batch, tiny_builder, tiny_task

TASK = tiny_task()


def test_reliability_is_the_recorded_one(golden):
    data = golden("peers/st_plus_plus")
    for image, expected in enumerate(data["reliability"]):
        maps = [data[f"pred_ckpt{number}"][image].long() for number in range(3)]
        assert stability(maps, 21) == pytest.approx(expected.item(), rel=1e-5)
        for number, miou in enumerate(data["miou_vs_last"][image]):
            assert stability([maps[number], maps[2]], 21) == pytest.approx(miou.item(), rel=1e-5)


def test_a_step_is_one_mean_over_labeled_and_pseudo_labeled_pixels():
    torch.manual_seed(0)
    method = StPlusPlus(TASK, tiny_builder(TASK)).double().eval()
    method.strong = nn.Identity()
    batch = tiny_batch(TASK)
    batch.labeled.image, batch.unlabeled.image = batch.labeled.image.double(), batch.unlabeled.image.double()
    batch.unlabeled.target = torch.randint(3, batch.unlabeled.valid.shape)
    batch.unlabeled.target[:, 0] = 255
    box = torch.zeros_like(batch.unlabeled.valid)
    box[:, 3:8, 3:8] = True
    method.boxes = lambda shape, device: box
    torch.manual_seed(7)
    found = method.step(batch, Progress(0, 10, 5))

    torch.manual_seed(7)
    noise = torch.rand_like(batch.unlabeled.image)
    image = torch.where(box[:, None], noise, batch.unlabeled.image)
    target = batch.unlabeled.target.masked_fill(box, 255)
    logits = method.student(torch.cat((batch.labeled.image, image)))
    expected = F.cross_entropy(logits, torch.cat((batch.labeled.target, target)), ignore_index=255)
    assert_close(found.loss, expected)


def test_images_are_labeled_whole_at_the_published_scales_and_mirrored():
    """The mean over the views is the stage's: tests/infer/test_inference.py."""
    recipe = load(None, {"method": {"name": "st_plus_plus"}, "eval.mode": "slide", "run.steps": 10})
    label = StPlusPlus.plan(recipe)[0].after.keywords["label"]
    asked: dict[str, object] = {}
    stage = SimpleNamespace(class_map=lambda net, image, **how: asked.update(how))
    inspect.unwrap(label.func)(stage, "network", "image", **label.keywords)  # without the check of types
    assert list(asked.pop("scales")) == [0.5, 0.75, 1.0, 1.5, 2.0]
    assert asked == {"flip": True, "mode": "whole"}


def test_stages_are_those_of_the_paper():
    plus = StPlusPlus.plan(load(None, {"method": {"name": "st_plus_plus", "teacher_epochs": 7}, "run.steps": 10}))
    assert [stage.name for stage in plus] == ["teacher", "reliable", "all"]
    assert [stage.keep_checkpoints for stage in plus] == [3, 1, 1]
    assert plus[0].overrides["run.epochs"] == 7
    assert plus[0].overrides["method"] == {"name": "supervised"}
    plain = StPlusPlus.plan(load(None, {"method": {"name": "st_plus_plus", "select": False}, "run.steps": 10}))
    assert [stage.name for stage in plain] == ["teacher", "student"]
    made = {name: Path(name) for name in ("reliable", "rest", "masks", "rest_masks")}
    seeds = [stage.overrides(made)["run.seed"] for stage in plus[1:]]
    assert len({0, *seeds}) == 3  # other first weights in each stage


class Finished:
    """A first stage with networks 0, 1 and 2, of which 1 is the best; an image holds its own number."""

    dataset = SimpleNamespace(task=TASK)
    split = SimpleNamespace(unlabeled=("3", "2", "1", "0"))

    def __init__(self, folder: Path) -> None:
        self.written: dict[str, object] = {}
        self.place = folder

    def predictor(self) -> int:
        return 1

    def checkpoints(self) -> list[Path]:
        return [Path("0"), Path("1"), Path("2")]

    def load(self, checkpoint: Path | None = None) -> SimpleNamespace:
        return SimpleNamespace(predictors=lambda: {"student": int(str(checkpoint))})

    def image(self, id: str) -> Tensor:
        return torch.full((3, 2, 2), float(id))

    def write_list(self, name: str, ids: list[str]) -> Path:
        self.written[name] = list(ids)
        return self.place / name

    def write_masks(self, name: str, ids: list[str], label) -> Path:
        self.written[name] = {id: label(id, self.image(id)).flatten().tolist() for id in ids}
        return self.place / name


def test_the_most_stable_images_come_first_and_the_best_network_labels_them(tmp_path):
    same = (4, 0, 4, 2)  # pixels of each image on which all networks agree

    def label(stage: Finished, net: int, image: Tensor) -> Tensor:
        agreed = same[int(image[0, 0, 0])]
        return torch.cat((torch.zeros(agreed), torch.full((4 - agreed,), net))).long().view(2, 2)

    stage = Finished(tmp_path)
    made = inspect.unwrap(_choose)(stage, label=label, share=0.75)  # without the check of types: networks are numbers
    assert set(made) == {"reliable", "rest", "masks"}
    assert stage.written["reliable"] == ["0", "2", "3"]
    assert stage.written["rest"] == ["1"]
    assert stage.written["masks"] == {"0": [0, 0, 0, 0], "2": [0, 0, 0, 0], "3": [0, 0, 1, 1]}
