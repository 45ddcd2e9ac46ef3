"""CCT: what reaches the gradient, what it refuses, and that it trains whatever network it is given."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from halfmask.batch import Batch, Progress, Samples
from halfmask.errors import RecipeError
from halfmask.methods.cct import CCT, PUBLISHED
from halfmask.models.build import Builder
from halfmask.recipe.read import ModelRecipe, load
from halfmask.run.fit import fit
from halfmask.run.loop.trainer import prepare_networks
from halfmask.run.prepare import prepare
from halfmask.task import Task
from halfmask.testing import no_host_sync, tiny_batch, tiny_builder, tiny_task
from halfmask.views.feature_noise import Perturbation
from tests.run import tiny

PROGRESS = Progress(5, 10, 5)


def make(task: Task | None = None, **params) -> CCT:
    task = task or tiny_task()
    return CCT(task, tiny_builder(task), **params).train()


def test_only_the_main_decoder_is_shipped():
    method = make()
    assert list(method.predictors()) == ["student"]
    assert method.heads.count == 30
    student = sum(p.numel() for p in method.student.parameters())
    each = sum(p.numel() for p in method.student.classifier.parameters())
    assert sum(p.numel() for p in method.parameters()) == student + 30 * each
    assert not any("heads" in name for name, _ in method.student.named_parameters())


def test_auxiliary_decoders_learn_at_the_rate_of_the_decoder():
    method = make(heads="lite")
    encoder, rest = method.parameter_groups()["main"]
    assert {id(p) for p in method.heads.parameters()} <= {id(p) for p in rest.params}
    assert {id(p) for p in method.student.encoder.parameters()} == {id(p) for p in encoder.params}


def test_the_unlabeled_loss_reaches_the_encoder_but_not_the_main_decoder():
    method = make()
    batch = tiny_batch(method.task)
    batch.labeled.target = torch.full_like(batch.labeled.labels, 255)  # nothing to learn there
    loss, logs = method.step(batch, PROGRESS)
    loss.backward()
    assert logs["loss_sup"].item() == 0
    assert all((p.grad == 0).all() for p in method.student.classifier.parameters())
    assert all(p.grad.abs().sum() > 0 for p in method.student.encoder.parameters() if p.ndim > 1)
    assert all(p.grad.abs().sum() > 0 for p in method.heads.parameters())


@pytest.mark.parametrize("kind", PUBLISHED)
def test_each_kind_of_perturbation_trains_alone(kind):
    method = make(heads={kind: 2})
    loss, logs = method.step(tiny_batch(method.task), PROGRESS)
    loss.backward()
    assert logs["loss_unsup"] > 0
    assert all(p.grad.abs().sum() > 0 for p in method.heads.parameters())


def test_a_prediction_exactly_as_confident_as_the_threshold_does_not_teach():
    method = make(heads="lite", threshold=0.5)
    with torch.no_grad():
        method.student.classifier.weight.zero_()
        method.student.classifier.bias.copy_(torch.tensor([0.0, 0.0, -1e4]))  # 1/2, 1/2, 0, without rounding
    logs = method.step(tiny_batch(method.task), PROGRESS).logs
    assert logs["loss_unsup"] == 0
    assert logs["pseudo/coverage"] == 0
    method.threshold = 0.4999
    logs = method.step(tiny_batch(method.task), PROGRESS).logs
    assert logs["loss_unsup"] > 0
    assert logs["pseudo/coverage"] == 1


def weak_batch(method: CCT, target: torch.Tensor | None) -> Batch:
    batch = tiny_batch(method.task)
    batch.unlabeled = Samples(batch.unlabeled.image, batch.unlabeled.valid, batch.unlabeled.index, target)
    return batch


def test_offline_pseudo_labels_teach_auxiliary_decoders_only():
    method = make(heads="lite", unlabeled_weight=0.0)
    target = torch.randint(0, 3, (2, 32, 32))
    batch = weak_batch(method, target)
    batch.labeled.target = torch.full_like(batch.labeled.labels, 255)
    loss, logs = method.step(batch, PROGRESS)
    loss.backward()
    assert_close(loss, 0.4 * logs["loss_weak"])
    assert logs["loss_weak"].item() == pytest.approx(torch.log(torch.tensor(3.0)).item(), rel=0.5)
    assert all((p.grad == 0).all() for p in method.student.classifier.parameters())
    assert all(p.grad.abs().sum() > 0 for p in method.heads.parameters())


def test_pseudo_labels_of_no_pixel_change_nothing():
    plain, weak = make(heads="lite"), make(heads="lite")
    weak.load_state_dict(plain.state_dict())
    losses = []
    for method, target in ((plain, None), (weak, torch.full((2, 32, 32), 255))):
        torch.manual_seed(3)
        loss, logs = method.step(weak_batch(method, target), PROGRESS)
        losses.append(loss)
        assert ("loss_weak" in logs) == (target is not None)
    assert_close(losses[0], losses[1])
    assert losses[1].isfinite()


def test_weights_rise_together_from_the_published_start():
    method = make(heads="lite", ramp_up=0.5)
    batch = weak_batch(method, torch.zeros(2, 32, 32, dtype=torch.long))
    for step, rise in ((0, 0.006737947), (10, 1.0)):
        loss, logs = method.step(batch, Progress(step, 10, 5))
        expected = logs["loss_sup"] + rise * (30 * logs["loss_unsup"] + 0.4 * logs["loss_weak"])
        assert_close(loss, expected)


def test_the_pairwise_term_reaches_the_optimizer():
    gradients = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        method = make(heads={"dropout": 10}, term_weights={"pairwise": weight})
        torch.manual_seed(1)
        loss, logs = method.step(tiny_batch(method.task), PROGRESS)
        loss.backward()
        gradients.append(method.heads.weights["weight"].grad)
        assert ("loss_pairwise" in logs) == (weight > 0)
    assert (gradients[0] - gradients[1]).abs().max() > 1e-6


def test_padding_does_not_count_unless_asked():
    for ignore in (True, False):
        losses = []
        for noise in (0.0, 1.0):
            torch.manual_seed(0)
            task = tiny_task()
            method = CCT(task, tiny_builder(task, norm=False), heads={"dropout": 2}, ignore_padding=ignore)
            batch = tiny_batch(task)
            batch.unlabeled.valid[..., 4:] = False
            batch.unlabeled.image[..., 30:] += noise  # seen from no valid pixel
            torch.manual_seed(1)
            losses.append(method.step(batch, PROGRESS).logs["loss_unsup"])
        assert torch.equal(*losses) == ignore


def test_groups_and_the_plain_loop_agree_in_a_whole_step():
    outcomes = []
    for group in (0, 1, 4, "auto"):
        torch.manual_seed(0)
        method = make(head_group=group, vat_direction="finite").double()
        torch.manual_seed(1)
        loss, _ = method.step(tiny_batch(method.task, dtype=torch.float64), PROGRESS)
        loss.backward()
        outcomes.append([loss, *(p.grad for p in method.parameters())])
    for other in outcomes[1:]:
        for ours, theirs in zip(other, outcomes[0], strict=True):
            assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_perturbations_are_pairs_one_can_replace():
    method = make()
    assert method.perturbations.keys() == PUBLISHED.keys() - {"i_vat"}
    assert all(isinstance(one, Perturbation) for one in method.perturbations.values())


# --- networks -------------------------------------------------------------------------------------------------

NETWORKS = {
    "psp": {"encoder": {"name": "resnet", "depth": 18, "width": 4, "output_stride": 8}, "decoder": "psp"},
    "deeplab": {
        "encoder": {"name": "resnet", "depth": 18, "width": 4},
        "decoder": {"name": "deeplabv3plus", "aspp": 8, "low": 4, "embedding": 8},
    },
    "transformer": {
        "encoder": {"name": "mit", "size": "b0"},
        "decoder": {"name": "segformer", "embedding": 8},
    },
    "signed": {"encoder": {"name": "dinov2", "dim": 24, "heads": 2}, "decoder": {"name": "psp", "embedding": 8}},
    "dpt": {"encoder": {"name": "dinov2", "dim": 24, "heads": 2}, "decoder": {"name": "dpt", "features": 8}},
    "smp": {"name": "smp", "arch": "linknet", "encoder": {"name": "resnet18"}},
    "smp with its own upsampling": {"name": "smp", "arch": "fpn", "encoder": {"name": "resnet18"}},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_trained(name):
    task, crop = tiny_task(), 56 if "dinov2" in str(NETWORKS[name]) else 64
    method = CCT(task, Builder(ModelRecipe.model_validate(NETWORKS[name]), task, crop=crop), heads="lite").train()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
    valid = torch.ones(2, crop, crop, dtype=torch.bool)
    labeled = Samples(torch.rand(2, 3, crop, crop), valid, torch.arange(2), torch.randint(0, 3, (2, crop, crop)))
    batch = Batch(labeled, Samples(torch.rand(2, 3, crop, crop), valid, torch.arange(2), labeled.target))
    for step in range(2):
        with no_host_sync():
            loss, logs = method.step(batch, Progress(step, 2, 2))
            optimizer.zero_grad()
            loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
        assert logs["loss_weak"] > 0
        optimizer.step()


# --- mistakes -------------------------------------------------------------------------------------------------


def test_an_unknown_foreground_is_refused_with_both_remedies():
    task = Task("segmentation", ("road", "car"))
    with pytest.raises(RecipeError, match=r"classes: road, car.*halfmask.yaml.*method\.heads={i_vat: 2, dropout: 6, f"):
        CCT(task, tiny_builder(task))
    unguided = CCT(task, tiny_builder(task), heads={"i_vat": 1, "dropout": 2, "f_drop": 1, "f_noise": 1})
    loss, _ = unguided.train().step(tiny_batch(task), PROGRESS)
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.heads.i_vatt=2", r"method.heads.*i_vatt is not one of i_vat, dropout.*Did you mean `i_vat`"),
        ("method.heads.i_vat=-1", r"method.heads.*i_vat=-1 must not be negative"),
        ("method.heads={i_vat: 0}", r"at least one auxiliary decoder"),
        ("method.heads=most", r"method.heads='most'.*'published', 'lite'"),
        ("method.strength={nois: 0.1}", r"nois is not one of noise.*Did you mean `noise`"),
        ("method.strength={drop_low: 0.95}", "drop_low not above drop_high"),
        ("method.strength={dropout: 1.0}", "dropout must be below 1"),
        ("method.term_weights={weka: 0.1}", r"weka is not one of weak, pairwise.*Did you mean `weak`"),
        ("method.consistency=l2", r"method.consistency='l2'.*'mse', 'kl', 'js', 'js_official'"),
        ("method.head_group=-1", r"method.head_group=-1"),
    ],
)
def test_wrong_settings_are_explained(override, message):
    with pytest.raises(RecipeError, match=message):
        load("cct/pascal", [override])


def test_single_kinds_can_be_switched_off_from_the_command_line():
    recipe = load("cct/pascal", ["method.heads.i_vat=0", "method.heads.con_msk=0"])
    assert sum(recipe.method.params["heads"].values()) == 26


def test_channels_last_trains_a_network_whose_stacked_decoders_have_five_dimensions(tmp_path: Path):
    root = tiny.write_dataset(tmp_path / "data")
    recipe = tiny.recipe(
        root, "run.steps=2", "run.eval_every=2", "run.log_every=1", "run.channels_last=true",
        method="cct", heads={"i_vat": 1, "f_drop": 2},
    )  # fmt: skip
    method = prepare(recipe, look=False).method
    assert max(weight.dim() for weight in method.parameters()) == 5
    prepare_networks(method, recipe.run)
    (kernel, *_) = [weight for weight in method.student.encoder.parameters() if weight.shape[2:] == (3, 3)]
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    trained = fit(recipe, tmp_path / "run", quiet=True)
    assert trained.steps == 2
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["train/loss_unsup"]) for line in losses if "train/loss" in line)


# --- several processes ----------------------------------------------------------------------------------------

RANKS = """
import sys, json
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from halfmask.batch import Progress
from halfmask.methods.cct import CCT
from halfmask.testing import tiny_batch, tiny_builder, tiny_task

