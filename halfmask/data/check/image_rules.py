"""What images and their names have wrong with them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from halfmask.data.check.file_facts import ImageFacts
from halfmask.data.check.finding import Finding, about, plural
from halfmask.data.check.fingerprint import Fingerprint
from halfmask.errors import HalfmaskError

SMALLEST_SIDE = 32
LARGEST_PIXELS = 30_000_000
_TRANSPARENT = {"RGBA", "LA", "PA"}
_GRAY = {"L", "1", "LA"}


def split_cure(error: HalfmaskError, name: str) -> tuple[str, str]:
    """Split a message into what was found and what mends it, without the leading file name."""
    text = " ".join(str(error).split())
    text = text.partition(f"{name}: ")[2] or text
    what, stop, cure = text.partition(". ")
    return (what, cure) if stop else (text, "")


def gather_errors(errors: Iterable[tuple[str, HalfmaskError]], what: str) -> Iterator[Finding]:
    """Make one finding of all errors of a code, with the first as the example."""
    by_code: dict[str, list[tuple[str, HalfmaskError]]] = defaultdict(list)
    for name, error in errors:
        by_code[error.code].append((name, error))
    for code, found in sorted(by_code.items()):
        name, error = found[0]
        reason, cure = split_cure(error, name.rpartition("/")[2])
        text = f"{plural(len(found), what)}: {name}: {reason}"
        yield Finding("error", code, text, len(found), name, cure, tuple(name for name, _ in found))


def unreadable_images(seen: Fingerprint) -> Iterator[Finding]:
    """Find images that are broken, empty, too large, too deep, or with other bands than the dataset."""
    yield from gather_errors(((f.id, f.error) for f in seen.images.values() if f.error is not None), "image")


def rotated(seen: Fingerprint) -> Iterator[Finding]:
    """Find images that are turned by EXIF, and the masks for which it matters."""
    turned = [f for f in seen.images.values() if f.header is not None and f.header.orientation > 1]
    many = "images carry an EXIF rotation"
    yield from about("note", "H101", [facts.id for facts in turned], "image carries an EXIF rotation", many=many)
    raw, unclear = [], []
    for facts in turned:
        mask, header = seen.masks.get(facts.id), facts.header
        if mask is None or mask.size is None or header is None:
            continue
        if header.upright == header.stored:
            unclear.append(mask.path)
        elif mask.size == header.stored:
            raw.append(mask.path)
    yield from about("note", "H114", raw, "mask", "drawn on the image as stored, not upright")
    text = "of images whose rotation keeps their size: drawn upright or as stored?"
    yield from about("warning", "H115", unclear, "mask", text)


def odd_sizes(seen: Fingerprint) -> Iterator[Finding]:
    """Find tiny and huge images."""
    sized = {f.id: f.header.upright for f in seen.images.values() if f.header is not None}
    shown = {id: f"({width}x{height})" for id, (height, width) in sized.items()}
    tiny = [id for id, size in sized.items() if min(size) < SMALLEST_SIDE]
    text = f"of less than {SMALLEST_SIDE} pixels on a side {shown[tiny[0]]}" if tiny else ""
    yield from about("warning", "H102", tiny, "image", text)
    huge = [id for id, (height, width) in sized.items() if height * width > LARGEST_PIXELS]
    text = f"of more than 30 million pixels {shown[huge[0]]}: every crop decodes all" if huge else ""
    yield from about("warning", "H104", huge, "image", text)


def mixed_modes(seen: Fingerprint) -> Iterator[Finding]:
    """Find gray images among color ones, alpha, animations, NaN."""
    good = [f for f in seen.images.values() if f.error is None and f.mode]
    kinds = Counter(_kind(f) for f in good)
    if len(kinds) > 1:
        (usual, _), *_, (rarest, _) = kinds.most_common()
        shown = ", ".join(f"{kind} ({plural(count, 'image')})" for kind, count in kinds.most_common())
        example = next(f.id for f in good if _kind(f) == rarest)
        other = tuple(f.id for f in good if _kind(f) != usual)
        text = f"kinds of images are mixed: {shown}"
        yield Finding("warning", "H103", text, len(kinds), example, files=other)
    moving = {f.id: f.frames for f in good if f.frames > 1}
    if moving:
        text = (
            f"{plural(len(moving), 'animated image')}: only the first of {next(iter(moving.values()))} frames is read"
        )
        yield Finding("warning", "H105", text, len(moving), next(iter(moving)), files=tuple(moving))
    holes = [f.id for f in seen.images.values() if not f.finite]
    text = "with pixels that are not numbers (NaN, infinity): read as black"
    yield from about("warning", "H106", holes, "image", text)


def like_masks(seen: Fingerprint) -> Iterator[Finding]:
    """Find files among photographs that hold only a few values, as masks do."""
    flat = [facts.id for facts in seen.images.values() if facts.flat]
    if 2 * len(flat) <= len(seen.images):
        text = "no more values than a mask does, among photographs"
        yield from about("warning", "H118", flat, "image holds", text, "images hold")


def names(seen: Fingerprint) -> Iterator[Finding]:
    """Find names and files that other systems, or this package, treat differently than one expects."""
    tree = seen.tree
    if tree.colliding:
        first = tree.colliding[0]
        text = f"{plural(len(tree.colliding), 'name')} differing in case only: {' and '.join(first[:2])}"
        every = tuple(name for names in tree.colliding for name in names)
        yield Finding("warning", "H150", text, len(tree.colliding), first[0], files=every)
    yield from about("warning", "H151", tree.links, "symbolic link", "to folders (or to nothing): not followed")
    every = tuple(file for files in tree.foreign.values() for file in files)
    shown = ", ".join(f"{suffix} ({len(files)})" for suffix, files in sorted(tree.foreign.items()))
    yield from about("warning", "H152", every, "file", f"of kinds that are not read: {shown}")
    layout = seen.layout.name if seen.layout is not None else ""
    if layout in {"plain", "images+masks", "parts", "parts inside", "side by side"}:
        level: Literal["warning", "note"] = "warning" if layout == "plain" else "note"
        yield from about(level, "H167", tree.annotations, "annotation file", "of forms that are not read")


def _kind(facts: ImageFacts) -> str:
    if facts.mode in _TRANSPARENT:
        return f"transparent {'gray' if facts.mode == 'LA' else 'color'}"
    return "gray" if facts.mode in _GRAY else "color" if facts.mode in {"RGB", "P", "CMYK"} else plain_mode(facts.mode)


def plain_mode(mode: str) -> str:
    """Say the type and bands of arrays in words.

    >>> plain_mode("uint16 x1"), plain_mode("float32 x5"), plain_mode("uint8 x5"), plain_mode("RGB")
    ('16-bit gray', 'float of 5 bands', '8-bit of 5 bands', 'RGB')
    """
    dtype, cut, bands = mode.partition(" x")
    if not cut:
        return mode
    bits = "float" if dtype.startswith("float") else f"{8 * np.dtype(dtype).itemsize}-bit"
    return f"{bits} " + {"1": "gray", "3": "color"}.get(bands, f"of {bands} bands")


RULES = (unreadable_images, rotated, odd_sizes, mixed_modes, like_masks, names)
