"""Read COCO json (instances): polygons and run-length codes painted as class ids, classes joined by their names.

Format: Lin et al., "Microsoft COCO", ECCV 2014, and cocodataset.org. Parts of one instance are united; smaller
instances lie on top of larger ones, as the format knows no order.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halfmask.data.annotations.coco.files import Read, choose, load, read_json, remarks_on
from halfmask.data.annotations.coco.regions import NO_CATEGORY, decode_region, problem_of, rings_of
from halfmask.data.annotations.drawing import FLAT, Drawing, Remark, why_empty
from halfmask.data.annotations.exports import ImageNames, not_here, similar_names
from halfmask.data.annotations.layers import IGNORE_LABEL, clean, composed
from halfmask.data.folder.folder_names import PART_NAMES
from halfmask.data.folder.masks.decode import IGNORE
from halfmask.errors import DataError, bullet_list, nearest

LABELED = {"halfmask": "labeled"}  # of an image: that it has no annotation is no accident
UNKNOWN = {"halfmask": "unknown"}  # of a crowd: unknown pixels, of no class
BACKGROUND_NAMES = ("background", "_background_")


class CocoFile:
    """One json file with `images`, `annotations` and `categories`; category ids belong to their file.

    Args:
        path: the file.
        classes: class name -> training id, for every category that is used.
        fill_value: training id of what no annotation covers.
        crowds: classes whose crowds (`iscrowd: 1`) are read as the class, not as unknown.
        content: of the file, where it has been read already.

    Raises:
        DataError: not such a file, a category that is no class, or annotations that cannot be drawn: all together.
    """

    def __init__(
        self,
        path: Path,
        classes: Mapping[str, int],
        fill_value: int = 0,
        *,
        crowds: Iterable[str] = (),
        content: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.fill_value = path, fill_value
        content = content if content is not None else load(path)
        self.images: dict[str, dict[str, Any]] = {str(image["file_name"]): image for image in content["images"]}
        self.names = names_of(content)
        ids = dict(classes) | {IGNORE_LABEL: IGNORE}
        used = {annotation.get("category_id") for annotation in content["annotations"]}
        strange = sorted(self.names[id] for id in used if id in self.names and self.names[id] not in ids)
        if strange:
            raise DataError(
                f"{path}: categories that are no class: {', '.join(strange)}.{nearest(strange[0], classes)} Add them "
                "to `classes` in halfmask.yaml, or rename them in the annotation tool.",
                "H203",
            )
        # Always through `categories`: ids may have gaps and start anywhere.
        self._training_id = {id: ids[name] for id, name in self.names.items() if name in ids}
        self._crowds = {id for id, name in self.names.items() if name in set(crowds)}
        self.homeless: Counter[str] = Counter()  # annotations of images that the file does not list, by class
        self.annotations = self._sorted(content["annotations"], {image["id"]: image for image in content["images"]})

    def __contains__(self, file_name: object) -> bool:
        return file_name in self.images

    def is_annotated(self, file_name: str) -> bool:
        """Return whether an image has an annotation, or we have marked it as background alone."""
        image = self.images[file_name]
        return bool(self.annotations.get(file_name)) or image.items() >= LABELED.items()

    def drawn(self, file_name: str) -> list[tuple[str, Any, bool]]:
        """Return what the file draws in an image, to be compared with another file: class, outline, crowd."""
        found = self.annotations.get(file_name, [])
        return [(self.names[one["category_id"]], one.get("segmentation"), bool(one.get("iscrowd"))) for one in found]

    def crowds_of(self, file_name: str) -> dict[str, list[int]]:
        """Count the annotations of each class of an image that are crowds, and all."""
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for one in self.annotations.get(file_name, []):
            if not one.items() >= UNKNOWN.items():
                counts[self.names[one["category_id"]]][0] += bool(one.get("iscrowd"))
                counts[self.names[one["category_id"]]][1] += 1
        return counts

    def draw(self, file_name: str) -> Drawing:
        """Draw the annotations of an image: crowds (255) first, then instances, the largest first.

        Raises:
            DataError: a run-length code that does not fill the image.
            MissingExtraError: a run-length code, and pycocotools is not installed.
        """
        image = self.images[file_name]
        size = int(image["height"]), int(image["width"])
        drawing = Drawing(np.full(size, self.fill_value, dtype=np.uint8))
        painted: list[tuple[bool, int, int, np.ndarray]] = []
        for annotation in self.annotations.get(file_name, []):
            category = annotation["category_id"]
            try:
                region = decode_region(annotation["segmentation"], *size)
            except ValueError as error:
                raise DataError(
                    f"{self.path}: annotation {annotation.get('id')} of {file_name}: {error}. Export it again.", "H203"
                ) from error
            unknown = annotation.items() >= UNKNOWN.items()
            crowd = bool(annotation.get("iscrowd", 0)) and (unknown or category not in self._crowds)
            label = IGNORE if crowd else self._training_id[category]
            painted.append((not crowd, -int(region.sum()), label, region))
            if not region.any():
                why = FLAT if isinstance(annotation["segmentation"], dict) else why_empty(rings_of(annotation), *size)
                drawing.left_out[why, self.names[category]] += 1
        for _, _, label, region in sorted(painted, key=lambda item: item[:2]):
            drawing.target[region] = label
        return drawing

    def _sorted(
        self, annotations: Iterable[dict[str, Any]], images: Mapping[Any, Mapping[str, Any]]
    ) -> dict[str, list[dict[str, Any]]]:
        """Sort the annotations by image; what is wrong with them is told at once, each kind with its count."""
        by_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
        wrong: dict[str, Counter[str]] = defaultdict(Counter)
        examples: dict[str, str] = {}
        for one in annotations:
            name = self.names.get(one.get("category_id"), "")
            image = images.get(one.get("image_id"))
            problem, example = problem_of(one, image) if name else (NO_CATEGORY, "")
            if image is None and name:
                self.homeless[name] += 1
            elif problem:
                wrong[problem][name or str(one.get("category_id"))] += 1
                examples.setdefault(problem, example)
            elif image is not None:
                by_image[str(image["file_name"])].append(one)
        if wrong:
            lines = [
                f"{sum(found.values())} {problem}{examples[problem]} ({_counts(found)})"
                for problem, found in wrong.items()
            ]
            raise DataError(f"{self.path}: annotations that cannot be read:\n{bullet_list(lines)}", "H203")
        return by_image


class CocoFolder:
    """The json files of a folder, joined with its images by file name, and with one another by names of classes.

    Training id 0 is the background; the categories follow in the order of their ids. Images that no file lists, and
    listed ones without any annotation, count as unlabeled: tools also list what nobody has annotated yet. Those that
    `CocoWriter` has marked as background alone are labeled. Captions, keypoints and the like beside instances are left
    aside, and a remark says so.

    Args:
        root: the folder.
        paths: json files.
        images: ids of all images below `root`.
        named: class names by training id, where somebody named them; they count if all categories in use are
            among them. If even the first one is a category, what no annotation covers is unknown (255).
        crowds: classes whose crowds are read as the class.

    Raises:
        DataError: no instances, broken ones, or two files that draw one image differently.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[Path],
        images: Sequence[str],
        named: Sequence[str] | None = None,
        crowds: Sequence[str] = (),
    ) -> None:
        self._root = root
        read, left = choose([Read(path, read_json(path)) for path in paths])
        contents = [one.content for one in read]
        categories = _class_names(contents)
        use_names = named is not None and set(categories[1:]) <= set(named)
        self.classes = tuple(named) if named is not None and use_names else categories
        covered = use_names and self.classes[0] in categories[1:]
        self.categories = _category_ids(contents, self.classes)
        ids = {name: id for id, name in enumerate(self.classes)} | dict.fromkeys(BACKGROUND_NAMES, 0)
        if strange := sorted(set(crowds) - set(ids)):
            raise DataError(f"{root}: `crowds` in halfmask.yaml names {', '.join(strange)}, which is no class.", "H209")
        self.parts: dict[str, list[str]] = defaultdict(list)
        self._file_of: dict[str, tuple[CocoFile, str]] = {}
        here, files, absent = ImageNames(images), [], []
        for path, content in read:
            file = CocoFile(path, ids, IGNORE if covered else 0, crowds=crowds, content=content)
            files.append(file)
            for name in file.images:
                found = _locate(name, path, root, here)
                if found is None and file.is_annotated(name):
                    absent.append(name)
                if found is not None and file.is_annotated(name):
                    self._require_alike(found, file, name)
                    self._file_of[found] = (file, name)
                if found is not None:
                    self.parts[part_of(path, root)].append(found)
        listed = {id for part in self.parts.values() for id in part}
        if not listed:
            names = ", ".join(one.path.name for one in read)
            raise DataError(f"{root}: no image that {names} lists is here. Copy the images there.", "H208")
        self.left_out = sorted(listed - self._file_of.keys())
        self.parts["unlabeled"] = [id for id in images if id not in listed]
        self.parts = {part: sorted(set(held)) for part, held in self.parts.items()}
        self.remarks = (
            *remarks_on(left, root), *_homeless(files), *not_here(absent, len(absent) + len(self._file_of)),
            *self._crowds(set(crowds)), *similar_names(self.classes),
        )  # fmt: skip

    def file_of(self, id: str) -> Path | None:
        """Return the json file that annotates an image."""
        return self._file_of[id][0].path if id in self._file_of else None

    def draw(self, id: str) -> Drawing:
        """Draw the annotations of an image."""
        file, name = self._file_of[id]
        return file.draw(name)

    def _require_alike(self, id: str, file: CocoFile, name: str) -> None:
        if id not in self._file_of:
            return
        other, its_name = self._file_of[id]
        if other.drawn(its_name) != file.drawn(name):
            raise DataError(
                f"{self._root}: {id} is annotated in two files, differently: {other.path.name} and {file.path.name}. "
                "Which counts? Move the other one out of the folder.",
                "H208",
            )

    def _crowds(self, read_as_class: set[str]) -> list[Remark]:
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for file, name in self._file_of.values():
            for label, (crowds, every) in file.crowds_of(name).items():
                counts[label][:] = counts[label][0] + crowds, counts[label][1] + every
        ignored = {label: one for label, one in counts.items() if one[0] and label not in read_as_class}
        remarks = []
        for only in (True, False):
            chosen = {label: one for label, one in sorted(ignored.items()) if (one[0] == one[1]) is only}
            if not chosen:
                continue
            shown = ", ".join(f"{label} ({one[0]} of {one[1]})" for label, one in chosen.items())
            what = "every annotation is a crowd (iscrowd 1)" if only else "some annotations are crowds (iscrowd 1)"
            remarks.append(
                Remark(
                    "warning" if only else "note",
                    "H163",
                    f"of these classes {what}, which is read as unknown (255), not as the class: {shown}",
                    sum(one[0] for one in chosen.values()),
                    f"if they are masks of the class, as CVAT writes those of a brush: `crowds: [{', '.join(chosen)}]` "
                    "in halfmask.yaml; if they are groups that nobody outlined one by one: nothing",
                    labels=tuple(chosen),
                )
            )
        return remarks


