"""Schedules as plain functions of Python numbers: they cost no device work and need no state."""

import math


def ema_ramp(step: int, decay: float) -> float:
    """Give the EMA decay of a step counted from 0: min(1 - 1 / (step + 1), decay).

    The first updates average over all steps so far, so that the teacher does not remember random weights.

    >>> [ema_ramp(step, 0.996) for step in (0, 1, 999)]
    [0.0, 0.5, 0.996]
    """
    return min(1 - 1 / (step + 1), decay)


def sigmoid_ramp(step: int | float, length: int | float) -> float:
    """Rise from exp(-5) to 1 over `length` steps as exp(-5 (1 - t)^2), then stay (Laine and Aila, ICLR 2017).

    >>> sigmoid_ramp(0, 10) < 0.01, sigmoid_ramp(10, 10), sigmoid_ramp(0, 0)
    (True, 1.0, 1.0)
    """
    if length <= 0:
        return 1.0
    t = min(max(step / length, 0.0), 1.0)
    return math.exp(-5 * (1 - t) ** 2)
