"""Recognize how a folder is laid out: the first layout that fits, and why.

    VOC           JPEGImages/ + SegmentationClass[Aug]/ [+ ImageSets/Segmentation/*.txt]
    Cityscapes    leftImg8bit/ + gtFine/
    ADE20K        images/{training,validation}/ + annotations/{training,validation}/
    parts inside  images/{train,val,test}/ + masks/{train,val,test}/   (other sub-folders of images/ are unlabeled)
    images+masks  images/ + masks/ [+ unlabeled/]
    parts         {train,val,test}/{images,masks}/ [+ unlabeled/]; any other pair SUBFOLDER/{images,masks} is training
    outlines      NAME.json (labelme) or NAME.geojson beside NAME.jpg, or in masks/ and the like beside images/
    COCO json     a json with images, annotations, categories
    Label Studio  its json export: a list of tasks
    side by side  NAME.jpg + NAME_mask.png in one folder, or under any endings, told by what the files hold (`beside`)
    plain         images only: all unlabeled

Folders may be named in upper or lower case. A pair of folders of other names is told by its files (`folder_names`).
Images and masks pair by stem, after `_mask`, `_label`, `_gt`, `_L`, `_labelIds` and the like are removed (`pairing`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from halfmask.data.folder.beside import masks_among
from halfmask.data.folder.files import list_images, list_stems
from halfmask.data.folder.folder_names import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    PART_NAMES,
    folders,
    images_and_masks,
    subfolder,
)
from halfmask.data.folder.pairing import MASK_SUFFIX, key_of, masks_by_prefix, pair
from halfmask.errors import DataError, first_few

LayoutName = Literal[
    "voc", "cityscapes", "ade20k", "images+masks", "parts", "parts inside", "labelme", "geojson", "coco json",
    "label studio", "side by side", "plain",
]  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What was found."""

    name: LayoutName
    reason: str  # the folders or files that decided it
    root: Path  # folder that ids are relative to
    parts: dict[str, list[str]] = field(default_factory=dict)  # ids per part, sorted
    masks: dict[str, str] = field(default_factory=dict)  # mask path (relative to `root`) per id that has one
    annotations: tuple[Path, ...] = ()  # json files, for COCO json and Label Studio
    orphans: tuple[str, ...] = ()  # masks without an image


def detect(root: Path) -> Layout:
    """Find the layout of a folder.

    Raises:
        DataError: missing or empty folder, two images of one stem, or images and masks that do not pair at all.
    """
    require_images(root)
    attempts = (
        _voc, _cityscapes, _ade20k, _parts_inside, _images_masks, _parts, _outlined, _json_exports, _side_by_side,
    )  # fmt: skip
    for attempt in attempts:
        if (found := attempt(root)) is not None:
            return found
    raise DataError(
        f"{root}: no images found. Put them (PNG, JPEG, TIFF) into images/ and the masks of some of them into masks/.",
        "H208",
    )


def require_images(root: Path) -> None:
    """Check that the root of a dataset is a folder. Raises DataError: missing, or a file."""
    if root.is_file():
        raise DataError(f"{root}: a file, not a folder. Unpack archives first; then give the folder.", "H208")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Give the folder of your images with --data DIR (data.root).", "H208")


def unused_images(layout: Layout) -> list[str]:
    """List images below the root that no part and no mask is made of; those of run folders do not count.

    Only for layouts of named folders: the others take every image, or follow a public dataset.
    """
    if layout.name not in {"images+masks", "parts", "parts inside"}:
        return []
    used = {*(id for ids in layout.parts.values() for id in ids), *layout.masks.values(), *layout.orphans}
    runs = {path.parent.relative_to(layout.root).as_posix() for path in layout.root.glob("**/model.json")}
    runs |= {path.parent.relative_to(layout.root).as_posix() for path in layout.root.glob("**/recipe.yaml")}
    return [
        id
        for id in list_images(layout.root, layout.root)
        if id not in used and not any(id.startswith(f"{run}/") for run in runs)
    ]


def _voc(root: Path) -> Layout | None:
    inner = next((root / n for n in (".", "VOCdevkit/VOC2012", "VOC2012") if (root / n / "JPEGImages").is_dir()), None)
    folders = ("SegmentationClass", "SegmentationClassAug", "SegmentationClassPNG")
    if inner is None or not any((inner / name).is_dir() for name in folders):
        return None
    images = list_images(inner / "JPEGImages", inner)
    masks: dict[str, str] = {}
    orphans: list[str] = []
    for name in folders:
        found = list_images(inner / name, inner)
        pairs = pair(images, found, "JPEGImages", name)
        orphans += sorted(set(found) - set(pairs.values()))
        masks = pairs | masks
    parts = {"train": images}
    sets = inner / "ImageSets" / "Segmentation"
    by_stem = {key_of(id, "JPEGImages"): id for id in images}
    for part in ("val", "test"):
        if (sets / f"{part}.txt").is_file():
            parts[part] = sorted(by_stem[stem] for stem in list_stems(sets / f"{part}.txt") if stem in by_stem)
    held_out = {id for part in ("val", "test") for id in parts.get(part, [])}
    parts["train"] = [id for id in images if id not in held_out]
    return Layout("voc", "JPEGImages/ and SegmentationClass/", inner, parts, masks, (), tuple(orphans))


