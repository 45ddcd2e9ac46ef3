"""What masks have wrong with them: pairs that do not fit, values without a meaning, nothing but 255."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from halfmask.data.check.file_facts import MaskFacts
from halfmask.data.check.finding import Finding, about, plural
from halfmask.data.check.fingerprint import Fingerprint
from halfmask.data.check.image_rules import gather_errors
from halfmask.data.folder.files import FileDataset
from halfmask.data.folder.layouts import unused_images
from halfmask.data.folder.masks.decode import IGNORE, LabelMap, binary_cure, off_by_one_cure
from halfmask.data.folder.masks.forms import MaskForm, disagreements, hidden_layer, palette_ids
from halfmask.data.folder.masks.ids import contradiction
from halfmask.data.folder.pairing import differ_in_form_only
from halfmask.errors import DataError
from halfmask.palette import Color

_MOST_SHOWN = 8


def unreadable_masks(seen: Fingerprint) -> Iterator[Finding]:
    """Find masks that are broken, empty, JPEG, or hold fractions."""
    yield from gather_errors(((m.path, m.error) for m in seen.masks.values() if m.error is not None), "mask")


def wrong_sizes(seen: Fingerprint) -> Iterator[Finding]:
    """Find masks that have neither the upright nor the stored size of their image."""
    wrong = []
    for id, mask in seen.masks.items():
        header = seen.images[id].header
        labels = labels_of(seen, mask)
        if mask.size is None or header is None or (labels is not None and labels.resize):
            continue
        if mask.size not in {header.upright, header.stored}:
            wrong.append((mask, id, header.upright))
    text = ""
    for mask, id, (height, width) in wrong[:1]:
        rows, columns = mask.size or (0, 0)
        text = f"of another size than the image: {mask.path} is {columns}x{rows}, {id} is {width}x{height}"
    yield from about("error", "H202", [mask.path for mask, *_ in wrong], "mask", text)


def pairs(seen: Fingerprint) -> Iterator[Finding]:
    """Find masks without an image, images that nothing uses, and evaluation images without a mask."""
    if seen.layout is not None:
        yield from about("warning", "H110", seen.layout.orphans, "mask", "without an image")
        apart = [id for id, mask in seen.layout.masks.items() if differ_in_form_only(id, mask)]
        yield from about(
            "note", "H126", apart, "image", "paired with masks whose names differ in their Unicode form only"
        )
        unused = unused_images(seen.layout)
        yield from about("warning", "H117", unused, "image", "in no folder that the layout knows: not used")
    yield from about("warning", "H116", seen.bare, "validation or test image", "without a mask: not used")


def agreement(seen: Fingerprint) -> Iterator[Finding]:
    """Find masks that store their values in another way than the others, or have a second meaning in alpha."""
    read = [mask for mask in seen.masks.values() if mask.form is not None and mask.error is None]
    forms = {mask.path: mask.form for mask in read if mask.form is not None}
    labels = labels_of(seen, read[0]) if read else None

    def class_of(value: int) -> str | None:
        id = labels.training_id(value) if labels is not None else -1
        return seen.task.classes[id] if seen.task is not None and 0 <= id < seen.task.n_classes else None

    for found in disagreements(forms, labels.colors if labels is not None else None, class_of):
        yield Finding(found.level, found.code, found.text, len(found.files), found.files[0], files=found.files)
    if labels is None or not labels.transparent_ignored:
        yield from gather_errors(
            ((path, hidden_layer(Path(path))) for path, form in forms.items() if form.hidden), "mask"
        )
    if labels is not None and labels.colors:
        yield from gather_errors(_half_named(forms, labels.colors), "mask")


def _half_named(forms: Mapping[str, MaskForm], colors: Mapping[Color, int]) -> Iterator[tuple[str, DataError]]:
    """Find palettes that contradict `palette` of halfmask.yaml."""
    for path, form in forms.items():
        try:
            palette_ids(form, colors, Path(path))
        except DataError as error:
            yield path, error


def values(seen: Fingerprint) -> Iterator[Finding]:
    """Find values and colors that name no class, and list what is read as "ignore"."""
    unknown: dict[int, Counter[str]] = defaultdict(Counter)
    stray: Counter[Color] = Counter()
    stray_masks: list[str] = []
    ignored: list[tuple[float, str]] = []
    empty: list[str] = []
    for mask in seen.masks.values():
        labels = labels_of(seen, mask)
        if mask.error is not None or labels is None:
            continue
        if mask.kind == "colors":
            lost = {c: n for c, n in mask.colors.items() if c not in (labels.colors or {})}
            stray.update(lost)
            stray_masks += [mask.path] if lost else []
        counts = training_counts(mask, labels)
        for value in ids_in(mask, labels):
            if mask.kind != "painted" and labels.training_id(value) < 0:
                unknown[value][mask.path] += ids_in(mask, labels)[value]
        total = sum(counts.values())
        if total and counts.get(IGNORE) == total:
            empty.append(mask.path)
        elif counts.get(IGNORE) and 255 in mask.values:
            ignored.append((counts[IGNORE] / total, mask.path))
    yield from _unknown_values(seen, unknown)
    if stray_masks and seen.task is not None:
        listed = ", ".join(f"{r},{g},{b} ({n:,} px)" for (r, g, b), n in stray.most_common(_MOST_SHOWN))
        yield from about("error", "H206", stray_masks, "mask", f"with colors that name no class: {listed}")
    yield from about("warning", "H113", empty, "mask", "ignored as a whole")
    if ignored:
        share, example = max(ignored, key=lambda item: item[0])
        text = f"255 is ignored: in {plural(len(ignored), 'mask')}, up to {share:.1%} of the pixels"
        yield Finding("note", "H112", text, len(ignored), example, files=tuple(path for _, path in ignored))
    gray = [mask.path for mask in seen.masks.values() if mask.kind == "gray as rgb"]
    yield from about("note", "H111", gray, "mask", "saved as RGB with three equal channels: the first is read as ids")


def mixed_ids(seen: Fingerprint) -> Iterator[Finding]:
    """Find masks that halfmask wrote for another table of ids: predictions and drafts of another model."""
    mixed: dict[str, str] = {}
    for mask in seen.masks.values():
        labels = labels_of(seen, mask)
        if mask.meanings is None or labels is None or seen.task is None:
            continue
        if differ := contradiction(mask.meanings, labels, seen.task.classes):
            mixed[mask.path] = differ
    text = f"that halfmask wrote in other ids than these masks have: {next(iter(mixed.values()), '')}"
    yield from about("error", "H220", list(mixed), "mask", text)


def labels_of(seen: Fingerprint, mask: MaskFacts) -> LabelMap | None:
    """Return the meaning of the values of a mask, if the classes are known."""
    if seen.task is None or not isinstance(seen.dataset, FileDataset):
        return None if seen.task is None else LabelMap(seen.task.n_classes)
    return seen.dataset.labels_of(seen.dataset.root / mask.path)


def ids_in(mask: MaskFacts, labels: LabelMap) -> dict[int, int]:
    """Count the pixels of each stored id; colors without a class are left out."""
    if mask.kind == "ids" and mask.form is not None and mask.form.colors and labels.colors:
        return _moved(mask, labels.colors)
    if mask.kind == "painted" or not mask.colors or (mask.kind == "gray as rgb" and not labels.colors):
        return mask.values
    table = labels.colors or {}
    if mask.kind == "gray as rgb" and not mask.colors.keys() <= table.keys():
        return mask.values
    return _summed((table[color], count) for color, count in mask.colors.items() if color in table)


def _moved(mask: MaskFacts, colors: Mapping[Color, int]) -> dict[int, int]:
    """Count ids of a palette whose colors are named."""
    assert mask.form is not None
    try:
        table = palette_ids(mask.form, colors, Path(mask.path)) or {}
    except DataError:
        return {}  # a finding of its own
    return _summed((table.get(index, index), count) for index, count in mask.values.items())


def training_counts(mask: MaskFacts, labels: LabelMap) -> dict[int, int]:
    """Count the pixels of each training id; values without a meaning are left out."""
    if mask.kind == "painted":
        return mask.values
    ids = ((labels.training_id(value), count) for value, count in ids_in(mask, labels).items())
    return _summed((id, count) for id, count in ids if id >= 0)


def _summed(counts: Iterable[tuple[int, int]]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for id, count in counts:
        total[id] += count
    return dict(total)


def _unknown_values(seen: Fingerprint, unknown: dict[int, Counter[str]]) -> Iterator[Finding]:
    if not unknown or seen.task is None:
        return
    files = {path for counts in unknown.values() for path in counts}
    listed = ", ".join(f"{value} ({plural(len(counts), 'file')})" for value, counts in sorted(unknown.items())[:8])
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    first = next(mask for mask in seen.masks.values() if mask.path in files)
    labels = labels_of(seen, first)
    assert labels is not None  # or no value were unknown
    stored = ids_in(first, labels)
    bad = {value: count for value, count in stored.items() if value in unknown}
    code = labels.unknown_values(Path(first.path), bad, np.array([list(stored)])).code
    named = ", ".join(f"{id} {name}" for id, name in enumerate(seen.task.classes[:6]))
    more_names = ", ..." if len(seen.task.classes) > 6 else ""
    text = f"{plural(len(files), 'mask')} with values that are no class: {listed}{more}. Classes: {named}{more_names}"
    one = min(unknown)
    cure = f"add the class in halfmask.yaml, `classes: {{..., {one}: NAME}}`, or ignore it: `map: {{{one}: 255}}`"
    if set(unknown) == {len(seen.task.classes)} and code == "H203":
        shifted = ", ".join(["0: 255", *(f"{value}: {value - 1}" for value in range(1, one + 1))])
        cure += f"; if 0 means unlabeled and the classes start at 1: `map: {{{shifted}}}`"
    cures = {"H203": cure, "H204": binary_cure(), "H205": off_by_one_cure(len(seen.task.classes))}
    yield Finding("error", code, text, len(files), first.path, cures[code], tuple(sorted(files)))


RULES = (unreadable_masks, wrong_sizes, pairs, agreement, values, mixed_ids)
