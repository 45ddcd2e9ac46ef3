"""Moving average of a network's weights."""

from halfmask.bench.networks import dinov2_dpt
from halfmask.bench.row import Pair, Row, Setting, Target, at_least, close
from halfmask.reference.ema import ema_update
from halfmask.teaching.ema import ema_copy


def _ema(setting: Setting) -> Pair:
    student = dinov2_dpt(setting, classes=21)
    looped, teacher = ema_copy(student), ema_copy(student)
    for parameter in student.parameters():
        parameter.data.add_(0.1)  # otherwise the average has nothing to do

    def reference():  # type: ignore[no-untyped-def]  # noqa: ANN202
        ema_update(looped.model, student, 0.996)
        return list(looped.model.state_dict().values())

    def fast():  # type: ignore[no-untyped-def]  # noqa: ANN202
        teacher.update(student, 0.996)
        return list(teacher.model.state_dict().values())

    size = sum(tensor.nbytes for tensor in student.state_dict().values())
    return Pair(reference, fast, close(atol=1e-6), traffic=3 * size)  # both are read, one is written


ROWS = [
    Row(
        "ema",
        "ViT-S + DPT, 25 M weights",
        _ema,
        "average of all weights: tensor by tensor | all at once",
        {"cpu": at_least(time=2.5), "cuda": {"launches": Target(most=10.0), "syncs": Target(most=0.0)}},
    )
]
