"""What annotation files hold that is not in the masks, or that may be meant otherwise."""

from collections.abc import Iterator

from halfmask.data.annotations.drawing import Remark, Tally
from halfmask.data.check.finding import Finding
from halfmask.data.check.fingerprint import Fingerprint
from halfmask.data.datasets.folder import Folder


def shapes(seen: Fingerprint) -> Iterator[Finding]:
    """Shapes without area or outside, crowds, names that are nearly the same, files beside that are not used."""
    tally = Tally()
    for id, mask in seen.masks.items():
        tally.note(id, mask.left_out)
    for remark in (*remarks_of(seen), *tally.remarks):
        example = next(iter(remark.files), "")
        yield Finding(remark.level, remark.code, remark.text, remark.number, example, remark.cure, remark.files)


def remarks_of(seen: Fingerprint) -> tuple[Remark, ...]:
    """Return what the annotation files say as a whole; nothing where their classes cannot be told."""
    return seen.dataset.remarks if isinstance(seen.dataset, Folder) and seen.task is not None else ()


RULES = (shapes,)
