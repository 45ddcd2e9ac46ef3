"""Find masks that lie among their images under endings that nobody has named: by what the files hold.

`x_rgb.png` with `x_segm.png`, `x.jpg` with `x.png`, `case1/photo.png` with `case1/classes.png`: files whose names
differ in one word, in one folder or in the suffix, and which hold a handful of values (or flat colors) where the others
hold photographs. Where such a file fits one image, it is its mask; where it could belong to several, or several to one
image, the names are refused: masks must never be trained on as images.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from halfmask.data.folder.folder_names import PART_NAMES, largest, looks_like_mask, values_like_mask
from halfmask.data.folder.images.decode import JPEG_SUFFIXES
from halfmask.data.folder.masks.ids import read_id_meanings
from halfmask.data.folder.pairing import key_of
from halfmask.errors import DataError, bullet_list
from halfmask.written import LIST

_DECODED, _AT_MOST = 4, 400  # files looked at: of those alike in name, and in all
_TELLING = 2  # files of more than one value that make an ending one of masks, if its word does not say so
_OF_MASKS = re.compile(
    r"(gtFine)?(label(Train)?Ids|masks?|labels?|gt|(ground)?truth|seg(m|mentation)?|annotations?|targets?)",
    re.IGNORECASE,
)
_SEPARATORS = re.compile(r"[_\-. ()]+")
_OF_IMAGES = frozenset({"rgb", "img", "image", "photo", "sat", "color", "raw", "input", "frame", "leftimg8bit"})

# What is left of a name without the word that tells masks from images, and that word (its place, itself, the suffix).
_Reduced = tuple[str, tuple[str, str, str]]


def masks_among(root: Path, files: Sequence[str], images: Iterable[str] = ()) -> dict[str, str]:
    """Pair images with masks among the files of a folder, by content and names; nothing where none look like masks.

    Results of halfmask are no masks of what lies beside them, such as overlays.

    Args:
        root: of the paths.
        files: all that may be images or masks.
        images: those of them that have a mask already.

    Raises:
        DataError: masks that could belong to several images, or several to one image.
    """
    results = {folder for folder in {Path(file).parent for file in files} if _holds_results(root, folder)}
    free = [file for file in files if Path(file).parent not in results]
    reduced = _reduced_names(free)
    by_rest: dict[str, set[str]] = defaultdict(set)
    slots: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for file, ways in reduced.items():
        for rest, slot in ways:
            by_rest[rest].add(file)
            slots[slot].append(file)
    taken = set(images)
    masks = _mask_files(root, slots, by_rest, reduced, taken)
    pairs: dict[str, list[str]] = defaultdict(list)
    problems: list[str] = []
    for mask, rest in masks.items():
        fitting = sorted(file for file in by_rest[rest] if file not in masks)
        fitting = _named_so(fitting, rest, reduced) if len(fitting) > 1 else fitting
        if len(fitting) > 1:
            problems.append(f"{mask} looks like a mask and fits {' and '.join(fitting[:3])}")
        for image in fitting[:1]:
            pairs[image].append(mask)
    for image, found in pairs.items():
        if len(found) > 1 or image in taken:
            several = " and ".join(found) if len(found) > 1 else f"{found[0]} (beside the one named so)"
            problems.append(f"{several} look like masks of {image}")
    if problems:
        raise DataError(
            f"{root}: gray files or files of few colors among the images, which look like masks, and it is not plain "
            f"whose. Move the masks into masks/, each named like its image in images/, and everything else out:\n"
            f"{bullet_list(problems)}",
            "H208",
        )
    return {image: found[0] for image, found in pairs.items()}


def _mask_files(
    root: Path,
    slots: Mapping[tuple[str, str, str], list[str]],
    by_rest: Mapping[str, set[str]],
    reduced: Mapping[str, list[_Reduced]],
    taken: set[str],
) -> dict[str, str]:
    """Return the files that are masks, with what is left of their names; a sample stands for all of one ending."""
    looked, chooser = 0, random.Random(0)
    masks: dict[str, str] = {}
    places: dict[str, set[str]] = defaultdict(set)
    for ways in reduced.values():
        for rest, (place, _, _) in ways:
            places[place].add(rest)
    order = sorted(slots, key=lambda slot: (slot[0] == "suffix", -len(slots[slot]), slot))
    for slot in order:
        named = _OF_MASKS.fullmatch(slot[1]) is not None
        if not named and len(slots[slot]) < _TELLING:
            continue
        rests = {file: next(rest for rest, other in reduced[file] if other == slot) for file in slots[slot]}
        alone = [
            file
            for file, rest in rests.items()
            if file not in masks
            and file not in taken
            and any(other != file and other not in masks for other in by_rest[rest])
        ]
        some = chooser.sample(alone, min(_DECODED, len(alone)))
        looked += len(some)
        if not some or looked > _AT_MOST:
            continue
        values = {file: values_like_mask(root / file) for file in some}
        if not named and all(values.values()) and _telling(values) < _TELLING:
            more = largest(root / file for file in alone if file not in values)
            values |= {path.relative_to(root).as_posix(): values_like_mask(path) for path in more}
            looked += len(more)
        if not all(values.values()) or (not named and _telling(values) < _TELLING):
            continue
        # Beside a blank mask even a black photograph is one.
        compared = [file for file, count in values.items() if count > 1] or list(values)
        others = {file: sorted(by_rest[rests[file]] - {file} - masks.keys()) for file in compared}
        if not all(any(not looks_like_mask(root / other) for other in beside) for beside in others.values()):
            continue
        few = 2 * len({rests[file] for file in alone}) < len(places[slot[0]])
        # Few masks of many images are as usual as photographs that miss an ending: one image for each must fit.
        if named or not few or all(len(_named_so(others[file], rests[file], reduced)) == 1 for file in compared):
            masks |= {file: rests[file] for file in alone if read_id_meanings(root / file) is None}
    return masks


def _telling(values: Mapping[str, int]) -> int:
    return sum(count > 1 for count in values.values())


def _named_so(files: Sequence[str], rest: str, reduced: Mapping[str, list[_Reduced]]) -> list[str]:
    """Choose among several images that a mask fits: the bare name, else the one that is named as an image."""
    words = {file: slot for file in files for other, slot in reduced[file] if other == rest}
    for chosen in (
        [file for file in files if words[file][0] == "suffix"],
        [file for file in files if words[file][1] in _OF_IMAGES],
    ):
        if len(chosen) == 1:
            return chosen
    return list(files)


def _reduced_names(files: Sequence[str]) -> dict[str, list[_Reduced]]:
    """Return every way to leave one word out of a name: none, the last, the first, all of it, or a folder."""
    stems = Counter(stem for _, stem in {(Path(file).parent, Path(file).stem.lower()) for file in files})
    found: dict[str, list[_Reduced]] = {}
    for file in files:
        suffix = Path(file).suffix.lower()
        if suffix in JPEG_SUFFIXES:
            suffix = ".jpg"
        key = key_of(file, "")
        folder, _, stem = key.rpartition("/")
        ways: list[_Reduced] = [(key, ("suffix", "", suffix))]
        core = stem.strip("_-. ()")
        if cuts := list(_SEPARATORS.finditer(core)):
            last, first = cuts[-1], cuts[0]
            ends = [("last", core[last.end() :], core[: last.start()])]
            ends += [("first", core[: first.start()], core[first.end() :])]
            ways += [
                (f"{folder}/{left}", (end, word.lower(), suffix)) for end, word, left in ends if not word.isdigit()
            ]
        if stems[Path(file).stem.lower()] > 1:
            ways.append((f"{folder}/", ("name", stem.lower(), suffix)))
        parts_of = folder.split("/") if folder else []
        ways += [
            (f"*{'/'.join([*parts_of[:place], *parts_of[place + 1 :], stem])}", ("folder", part.lower(), ""))
            for place, part in enumerate(parts_of)
            if part.lower() not in PART_NAMES
        ]
        found[file] = ways
    # In the top folder there is no `folder/` in front.
    return {file: [(rest.removeprefix("/"), slot) for rest, slot in ways] for file, ways in found.items()}


def _holds_results(root: Path, folder: Path) -> bool:
    return any((root / place / LIST).is_file() for place in (folder, *folder.parents))
