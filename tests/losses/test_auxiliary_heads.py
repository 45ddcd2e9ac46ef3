"""Auxiliary decoders in groups give what the plain loop gives, and keep the maps of one group only."""

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from halfmask.errors import RecipeError, ShapeError
from halfmask.losses.auxiliary_heads import AuxiliaryHeads, Perturbed, to_rows
from halfmask.losses.consistency import Objective, pairwise_loss, pixel_weight
from halfmask.models.decoders.psp import SubPixel
from halfmask.testing import no_host_sync
from tests.oracles import cct as plain

CLASSIFIERS = {
    "sub-pixel": lambda: SubPixel(6, 4),
    "twice": lambda: SubPixel(6, 4, upscale=2),
    "1x1": lambda: nn.Conv2d(6, 4, 1),
    "3x3": lambda: nn.Conv2d(6, 4, 3, padding=1),
    "several layers": lambda: nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)),
}


def perturbations(dtype: torch.dtype = torch.float64) -> list[Perturbed]:
    """Eight decoders: every shape of factor, and offsets."""

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=dtype)

    return [
        Perturbed(offset=rand(2, 2, 6, 5, 3)),
        Perturbed(rand(2, 2, 6, 1, 1)),
        Perturbed((rand(2, 2, 1, 5, 3) > 0.5).to(dtype)),
        Perturbed(rand(1, 1, 6, 5, 3)),
        Perturbed(rand(1, 2, 6, 5, 3)),
    ]


def objective_of(heads: AuxiliaryHeads, target: Tensor, **more) -> Objective:
    rows = heads.rows(target)
    pixels = pixel_weight("mse", rows.shape[1], torch.ones(len(rows), dtype=torch.bool), dtype=target.dtype)
    return Objective("mse", rows, pixels, **more)


def gradients(heads: AuxiliaryHeads, z: Tensor, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [z, *heads.parameters()]))


