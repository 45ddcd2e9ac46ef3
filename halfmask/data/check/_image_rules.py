"""What images and their names have wrong with them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from halfmask.data.check._files import ImageFacts
from halfmask.data.check._finding import Finding, plural
from halfmask.data.check._fingerprint import Fingerprint
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
        yield Finding("error", code, f"{plural(len(found), what)}: {name}: {reason}", len(found), name, cure)


def unreadable_images(seen: Fingerprint) -> Iterator[Finding]:
    """Broken, empty, too large, too deep, or with other bands than the dataset."""
    yield from gather_errors(((f.id, f.error) for f in seen.images.values() if f.error is not None), "image")


def rotated(seen: Fingerprint) -> Iterator[Finding]:
    """EXIF orientation, and masks for which it matters."""
    turned = [f for f in seen.images.values() if f.header is not None and f.header.orientation > 1]
    if not turned:
        return
    first = turned[0]
    yield Finding("note", "H101", f"{plural(len(turned), 'image')} carry an EXIF rotation", len(turned), first.id)
    raw, unclear = [], []
    for facts in turned:
        mask, header = seen.masks.get(facts.id), facts.header
        if mask is None or mask.size is None or header is None:
            continue
        if header.upright == header.stored:
            unclear.append(mask.path)
        elif mask.size == header.stored:
            raw.append(mask.path)
    if raw:
        yield Finding(
            "note", "H114", f"{plural(len(raw), 'mask')} drawn on the image as stored, not upright", len(raw), raw[0]
        )
    if unclear:
        yield Finding(
            "warning",
            "H115",
            f"{plural(len(unclear), 'mask')} of images whose rotation keeps their size: drawn upright or as stored?",
            len(unclear),
            unclear[0],
        )


def odd_sizes(seen: Fingerprint) -> Iterator[Finding]:
    """Tiny and huge images."""
    sized = [(f.id, f.header.upright) for f in seen.images.values() if f.header is not None]
    tiny = [(id, size) for id, size in sized if min(size) < SMALLEST_SIDE]
    if tiny:
        id, (height, width) = tiny[0]
        yield Finding(
            "warning",
            "H102",
            f"{plural(len(tiny), 'image')} of less than {SMALLEST_SIDE} pixels on a side ({width}x{height})",
            len(tiny),
            id,
        )
    huge = [(id, size) for id, size in sized if size[0] * size[1] > LARGEST_PIXELS]
    if huge:
        id, (height, width) = huge[0]
        text = f"{plural(len(huge), 'image')} of more than 30 million pixels ({width}x{height}): every crop decodes all"
        yield Finding("warning", "H104", text, len(huge), id)


def mixed_modes(seen: Fingerprint) -> Iterator[Finding]:
    """Gray between color, alpha, animations, NaN."""
    good = [f for f in seen.images.values() if f.error is None and f.mode]
    kinds = Counter(_kind(f) for f in good)
    if len(kinds) > 1:
        rarest = kinds.most_common()[-1][0]
        shown = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common())
        example = next(f.id for f in good if _kind(f) == rarest)
        yield Finding("warning", "H103", f"kinds of images are mixed: {shown}", len(kinds), example)
    moving = [f for f in good if f.frames > 1]
    if moving:
        text = f"{plural(len(moving), 'animated image')}: only the first of {moving[0].frames} frames is read"
        yield Finding("warning", "H105", text, len(moving), moving[0].id)
    holes = [f for f in seen.images.values() if not f.finite]
    if holes:
        text = f"{plural(len(holes), 'image')} with pixels that are not numbers (NaN, infinity): read as black"
        yield Finding("warning", "H106", text, len(holes), holes[0].id)


def names(seen: Fingerprint) -> Iterator[Finding]:
    """Names and files that other systems, or this package, treat differently than one expects."""
    tree = seen.tree
    if tree.colliding:
        first = tree.colliding[0]
        text = f"{plural(len(tree.colliding), 'name')} differing in case only: {' and '.join(first[:2])}"
        yield Finding("warning", "H150", text, len(tree.colliding), first[0])
    if tree.links:
        text = f"{plural(len(tree.links), 'symbolic link')} to folders (or to nothing): not followed"
        yield Finding("warning", "H151", text, len(tree.links), tree.links[0])
    if tree.foreign:
        count = sum(len(files) for files in tree.foreign.values())
        shown = ", ".join(f"{suffix} ({len(files)})" for suffix, files in sorted(tree.foreign.items()))
        first_file = next(iter(tree.foreign.values()))[0]
        yield Finding(
            "warning", "H152", f"{plural(count, 'file')} of kinds that are not read: {shown}", count, first_file
        )


def _kind(facts: ImageFacts) -> str:
    if facts.mode in _TRANSPARENT:
        return f"transparent {'gray' if facts.mode == 'LA' else 'color'}"
    return "gray" if facts.mode in _GRAY else "color" if facts.mode in {"RGB", "P", "CMYK"} else facts.mode


RULES = (unreadable_images, rotated, odd_sizes, mixed_modes, names)