class Step(torch.nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, batch):
        return self.method.step(batch, Progress(9, 10, 5)).loss

rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
torch.manual_seed(0)
task = tiny_task()
method = CCT(task, tiny_builder(task, norm=False), heads={"i_vat": 2, "f_noise": 1, "con_msk": 1}).train()
wrapped = DistributedDataParallel(Step(method), broadcast_buffers=False)
optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
own = []
for step in range(2):
    torch.manual_seed(100 + 10 * step + rank)
    optimizer.zero_grad()
    wrapped(tiny_batch(task, seed=10 * step + rank)).backward()
    optimizer.step()
torch.save(method.state_dict(), f"{out}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_keep_equal_weights_and_sum_their_gradients(tmp_path: Path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script)]
    running = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "store"), str(tmp_path)], env=environment, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    for process in running:
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error.decode()[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)

    # One process that averages the gradients of both parts by hand.
    torch.manual_seed(0)
    task = tiny_task()
    method = CCT(task, tiny_builder(task, norm=False), heads={"i_vat": 2, "f_noise": 1, "con_msk": 1}).train()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    for step in range(2):
        optimizer.zero_grad()
        for rank in range(2):
            torch.manual_seed(100 + 10 * step + rank)
            (method.step(tiny_batch(task, seed=10 * step + rank), Progress(9, 10, 5)).loss / 2).backward()
        optimizer.step()
    for name, value in method.state_dict().items():
        assert_close(first[name], value, rtol=1e-4, atol=1e-6)