def _homeless(files: Sequence[CocoFile]) -> list[Remark]:
    return [
        Remark(
            "warning",
            "H165",
            f"{file.path.name}: annotations of images that it does not list: {_counts(file.homeless)}",
            sum(file.homeless.values()),
            "nothing, if the images were removed on purpose; else export again, with them",
            (file.path.name,),
        )
        for file in files
        if file.homeless
    ]


def names_of(content: Mapping[str, Any]) -> dict[Any, str]:
    """Return the name of each category of a file by its id."""
    return {category["id"]: clean(category["name"]) for category in content["categories"]}


def _class_names(contents: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Join the categories of all files by name, in the order of their ids."""
    order: dict[str, Any] = {}
    for content in contents:
        used = {annotation.get("category_id") for annotation in content["annotations"]}
        # Some exporters add a parent category that no annotation uses; it is no class.
        parents = {category.get("supercategory") for category in content["categories"]}
        for id, name in names_of(content).items():
            if name not in {*BACKGROUND_NAMES, IGNORE_LABEL} and (id in used or name not in parents):
                order[name] = min(id, order.get(name, id))
    return ("background", *sorted(order, key=lambda name: (order[name], name)))


def _category_ids(contents: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> tuple[int, ...] | None:
    """Return the category id of each class, 0 for the background; `None` where files disagree, or lack one."""
    found = {(name, id) for content in contents for id, name in names_of(content).items()}
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
    clean = composed(name.replace("\\", "/").removeprefix("./"))
    found = [id for id in here.most_alike(clean) if f"/{composed(id)}".endswith(f"/{clean}")]
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


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(found.items(), key=lambda item: -item[1])[:6])
