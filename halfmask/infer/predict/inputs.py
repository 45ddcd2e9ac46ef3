"""Find the images of an input of `predict`: a folder, a pattern, one file, or the pairs of two dates.

Of the folder of a data set its masks are no images, nor are the results of earlier calls in it, whatever their names;
what is left out is told, never passed over in silence.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from halfmask.data.convert.mask_source import OVERLAYS, PROBABILITIES, without_suffix
from halfmask.data.folder.folder_names import MASK_FOLDERS
from halfmask.data.folder.images.decode import is_image
from halfmask.data.folder.layouts import detect
from halfmask.data.folder.masks.ids import read_id_meanings
from halfmask.data.folder.pairs import find_pairs
from halfmask.errors import DataError, HalfmaskError, RecipeError, first_few
from halfmask.written import LIST, Written

RECORD = "predict.json"  # in the folder of the results: the model they are of
# Besides these, whatever lies in the folder of a public dataset is annotation.
_IMAGES_OF = {"voc": "JPEGImages", "cityscapes": "leftImg8bit", "ade20k": "images"}
_IMAGE_FOLDERS = frozenset({"images", "jpegimages", "leftimg8bit"})
# Files that stand in folders of results without a list, and of runs.
_MARKS = ((RECORD,), ("suggest.json",), ("model.json", "model.safetensors"), ("recipe.yaml", "split.json"))


class Input(NamedTuple):
    """What is to be predicted."""

    # name of each result (path below the input, without suffix), image, and the earlier one of a pair
    images: list[tuple[Path, Path, Path | None]]
    # files that look like images but are masks or results: their paths by what they are
    left_out: dict[str, list[Path]]

    def left_out_text(self) -> str:
        """Say what is left out; empty if nothing is."""
        parts = []
        for what, paths in sorted(self.left_out.items()):
            folders = sorted({path.parent.as_posix() for path in paths})
            parts.append(f"{len(paths):,} {what} (in {first_few(folders)})")
        return f"not predicted: {'; '.join(parts)}. Name a file, or the folder itself, to predict it" if parts else ""


def find_input(source: Path, out: Path, *, pairs: bool = False) -> Input:
    """Find the images of an input.

    Args:
        source: folder (with its sub-folders), pattern, or one file; for pairs a folder with A/ and B/.
        out: folder of the results: what lies in it is no input.
        pairs: of two dates.

    Raises:
        DataError: no image, or no pair.
        RecipeError: `out` is where the images are.
    """
    if pairs:
        return Input(_pairs(source, out), {})
    base, images, left_out = _find(source, out)
    return Input([(image.relative_to(base).with_suffix(""), image, None) for image in images], left_out)


def _pairs(source: Path, out: Path) -> list[tuple[Path, Path, Path | None]]:
    if not source.is_dir():
        raise DataError(f"{source}: change detection compares two dates. Give a folder that holds A/ and B/.", "H208")
    pairs = find_pairs(source)
    found = [(Path(pairs.names[id]), *reversed(pairs.files(id, None))) for id in sorted(pairs.names)]
    if found[0][1].resolve().is_relative_to(out.resolve()):
        raise RecipeError(f"--out {out} holds the images themselves: masks would mix with them. Choose another folder.")
    return [(name, after, before) for name, after, before in found]


def _find(source: Path, out: Path) -> tuple[Path, list[Path], dict[str, list[Path]]]:
    """Return the folder that result paths are relative to, the images in order, and what is left out."""
    if source.is_file():
        return source.parent, [source], {}
    if source.is_dir():
        base, found, cure = source, list(source.rglob("*")), "Give a folder with JPEG, PNG, TIFF, ..."
        nothing = f"{source}: no image in this folder or below. {cure}"
        inside, target = source.resolve(), out.resolve()
        if target == inside:
            raise RecipeError(f"--out {out} is the input folder itself: masks would mix with images. Choose another.")
        if target.is_relative_to(inside):
            # Results of an earlier call below the input are no images to predict.
            found = [path for path in found if not path.resolve().is_relative_to(target)]
    elif has_magic(str(source)):
        base, found = _fixed_part(source), [Path(name) for name in glob(str(source), recursive=True)]
        nothing = f"{source}: no image matches this pattern. Put it in quotes, and check it with ls."
    else:
        raise DataError(
            f"{source} does not exist. Give a folder, an image file or a pattern such as 'photos/*.jpg'.", "H201"
        )
    images = [path for path in found if is_image(path) and path.is_file() and not _hidden(path.relative_to(base))]
    left_out = no_images(base, images)
    out_of_it = {path for paths in left_out.values() for path in paths}
    kept = sorted((path for path in images if path not in out_of_it), key=_in_order)
    if not kept:
        text = Input([], left_out).left_out_text()
        reason = f" {text[0].upper()}{text[1:]}." if text else ""
        raise DataError(f"{nothing}{reason}", "H210" if source.is_dir() else "H201")
    return base, kept, left_out


def no_images(base: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """Find the files below a folder that are masks or results, by what they are."""
    left_out: dict[str, list[Path]] = defaultdict(list)
    rest = _sorted_out(set(files), lambda rest: _results(base, rest), left_out["earlier results"])
    rest = _sorted_out(rest, lambda rest: _masks(base, rest), left_out["masks"])
    _sorted_out(
        rest, lambda rest: {path for path in rest if read_id_meanings(path) is not None}, left_out["masks by halfmask"]
    )
    return {what: sorted(paths) for what, paths in left_out.items() if paths}


def _sorted_out(files: set[Path], choose: Callable[[set[Path]], set[Path]], into: list[Path]) -> set[Path]:
    chosen = choose(files)
    into += chosen
    return files - chosen


def _results(base: Path, files: set[Path]) -> set[Path]:
    """Find files that halfmask wrote: those it has listed, and all in folders of runs and of unlisted results."""
    chosen: set[Path] = set()
    folders = _folders(base, files)
    for folder in folders:
        if (folder / LIST).is_file():
            chosen |= {folder / name for name in Written(folder).listed()}
        elif any(all((folder / name).is_file() for name in names) for names in _MARKS):
            chosen |= _below(folder, files)
        for beside in {folder / OVERLAYS, folder / PROBABILITIES} & folders:
            stems = {without_suffix(path.relative_to(folder).as_posix()) for path in _below(folder, files)}
            found = _below(beside, files)
            chosen |= {path for path in found if without_suffix(path.relative_to(beside).as_posix()) in stems}
    return chosen & files


def _masks(base: Path, files: set[Path]) -> set[Path]:
    """Find masks of every known layout, at the base or below, and folders named as those of masks are."""
    chosen: set[Path] = set()
    folders = sorted(_folders(base, files))
    children: dict[Path, set[Path]] = defaultdict(set)
    for folder in folders:
        children[folder.parent].add(folder)
    holders = {path.parent for path in files}
    for folder in folders:
        inside = children[folder] - {folder}
        named = _IMAGE_FOLDERS & {child.name.lower() for child in inside}
        if folder == base or named or len(inside & holders) > 1:
            chosen |= _masks_of_layout(folder, files)
        if folder != base and folder.name.lower() in MASK_FOLDERS:
            own = _below(folder, files)
            chosen |= own if _below(folder.parent, files) - chosen - own else set()
    return chosen


def _masks_of_layout(folder: Path, files: set[Path]) -> set[Path]:
    try:
        layout = detect(folder)
    except HalfmaskError:
        return set()  # no layout, or a broken one: of the folder of masks its name tells
    if (only := _IMAGES_OF.get(layout.name)) is not None:
        return _below(layout.root, files) - _below(layout.root / only, files)
    return {layout.root / name for name in (*layout.masks.values(), *layout.orphans)} & files


def _folders(base: Path, files: Iterable[Path]) -> set[Path]:
    """Return the base and every folder on the way to a file."""
    found = {base}
    for parent in {path.parent for path in files}:
        while parent not in found and parent != parent.parent:
            found.add(parent)
            parent = parent.parent
    return found


def _below(folder: Path, files: Iterable[Path]) -> set[Path]:
    return {path for path in files if folder in path.parents}


def _fixed_part(pattern: Path) -> Path:
    """Return the folders in front of the first wildcard."""
    for parent in pattern.parents:
        if not has_magic(str(parent)):
            return parent
    return Path()


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Sort key in which frame_9 comes before frame_10."""
    pieces = re.split(r"(\d+)", path.as_posix())
    return [(int(piece), piece) if piece.isdecimal() else (-1, piece) for piece in pieces]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
