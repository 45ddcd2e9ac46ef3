"""The result of a check, as text for people and as plain data for programs."""

import itertools
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from halfmask.data.check import class_rules as _class_rules
from halfmask.data.check import image_rules as _image_rules
from halfmask.data.check import mask_rules as _mask_rules
from halfmask.data.check import part_rules as _part_rules
from halfmask.data.check.class_rules import ClassCount, count_classes
from halfmask.data.check.finding import Finding, plural
from halfmask.data.check.fingerprint import PARTS, Fingerprint, size_counts
from halfmask.data.check.image_rules import plain_mode

_RULES: tuple[Callable[[Fingerprint], Iterator[Finding]], ...] = (
    *_class_rules.RULES[:1],  # why the classes are unknown comes first
    *_image_rules.RULES,
    *_mask_rules.RULES,
    *_class_rules.RULES[1:],
    *_part_rules.RULES,
)
_LEVELS = ("error", "warning", "note")
_WIDTH = 110


@dataclass(frozen=True)
class Report:
    """What was found.

    Args:
        data: folder, as it was given.
        seen: all facts.
        findings: errors first, then warnings, then notes.
        wrote: file that `--fix` wrote, and its keys.
    """

    data: str
    seen: Fingerprint
    findings: tuple[Finding, ...]
    wrote: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether no error was found."""
        return not any(finding.level == "error" for finding in self.findings)

    @property
    def images_per_second(self) -> float:
        """Speed of the check, in images per second."""
        return len(self.seen.images) / max(self.seen.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        seen = self.seen
        images = seen.images.values()
        return {
            "data": self.data,
            "usable": self.usable,
            "layout": {"name": seen.layout.name, "reason": seen.layout.reason} if seen.layout else None,
            "images": {part: len(seen.parts.get(part, ())) for part in PARTS},
            "sizes": [{"width": w, "height": h, "images": n} for (h, w), n in size_counts(list(images)).most_common()],
            "modes": dict(Counter(facts.mode for facts in images if facts.mode).most_common()),
            "rotated": sum(facts.header is not None and facts.header.orientation > 1 for facts in images),
            "classes": {
                part: [asdict(count) for count in count_classes(seen, part)]
                for part in ("labeled", "val", "test")
                if seen.parts.get(part)
            },
            "findings": [finding.to_dict() for finding in self.findings],
            "wrote": list(self.wrote),
            "seconds": round(seen.seconds, 3),
            "images_per_second": round(self.images_per_second, 1),
        }

    def __str__(self) -> str:
        lines = [*_summary(self.seen), *(_wrap(str(finding)) for finding in self.findings)]
        count = Counter(finding.level for finding in self.findings)
        if self.usable:
            lines.append(f"no errors. next: halfmask train --data {self.data} --out runs/first")
        else:
            them = "it" if count["error"] == 1 else "them"
            lines.append(f"{plural(count['error'], 'error')}: mend {them} first, then check again")
        return "\n".join(lines)


def judge(data: str, seen: Fingerprint, wrote: tuple[str, ...] = ()) -> Report:
    """Apply every rule to the facts."""
    findings: Iterable[Finding] = itertools.chain.from_iterable(rule(seen) for rule in _RULES)
    return Report(data, seen, tuple(sorted(findings, key=lambda finding: _LEVELS.index(finding.level))), wrote)


def _summary(seen: Fingerprint) -> Iterator[str]:
    if seen.layout is not None:
        yield f"layout   {seen.layout.name}: {seen.layout.reason}"
    elif seen.dataset is not None:
        yield f"dataset  {type(seen.dataset).__name__}"
    if not seen.images:
        return
    counts = [f"{len(seen.parts[part]):,} {part}" for part in PARTS if seen.parts.get(part)]
    yield f"images   {sum(len(ids) for ids in seen.parts.values()):,}: {', '.join(counts)}"
    sizes = size_counts(list(seen.images.values())).most_common()
    shown = ", ".join(f"{width}x{height} ({count:,})" for (height, width), count in sizes[:4])
    yield f"size     {shown}" + (f" and {plural(len(sizes) - 4, 'more size')}" if len(sizes) > 4 else "")
    modes = Counter(plain_mode(facts.mode) for facts in seen.images.values() if facts.mode).most_common()
    kinds = ", ".join(f"{mode} ({count:,})" for mode, count in modes[:4])
    yield f"pixels   {kinds}" + (f" and {plural(len(modes) - 4, 'more kind')}" if len(modes) > 4 else "")
    yield from _classes(count_classes(seen))


def _classes(counts: list[ClassCount]) -> Iterator[str]:
    if not any(count.pixels for count in counts):
        return
    cells = [f"{count.id} {count.name} {count.share:.1%}" for count in counts]
    text = textwrap.fill("   ".join(cell.replace(" ", "\0") for cell in cells), _WIDTH - 9, break_long_words=False)
    for number, line in enumerate(text.replace("\0", " ").splitlines()):
        yield ("classes  " if not number else "         ") + line


def _wrap(text: str) -> str:
    """Break long lines, never inside a word: names of files stay whole."""
    wrap = partial(textwrap.wrap, width=_WIDTH, break_long_words=False, break_on_hyphens=False)
    first, *rest = text.splitlines()
    lines = wrap(first, subsequent_indent="  ")
    for line in rest:
        lines += wrap(line.strip(), initial_indent="  ", subsequent_indent="       ")
    return "\n".join(lines)