def _cityscapes(root: Path) -> Layout | None:
    return Layout("cityscapes", "leftImg8bit/", root) if (root / "leftImg8bit").is_dir() else None


def _ade20k(root: Path) -> Layout | None:
    inner = root / "ADEChallengeData2016" if (root / "ADEChallengeData2016").is_dir() else root
    if (inner / "images/training").is_dir() and (inner / "annotations/training").is_dir():
        return Layout("ade20k", "images/training/ and annotations/training/", inner)
    return None


def _parts_inside(root: Path) -> Layout | None:
    pair_of_folders = images_and_masks(root)
    if pair_of_folders is None:
        return None
    image_folder, mask_folder = pair_of_folders
    inside = [path.name for path in folders(root / image_folder)]
    if not any(PART_NAMES.get(name.lower()) in {"train", "val", "test"} for name in inside):
        return None
    if not list_images(root / mask_folder, root) and any((root / mask_folder).rglob("*.*json")):
        return None
    parts: dict[str, list[str]] = {}
    masks: dict[str, str] = {}
    orphans: list[str] = []
    for name in inside:
        mask_part = subfolder(root / mask_folder, (name, name.lower())) or name
        images = list_images(root / image_folder / name, root)
        found = list_images(root / mask_folder / mask_part, root)
        pairs = pair(images, found, f"{image_folder}/{name}", f"{mask_folder}/{mask_part}")
        orphans += sorted(set(found) - set(pairs.values()))
        part = PART_NAMES.get(name.lower(), "train" if pairs else "unlabeled")
        parts[part] = sorted(parts.get(part, []) + images)
        masks |= pairs
    loose = list_images(root / image_folder, root, recursive=False) + _unlabeled(root)
    parts["unlabeled"] = sorted(parts.get("unlabeled", []) + loose)
    _require_pairs(root, [id for part in parts.values() for id in part], masks, orphans)
    reason = f"{image_folder}/{{{','.join(inside)}}}/ and {mask_folder}/"
    return Layout("parts inside", reason, root, parts, masks, (), tuple(orphans))


def _images_masks(root: Path) -> Layout | None:
    pair_of_folders = images_and_masks(root)
    if pair_of_folders is None:
        return None
    image_folder, mask_folder = pair_of_folders
    named = [written for name in MASK_FOLDERS if (written := subfolder(root, (name,))) is not None]
    for name in dict.fromkeys([*named, mask_folder]):
        if found := list_images(root / name, root):
            images = list_images(root / image_folder, root)
            masks = pair(images, found, image_folder, name)
            orphans = tuple(sorted(set(found) - set(masks.values())))
            _require_pairs(root, images, masks, orphans)
            parts = {"train": images, "unlabeled": _unlabeled(root)}
            return Layout("images+masks", f"{image_folder}/ and {name}/", root, parts, masks, (), orphans)
    return None


def _unlabeled(root: Path) -> list[str]:
    name = subfolder(root, ("unlabeled", "unlabelled"))
    return list_images(root / name, root) if name is not None else []


def _parts(root: Path) -> Layout | None:
    parts: dict[str, list[str]] = {}
    masks: dict[str, str] = {}
    used: list[str] = []
    orphans: list[str] = []
    for folder in folders(root):
        pair_of_folders = images_and_masks(folder)
        if pair_of_folders is None:
            continue
        image_folder, mask_folder = pair_of_folders
        images, found = list_images(folder / image_folder, root), list_images(folder / mask_folder, root)
        if not found and any((folder / mask_folder).glob("*.*json")):
            continue
        pairs = pair(images, found, f"{folder.name}/{image_folder}", f"{folder.name}/{mask_folder}")
        orphans += sorted(set(found) - set(pairs.values()))
        part = PART_NAMES.get(folder.name.lower(), "train")
        parts[part] = sorted(parts.get(part, []) + images)
        masks |= pairs
        used.append(folder.name)
    if not used:
        return None
    parts["unlabeled"] = sorted(parts.get("unlabeled", []) + _unlabeled(root))
    _require_pairs(root, [id for part in parts.values() for id in part], masks, orphans)
    return Layout("parts", f"images/ and masks/ inside {first_few(used, 4)}", root, parts, masks, (), tuple(orphans))


