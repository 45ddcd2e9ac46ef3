"""Find image pairs of two dates, and their labels, in the folders of change detection.

    flat           A/NAME  B/NAME  label/NAME      parts by {list,splits}/{train,val,test}.txt, if there are any
    parts inside   A/PART/NAME  B/PART/NAME  label/PART/NAME
    parts          PART/A/NAME  PART/B/NAME  PART/label/NAME

A pair's id is the path of its later image, below B/. The earlier image has the same stem, or, where one image of a
fixed camera serves many later ones, a stem that the later one continues: `A/bridge.jpg` for `B/bridge_0025.jpg`. A line
of a list is the name of a pair (its suffix does not matter), or `before after [label]`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from halfmask.data.folder.files import list_images
from halfmask.data.folder.folder_names import MASK_FOLDERS, PART_NAMES
from halfmask.data.folder.lists import read_list
from halfmask.data.folder.pairing import pair
from halfmask.errors import DataError, bullet_list

_DATES = (("A", "B"), ("T1", "T2"), ("time1", "time2"), ("im1", "im2"), ("before", "after"), ("pre", "post"))
_LABELS = (*MASK_FOLDERS, "OUT")
_LISTS = ("list", "lists", "splits", ".")
_PARTS = ("train", "val", "test")
_CONTINUES = ("_", "-", ".")


@dataclass(frozen=True)
class Pairs:
    """What was found; all paths are relative to `root`."""

    root: Path  # of ids, which are the paths of later images
    parts: dict[str, list[str]]  # ids per part, sorted
    before: dict[str, str]  # path of the earlier image per id
    labels: dict[str, str]  # path of the label per id that has one
    names: dict[str, str]  # what both dates share, per id: the path without the folder of the date and without suffix
    listed: bool = False  # parts come from lists in the root

    def files(self, id: str, override: str | None) -> tuple[Path, Path]:
        """Return the earlier and the later image of a pair. Raises DataError: no earlier image is known."""
        before = override or self.before.get(id)
        if before is None:
            raise DataError(
                f"{id}: no earlier image below {self.root} belongs to it. Name both dates alike, or list the pair as "
                "`before after label`.",
                "H201",
            )
        return self.root / before, self.root / id

    def label(self, id: str) -> Path | None:
        """Return where the label of a pair lies, or `None` if it is unlabeled."""
        found = self.labels.get(id)
        return None if found is None else self.root / found


class PairFiles:
    """The half of a dataset of pairs that knows files; comes before `FileDataset`, the half that reads them.

    Attributes:
        pairs: what was found.
    """

    dates = 2
    pairs: Pairs
    before_overrides: dict[str, str]  # of the dataset

    def ids(self, part: str) -> list[str]:
        """Return sorted ids of a part."""
        return list(self.pairs.parts.get(part, []))

    def image_files(self, id: str) -> tuple[Path, ...]:
        """Return the earlier and the later image."""
        return self.pairs.files(id, self.before_overrides.get(id))

    def find_mask(self, id: str) -> Path | None:
        """Return the label of a pair."""
        return self.pairs.label(id)


def find_pairs(root: Path) -> Pairs:
    """Find the pairs below a folder.

    Raises:
        DataError: no such folder, another layout, no pair at all, later images without an earlier one, or lists that
            name pairs that are not there.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Give the folder of the pairs with --data DIR (data.root).", "H208")
    found = Pairs(root, {}, {}, {}, {})
    lonely: list[str] = []
    for base in (root, *(path for path in sorted(root.iterdir()) if PART_NAMES.get(path.name.lower()))):
        dates = next((names for names in _DATES if all((base / name).is_dir() for name in names)), None)
        if dates is not None:
            lonely += _collect(found, root, base, dates)
    if not found.before:
        raise DataError(_no_pairs(root, lonely), "H208")
    if lonely:
        raise DataError(
            f"{root}: {len(lonely)} later images have no earlier one of their name; add it, remove them, or give each "
            f"earlier image a name that its later ones continue (bridge.jpg, bridge_0025.jpg):\n{bullet_list(lonely)}",
            "H201",
        )
    if any(part != "train" for part in found.parts):
        return found
    return _by_lists(found)


