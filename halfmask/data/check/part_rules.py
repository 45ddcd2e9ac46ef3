"""Whether the parts suffice for training and for believing its result: leakage, validation, stale lists."""

import itertools
import math
from collections.abc import Iterator

from halfmask.data.check.finding import Finding, Level, about, plural
from halfmask.data.check.fingerprint import Fingerprint

# `resolve_split` holds a fifth out from here on.
FEWEST_FOR_HOLD_OUT = 5
FEW_FOR_VALIDATION = 10
# Standard deviation of one image's IoU that the estimate of certainty supposes, in points.
SPREAD = 15.0
_A = {"labeled": "a labeled", "unlabeled": "an unlabeled", "val": "a val", "test": "a test"}


def uncertainty(images: int) -> float:
    """Return half the width, in points, of the 95 % interval of a mean IoU over so many images.

    Supposes that the IoU of single images varies by 15 points (standard deviation): 1.96 * 15 / sqrt(n).

    >>> round(uncertainty(3)), round(uncertainty(100))
    (17, 3)
    """
    return 1.96 * SPREAD / math.sqrt(images)


def leakage(seen: Fingerprint) -> Iterator[Finding]:
    """Find images that occur, nearly the same, in a part for training and in one for evaluation."""
    found: dict[str, list[Finding]] = {"H130": [], "": []}  # what spoils a score comes first
    for (one, other), pairs in seen.near_duplicates.items():
        level: Level = "note" if one == "unlabeled" and one != other else "warning"
        code = "H131" if one == other else "H132" if one == "unlabeled" else "H130"
        like = "another" if one == other else _A[other]
        text = f"nearly the same as {like} one: {' and '.join(pairs[0])}" if pairs else ""
        findings = about(level, code, [copy for copy, _ in pairs], f"{one} image", text)
        found[code if code in found else ""] += findings
    yield from itertools.chain(*found.values())


def validation(seen: Fingerprint) -> Iterator[Finding]:
    """Report too few validation images for a result that is more than chance, or none."""
    labeled, val = len(seen.parts.get("labeled", ())), len(seen.parts.get("val", ()))
    if not labeled:
        return
    supposed = f"(95 %, if single images vary by {SPREAD:g} points)"
    if val:
        if val < FEW_FOR_VALIDATION:
            text = f"{plural(val, 'validation image')}: the mean IoU is uncertain by +-{uncertainty(val):.0f} points"
            yield Finding("warning", "H141", f"{text} {supposed}", val)
    elif labeled < FEWEST_FOR_HOLD_OUT:
        text = f"no validation set: with {plural(labeled, 'labeled image')} none can be held out"
        cure = f"label {FEWEST_FOR_HOLD_OUT - labeled} more"
        if labeled > 1:
            cure += f"; or train with --folds {labeled}, which scores the model on each of the {labeled} masks"
        cure += ". Without either no score is known, and the last weights are kept"
        yield Finding("warning", "H140", text, labeled, "", cure)
    else:
        held = labeled // 5
        text = f"no validation set: {held} of {labeled} labeled images will be held out; the mean IoU is then uncertain"
        cure = "name a part or a list of labeled images with data.val; 4 times as many halve the uncertainty"
        if held < FEW_FOR_VALIDATION:
            cure = f"train with --folds 5, which scores all {labeled} labeled images; or name more of these: data.val"
        yield Finding("warning", "H140", f"{text} by +-{uncertainty(held):.0f} points {supposed}", held, "", cure)


def amounts(seen: Fingerprint) -> Iterator[Finding]:
    """Report too few labeled images, or no unlabeled ones."""
    if seen.dataset is None:
        return
    labeled, unlabeled = len(seen.parts.get("labeled", ())), len(seen.parts.get("unlabeled", ()))
    if not labeled:
        cure = "put masks named like their images into masks/, or name a list with data.labeled"
        yield Finding("error", "H210", f"no image has a mask ({plural(unlabeled, 'image')})", cure=cure)
    elif 0 < labeled < FEWEST_FOR_HOLD_OUT:
        yield Finding("warning", "H142", f"{plural(labeled, 'labeled image')}", labeled, seen.parts["labeled"][0])
    if labeled and not unlabeled:
        text = "no unlabeled images: there is nothing to learn from but the masks"
        cure = "add images without masks, use fewer masks (--labeled N), or train with --method supervised"
        yield Finding("warning", "H143", text, cure=cure)


def stale_lists(seen: Fingerprint) -> Iterator[Finding]:
    """Find lists in splits/ that name images which are not there."""
    if seen.stale:
        name, (absent, total) = next(iter(seen.stale.items()))
        what = plural(len(seen.stale), "list in splits/ names", "lists in splits/ name")
        text = f"{what} images that are not there: {name} ({len(absent)} of {total})"
        yield Finding("warning", "H153", text, len(seen.stale), absent[0], files=tuple(seen.stale))


RULES = (leakage, validation, amounts, stale_lists)
