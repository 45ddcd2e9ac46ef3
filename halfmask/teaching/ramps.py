"""Schedules as plain functions of Python numbers: they cost no device work and need no state."""

import math
from typing import Literal

RampName = Literal["sigmoid", "linear", "cosine", "log", "exp"]


def ema_ramp(step: int, decay: float) -> float:
    """Return the EMA decay of a step counted from 0: min(1 - 1 / (step + 1), decay).

    The first updates average over all steps so far, so that the teacher does not remember random weights.

    >>> [ema_ramp(step, 0.996) for step in (0, 1, 999)]
    [0.0, 0.5, 0.996]
    """
    return min(1 - 1 / (step + 1), decay)


def sigmoid_ramp(step: int | float, length: int | float) -> float:
    """Return a factor that rises from exp(-5) to 1 as exp(-5 (1 - t)^2), then stays (Laine and Aila, ICLR 2017).

    >>> sigmoid_ramp(0, 10) < 0.01, sigmoid_ramp(10, 10), sigmoid_ramp(0, 0)
    (True, 1.0, 1.0)
    """
    if length <= 0:
        return 1.0
    t = min(max(step / length, 0.0), 1.0)
    return math.exp(-5 * (1 - t) ** 2)


def ramp(name: RampName, step: int | float, length: int | float) -> float:
    """Return a factor that rises to 1 over `length` steps, then stays.

    With t = step / length clipped to [0, 1]: sigmoid exp(-5 (1 - t)^2), linear t, cosine (1 - cos(pi t)) / 2,
    log 1 - exp(-5 t), exp exp(5 (t - 1)).
    The first and the last start at 0.0067, and `log` ends at 0.9933, not 1. Length 0: always 1. (Ouali et al., CCT,
    CVPR 2020.)

    >>> [round(ramp(name, 5, 10), 3) for name in ("sigmoid", "linear", "cosine", "log", "exp")]
    [0.287, 0.5, 0.5, 0.918, 0.082]
    """
    if length <= 0:
        return 1.0
    t = min(max(step / length, 0.0), 1.0)
    rises = {
        "sigmoid": math.exp(-5 * (1 - t) ** 2),
        "linear": t,
        "cosine": (1 - math.cos(math.pi * t)) / 2,
        "log": 1 - math.exp(-5 * t),
        "exp": math.exp(5 * (t - 1)),
    }
    return rises[name]


def ramped_weight(
    weight: float, step: int | float, length: int | float, *, name: RampName = "sigmoid", start: int | float = 0
) -> float:
    """Return weight * ramp of the steps since `start`; 0 before it.

    >>> ramped_weight(30.0, 49, 200, name="linear", start=50), ramped_weight(30.0, 150, 200, name="linear", start=50)
    (0.0, 15.0)
    """
    return 0.0 if step < start else weight * ramp(name, step - start, length)
