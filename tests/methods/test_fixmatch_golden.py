"""Three training steps of both published forms of FixMatch, from recorded weights, views and boxes.

Everything runs in float64, as recorded; stored float32 tensors carry 6e-8 relative.
"""

from torch import Tensor

from halfmask.batch import Batch
from halfmask.methods.fixmatch import FixMatch
from halfmask.recipe import OptimRecipe
from tests.methods import official_names
from tests.methods.golden_run import (
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
    initial = official_names.part(inputs, "init.")
    method = FixMatch(TASK, builder(tiny_dpt, official_names.dpt(initial)), threshold=0.8)
    optim = OptimRecipe(lr=2e-4, decoder_lr_scale=5.0, schedule_lag=1, weight_decay=0.01)
    trained = train(method, inputs, optim, lambda step, data: give(method, data))

    check_trajectory(trained, expected, NAMES)
    teacher, student = method.predictors()["teacher"], method.predictors()["student"]
    check_weights(student, official_names.dpt(official_names.part(expected, "final.")))
    check_weights(teacher, official_names.dpt(official_names.part(expected, "final_ema.")))
    unused = {key: value for key, value in initial.items() if key.startswith(official_names.UNUSED)}
    check_sums(student, unused, expected, "student")
    check_sums(teacher, unused, expected, "ema")


def test_fixmatch_without_a_teacher_repeats_the_published_run(golden):
    inputs, expected = golden("unimatch/v1_train_inputs"), golden("unimatch/v1_train_fixmatch")
    initial = official_names.deeplab(official_names.part(inputs, "init."))
    method = FixMatch(
        TASK, builder(tiny_deeplab, initial), threshold=0.5, teacher="student", cutmix_partner="same_view"
    )
    assert (method.draws, method.draws_share_images) == (2, True)
    optim = OptimRecipe(name="sgd", lr=1e-3, decoder_lr_scale=10.0, schedule_lag=1, weight_decay=1e-4, momentum=0.9)
    trained = train(method, inputs, optim, lambda step, data: give(method, data))

    check_trajectory(trained, expected, NAMES)
    # Weights and running statistics of every batch norm.
    check_weights(method.student, official_names.deeplab(official_names.part(expected, "final.")))
    check_sums(method.student, {}, expected, "student")
