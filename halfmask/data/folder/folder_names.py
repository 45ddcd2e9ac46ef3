"""Which folder holds the images and which the masks: by their names, or by what lies in them."""

import heapq
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from halfmask.data.folder.images.decode import is_image

# How folders and files name the parts of a dataset.
PART_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test", "unlabeled": "unlabeled", "unlabelled": "unlabeled",
}  # fmt: skip
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "labels", "annotations", "mask", "label", "gt")
MOST_VALUES = 32  # of a mask; a photograph has more
_OPENED, _DECODED = 12, 4  # files of a folder that are looked at
_LARGEST = 20  # looked at besides, where these are blank
_GRAY = frozenset({"1", "L", "P", "I;16", "I;16B", "I"})
_COLORS = frozenset({"RGB", "RGBA", "LA"})


def subfolder(base: Path, names: tuple[str, ...]) -> str | None:
    """Return the first folder of these names as it is written, in upper or lower case."""
    written = {path.name.lower(): path.name for path in folders(base)} | {
        path.name: path.name for path in folders(base)
    }
    return next((written[name] for name in names if name in written), None)


def images_and_masks(base: Path) -> tuple[str, str] | None:
    """Return the folders of images and of masks in a folder, or `None`.

    By name; or the only folder whose files are gray (or have a palette) with a handful of values is the masks', or,
    where none is, the only one whose files have a handful of colors. Its images are in the other folder; of several
    (previews, overlays), in the one named so, or in the only one that has a file for every mask.
    """
    image_folder, mask_folder = subfolder(base, IMAGE_FOLDERS), subfolder(base, MASK_FOLDERS)
    if image_folder is not None and mask_folder is not None:
        return image_folder, mask_folder
    there = [path for path in folders(base) if path.name.lower() not in PART_NAMES]
    filled = [path for path in there if any(is_image(file) for file in path.rglob("*"))]
    are_masks = [path for path in filled if _holds_masks(path)] or [
        path for path in filled if _holds_masks(path, colors=True)
    ]
    if len(are_masks) != 1 or len(filled) < 2:
        return None
    masks = are_masks[0]
    images = _images_of(masks, [path for path in filled if path != masks])
    if images is None:
        return None
    if images.name.lower() in MASK_FOLDERS or masks.name.lower() in IMAGE_FOLDERS:
        return None  # the names say the opposite
    return images.name, masks.name


def _images_of(masks: Path, others: list[Path]) -> Path | None:
    if len(others) == 1:
        return others[0]
    named = [path for path in others if path.name.lower() in IMAGE_FOLDERS]
    if len(named) == 1:
        return named[0]
    wanted = {file.stem.lower() for file in masks.rglob("*") if is_image(file)}
    whole = [path for path in others if wanted <= {file.stem.lower() for file in path.rglob("*") if is_image(file)}]
    return whole[0] if len(whole) == 1 else None


def folders(base: Path) -> list[Path]:
    """List the folders in a folder that are not hidden."""
    return sorted(path for path in base.iterdir() if path.is_dir() and path.name[0] != ".") if base.is_dir() else []


def looks_like_mask(path: Path, *, colors: bool = True) -> bool:
    """Return whether a file holds a handful of values or colors, without loss; what cannot be opened does not."""
    return values_like_mask(path, colors=colors) > 0


def values_like_mask(path: Path, *, colors: bool = True) -> int:
    """Count the values or colors of a file that looks like a mask (`looks_like_mask`); 0 for any other.

    One value is weak evidence: a blank mask holds it, and so does a tile without data or a frame that is faded out.
    """
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False, mmap_mode="r")
            return _handful(len(np.unique(values))) if values.ndim == 2 and values.dtype.kind in "iub" else 0
        with Image.open(path) as image:
            if not _may_be_mask(image, colors):
                return 0
            if image.mode in {"1", "L", "P", "LA", "RGB", "RGBA"}:
                return len(image.getcolors(MOST_VALUES) or ())
            return _handful(len(np.unique(np.asarray(image))))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return 0


def _handful(values: int) -> int:
    return values if values <= MOST_VALUES else 0


def _holds_masks(folder: Path, *, colors: bool = False) -> bool:
    files = sorted(
        file for file in folder.rglob("*") if is_image(file) and file.suffix.lower() != ".npy" and file.is_file()
    )
    some = files[:: max(1, len(files) // _OPENED)]
    alike = bool(some) and all(
        looks_like_mask(path, colors=colors) if number < _DECODED else _has_header_of_mask(path, colors)
        for number, path in enumerate(some)
    )
    if not alike or folder.name.lower() in MASK_FOLDERS:
        return alike
    # Blank files alone may be black photographs.
    looked = chain(some[:_DECODED], largest(files))
    return any(values_like_mask(path, colors=colors) > 1 for path in looked)


def largest(files: Iterable[Path]) -> list[Path]:
    """Choose some files that are hardly blank, for these are the smallest: masks with much in them, or photographs."""
    return heapq.nlargest(_LARGEST, sorted(files), key=lambda path: path.stat().st_size)


def _has_header_of_mask(path: Path, colors: bool) -> bool:
    try:
        with Image.open(path) as image:
            return _may_be_mask(image, colors)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _may_be_mask(image: Image.Image, colors: bool) -> bool:
    return image.format not in {"JPEG", "MPO"} and (image.mode in _GRAY or (colors and image.mode in _COLORS))
