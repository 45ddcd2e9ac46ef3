"""Three training steps of UniMatch V1 from recorded weights, views, boxes and dropout masks.

Everything runs in float64, as recorded: the problem is ill-conditioned (a relative change of 1e-7 in the weights moves
losses of the third step by up to 20 %), so that float32 is held to the first step only, to 1e-5 in the losses and
1e-3 in the gradient norms. Stored float32 tensors carry 6e-8 relative.
"""

import torch
from torch import Tensor
from torch.testing import assert_close

from halfmask.batch import Batch, Progress
from halfmask.methods.unimatch import UniMatch
from halfmask.run.loop.optim import make_optimizers
from tests.methods import official_names
from tests.methods.golden_run import (
    OPTIM_V1,
    TASK,
    Recorded,
    batch_of,
    builder,
    check_sums,
    check_trajectory,
    check_weights,
    tiny_deeplab,
    train,
)


def method_of(inputs: dict[str, Tensor]) -> UniMatch:
    initial = official_names.deeplab(official_names.part(inputs, "init."))
    method = UniMatch(TASK, builder(tiny_deeplab, initial), threshold=0.5)
    assert (method.draws, method.draws_share_images) == (2, True)
    method.strong = Recorded()
    return method


def give(method: UniMatch, data: dict[str, Tensor], masks: tuple[Tensor, Tensor], batch: Batch) -> Batch:
    """Put the recorded draws of a step into the method."""
    dtype = batch.unlabeled.image.dtype
    method.strong.views_of = {
        id(samples.image): [data[f"img_u_s{view}{suffix}"].to(dtype) for view in (1, 2)]
        for samples, suffix in ((batch.unlabeled, ""), (batch.partner, "_mix"))
    }
    boxes = iter([data["cutmix_box1"], data["cutmix_box2"]])
    method.boxes = lambda shape, device: next(boxes).bool()

    def dropout(features: list[Tensor]) -> list[Tensor]:
        # The published code drops channels of the two maps that its decoder reads.
        finest, second, third, coarsest = features
        scaled = [x * mask.to(dtype)[:, :, None, None] for x, mask in zip((finest, coarsest), masks, strict=True)]
        return [scaled[0], second, third, scaled[1]]

    method.dropout = dropout
    return batch


def masks_of(expected: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
    return expected[f"step{step}.fp_mask_c1"], expected[f"step{step}.fp_mask_c4"]


def test_unimatch_repeats_the_published_run(golden):
    inputs, expected = golden("unimatch/v1_train_inputs"), golden("unimatch/v1_train_unimatch")
    method = method_of(inputs)
    trained = train(
        method, inputs, OPTIM_V1, lambda step, data: give(method, data, masks_of(expected, step), batch_of(data))
    )
    names = {"loss": "loss_all", "loss_sup": "loss_x", "loss_strong": "loss_s", "loss_features": "loss_w_fp"}
    check_trajectory(trained, expected, names)
    # Weights and running statistics of every batch norm.
    check_weights(method, expected, official_names.deeplab)
    check_sums(method, inputs, expected)


def test_the_first_step_in_float32(golden):
    inputs, expected = golden("unimatch/v1_train_inputs"), golden("unimatch/v1_train_unimatch")
    method = method_of(inputs).float().train()
    data = official_names.part(inputs, "step0.")
    batch = batch_of(data, torch.float32)
    give(method, data, masks_of(expected, 0), batch)
    loss, logs = method.step(batch, Progress(0, 20, 10))
    loss.backward()
    names = {"loss_sup": "loss_x", "loss_strong": "loss_s", "loss_features": "loss_w_fp"}
    for ours, official in names.items():
        assert_close(logs[ours].double(), expected[f"scalar.{official}"][0], rtol=1e-5, atol=0, msg=ours)
    groups = make_optimizers(method, OPTIM_V1, OPTIM_V1.lr)["main"].param_groups
    norms = [torch.stack([p.grad.norm() for p in group["params"]]).norm() for group in groups]
    assert_close(torch.stack(norms).double(), expected["grad_norm_per_group"][0], rtol=1e-3, atol=0)


def test_features_and_logits_under_recorded_masks(golden):
    """Clean and perturbed logits of one decoder pass, evaluation mode; stored float32, 1e-5 relative."""
    expected = golden("unimatch/deeplab_os16")
    model = builder(tiny_deeplab, official_names.deeplab(official_names.part(expected, "weight.")))().eval()
    features = model.encode(expected["input"].double())
    masks = expected["fp_mask_c1"].double(), expected["fp_mask_c4"].double()
    dropped = [
        features[0] * masks[0][:, :, None, None],
        features[1],
        features[2],
        features[3] * masks[1][:, :, None, None],
    ]
    doubled = [torch.cat(pair) for pair in zip(features, dropped, strict=True)]
    clean, perturbed = model.classify(model.embed(doubled), (65, 81)).chunk(2)
    assert_close(clean.float(), expected["fp_logits_clean"].float(), rtol=1e-5, atol=1e-5)
    assert_close(perturbed.float(), expected["fp_logits_perturbed"].float(), rtol=1e-5, atol=1e-5)
