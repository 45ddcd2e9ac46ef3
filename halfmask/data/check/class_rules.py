"""Check that the labeled masks can teach every class and the validation masks can measure it, and report odd shapes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from halfmask.data.annotations.drawing import Remark, UndrawnShapes
from halfmask.data.check.finding import Finding, plural
from halfmask.data.check.fingerprint import Fingerprint
from halfmask.data.check.image_rules import split_cure
from halfmask.data.check.mask_rules import labels_of, training_counts
from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.masks.decode import IGNORE

# Below either, a class is reported as rare.
FEWEST_MASKS = 3
SMALLEST_SHARE = 0.001


@dataclass(frozen=True, slots=True)
class ClassCount:
    """How often a class occurs in the masks of a part.

    Args:
        pixels: of that class.
        share: of the pixels that are not ignored.
        masks: that show it.
        example: image that shows most of it.
    """

    id: int
    name: str
    pixels: int
    share: float
    masks: int
    example: str


def count_classes(seen: Fingerprint, part: str = "labeled") -> list[ClassCount]:
    """Count every class in the masks of a part; an empty list if the classes are unknown."""
    if seen.task is None:
        return []
    pixels, masks, most = ([0] * seen.task.n_classes for _ in range(3))
    example = [""] * seen.task.n_classes
    for id in seen.parts.get(part, ()):
        mask = seen.masks.get(id)
        labels = labels_of(seen, mask) if mask is not None and mask.error is None else None
        for value, count in training_counts(mask, labels).items() if mask and labels else ():
            if value == IGNORE or value >= seen.task.n_classes:
                continue
            pixels[value] += count
            masks[value] += 1
            if count > most[value]:
                most[value], example[value] = count, id
    total = sum(pixels) or 1
    return [
        ClassCount(i, name, pixels[i], pixels[i] / total, masks[i], example[i])
        for i, name in enumerate(seen.task.classes)
    ]


def unknown_classes(seen: Fingerprint) -> Iterator[Finding]:
    """Report why the classes, or the lists, cannot be read."""
    told = {str(image.error) for image in seen.images.values()} | {str(mask.error) for mask in seen.masks.values()}
    for error in seen.failures:
        if str(error) in told:
            continue  # a broken file; it is listed as such
        if error.code == "H210" and not seen.masks:
            continue  # nothing is labeled, which is said elsewhere
        what, cure = split_cure(error, str(seen.root))
        concerned = [mask for mask in seen.masks.values() if error.code != "H206" or mask.kind == "colors"]
        files = tuple(mask.path for mask in concerned) if seen.task is None else ()
        yield Finding("error", error.code, what, max(1, len(files)), next(iter(files), ""), cure, files)


def absent_classes(seen: Fingerprint) -> Iterator[Finding]:
    """Find classes that no labeled mask, or no validation mask, shows."""
    labeled = count_classes(seen)
    crowds = {name for remark in remarks_of(seen) if remark.code == "H163" for name in remark.labels}
    absent = [count for count in labeled if not count.pixels and count.name not in crowds]  # which has its own cure
    if any(mask.error is not None for mask in seen.masks.values()):
        absent = []  # what the broken ones show is not known
    if absent and len(absent) == len(labeled) and seen.parts.get("labeled"):
        text = "no labeled mask shows any class: nothing can be learned"
        yield Finding("error", "H210", text, len(absent), "", "draw at least two classes in the masks")
    elif absent and seen.parts.get("labeled"):
        listed = _names(absent)
        text = f"{plural(len(absent), 'class', 'classes')} in no labeled mask: {listed}: cannot be learned"
        yield Finding("warning", "H121", text, len(absent), absent[0].name)
    present = {count.id for count in labeled if count.pixels}
    unseen = [c for c in count_classes(seen, "val") if not c.pixels and c.id in present]
    if unseen and seen.parts.get("val"):
        text = f"{plural(len(unseen), 'class', 'classes')} in no validation mask: {_names(unseen)}"
        yield Finding("warning", "H122", text, len(unseen), unseen[0].name)


def rare_classes(seen: Fingerprint) -> Iterator[Finding]:
    """Find classes with few pixels, or in few masks."""
    total = len(seen.parts.get("labeled", ()))
    counts = [count for count in count_classes(seen) if count.pixels]
    rare = [c for c in counts if c.share < SMALLEST_SHARE or (c.masks < FEWEST_MASKS and total >= FEWEST_MASKS)]
    if rare:
        rare.sort(key=lambda count: count.pixels)
        shown = ", ".join(
            f"{c.name} ({_percent(c.share)} of the pixels, in {c.masks} of {total} masks)" for c in rare[:4]
        ) + (f" and {len(rare) - 4} more" if len(rare) > 4 else "")
        text = f"{plural(len(rare), 'class', 'classes')} with few labeled pixels: {shown}"
        yield Finding("warning", "H120", text, len(rare), rare[0].example)


def unnamed_classes(seen: Fingerprint) -> Iterator[Finding]:
    """Find classes called class_0, class_1, ... because nobody named them."""
    if seen.task is not None and seen.layout is not None:
        unnamed = [name for id, name in enumerate(seen.task.classes) if name == f"class_{id}"]
        if unnamed:
            yield Finding("note", "H123", f"{plural(len(unnamed), 'class', 'classes')} without a name", len(unnamed))


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.3%}"


def _names(counts: Sequence[ClassCount]) -> str:
    shown = ", ".join(count.name for count in counts[:6])
    return shown + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")


def shapes(seen: Fingerprint) -> Iterator[Finding]:
    """Report shapes without area or outside, crowds, names that are nearly the same, files beside that are not used."""
    tally = UndrawnShapes()
    for id, mask in seen.masks.items():
        tally.note(id, mask.left_out)
    for remark in (*remarks_of(seen), *tally.remarks):
        example = next(iter(remark.files), "")
        yield Finding(remark.level, remark.code, remark.text, remark.number, example, remark.cure, remark.files)


def remarks_of(seen: Fingerprint) -> tuple[Remark, ...]:
    """Return what the annotation files say as a whole; nothing where their classes cannot be told."""
    return seen.dataset.remarks if isinstance(seen.dataset, Folder) and seen.task is not None else ()


RULES = (unknown_classes, shapes, absent_classes, rare_classes, unnamed_classes)