@pytest.mark.parametrize("group", [0, 1, 2, 4, 100])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_groups_give_the_loss_and_gradients_of_a_loop(name, group):
    classifier = CLASSIFIERS[name]().double()
    heads, parts = AuxiliaryHeads(classifier, 8).double(), perturbations()
    z = torch.rand(2, 6, 5, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn_like(classifier(z)).softmax(1)
    logits = [
        heads.run(number, part.of(i, z))
        for number, (part, i) in enumerate((part, i) for part in parts for i in range(len(part)))
    ]
    expected = 7 * sum(plain.mse(one, target) for one in logits) / 8
    loss, terms = heads.loss(z, parts, objective_of(heads, target, unlabeled_weight=7.0), group=group)
    assert_close(loss, expected, rtol=1e-12, atol=0)
    assert_close(7 * terms.distance, expected.detach(), rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients(heads, z, loss), gradients(heads, z, expected), strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("group", [0, 1, 3])
@pytest.mark.parametrize("name", ["sub-pixel", "3x3"])
def test_pseudo_labels_and_the_pairwise_term_are_part_of_the_sum(name, group):
    classifier = CLASSIFIERS[name]().double()
    heads, parts = AuxiliaryHeads(classifier, 8).double(), perturbations()
    z = torch.rand(2, 6, 5, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn_like(classifier(z)).softmax(1)
    label = torch.randint(0, 4, target.shape[:1] + target.shape[2:])
    known = torch.rand(label.shape) > 0.3
    chosen = torch.tensor([0, 3, 4, 6, 7])
    logits = torch.stack(
        [
            heads.run(number, part.of(i, z))
            for number, (part, i) in enumerate((part, i) for part in parts for i in range(len(part)))
        ]
    )
    weak = sum(nn.functional.cross_entropy(one, label.where(known, -1), ignore_index=-1) for one in logits) / 8
    pair = pairwise_loss(logits[chosen].softmax(2))
    expected = 3 * sum(plain.mse(one, target) for one in logits) / 8 + 0.4 * weak + 2 * pair
    objective = objective_of(heads, target, unlabeled_weight=3.0, weak_weight=0.4, pair_weight=2.0)
    objective = objective._replace(
        label=heads.rows(label),
        labeled_pixels=heads.rows(known).double() / known.sum(),
        pair_pixels=torch.full_like(objective.pixels, 1 / len(objective.pixels)),
    )
    pairs = torch.zeros(8, dtype=torch.float64).index_fill_(0, chosen, 1 / len(chosen))
    loss, terms = heads.loss(z, parts, objective, group=group, pairs=pairs)
    assert_close(loss, expected, rtol=1e-12, atol=0)
    assert_close(terms.weak, weak.detach(), rtol=1e-12, atol=0)
    assert_close(terms.pair, pair.detach(), rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients(heads, z, loss), gradients(heads, z, expected), strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_decoders_equal_the_plain_ones():
    heads = AuxiliaryHeads(SubPixel(6, 4), 3)
    z = torch.rand(2, 6, 5, 3)
    for number in range(3):
        state = heads.head_state(number)
        weights = [state["project.weight"]]
        weights += [state[f"stages.{i}.{part}"] for i in range(3) for part in ("weight", "bias")]
        assert_close(heads.run(number, z), plain.decode(weights, z), rtol=0, atol=0)
        assert_close(heads.row_head(number)(z), to_rows(plain.decode(weights, z), 3))


@pytest.mark.parametrize("stages", [0, 1, 3])
def test_rows_are_ordered_by_cell_and_sub_pixel(stages):
    side = 2**stages
    maps = torch.arange(2 * 3 * 2 * side * 4 * side).view(2, 3, 2 * side, 4 * side)
    rows = to_rows(maps, stages)
    assert rows.shape == (maps.numel() // 3, 3)
    for cell_y in range(2):
        for cell_x in range(4):
            for number in range(side**2):
                y, x, rest = cell_y * side, cell_x * side, number
                for stage in range(stages):  # the last stage is the finest
                    rest, sub = divmod(rest, 4)
                    y, x = y + (sub // 2) * 2**stage, x + (sub % 2) * 2**stage
                row = (cell_y * 4 + cell_x) * side**2 + number
                assert rows[row].tolist() == maps[0, :, y, x].tolist()
    assert torch.equal(to_rows(maps[:, 0], stages), rows[:, 0])


def test_decoders_start_from_weights_of_their_own():
    classifier = SubPixel(6, 4)
    heads = AuxiliaryHeads(classifier, 3)
    states = [heads.head_state(number) for number in range(3)]
    for key, value in classifier.state_dict().items():
        assert all(not torch.equal(state[key], value) for state in states)
        assert not torch.equal(states[0][key], states[1][key])
    for state in states:  # ICNR survives the copying
        kernels = state["stages.0.weight"].view(4, 4, 4)
        assert torch.equal(kernels, kernels[:, :1].expand_as(kernels))


def test_weights_come_and_go_by_decoder():
    heads, source = AuxiliaryHeads(SubPixel(6, 4), 3), SubPixel(6, 4)
    before = heads.head_state(0)
    heads.load_head(1, source.state_dict())
    assert all(torch.equal(heads.head_state(1)[key], value) for key, value in source.state_dict().items())
    assert all(torch.equal(heads.head_state(0)[key], value) for key, value in before.items())
    with pytest.raises(ShapeError, match="decoder 1 holds"):
        heads.load_head(1, SubPixel(6, 5).state_dict())


def test_vectors_stay_vectors():
    heads = AuxiliaryHeads(SubPixel(6, 4), 3)
    assert {name: parameter.ndim for name, parameter in heads.weights.items()} == {
        "project/weight": 5,
        **{f"stages/{i}/weight": 5 for i in range(3)},
        **{f"stages/{i}/bias": 1 for i in range(3)},
    }


class Kept:
    """A tensor some backward waits for; gone when that backward is done or dropped."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(compute) -> int:
    """Bytes of distinct storages that are kept for backward when the forward pass is done."""
    alive: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss = compute()
    assert loss.requires_grad
    storages = {kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage().nbytes() for kept in alive}
    return sum(storages.values())


def test_the_maps_of_one_group_live_at_a_time():
    heads = AuxiliaryHeads(SubPixel(32, 8), 8)
    z = torch.rand(2, 32, 12, 12, requires_grad=True)
    parts = [Perturbed((torch.rand(8, 2, 1, 12, 12) > 0.5).float())]
    objective = objective_of(heads, torch.randn(2, 8, 96, 96).softmax(1))
    loop, fast = (saved_bytes(lambda g=group: heads.loss(z, parts, objective, group=g)[0]) for group in (0, 1))
    assert loop > 30 * fast


def test_the_gradient_is_scaled_by_what_follows_and_may_be_asked_for_twice():
    heads, parts = AuxiliaryHeads(SubPixel(6, 4), 8), perturbations(torch.float32)
    z = torch.rand(2, 6, 5, 3, requires_grad=True)
    objective = objective_of(heads, torch.randn(2, 4, 40, 24).softmax(1))
    loss = heads.loss(z, parts, objective)[0]
    (once,) = torch.autograd.grad(loss, z, retain_graph=True)
    (twice,) = torch.autograd.grad(3 * loss, z)
    assert_close(twice, 3 * once)


def test_inner_gradients_leave_parameters_alone():
    heads, parts = AuxiliaryHeads(SubPixel(6, 4), 8), perturbations(torch.float32)
    z = torch.rand(2, 6, 5, 3, requires_grad=True)
    with no_host_sync():
        heads.loss(z, parts, objective_of(heads, torch.randn(2, 4, 40, 24).softmax(1)))
    assert z.grad is None
    assert all(parameter.grad is None for parameter in heads.parameters())


@pytest.mark.parametrize("name", ["sub-pixel", "3x3"])
def test_autocast_changes_the_loss_by_its_rounding_only(name):
    classifier = CLASSIFIERS[name]()
    heads, parts = AuxiliaryHeads(classifier, 8), perturbations(torch.float32)
    z = torch.rand(2, 6, 5, 3, requires_grad=True)
    objective = objective_of(heads, torch.randn_like(classifier(z)).softmax(1))
    exact = heads.loss(z, parts, objective)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = heads.loss(z, parts, objective)[0]
    assert rounded.dtype == torch.float32
    assert_close(rounded, exact, rtol=0.02, atol=0)
    for ours, theirs in zip(gradients(heads, z, rounded), gradients(heads, z, exact), strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() < 0.05 * theirs.norm()


def test_a_copy_is_independent():
    heads = AuxiliaryHeads(SubPixel(6, 4), 2)
    copied = copy.deepcopy(heads)
    copied.load_head(0, SubPixel(6, 4).state_dict())
    assert not torch.equal(copied.head_state(0)["project.weight"], heads.head_state(0)["project.weight"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(RecipeError, match=r"keeps statistics.*decoder psp"):
        AuxiliaryHeads(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)), 2)
    with pytest.raises(RecipeError, match="at least one"):
        AuxiliaryHeads(nn.Conv2d(3, 2, 1), 0)
    heads, z = AuxiliaryHeads(nn.Conv2d(6, 4, 1), 3), torch.rand(2, 6, 5, 3)
    with pytest.raises(ShapeError, match="3 decoders got 8"):
        heads.loss(z, perturbations(torch.float32), objective_of(heads, torch.rand(2, 4, 5, 3)))
