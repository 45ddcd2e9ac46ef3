"""Check every file of a dataset and report what is wrong, or odd, with a code, a count, an example and a cure.

Reading order: `check` (the verb), `fingerprint` with `file_facts` (facts, gathered in one pass over the files),
`mask_rules`, `image_rules`, `class_rules` and `part_rules` (pure functions of the facts), `near_duplicates`, `finding`
and `result` (the report), `proposal` (the halfmask.yaml that `--fix` writes).
"""

from halfmask.data.check.finding import Finding
from halfmask.data.check.fingerprint import Fingerprint, take_fingerprint
from halfmask.data.check.proposal import propose, render
from halfmask.data.check.result import Report, judge

__all__ = ["Finding", "Fingerprint", "Report", "judge", "propose", "render", "take_fingerprint"]
