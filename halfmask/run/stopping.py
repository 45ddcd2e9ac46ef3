"""Ctrl-C and SIGTERM while a run trains: the first asks it to stop after the step, a second Ctrl-C stops it at once.

Lightning would turn Ctrl-C into exit code 1, and a SIGTERM at the wrong moment into success. So both signals are ours
from before the trainer starts until it has returned.
"""

import signal
import sys
from types import FrameType
from typing import Any, ClassVar

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopNow(BaseException):
    """A second Ctrl-C: nothing is finished, nothing is saved."""


class StopRequest:
    """Whether a run was asked to stop, and by what.

    Args:
        quiet: do not say that the wish was heard.

    Attributes:
        signal: that asked; on another rank, SIGTERM stands for it.
    """

    codes: ClassVar[dict[signal.Signals, int]] = {number: 128 + number for number in SIGNALS}  # as shells count

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.signal: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Take the signals over."""
        self.hold()
        return self

    def __exit__(self, *failure: object) -> None:
        """Give the signals back."""
        for number, former in self._former.items():
            signal.signal(number, former)
        self._former = {}

    def hold(self) -> None:
        """Take the signals over, again if a library took them meanwhile; only possible in the main thread."""
        for number in SIGNALS:
            try:
                before = signal.signal(number, self._heard)
            except ValueError:
                return
            self._former.setdefault(number, before)

    @property
    def exit_code(self) -> int:
        """What the command line returns: 130 for Ctrl-C, 143 for SIGTERM."""
        return self.codes[self.signal or signal.SIGINT]

    def _heard(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, self.signal or signal.Signals(number)
        if again and number == signal.SIGINT:
            raise StopNow
        if not self.quiet and not again:
            cure = " Press Ctrl-C again to stop at once." if number == signal.SIGINT else ""
            print(f"stopping after this step, then saving.{cure}", file=sys.stderr, flush=True)
