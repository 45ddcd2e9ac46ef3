"""Read COCO json (instances): polygons and run-length codes painted as class ids, without any extra package.

Format: Lin et al., "Microsoft COCO", ECCV 2014, and the description of its run-length code at cocodataset.org.
Polygons are filled by the even-odd rule at pixel centers; the parts of one instance are united.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from halfmask.data.annotations.exports import ImageNames
from halfmask.data.annotations.fill import fill
from halfmask.data.folder.layouts import PART_NAMES
from halfmask.data.folder.masks import IGNORE
from halfmask.errors import DataError

LABELED = {"halfmask": "labeled"}  # of an image: that it has no annotation is no accident
BACKGROUND_NAMES = ("background", "_background_")


class CocoFile:
    """One json file with `images`, `annotations` and `categories`.

    Args:
        path: the file.
        classes: class name -> training id, for every category that is used.
        fill_value: training id of what no annotation covers.

    Raises:
        DataError: not such a file, or a category that is no class.
    """

    def __init__(self, path: Path, classes: Mapping[str, int], fill_value: int = 0) -> None:
        self.path, self.fill_value = path, fill_value
        content = load(path)
        self.images: dict[str, dict[str, Any]] = {str(image["file_name"]): image for image in content["images"]}
        self.annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            self.annotations[annotation["image_id"]].append(annotation)
        used = {annotation["category_id"] for annotation in content["annotations"]}
        names = {category["id"]: category["name"] for category in content["categories"]}
        unknown = sorted(str(names.get(id, id)) for id in used if names.get(id) not in classes)
        if unknown:
            raise DataError(
                f"{path}: categories that are no class: {', '.join(unknown)}. Add them to `classes` in "
                "halfmask.yaml, or rename them in the annotation tool.",
                "H203",
            )
        # Always through `categories`: ids may have gaps and start anywhere.
        self._training_id = {id: classes[name] for id, name in names.items() if name in classes}

    def __contains__(self, file_name: object) -> bool:
        return file_name in self.images

    def is_annotated(self, file_name: str) -> bool:
        """Whether an image has an annotation, or we have marked it as background alone."""
        image = self.images[file_name]
        return bool(self.annotations.get(image["id"])) or image.items() >= LABELED.items()

    def paint(self, file_name: str) -> UInt8[np.ndarray, "H W"]:
        """Paint the annotations of an image: crowds (255) first, then instances, the largest first.

        Raises:
            DataError: an annotation without an outline, or a broken one.
        """
        image = self.images[file_name]
        height, width = int(image["height"]), int(image["width"])
        target = np.full((height, width), self.fill_value, dtype=np.uint8)
        painted: list[tuple[bool, int, int, np.ndarray]] = []
        for annotation in self.annotations.get(image["id"], []):
            try:
                region = decode_region(annotation.get("segmentation"), height, width)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise DataError(
                    f"{self.path}: annotation {annotation.get('id')} of {file_name}: {error}. "
                    "Export polygons or masks, not boxes only.",
                    "H203",
                ) from error
            crowd = bool(annotation.get("iscrowd", 0))
            label = IGNORE if crowd else self._training_id[annotation["category_id"]]
            painted.append((not crowd, -int(region.sum()), label, region))
        for _, _, label, region in sorted(painted, key=lambda item: item[:2]):
            target[region] = label
        return target


class CocoFolder:
    """The json files of a folder, joined with its images by file name.

    Training id 0 is the background; the categories follow in the order of their ids. Images that no file lists, and
    listed ones without any annotation, count as unlabeled: tools also list what nobody has annotated yet. Those that
    `CocoWriter` has marked as background alone are labeled.

    Args:
        root: the folder.
        paths: json files.
        images: ids of all images below `root`.
        named: class names by training id, where somebody named them; they count if all categories in use are
            among them. If even the first one is a category, what no annotation covers is unknown (255).
    """

    def __init__(
        self, root: Path, paths: Sequence[Path], images: Sequence[str], named: Sequence[str] | None = None
    ) -> None:
        contents = [load(path) for path in paths]
        categories = _class_names(contents)
        use_names = named is not None and set(categories[1:]) <= set(named)
        self.classes = tuple(named) if named is not None and use_names else categories
        covered = use_names and self.classes[0] in categories[1:]
        ids = {name: id for id, name in enumerate(self.classes)} | dict.fromkeys(BACKGROUND_NAMES, 0)
        self.parts: dict[str, list[str]] = defaultdict(list)
        self._file_of: dict[str, tuple[CocoFile, str]] = {}
        here = ImageNames(images)
        for path in paths:
            file = CocoFile(path, ids, IGNORE if covered else 0)
            for name in file.images:
                found = _locate(name, path, root, here)
                if found is not None and file.is_annotated(name):
                    self._file_of[found] = (file, name)
                if found is not None:
                    self.parts[part_of(path, root)].append(found)
        listed = {id for part in self.parts.values() for id in part}
        self.left_out = sorted(listed - self._file_of.keys())
        self.categories = _category_ids(contents, self.classes)
        self.parts["unlabeled"] = [id for id in images if id not in listed]
        self.parts = {part: sorted(set(held)) for part, held in self.parts.items()}

    def file_of(self, id: str) -> Path | None:
        """The json file that annotates an image."""
        return self._file_of[id][0].path if id in self._file_of else None

    def paint(self, id: str) -> UInt8[np.ndarray, "H W"]:
        """Paint the annotations of an image."""
        file, name = self._file_of[id]
        return file.paint(name)


def load(path: Path) -> dict[str, Any]:
    """Read a json file of COCO form.

    Raises:
        DataError: broken json, or one of the three lists is missing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a json file ({error}).", "H201") from error
    absent = [key for key in ("images", "annotations", "categories") if key not in content]
    if absent:
        raise DataError(f"{path}: no {', '.join(absent)}; export it as COCO instances (COCO 1.0).", "H208")
    return dict(content)


