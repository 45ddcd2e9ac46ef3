"""Losses: published numbers, textbook versions, and what happens at the edges."""

import inspect
import json
import math
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from halfmask.losses import cross_entropy as losses
from tests.oracles import losses as plain

ALLSPARK_CASES = (
    "mining",
    "threshold_raised",
    "fewer_valid_than_min_kept",
    "valid_equals_min_kept",
    "min_kept_zero",
    "nothing_ignored",
)


def _scene(dtype: torch.dtype = torch.float64, classes: int = 5) -> tuple[Tensor, Tensor]:
    logits = (2 * torch.randn(2, classes, 7, 6, dtype=dtype)).requires_grad_()
    target = torch.randint(0, classes, (2, 7, 6))
    target[torch.rand(target.shape) < 0.3] = 255
    return logits, target


@pytest.mark.parametrize(("dtype", "of_gradient"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
@pytest.mark.parametrize("case", ALLSPARK_CASES)
def test_ohem_gives_the_published_loss_pixels_and_gradient(golden, shared, case, dtype, of_gradient):
    with safe_open(shared / "golden/allspark/ohem.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["cases"])[case]
    tensors = {key.split("/")[1]: value for key, value in golden("allspark/ohem").items() if key.startswith(f"{case}/")}
    logits = tensors["logits"].to(dtype).requires_grad_()
    target = tensors["target"].long()
    loss = losses.ohem_cross_entropy(logits, target, threshold=settings["thresh"], min_kept=settings["min_kept"])
    loss.backward()
    # The recorded loss comes from float64 logits, stored here as float32: 1e-6 relative.
    torch.testing.assert_close(loss.detach().double(), tensors["loss"].squeeze(), rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(logits.grad.float(), tensors["grad_logits"], rtol=of_gradient, atol=1e-7)
    kept = logits.grad.abs().sum(1) > 0
    assert torch.equal(kept, tensors["kept_target"] != 255)


def test_ohem_without_labeled_pixels_is_nan_only_on_request(golden):
    tensors = golden("allspark/ohem")
    logits, target = tensors["all_ignored/logits"].requires_grad_(), tensors["all_ignored/target"].long()
    loss = losses.ohem_cross_entropy(logits, target, threshold=0.7, min_kept=40)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    published = losses.ohem_cross_entropy(logits, target, threshold=0.7, min_kept=40, nan_on_empty=True)
    assert math.isnan(published.item())


@pytest.mark.parametrize("setting", ["0.05_200", "0.2_100", "0.7_100000", "0.7_20", "0.7_256", "0.9_0"])
def test_ohem_gives_the_numbers_of_the_unimatch_code(golden, setting):
    threshold, min_kept = setting.split("_")
    tensors = golden("unimatch/ohem")
    logits = tensors["logits"].requires_grad_()
    loss = losses.ohem_cross_entropy(logits, tensors["target"], threshold=float(threshold), min_kept=int(min_kept))
    loss.backward()
    name = f"t{threshold}_k{min_kept}"
    torch.testing.assert_close(loss.detach(), tensors[f"loss_{name}"], rtol=1e-10, atol=0)
    assert torch.equal(logits.grad.abs().sum(1) > 0, tensors[f"kept_{name}"].bool())


def test_dice_gives_the_published_numbers(golden):
    tensors = golden("unimatch/dice")
    probability, target = tensors["prob"], tensors["target"][:, 0]
    torch.testing.assert_close(losses.dice_loss(probability, target), tensors["loss"], rtol=1e-10, atol=0)
    kept = losses.dice_loss(probability, target, tensors["ignore"] != 1)
    torch.testing.assert_close(kept, tensors["loss_ignore"], rtol=1e-10, atol=0)


def test_cross_entropy_equals_the_textbook_form():
    logits, target = _scene()
    torch.testing.assert_close(losses.cross_entropy(logits, target), plain.cross_entropy(logits, target))
    keep, valid = torch.rand(target.shape) < 0.4, torch.rand(target.shape) < 0.8
    label = target.clamp_max(4)
    torch.testing.assert_close(
        losses.masked_cross_entropy(logits, label, keep, valid), plain.masked_cross_entropy(logits, label, keep, valid)
    )


def test_the_memory_format_of_the_logits_changes_no_loss():
    logits, target = _scene()
    weight = torch.rand(logits.shape[1])
    found = []
    for form in (logits, logits.contiguous(memory_format=torch.channels_last)):
        source = form.detach().requires_grad_()
        loss = losses.cross_entropy(source, target, weight=weight)
        loss = loss + losses.ohem_cross_entropy(source, target, threshold=0.5, min_kept=20)
        found.append((loss.detach(), *torch.autograd.grad(loss, source)))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("min_kept", [0, 1, 20, 58, 84, 1000])
@pytest.mark.parametrize("threshold", [0.05, 0.5, 1.0])
def test_ohem_equals_the_sorting_form(threshold, min_kept):
    logits, target = _scene()
    fast = losses.ohem_cross_entropy(logits, target, threshold=threshold, min_kept=min_kept)
    slow = plain.ohem_cross_entropy(logits, target, threshold=threshold, min_kept=min_kept)
    torch.testing.assert_close(fast, slow)


def test_one_function_serves_masks_and_class_labels():
    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 255, 1, 0])
    torch.testing.assert_close(losses.cross_entropy(logits, target), plain.cross_entropy(logits, target))


def _all_losses(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    known = target != 255
    return {
        "ce": losses.cross_entropy(logits, target),
        "masked": losses.masked_cross_entropy(logits, target, known, known),
        "ohem": losses.ohem_cross_entropy(logits, target, threshold=0.6, min_kept=10),
        "ohem, no minimum": losses.ohem_cross_entropy(logits, target, threshold=0.6, min_kept=0),
        "squared error": losses.squared_error(logits, logits.detach().flip(0), known),
        "dice": losses.dice_loss(logits.softmax(1), target, known),
    }


def test_logits_under_ignored_pixels_change_no_loss():
    logits, target = _scene()
    changed = logits.detach().clone()
    ignored = (target == 255).unsqueeze(1).expand_as(changed)
    changed[ignored] = 30 * torch.randn_like(changed[ignored])
    # The teacher of the squared error is the flipped batch, so it must be the unchanged one there.
    before, after = _all_losses(logits, target), _all_losses(changed, target)
    del before["squared error"], after["squared error"]
    for name in before:
        torch.testing.assert_close(before[name], after[name], msg=name)
    known = target != 255
    teacher = torch.randn_like(changed)
    torch.testing.assert_close(
        losses.squared_error(logits, teacher, known), losses.squared_error(changed, teacher, known)
    )


def test_nothing_labeled_gives_zero_loss_and_zero_gradient():
    for name in _all_losses(*_scene()):
        logits, target = _scene()
        loss = _all_losses(logits, torch.full_like(target, 255))[name]
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-12), name
        assert torch.equal(logits.grad, torch.zeros_like(logits)), name


def test_half_precision_logits_lose_nothing_in_the_loss():
    logits, target = _scene(torch.bfloat16)
    for name, loss in _all_losses(logits, target).items():
        assert loss.dtype == torch.float32 or name == "dice", name
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses.cross_entropy(logits, target)
    torch.testing.assert_close(inside, plain.cross_entropy(logits.float(), target))


def test_squared_error_by_hand_and_without_gradient_to_the_teacher():
    student = torch.zeros(1, 2, 1, 2, requires_grad=True)
    teacher = torch.tensor([[[[0.0, 3.0]], [[math.log(3.0), 0.0]]]], requires_grad=True)  # p = (1/4, 3/4) at pixel 0
    valid = torch.tensor([[[True, False]]])
    loss = losses.squared_error(student, teacher, valid)
    loss.backward()
    assert loss.item() == pytest.approx(2 * 0.25**2)
    assert teacher.grad is None


def test_unsure_batches_teach_less():
    logits, label = torch.zeros(1, 2, 1, 4), torch.zeros(1, 1, 4, dtype=torch.long)
    valid = torch.ones(1, 1, 4, dtype=torch.bool)
    keep = torch.tensor([[[True, False, False, False]]])
    assert losses.masked_cross_entropy(logits, label, keep, valid).item() == pytest.approx(math.log(2) / 4)
    assert losses.masked_cross_entropy(logits, label, keep, keep).item() == pytest.approx(math.log(2))


def test_supervised_loss_by_name():
    logits, target = _scene()
    assert losses.supervised_loss("ce")(logits, target) == losses.cross_entropy(logits, target)
    mined = losses.supervised_loss(losses.Ohem(threshold=0.3, min_kept=5))(logits, target)
    assert mined == losses.ohem_cross_entropy(logits, target, threshold=0.3, min_kept=5)
    assert mined > losses.cross_entropy(logits, target)


def test_every_annotated_shape_is_checked_while_tests_run() -> None:
    """Here, and in whatever module of the package gives shapes."""
    with pytest.raises(jaxtyping.TypeCheckError, match="target"):
        losses.cross_entropy(torch.rand(2, 3, 4, 4), torch.zeros(2, 5, 4, dtype=torch.int64))
    package = Path(inspect.getfile(losses)).parents[1]
    files = [path for path in package.rglob("*.py") if "from jaxtyping" in path.read_text(encoding="utf-8")]
    names = [".".join(path.relative_to(package.parent).with_suffix("").parts) for path in files]
    finders = [finder for finder in sys.meta_path if hasattr(finder, "should_instrument")]
    assert len(names) > 100
    assert [name for name in names if not any(finder.should_instrument(name) for finder in finders)] == []