def name_parts(found: Pairs) -> Pairs:
    """Divide pairs by the first word of their names (`train_36_0512.png`), where neither folders nor lists do.

    >>> name_parts(Pairs(Path(), {"train": ["B/train_1_1.png", "B/val_1_1.png"]}, {}, {}, {})).parts
    {'train': ['B/train_1_1.png'], 'val': ['B/val_1_1.png']}
    """
    if found.listed or list(found.parts) != ["train"]:
        return found
    named: dict[str, list[str]] = {}
    for id in found.parts["train"]:
        word = Path(id).name.partition("_")[0].lower()
        named.setdefault(PART_NAMES.get(word, "train"), []).append(id)
    return replace(found, parts=named)


def _collect(found: Pairs, root: Path, base: Path, dates: tuple[str, str]) -> list[str]:
    """Add the pairs of one pair of folders; give the later images without an earlier one."""
    earlier, later = (list_images(base / name, root) for name in dates)
    folders = [(base / name).relative_to(root).as_posix() for name in dates]
    stems = _by_stem(earlier, folders[0])
    lonely: list[str] = []
    for id in later:
        stem = _stem(id, folders[1])
        before = stems.get(stem) or _continued(stem, stems)
        if before is None:
            lonely.append(id)
            continue
        found.before[id] = before
        found.names[id] = (base.relative_to(root) / stem).as_posix()
        inside = stem.partition("/")[0].lower() if "/" in stem else ""
        part = PART_NAMES.get(inside) or PART_NAMES.get(base.name.lower() if base != root else "", "train")
        found.parts.setdefault(part, []).append(id)
    label_folder = next((name for name in _LABELS if (base / name).is_dir()), None)
    if label_folder is not None:
        where = (base / label_folder).relative_to(root).as_posix()
        found.labels.update(pair(later, list_images(base / label_folder, root), folders[1], where))
    for ids in found.parts.values():
        ids.sort()
    return lonely


def _by_lists(found: Pairs) -> Pairs:
    """Divide a flat folder by the lists in it; pairs in none of them train, unless there is a training list."""
    folder = next((found.root / name for name in _LISTS if any(_list_files(found.root / name))), None)
    if folder is None:
        return found
    known = set(found.parts["train"])
    by_stem = {Path(id).stem: id for id in sorted(known)}
    parts: dict[str, list[str]] = {}
    absent: list[str] = []
    for path in _list_files(folder):
        ids: set[str] = set()
        for entry in read_list(path):
            name = entry.after or entry.image
            id = name if name in known else by_stem.get(Path(name).stem)
            if id is None:
                absent.append(f"{path.name}: {name}")
                continue
            ids.add(id)
            if entry.after is not None and (found.root / entry.image).is_file():
                found.before[id] = entry.image
        parts[path.stem] = sorted(ids)
    if absent:
        raise DataError(
            f"{folder}: {len(absent)} listed pairs are not there. Complete the folder, or correct the lists:\n"
            f"{bullet_list(absent)}",
            "H211",
        )
    if "train" not in parts:
        parts["train"] = sorted(known - {id for ids in parts.values() for id in ids})
    return Pairs(found.root, parts, found.before, found.labels, found.names, listed=True)


def _list_files(folder: Path) -> list[Path]:
    return [folder / f"{part}.txt" for part in _PARTS if (folder / f"{part}.txt").is_file()]


def _by_stem(paths: Iterable[str], base: str) -> dict[str, str]:
    stems: dict[str, str] = {}
    for path in paths:
        stem = _stem(path, base)
        if stem in stems:
            raise DataError(
                f"{stems[stem]} and {path} have the same stem; the later image could belong to either. Remove one.",
                "H208",
            )
        stems[stem] = path
    return stems


def _stem(path: str, base: str) -> str:
    return Path(path.removeprefix(f"{base}/")).with_suffix("").as_posix()


def _continued(stem: str, stems: dict[str, str]) -> str | None:
    """Find the longest name that a later image continues after `_`, `-` or `.`."""
    for end in range(len(stem) - 1, 0, -1):
        if stem[end] in _CONTINUES and stem[:end] in stems:
            return stems[stem[:end]]
    return None


def _no_pairs(root: Path, lonely: list[str]) -> str:
    if lonely:
        return f"{root}: no image of B/ has an earlier one in A/, such as {lonely[0]}. Name both dates of a pair alike."
    inside = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    return (
        f"{root}: no image pairs: expected A/, B/ and label/ (or train/A, train/B, train/label, ...) with images of "
        f"equal names, found {inside}. Check data.root; single images with masks are read with data.dataset=folder."
    )
