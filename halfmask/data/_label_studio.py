"""The json export of Label Studio: a list of tasks, each with its image and annotations.

Of several annotations of a task counts the one marked as ground truth, else the latest; those that were skipped do not.
A task without one (drafts alone) is an unlabeled image; an annotation without regions is an image of class 0.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from jaxtyping import UInt8

from halfmask.data.annotations import label_studio
from halfmask.data.images import read_header
from halfmask.data.layouts import PART_NAMES
from halfmask.errors import DataError

Result = Sequence[Mapping[str, Any]]
Annotated = tuple[Result, Mapping[str, Any]]  # the annotation of a task, and its data
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file


class LabelStudioFolder:
    """The exports of a folder, joined with its images by file name.

    Training id 0 is the background; the labels follow in alphabetical order, unless they are named. Images without an
    annotation are unlabeled.

    Args:
        root: the folder.
        paths: json files.
        images: ids of all images below `root`.
        named: class names by training id, where somebody named them.
    """

    def __init__(
        self, root: Path, paths: Sequence[Path], images: Sequence[str], named: Sequence[str] | None = None
    ) -> None:
        self.root = root
        by_name: dict[str, list[str]] = defaultdict(list)
        for id in images:
            by_name[id.rpartition("/")[2]].append(id)
        self._of: dict[str, tuple[Path, Annotated]] = {}
        for path in paths:
            for name, found in annotated(path).items():
                located = _locate(name, path, by_name)
                if located in self._of:
                    raise DataError(f"{path}: two annotated tasks show {located}. Keep one of them.", "H208")
                if located is not None:
                    self._of[located] = (path, found)
        if not self._of:
            listed = ", ".join(path.name for path in paths)
            raise DataError(f"{root}: no task in {listed} shows an image that is here. Copy its images there.", "H208")
        self.classes = tuple(named) if named is not None else self._found()
        self.parts: dict[str, list[str]] = defaultdict(list)
        for id in sorted(images):
            inside = [PART_NAMES[part] for part in Path(id).parts[:-1] if part in PART_NAMES]
            self.parts[inside[0] if inside else "train"].append(id)

    def file_of(self, id: str) -> Path | None:
        """The json file that annotates an image."""
        return self._of[id][0] if id in self._of else None

    def paint(self, id: str) -> UInt8[np.ndarray, "H W"]:
        """Paint the annotation of an image.

        Raises:
            DataError: a region that cannot be read, or a label that is no class.
        """
        path, (result, data) = self._of[id]
        size = label_studio.size_in(result, data)
        if size is None and not (self.root / id).exists():
            raise DataError(
                f"{path}: the annotation of {id} is empty, and the image is not there to tell its size. Copy it there.",
                "H201",
            )
        height, width = size or read_header(self.root / id).upright
        ids = {name: number for number, name in enumerate(self.classes)}
        try:
            return label_studio.decode(result, ids, height, width)
        except KeyError as error:
            raise DataError(
                f"{path}: {error} is missing or names no class ({', '.join(self.classes)}). Add it to `classes` in "
                "halfmask.yaml, or correct the label.",
                "H203",
            ) from error
        except DataError as error:
            raise DataError(f"{path}: {id}: {error}", error.code) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: {id}: {error}. Mend it in Label Studio, and export again.", "H201") from error

    def _found(self) -> tuple[str, ...]:
        labels: set[str] = set()
        for id, (path, (result, _)) in self._of.items():
            try:
                labels |= label_studio.labels_in(result)
            except (ValueError, TypeError, AttributeError) as error:
                code = error.code if isinstance(error, DataError) else "H201"
                raise DataError(f"{path}: {id}: {error}", code) from error
        return ("background", *sorted(labels - {"background"}))


def annotated(path: Path) -> dict[str, Annotated]:
    """Read the annotation of each task that has one, by the name of its image.

    Raises:
        DataError: broken json, another kind of export, or nothing but drafts.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a json file ({error}). Export it again.", "H201") from error
    if not isinstance(tasks, list) or any("data" not in task for task in tasks):
        raise DataError(f"{path}: no list of tasks. Export from Label Studio as JSON, not JSON-MIN or CSV.", "H208")
    found: dict[str, Annotated] = {}
    for task in tasks:
        done = [made for made in task.get("annotations") or [] if not made.get("was_cancelled")]
        truth = [made for made in done if made.get("ground_truth")]
        if not done:
            continue
        name = image_name(task["data"])
        if name in found:
            raise DataError(f"{path}: two annotated tasks show {name}. Keep one of them.", "H208")
        latest = sorted(truth or done, key=lambda made: str(made.get("updated_at") or ""))[-1]
        found[name] = (latest.get("result") or [], task["data"])
    if not found:
        raise DataError(
            f"{path}: no annotations, only tasks or drafts. Correct and submit them in Label Studio, and export the "
            "project as JSON.",
            "H208",
        )
    return found


def image_name(data: Mapping[str, Any]) -> str:
    """Give the path of a task's image, of whatever storage.

    >>> image_name({"image": "/data/local-files/?d=images/field%201.jpg"})
    'images/field 1.jpg'
    >>> image_name({"img": "/data/upload/3/0a1b2c3d-f_001.jpg"})  # uploaded by hand
    'f_001.jpg'
    >>> image_name({"image": "s3://bucket/images/f_001.jpg"})
    'images/f_001.jpg'
    """
    value = data.get("image") or next((value for value in data.values() if isinstance(value, str)), "")
    address = urlsplit(str(value))
    below = parse_qs(address.query).get("d")
    path = below[0] if below else unquote(address.path)
    folder, _, name = path.replace("\\", "/").strip("/").rpartition("/")
    if "upload" in folder.split("/") and _UPLOADED.match(name):
        return name[9:]
    return f"{folder}/{name}" if folder else name


def _locate(name: str, path: Path, by_name: Mapping[str, Sequence[str]]) -> str | None:
    """Find the image of a task: that of the same file name; of several the one in the most alike folders."""
    wanted = name.split("/")[::-1]

    def alike(id: str) -> int:
        parts = id.split("/")[::-1]
        same = [a == b for a, b in zip(parts, wanted, strict=False)]
        return [*same, False].index(False)

    found = sorted(by_name.get(wanted[0], ()), key=alike)
    if len(found) > 1 and alike(found[-1]) == alike(found[-2]):
        raise DataError(f"{path}: {name} fits {', '.join(found[-2:])}. Give them different names.", "H208")
    return found[-1] if found else None
