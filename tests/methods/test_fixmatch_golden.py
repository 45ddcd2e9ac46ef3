"""Three training steps of both published forms of FixMatch, from recorded weights, views and boxes.

Everything runs in float64, as recorded; stored float32 tensors carry 6e-8 relative.
"""

from torch import Tensor

from halfmask.batch import Batch
from halfmask.methods.fixmatch import FixMatch
from tests.methods import official_names
from tests.methods.golden_run import (
    OPTIM_V1,
    OPTIM_V2,
    TASK,
    Recorded,
    batch_of,
    builder,
    check_sums,
    check_trajectory,
    check_weights,
    tiny_deeplab,
    tiny_dpt,
    train,
)

NAMES = {"loss": "loss_all", "loss_sup": "loss_x", "loss_unsup": "loss_s"}


def give(method: FixMatch, data: dict[str, Tensor]) -> Batch:
    """Put the recorded draws of a step into the method: strong view 1 and box 1."""
    batch = batch_of(data)
    method.strong = Recorded()
    method.strong.views_of = {id(batch.unlabeled.image): [data["img_u_s1"].double()]}
    if batch.partner is not None:
        method.strong.views_of[id(batch.partner.image)] = [data["img_u_s1_mix"].double()]
    method.boxes = lambda shape, device: data["cutmix_box1"].bool()
    return batch


def test_fixmatch_with_a_teacher_repeats_the_published_run(golden):
    inputs, expected = golden("unimatch/v2_train_inputs"), golden("unimatch/v2_train_fixmatch")
    initial = official_names.dpt(official_names.part(inputs, "init."))
    method = FixMatch(TASK, builder(tiny_dpt, initial), threshold=0.8)
    trained = train(method, inputs, OPTIM_V2, lambda step, data: give(method, data))

    check_trajectory(trained, expected, NAMES)
    assert method.predictors().keys() == {"teacher", "student"}
    check_weights(method, expected, official_names.dpt)
    check_sums(method, inputs, expected)


def test_fixmatch_without_a_teacher_repeats_the_published_run(golden):
    inputs, expected = golden("unimatch/v1_train_inputs"), golden("unimatch/v1_train_fixmatch")
    initial = official_names.deeplab(official_names.part(inputs, "init."))
    method = FixMatch(
        TASK, builder(tiny_deeplab, initial), threshold=0.5, teacher="student", cutmix_partner="same_view"
    )
    assert (method.draws, method.draws_share_images) == (2, True)
    trained = train(method, inputs, OPTIM_V1, lambda step, data: give(method, data))

    check_trajectory(trained, expected, NAMES)
    # Weights and running statistics of every batch norm.
    check_weights(method, expected, official_names.deeplab)
    check_sums(method, inputs, expected)