def _outlined(root: Path) -> Layout | None:
    """Pair images with labelme json or GeoJSON of the same stem."""
    files = sorted(path for path in root.rglob("*.*json") if not path.name.startswith("."))
    if not files:
        return None
    images = list_images(root, root)
    by_key = {key_of(id, ""): id for id in images}
    masks: dict[str, str] = {}
    alone: list[str] = []
    image_folder = subfolder(root, IMAGE_FOLDERS) or "images"
    for path in files:
        name = path.relative_to(root).as_posix()
        key = key_of(name, "")
        parents = [image_folder if part.lower() in MASK_FOLDERS else part for part in key.split("/")[:-1]]
        id = by_key.get(key) or by_key.get("/".join([*parents, key.rpartition("/")[2]]))
        if id is not None:
            masks[id] = name
        else:
            alone.append(name)
    first = next((root / name for name in masks.values()), None)
    head = head_of(first) if first is not None else ""
    kind: LayoutName | None = "labelme" if '"shapes"' in head else "geojson" if '"FeatureCollection"' in head else None
    if first is None or kind is None:
        return None
    parts: dict[str, list[str]] = {"train": []}
    for id in images:
        parts.setdefault(part_of_folders(id), []).append(id)
    mark = '"shapes"' if kind == "labelme" else '"FeatureCollection"'
    orphans = tuple(name for name in alone if mark in head_of(root / name))
    return Layout(kind, f"{first.relative_to(root).as_posix()} for its image", root, parts, masks, (), orphans)


def part_of_folders(id: str) -> str:
    """Tell the part of an image by the first of its folders that names one.

    >>> part_of_folders("images/val/a.png"), part_of_folders("images/a.png")
    ('val', 'train')
    """
    return next((PART_NAMES[part.lower()] for part in id.split("/")[:-1] if part.lower() in PART_NAMES), "train")


def _json_exports(root: Path) -> Layout | None:
    """Find json files that annotate many images each. Raises DataError: files of two kinds, or no images."""
    patterns = ("*.json", "annotations/*.json", "*/_annotations.coco.json", "*/annotations/*.json")
    kinds = {path: kind for pattern in patterns for path in root.glob(pattern) if (kind := _export_kind(path))}
    if not kinds:
        return None
    files = sorted(kinds)
    kind = kinds[files[0]]
    if other := next((path for path in files if kinds[path] != kind), None):
        raise DataError(
            f"{root}: annotations of two tools, {files[0].relative_to(root).as_posix()} ({kind}) and "
            f"{other.relative_to(root).as_posix()} ({kinds[other]}). Which counts? Move the other out of the folder.",
            "H208",
        )
    images = list_images(root, root)
    if not images:
        raise DataError(f"{files[0]}: annotations, but no images below {root}. Copy the images there.", "H208")
    reason = ", ".join(path.relative_to(root).as_posix() for path in files)
    return Layout(kind, reason, root, {"train": images}, {}, tuple(files))


def _side_by_side(root: Path) -> Layout | None:
    """Pair masks with images in the same folder; without any pair, every file is an unlabeled image."""
    images = list_images(root, root)
    if not images:
        return None
    stems = {key_of(id, "") for id in images}
    named = [id for id in images if (short := MASK_SUFFIX.sub("", key_of(id, ""))) != key_of(id, "") and short in stems]
    masks = pair([id for id in images if id not in set(named)], named) if named else masks_by_prefix(images)
    reason = f"{Path(next(iter(masks.values()))).name} beside its image" if masks else ""
    rest = sorted(set(images) - set(masks.values()))
    if among := masks_among(root, rest, masks):
        first, mask = next(iter(among.items()))
        reason = reason or f"{Path(mask).name} looks like a mask of {Path(first).name}"
        masks |= among
    if masks:
        parts: dict[str, list[str]] = {"train": []}
        for id in sorted(set(images) - set(masks.values())):
            parts.setdefault(part_of_folders(id), []).append(id)
        return Layout("side by side", reason, root, parts, masks)
    suspicious = sorted({part for id in images for part in Path(id).parts[:-1] if part.lower() in MASK_FOLDERS})
    if suspicious:
        raise DataError(
            f"{root}: the folder {suspicious[0]}/ looks like masks, but no layout fits, and masks must not be used as "
            "images. Arrange them as images/ and masks/, or give the folder of the images alone; image pairs in A/ and "
            "B/ are read with data.dataset=change_folder.",
            "H208",
        )
    return Layout("plain", "images without masks", root, {"unlabeled": images})


def _export_kind(path: Path) -> LayoutName | None:
    head = head_of(path)
    if path.name.startswith("."):
        return None
    if head.startswith("["):
        tasks = any(f'"{key}"' in head for key in ("annotations", "predictions", "polygonlabels", "brushlabels"))
        return "label studio" if tasks else None
    return "coco json" if any(f'"{key}"' in head for key in ("images", "annotations", "categories")) else None


def head_of(path: Path) -> str:
    """Read the beginning of a json file, where the first key stands: lists may be far apart in a large one."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.read(4096).lstrip()


def _require_pairs(root: Path, images: list[str], masks: dict[str, str], orphans: Iterable[str]) -> None:
    first = next(iter(orphans), None)
    if images and not masks and first is not None:
        raise DataError(
            f"{root}: no mask has the stem of an image: {Path(images[0]).name} against {Path(first).name}. "
            "Name each mask like its image (endings such as _mask or _gt are allowed).",
            "H208",
        )
