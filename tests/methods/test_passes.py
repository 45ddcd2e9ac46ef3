"""The rule of `halfmask.models.statistics`: with `run.passes=apart`, labeled images alone move running statistics."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from halfmask.batch import Batch, Progress
from halfmask.method import Method
from halfmask.models.model import Model
from halfmask.plugins import names, resolve
from halfmask.recipe.sections import RunRecipe
from halfmask.run.loop.trainer import prepare_networks
from halfmask.testing import tiny_batch, tiny_builder, tiny_task

PUBLISHED = {"allspark", "u2pl", "gta_seg", "st_plus_plus", "multi_domain", "cam", "supervised"}  # see the rule's text
FORMS: dict[str, dict[str, Any]] = {
    "cct": {"heads": "lite"},
}
APART = sorted(set(names("methods")) - PUBLISHED)


def made(name: str, passes: str, **params: Any) -> Method:
    torch.manual_seed(0)
    task = tiny_task()
    method: Method = resolve("methods", name)(task, tiny_builder(task), **params).train()
    prepare_networks(method, RunRecipe(passes=passes, steps=1))
    return method


def moved(method: Method, batch: Batch) -> dict[str, Tensor]:
    """Running statistics of the networks that learn, after the passes of one step."""
    torch.manual_seed(3)
    for _ in method.updates(batch, Progress(8, 10, 2)):
        pass
    learning = {
        name
        for name, part in method.named_modules()
        if isinstance(part, Model) and any(weight.requires_grad for weight in part.parameters())
    }
    return {
        name: buffer.clone()
        for name, buffer in method.named_buffers()
        if "running_" in name and any(name.startswith(f"{net}.") for net in learning)
    }


def batches(method: Method) -> tuple[Batch, Batch]:
    torch.manual_seed(1)
    first = tiny_batch(method.task, draws=method.draws)
    other = {
        stream: replace(getattr(first, stream), image=getattr(first, stream).image.flip(0) * 0.3)
        for stream in ("unlabeled", "partner")
        if getattr(first, stream) is not None
    }
    return first, replace(first, **other)


@pytest.mark.parametrize("name", APART)
def test_unlabeled_images_do_not_move_running_statistics(name: str) -> None:
    results = [moved(made(name, "apart", **FORMS.get(name, {})), batch) for batch in batches(made(name, "apart"))]
    start = dict(made(name, "apart", **FORMS.get(name, {})).named_buffers())
    assert results[0]
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key
    assert any(not torch.equal(value, start[key]) for key, value in results[0].items())


@pytest.mark.parametrize("name", ["fixmatch", "unimatch", "mean_teacher"])
def test_published_passes_let_them_move(name: str) -> None:
    first, second = (moved(made(name, "published"), batch) for batch in batches(made(name, "published")))
    assert any(not torch.equal(value, second[key]) for key, value in first.items())


def test_networks_without_batch_norm_keep_their_single_pass() -> None:
    task = tiny_task()
    method = resolve("methods", "fixmatch")(task, tiny_builder(task, norm=False))
    prepare_networks(method, RunRecipe(passes="apart", steps=1))
    assert not method.student.passes_apart


@pytest.mark.parametrize("name", ["fixmatch", "mean_teacher", "pseudo_label", "unimatch", "unimatch_v2"])
def test_labels_alone_teach_while_a_method_warms_up(name: str) -> None:
    task = tiny_task()
    losses = []
    for batch in batches(made(name, "published")):
        torch.manual_seed(0)
        method = resolve("methods", name)(task, tiny_builder(task), warmup=0.5).train()
        torch.manual_seed(3)
        before, after = (method.step(batch, Progress(step, 10, 2)) for step in (4, 5))
        assert "loss_unsup" not in before.logs
        assert "loss_unsup" in after.logs
        losses.append(before.loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["fixmatch", "unimatch", "mean_teacher"])
def test_separate_passes_move_the_statistics_but_share_no_batch(name: str) -> None:
    first, second = batches(made(name, "separate"))
    statistics = [moved(made(name, "separate"), batch) for batch in (first, second)]
    assert any(not torch.equal(value, statistics[1][key]) for key, value in statistics[0].items())
    losses = []
    for passes in ("separate", "published"):
        for batch in (first, second):
            torch.manual_seed(3)
            losses.append(made(name, passes).step(batch, Progress(8, 10, 2)).logs["loss_sup"].item())
    assert losses[0] == losses[1]  # labeled images are normalized by themselves
    assert losses[2] != losses[3]  # published: by the batch they share
