"""Look at every file of a dataset and say what is wrong, or odd, with a code, a count, an example and a cure.

`take_fingerprint` gathers facts in one pass over the files; every rule is a pure function of them.
"""

from halfmask.data.check.finding import Finding
from halfmask.data.check.fingerprint import Fingerprint, take_fingerprint
from halfmask.data.check.proposal import propose, render
from halfmask.data.check.result import Report, judge

__all__ = ["Finding", "Fingerprint", "Report", "judge", "propose", "render", "take_fingerprint"]
