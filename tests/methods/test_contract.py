"""Every method file keeps the contract, and the checks notice methods that do not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halfmask.batch import Batch, Progress
from halfmask.losses.cross_entropy import Ohem, cross_entropy
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.plugins import names, params_model, resolve
from halfmask.task import Task
from halfmask.teaching.ema import ema_copy
from halfmask.testing import HostSyncError, check_method, no_host_sync, tiny_batch, tiny_builder, tiny_task
from halfmask.views.strong import StrongAugment

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "supervised": [{"loss": Ohem(min_kept=50), "labeled_color": True}],
    "fixmatch": [
        {"teacher": "student", "cutmix_partner": "same_view", "threshold": 0.3},
        {"cutmix_partner": "shuffle", "cutmix": 1.0, "threshold": 0.3, "loss": "ohem"},
        {"threshold": 0.0, "warmup": 0.5},
    ],
    "pseudo_label": [{"warmup": 0.5}, {"ignore_padding": False, "labeled_color": False}],
    "allspark": [
        {"warmup_epochs": 0.0, "mask_empty": True, "grouping": "probs_dot", "ignore_padding": False},
        {"warmup": 0.5},
        {"keys": "batch", "eval_keys": "per_image", "labeled_color": False, "loss": "ohem"},
    ],
    "mean_teacher": [{"ramp_up": 0.0}, {"warmup": 0.5}],
    "ps_mt": [{"warmup_epochs": 0.0, "ramp_epochs": 0.0}],  # teachers are not in use before
    "multi_domain": [{"method": {"name": "fixmatch", "threshold": 0.3}, "batch_norm": "own"}],
    "cct": [
        {
            "heads": "lite",
            "consistency": "kl",
            "threshold": 0.4,
            "term_weights": {"pairwise": 1.0},
            "loss": "ab_ce",
            "ramp_up": 0.0,
        },
        {"heads": "lite", "vat_direction": "finite", "head_group": 3, "consistency": "js", "ignore_padding": False},
        {"heads": {"f_drop": 1, "f_noise": 1}, "head_group": 0, "consistency": "js_official"},
        {"heads": {"g_cutout": 2}, "cutout_boxes": "components"},
    ],
    "unimatch_v2": [
        {"threshold": 0.3, "teacher": "student", "cutmix_partner": "shuffle", "cutmix": 1.0, "loss": "ohem"},
        {"threshold": 0.0, "dropout": "independent", "dropout_at": "levels", "dropout_keep": "bernoulli"},
        {"threshold": 0.3, "dropout_at": "classifier", "views": 1, "cutmix": 0.0},
    ],
    "unimatch": [
        {"threshold": 0.3, "cutmix_partner": "shuffle", "cutmix": 1.0, "label_mode": "eval", "loss": "ohem"},
        {"threshold": 0.0, "cutmix_partner": "flip", "teacher": "ema", "feature_dropout": 0.2},
    ],
}


@pytest.mark.parametrize("same_light", [False, True])
def test_strong_views_know_whether_both_dates_have_one_light(same_light):
    task = replace(tiny_task("change"), same_light=same_light)
    classes = {name: resolve("methods", name) for name in names("methods")}
    made = {name: cls(task, tiny_builder(task)) for name, cls in classes.items() if "change" in cls.tasks}
    views = [
        (name, part) for name, method in made.items() for part in method.modules() if isinstance(part, StrongAugment)
    ]
    assert {"supervised", "mean_teacher", "fixmatch", "unimatch", "unimatch_v2"} <= {name for name, _ in views}
    assert all(view.same_light == same_light for _, view in views)


@pytest.mark.parametrize("name", names("methods"))
def test_every_method_keeps_the_contract(name):
    check_method(resolve("methods", name))


@pytest.mark.parametrize(
    ("name", "params", "turn"),
    [(name, params, turn) for name, variants in VARIANTS.items() for turn, params in enumerate(variants)],
)
def test_variants_keep_the_contract(name, params, turn, monkeypatch):
    cls = resolve("methods", name)
    kinds = [kind for kind in ("segmentation", "change", "classification") if kind in cls.tasks]
    one = kinds[turn % len(kinds)]  # each variant on one kind of task, each kind with some variants
    if one == "classification" and params.keys() & {"loss", "dropout_at"}:
        one = "segmentation"
    monkeypatch.setattr(cls, "tasks", frozenset({one}))
    check_method(cls, **params)


class Plain(Method):
    """A correct method, for the broken ones below to break in one place."""

    def __init__(self, task: Task, build: ModelBuilder) -> None:
        super().__init__(task)
        self.student = build()

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.student(batch.labeled.image), batch.labeled.labels, self.task.ignore_index)

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        return StepOutput(self.loss(batch), {})


class ReadsTheLoss(Plain):
    def step(self, batch, progress):
        loss = self.loss(batch)
        return StepOutput(loss, {"loss_sup": torch.tensor(loss.item())})


class IndexesWithAMask(Plain):
    def step(self, batch, progress):
        known = batch.labeled.labels != 255
        logits = self.student(batch.labeled.image).movedim(1, -1)[known]
        return StepOutput(nn.functional.cross_entropy(logits, batch.labeled.labels[known]), {})


class ChangesTheBatch(Plain):
    def step(self, batch, progress):
        batch.unlabeled.image.mul_(0.5)
        return super().step(batch, progress)


class ForgetsANetwork(Plain):
    def __init__(self, task: Task, build: ModelBuilder) -> None:
        super().__init__(task, build)
        self.spare = build()


class TrainsItsTeacher(Plain):
    def __init__(self, task: Task, build: ModelBuilder) -> None:
        super().__init__(task, build)
        self.teacher = ema_copy(self.student)
        self.teacher.requires_grad_(True)

    def step(self, batch, progress):
        loss = cross_entropy(self.teacher(batch.labeled.image), batch.labeled.labels)
        return StepOutput(self.loss(batch) + loss, {})


class CountsOutsideItsState(Plain):
    steps = 0

    def step(self, batch, progress):
        self.steps += 1
        return StepOutput(self.loss(batch) * self.steps, {})


class HardCodesTheIgnoredLabel(Plain):
    def loss(self, batch):
        target = batch.labeled.labels
        target = torch.where(target > 200, 255, target).clamp_max(self.task.n_classes - 1)
        return cross_entropy(self.student(batch.labeled.image), torch.where(batch.labeled.labels == 255, 255, target))


class DividesByZero(Plain):
    def loss(self, batch):
        return nn.functional.cross_entropy(
            self.student(batch.labeled.image), batch.labeled.labels, ignore_index=self.task.ignore_index
        )


class UsesAPrivateGenerator(Plain):
    def __init__(self, task: Task, build: ModelBuilder) -> None:
        super().__init__(task, build)
        self.generator = torch.Generator()
        self.generator.seed()

    def step(self, batch, progress):
        return StepOutput(self.loss(batch) * torch.rand((), generator=self.generator), {})


class LogsNumbers(Plain):
    def step(self, batch, progress):
        return StepOutput(self.loss(batch), {"weight": 1.0})


class PredictsNothing(Plain):
    def predictors(self):
        return {}


def test_only_shipped_methods_say_that_they_equal_a_paper():
    assert Method.status == "experimental"
    assert {resolve("methods", name).status for name in names("methods")} == {"implemented"}


def test_the_plain_method_passes():
    check_method(Plain)


@pytest.mark.parametrize(
    ("broken", "error", "advice"),
    [
        (ReadsTheLoss, HostSyncError, r"\.item\(\)"),
        (IndexesWithAMask, HostSyncError, "torch.where"),
        (ChangesTheBatch, AssertionError, "work on copies"),
        (ForgetsANetwork, AssertionError, "partial_updates"),
        (TrainsItsTeacher, AssertionError, "teacher receives gradients"),
        (CountsOutsideItsState, AssertionError, "registered buffers"),
        (HardCodesTheIgnoredLabel, AssertionError, "task.ignore_index"),
        (DividesByZero, AssertionError, "clamped to 1"),
        (UsesAPrivateGenerator, AssertionError, "global generators"),
        (LogsNumbers, AssertionError, r"without \.item"),
        (PredictsNothing, AssertionError, "shipped"),
    ],
)
def test_broken_methods_are_told_what_to_do(broken, error, advice):
    with pytest.raises(error, match=advice):
        check_method(broken)


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x[x > 0],
        lambda x: x.__setitem__(x > 0, torch.zeros(4)),
        lambda x: x.unique(),
        lambda x: x.unique(dim=0),
        lambda x: torch.unique_consecutive(x),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x.long().bincount(minlength=3),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: nn.functional.one_hot(x.long()),
    ],
)
def test_reading_values_on_the_host_is_noticed(reads):
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with pytest.raises(HostSyncError, match="makes the host wait"), no_host_sync():
        reads(x)
    reads(x)  # outside nothing is forbidden


def test_masks_and_integer_gathers_are_allowed():
    x, order = torch.arange(6.0), torch.tensor([2, 1, 0])
    with no_host_sync():
        y = torch.where(x > 2, x, 0.0)[order] + x.masked_fill(x > 2, 0)[order]
        x[order] = y
        x[:2] += 1
    assert x.tolist() == [1.0, 2.0, 2.0, 3.0, 4.0, 5.0]


def test_batches_say_which_stream_they_lack():
    from halfmask.errors import DataError

    task = tiny_task()
    method = resolve("methods", "fixmatch")(task, tiny_builder(task), cutmix_partner="shuffle")
    with pytest.raises(DataError, match=r"`partner`.*draws"):
        method.step(tiny_batch(task, draws=1), Progress(0, 1, 1))
    with pytest.raises(DataError, match="`unlabeled`"):
        method.step(tiny_batch(task, draws=0), Progress(0, 1, 1))
    unlabeled = tiny_batch(task).unlabeled
    with pytest.raises(DataError, match="no labels"):
        resolve("methods", "supervised")(task, tiny_builder(task)).step(Batch(unlabeled, None), Progress(0, 1, 1))


NO_CONTROL = {"supervised", "multi_domain", "st_plus_plus", "cam"}  # the last two train in stages


@pytest.mark.parametrize("name", names("methods"))
def test_which_methods_have_a_control(name: str) -> None:
    assert (resolve("methods", name).control_params() is None) == (name in NO_CONTROL)


# AllSpark's labeled features are rebuilt from unlabeled ones by design: its control leaves out their loss alone.
@pytest.mark.parametrize("name", [name for name in names("methods") if name not in {*NO_CONTROL, "allspark"}])
def test_other_unlabeled_images_give_a_control_the_same_gradient(name: str) -> None:
    """Without batch norm nothing but a loss can carry what unlabeled images show."""
    cls = resolve("methods", name)

    def gradient(seed: int, params: dict[str, Any]) -> Tensor:
        task = tiny_task("segmentation")
        torch.manual_seed(1)
        method = cls(task, tiny_builder(task, norm=False), **params).train()
        batch, other = (
            tiny_batch(task, draws=method.draws, share_images=method.draws_share_images, seed=number)
            for number in (0, seed)
        )
        batch = replace(batch, unlabeled=other.unlabeled, partner=other.partner)
        torch.manual_seed(2)
        for update in method.updates(batch, Progress(7, 8, 1)):
            update.output.loss.backward()
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in method.parameters() if p.requires_grad]
        return torch.cat([grad.flatten() for grad in grads])

    control = cls.control_params()
    first, second = gradient(0, control), gradient(1, control)
    assert first.abs().max() > 0
    torch.testing.assert_close(first, second)
    open_to_all = {"threshold": 0.0} if "threshold" in params_model(cls).model_fields else {}
    assert not torch.allclose(gradient(0, open_to_all), gradient(1, open_to_all))  # which a run's own loss does not
