"""Which mask belongs to which image, by their names.

Names pair by folder and stem, after endings such as `_mask` and `_gt` are removed; `é` in one character and `é` in two
are one name. Where no name pairs, numbers do (`img_007`, `mask_007`), if each stands for one image and one mask.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from halfmask.errors import DataError, bullet_list

MASK_SUFFIX = re.compile(
    r"[_-](gtFine_labelIds|gtFine_labelTrainIds|labelTrainIds|labelIds|masks?|labels?|gt|groundtruth|seg(mentation)?|L)$",
    re.IGNORECASE,
)
_IMAGE_SUFFIX = re.compile(r"[_-](leftImg8bit|image|img|rgb)$", re.IGNORECASE)
_MASK_PREFIX = re.compile(
    r"^(masks?|labels?|gt|groundtruth|seg(mentation)?|annotations?|target)[_-]?(?=\d)", re.IGNORECASE
)
_NUMBER = re.compile(r"\d+")


def pair(images: Iterable[str], masks: Iterable[str], image_base: str = "", mask_base: str = "") -> dict[str, str]:
    """Pair ids with mask paths by folder and stem, or by number where no stem pairs.

    >>> pair(["images/a.jpg", "images/b.jpg"], ["masks/a_mask.png"], "images", "masks")
    {'images/a.jpg': 'masks/a_mask.png'}
    >>> pair(["images/img_001.jpg", "images/img_2.jpg"], ["masks/mask_1.png"], "images", "masks")
    {'images/img_001.jpg': 'masks/mask_1.png'}

    Raises:
        DataError: two images of one stem, or two masks for one image.
    """
    images, masks = list(images), list(masks)
    problems: list[str] = []
    by_key: dict[str, str] = {}
    for id in images:
        key = key_of(id, image_base)
        if key in by_key:
            alike = " up to the Unicode form of a letter" if stem_of(by_key[key]) != stem_of(id) else ""
            problems.append(f"{by_key[key]} and {id} have the same stem{alike}; a mask could belong to either")
        by_key[key] = id
    by_short_key: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    for key, id in by_key.items():
        short = _IMAGE_SUFFIX.sub("", key)
        several.setdefault(short, []).append(id)
        by_short_key[short] = id
    pairs: dict[str, str] = {}
    for mask in masks:
        key = key_of(mask, mask_base)
        short = MASK_SUFFIX.sub("", key)
        id_found = by_key.get(key) or by_key.get(short) or by_short_key.get(short)
        if id_found is not None and key not in by_key and short not in by_key and len(several[short]) > 1:
            problems.append(f"{' and '.join(several[short])} are images that {mask} could belong to")
            continue
        if id_found is not None and id_found in pairs:
            problems.append(f"{pairs[id_found]} and {mask} both fit {id_found}")
        elif id_found is not None:
            pairs[id_found] = mask
    if problems:
        raise DataError(f"ambiguous names, rename or remove one of each:\n{bullet_list(problems)}", "H208")
    return pairs or by_number(images, masks, image_base, mask_base)


def by_number(images: Sequence[str], masks: Sequence[str], image_base: str, mask_base: str) -> dict[str, str]:
    """Pair by the numbers in the names, if all else in them is the same and every mask has its image; else nothing."""
    (words, numbered), (mask_words, mask_numbered) = _numbered(images, image_base), _numbered(masks, mask_base)
    alone = len(words) == len(mask_words) == 1 and len(numbered) == len(images) and len(mask_numbered) == len(masks)
    if not masks or not alone or not mask_numbered.keys() <= numbered.keys():
        return {}
    return {numbered[number]: mask for number, mask in mask_numbered.items()}


def masks_by_prefix(files: Sequence[str]) -> dict[str, str]:
    """Pair `mask_007` with the one other file of that number in a folder; nothing if that is not plain for all."""
    masks = [file for file in files if _MASK_PREFIX.match(Path(file).name)]
    return by_number([file for file in files if file not in set(masks)], masks, "", "")


def differ_in_form_only(id: str, mask: str) -> bool:
    """Return whether the names of an image and its mask are one name in two Unicode forms.

    >>> differ_in_form_only("images/a.png", "masks/a_mask.png")
    False
    """
    one, other = Path(id).stem, MASK_SUFFIX.sub("", Path(mask).stem)
    form, other_form = (unicodedata.normalize("NFC", name) for name in (one, other))
    return one != other and form == other_form


def key_of(path: str, base: str) -> str:
    """Return what images and masks of a name share: the path below their folder, without suffix, in one form."""
    relative = path.removeprefix(f"{base}/") if base else path
    return unicodedata.normalize("NFC", stem_of(relative))


def stem_of(path: str) -> str:
    """Return a path without the suffix of the file.

    >>> stem_of("a/b.c.png")
    'a/b.c'
    """
    return Path(path).with_suffix("").as_posix()


def _numbered(files: Sequence[str], base: str) -> tuple[set[tuple[str, ...]], dict[tuple[str, tuple[int, ...]], str]]:
    """Return the words of the names, and the files by folder and numbers that no other file has."""
    words: set[tuple[str, ...]] = set()
    found: dict[tuple[str, tuple[int, ...]], str] = {}
    counts: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for file in files:
        folder, _, stem = key_of(file, base).rpartition("/")
        numbers = tuple(int(number) for number in _NUMBER.findall(stem))
        if not numbers:
            continue
        words.add(tuple(_NUMBER.split(stem)))
        counts[folder, numbers] += 1
        found[folder, numbers] = file
    return words, {key: file for key, file in found.items() if counts[key] == 1}
