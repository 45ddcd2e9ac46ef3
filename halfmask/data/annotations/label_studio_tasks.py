"""The json export of Label Studio: a list of tasks, each with its image and annotations.

Of several annotations of a task counts the one marked as ground truth, else the latest; those that were skipped do not.
A task without one (drafts alone) is an unlabeled image; an annotation without regions is an image of class 0.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from jaxtyping import UInt8

from halfmask.data.annotations import label_studio
from halfmask.data.annotations.exports import ImageNames
from halfmask.data.annotations.layers import UnknownLabelError, unknown_label, what_is_wrong
from halfmask.data.folder.images import read_header
from halfmask.data.folder.layouts import part_of_folders
from halfmask.errors import DataError

T = TypeVar("T")

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file


class Annotation(NamedTuple):
    """What counts of a task.

    Args:
        result: its regions.
        data: of the task: the address of its image, and whatever was imported with it.
    """

    result: Sequence[Mapping[str, Any]]
    data: Mapping[str, Any]


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
        self.root, self._named = root, named
        here = ImageNames(images)
        self._of: dict[str, tuple[Path, Annotation]] = {}
        drafts: list[str] = []
        for path in paths:
            for name, annotation in read_annotations(path).items():
                if annotation is None:
                    drafts += here.most_alike(name)
                    continue
                located = _locate(name, path, here)
                if located in self._of:
                    raise DataError(f"{path}: two annotated tasks show {located}. Keep one of them.", "H208")
                if located is not None:
                    self._of[located] = (path, annotation)
        if not self._of:
            listed = ", ".join(path.name for path in paths)
            raise DataError(f"{root}: no task in {listed} shows an image that is here. Copy its images there.", "H208")
        self.left_out = sorted(set(drafts) - self._of.keys())
        self.classes = tuple(named) if named is not None else self._found()
        self.parts: dict[str, list[str]] = defaultdict(list)
        for id in sorted(images):
            self.parts[part_of_folders(id)].append(id)

    def file_of(self, id: str) -> Path | None:
        """The json file that annotates an image."""
        return self._of[id][0] if id in self._of else None

    def paint(self, id: str) -> UInt8[np.ndarray, "H W"]:
        """Paint the annotation of an image.

        Raises:
            DataError: a region that cannot be read, or a label that is no class.
        """
        size = self._checked(id, lambda annotation: label_studio.size_in(annotation.result, annotation.data))
        height, width = size or self._size_of_image(id)
        ids = {name: number for number, name in enumerate(self.classes)}
        return self._checked(id, lambda annotation: label_studio.decode(annotation.result, ids, height, width))

    def _size_of_image(self, id: str) -> tuple[int, int]:
        if not (self.root / id).exists():
            raise DataError(
                f"{self.file_of(id)}: the annotation of {id} is empty, and the image is not there to tell its size. "
                "Copy it there.",
                "H201",
            )
        return read_header(self.root / id).upright

    def _found(self) -> tuple[str, ...]:
        labels: set[str] = set()
        for id in self._of:
            labels |= self._checked(id, lambda annotation: label_studio.labels_in(annotation.result))
        return ("background", *sorted(labels - {"background"}))

    def _checked(self, id: str, use: Callable[[Annotation], T]) -> T:
        path, annotation = self._of[id]
        try:
            return use(annotation)
        except UnknownLabelError as error:
            raise unknown_label(f"{path}: {id}", error, self._named or ()) from error
        except DataError as error:
            raise DataError(f"{path}: {id}: {error}", error.code) from error
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise DataError(
                f"{path}: {id}: {what_is_wrong(error)}. Mend it in Label Studio, and export again.", "H201"
            ) from error


def read_annotations(path: Path) -> dict[str, Annotation | None]:
    """Read the annotation of each task, by the name of its image; `None`: it has drafts at most, or was skipped.

    Raises:
        DataError: broken json, another kind of export, or nothing but drafts.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a json file ({error}). Export it again.", "H201") from error
    if not isinstance(tasks, list) or not all(map(_is_task, tasks)):
        raise DataError(f"{path}: no list of tasks. Export from Label Studio as JSON, not JSON-MIN or CSV.", "H208")
    found: dict[str, Annotation | None] = {}
    for task in tasks:
        done = [made for made in task.get("annotations") or [] if not made.get("was_cancelled")]
        truth = [made for made in done if made.get("ground_truth")]
        name = image_name(task["data"])
        if not done:
            found.setdefault(name, None)
            continue
        if found.get(name) is not None:
            raise DataError(f"{path}: two annotated tasks show {name}. Keep one of them.", "H208")
        latest = sorted(truth or done, key=lambda made: str(made.get("updated_at") or ""))[-1]
        found[name] = Annotation(latest.get("result") or [], task["data"])
    if not any(found.values()):
        raise DataError(
            f"{path}: no annotations, only tasks or drafts. Correct and submit them in Label Studio, and export the "
            "project as JSON.",
            "H208",
        )
    return found


def _is_task(task: Any) -> bool:
    made = (task.get("annotations") or []) if isinstance(task, Mapping) else None
    return (
        isinstance(made, list)
        and all(isinstance(one, Mapping) for one in made)
        and isinstance(task.get("data"), Mapping)
    )


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
        return _UPLOADED.sub("", name)
    return f"{folder}/{name}" if folder else name


def _locate(name: str, path: Path, here: ImageNames) -> str | None:
    """Find the image of a task. Its folders need not fit: they may be those of a bucket or of a server."""
    found = here.most_alike(name)
    if name in found:
        return name
    if len(found) > 1:
        raise DataError(f"{path}: {name} fits {', '.join(found[:3])}. Give them different names.", "H208")
    return found[0] if found else None