def decode_region(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """Turn polygons, or a run-length code (list or string), into a mask.

    Raises:
        ValueError: empty, or not one of the three forms.
    """
    if isinstance(segmentation, dict):
        size, counts = segmentation["size"], segmentation["counts"]
        if list(size) != [height, width]:
            raise ValueError(f"run-length code of size {size} in an image of {[height, width]}")
        return decode_runs(unpack_counts(counts) if isinstance(counts, str | bytes) else counts, height, width)
    if not segmentation:
        raise ValueError("no segmentation")
    region = np.zeros((height, width), dtype=np.bool_)
    for polygon in segmentation:
        region |= fill_polygon(polygon, height, width)
    return region


def fill_polygon(polygon: Sequence[int | float], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """Fill x0, y0, x1, y1, ... : pixels whose center (x + 0.5, y + 0.5) is inside by the even-odd rule.

    >>> fill_polygon([1, 0, 3, 0, 3, 1, 1, 1], 2, 4).astype(int).tolist()
    [[0, 1, 1, 0], [0, 0, 0, 0]]

    Raises:
        ValueError: fewer than three points.
    """
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon of {len(polygon)} numbers")
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    return fill([points], height, width).whole(height, width)


def decode_runs(counts: Sequence[int], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """Expand runs that alternate 0, 1, beginning with 0, down the columns first.

    >>> decode_runs([1, 2, 1], 2, 2).astype(int).tolist()
    [[0, 1], [1, 0]]

    Raises:
        ValueError: the runs do not fill the image.
    """
    if sum(counts) != height * width:
        raise ValueError(f"runs cover {sum(counts)} of {height * width} pixels")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def unpack_counts(packed: str | bytes) -> list[int]:
    """Unpack the string form of run lengths.

    Each number is a chain of characters (code - 48): 5 value bits, bit 5 = more follow, sign-extended from bit 4 of
    the last; from the fourth number on it is the difference to the one two places before.

    >>> unpack_counts("112")
    [1, 1, 2]
    """
    text = packed.decode("ascii") if isinstance(packed, bytes) else packed
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("run-length string ends in the middle of a number")
    return counts


def _class_names(contents: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    used = {annotation["category_id"] for content in contents for annotation in content["annotations"]}
    categories = {category["id"]: category for content in contents for category in content["categories"]}
    # Some exporters add a parent category that no annotation uses; it is no class.
    parents = {category.get("supercategory") for category in categories.values()}
    names = [
        str(category["name"])
        for id, category in sorted(categories.items())
        if category["name"] not in BACKGROUND_NAMES and (id in used or category["name"] not in parents)
    ]
    return ("background", *dict.fromkeys(names))


def _category_ids(contents: Sequence[dict[str, Any]], classes: Sequence[str]) -> tuple[int, ...] | None:
    """Category id of each class, 0 of the background; `None` where the files do not agree, or lack one."""
    found = {(str(category["name"]), category["id"]) for content in contents for category in content["categories"]}
    ids = dict(found)
    background = {0} if classes[0] in BACKGROUND_NAMES or classes[0] not in ids else set()
    wanted = [0 if place in background else ids.get(name, 0) for place, name in enumerate(classes)]
    used = [id for place, id in enumerate(wanted) if place not in background]
    plain = all(isinstance(id, int) and 0 < id < IGNORE for id in used)
    return tuple(wanted) if plain and len(ids) == len(found) and len(set(used)) == len(used) else None


def _locate(name: str, path: Path, root: Path, here: ImageNames) -> str | None:
    """Find the image a json file means: a path below the root that ends in `name`, nearest to the json file.

    Folders that `file_name` gives tell images apart, train/1.jpg from val/1.jpg, so all of them must fit.
    """
    clean = name.replace("\\", "/").removeprefix("./")
    found = [id for id in here.most_alike(clean) if f"/{id}".endswith(f"/{clean}")]
    if len(found) < 2:
        return found[0] if found else None
    # annotations/instances_train2017.json names images in train2017/; train/_annotations.coco.json those in train/.
    hints = {path.parent.relative_to(root).as_posix().rpartition("/")[2], path.stem.rpartition("_")[2]}
    near = [id for id in found if hints & set(id.split("/")[:-1])]
    if len(near) != 1:
        raise DataError(f"{path}: {name} fits {', '.join(found[:3])}. Give `file_name` with its folder.", "H208")
    return near[0]


def part_of(path: Path, root: Path) -> str:
    """Tell the part a json file belongs to by the words of its name, or of its nearest folder that says so.

    >>> part_of(Path("annotations/instances_val2017.json"), Path())
    'val'
    >>> part_of(Path("latest.json"), Path())  # "test" is no word of it
    'train'
    """
    for name in reversed(path.relative_to(root).with_suffix("").parts):
        words = re.findall(r"[a-z]+", re.sub(r"([a-z])(?=[A-Z])", r"\1_", name).lower())
        if (parts := {PART_NAMES[word] for word in words if word in PART_NAMES}) == {"val"} or parts == {"test"}:
            return parts.pop()
        if parts:  # also `train_val.json`: used for training
            return "train"
    return "train"
