"""Label Studio: read its json export, write tasks with polygons and the labeling configuration.

A file is one json list of tasks, each with its image and annotations; polygons are in percent of the image's sides and
have no holes (see `halfmask.data.annotations.layers`). Regions are painted in their order, later ones on top.

Reading: of several annotations of a task the one marked as ground truth counts, else the latest; skipped ones do not. A
task without an annotation (drafts alone) is an unlabeled image; an annotation without regions is an image of class 0.
Writing: drafts are "predictions", which an annotator takes over and corrects; masks that are labels are "annotations".
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Integer

from halfmask.data.annotations.drawing import Drawing, Shape, draw, ellipse, labels_of
from halfmask.data.annotations.exports import ImageNames, load_json, not_here, similar_names
from halfmask.data.annotations.layers import IGNORE_LABEL, UnknownLabelError, clean, error_text, label_of, layers
from halfmask.data.annotations.layers import unknown_label as unknown
from halfmask.data.folder.images.decode import read_header
from halfmask.data.folder.layouts import part_of_folders
from halfmask.errors import DataError
from halfmask.palette import Color, hex_color

LOCAL_FILES = "/data/local-files/?d="  # how Label Studio names a file below its LOCAL_FILES_DOCUMENT_ROOT
_DIGITS = 6  # of a percentage: less than a thousandth of a pixel in an image of 100,000
_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])


class LabelStudioWriter:
    """Collects images, then gives the content of the json file: a task for each.

    Args:
        classes: names; class 0 is what no polygon covers.
        drafts: write predictions to be corrected, not annotations.
    """

    def __init__(self, classes: Sequence[str], *, drafts: bool = False) -> None:
        self.classes, self.drafts = tuple(classes), drafts
        self._tasks: list[dict[str, Any]] = []

    def add(self, image: str, mask: Integer[np.ndarray, "H W"]) -> None:
        """Add an image, by its path below the document root, with its class map (255 = ignore)."""
        height, width = mask.shape
        result = [
            {
                "id": f"{len(self._tasks) + 1}-{number}",
                "from_name": "label",
                "to_name": "image",
                "type": "polygonlabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "points": (outline * (100 / width, 100 / height)).round(_DIGITS).tolist(),
                    "closed": True,
                    "polygonlabels": [label_of(id, self.classes)],
                },
            }
            for number, (id, outline) in enumerate(layers(mask), 1)
        ]
        # The size is for tasks without regions, which do not tell it; exports keep it.
        task: dict[str, Any] = {"data": {"image": LOCAL_FILES + quote(image), "height": height, "width": width}}
        if self.drafts:
            task["predictions"] = [{"model_version": "halfmask", "result": result}]
        else:
            task["annotations"] = [{"result": result}]
        self._tasks.append(task)

    def content(self) -> list[dict[str, Any]]:
        """Return the whole file."""
        return self._tasks

    def configuration(self, colors: Sequence[Color]) -> str:
        """Return the labeling configuration of the project: one label per class, and one for unknown pixels."""
        labels = [*zip(self.classes, colors, strict=True), (IGNORE_LABEL, (255, 255, 255))]
        lines = (f'    <Label value={quoteattr(name)} background="{hex_color(color)}"/>\n' for name, color in labels)
        return (
            '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            '  <PolygonLabels name="label" toName="image" strokeWidth="1" opacity="0.4">\n'
            f"{''.join(lines)}  </PolygonLabels>\n</View>\n"
        )


def size_in(result: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of the image as the annotator saw it, if a region or our own task tells them."""
    told = [(region.get("original_height"), region.get("original_width")) for region in result]
    told.append((data.get("height"), data.get("width")))
    return next(((int(height), int(width)) for height, width in told if height and width), None)


def decode(
    result: Sequence[Mapping[str, Any]], ids: Mapping[str, int], height: int, width: int, line: float | None = None
) -> Drawing:
    """Draw the regions of an annotation: polygons, rectangles, ellipses and open lines. Key points have no area.

    Arguments and errors are those of `draw` (`line` is its width) and `shapes_in`.
    """
    return draw(shapes_in(result, height, width), ids, height, width, line)


def shapes_in(result: Sequence[Mapping[str, Any]], height: int = 100, width: int = 100) -> Iterator[Shape]:
    """Return every region that names a class, in pixels of an image of that size.

    Raises:
        ValueError: a region without a class, or in a turned image.
        KeyError: a region without a number that its shape needs.
        DataError: a drawing of a brush.
    """
    named = {region.get("id") for region in result if _labels(region)} - {None}
    scale = (width / 100, height / 100)
    for region in result:
        kind, value = str(region.get("type", "")), region.get("value") or {}
        if "rle" in value or kind.startswith(("brush", "bitmask")):
            raise DataError(
                "a region is painted with a brush; of this json only outlines are read. Export brushes from Label "
                'Studio as COCO ("Brush labels to COCO") or PNG, or draw polygons.',
                "H208",
            )
        if not {"points", "vertices", "x"} & value.keys():
            continue  # an answer about the whole image
        labels = _labels(region)
        if not labels and (region.get("id") in named or kind.startswith("keypoint")):
            continue  # the configuration has a tag of its own for labels: the outline comes again, with its label
        if len(labels) != 1:
            raise ValueError(f"a region with {len(labels) or 'no'} classes: give each one")
        if region.get("image_rotation"):
            raise ValueError("the image was turned in Label Studio: turn it back, and export again")
        if kind.startswith("keypoint"):
            yield Shape(labels[0])
            continue
        outline = _outline(value, height / width) * scale
        is_open = value.get("closed") is False
        yield Shape(labels[0], lines=(outline,)) if is_open else Shape(labels[0], rings=(outline,))


def _labels(region: Mapping[str, Any]) -> list[str]:
    value = region.get("value") or {}
    return [clean(label) for key, found in value.items() if key.endswith("labels") for label in found]


def _outline(value: Mapping[str, Any], aspect: float) -> np.ndarray:
    """Return corners in percent. A rectangle turns about its upper left corner, an ellipse about its center.

    Args:
        value: of the region.
        aspect: height by width of the image: in percent of unlike sides, a turn is no turn.
    """
    if "points" in value or "vertices" in value:
        points = value.get("points") or [[corner["x"], corner["y"]] for corner in value.get("vertices", ())]
        return np.asarray(points, dtype=np.float64).reshape(-1, 2)
    if "radiusX" in value:
        around = ellipse((0.0, 0.0), (float(value["radiusX"]), float(value["radiusY"])), 180)
    else:
        around = _CORNERS * (value["width"], value["height"])
    turn = np.deg2rad(value.get("rotation", 0))
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    square = (1.0, aspect)
    return np.asarray((around * square) @ rotation / square + (value["x"], value["y"]))


T = TypeVar("T")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file


class Annotation(NamedTuple):
    """What counts of a task."""

    result: Sequence[Mapping[str, Any]]  # its regions
    data: Mapping[str, Any]  # of the task: the address of its image, and whatever was imported with it


class LabelStudioFolder:
    """The exports of a folder, joined with its images by file name.

    Training id 0 is the background; the labels follow in alphabetical order, unless they are named. Images without an
    annotation are unlabeled.

    Args:
        root: the folder.
        paths: json files.
        images: ids of all images below `root`.
        named: class names by training id, where somebody named them.
        line_width: of open lines, in pixels; `None`: they are left out.
    """

    categories: tuple[int, ...] | None = None

    def __init__(
        self,
        root: Path,
        paths: Sequence[Path],
        images: Sequence[str],
        named: Sequence[str] | None = None,
        line_width: float | None = None,
    ) -> None:
        self.root, self._named, self._line_width = root, named, line_width
        here = ImageNames(images)
        self._of: dict[str, tuple[Path, Annotation]] = {}
        drafts: list[str] = []
        absent: list[str] = []
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
                else:
                    absent.append(name)
        if not self._of:
            listed = ", ".join(path.name for path in paths)
            raise DataError(f"{root}: no task in {listed} shows an image that is here. Copy its images there.", "H208")
        self.left_out = sorted(set(drafts) - self._of.keys())
        self.classes = tuple(named) if named is not None else self._found()
        self.remarks = (*not_here(absent, len(absent) + len(self._of)), *similar_names(self.classes))
        self.parts: dict[str, list[str]] = defaultdict(list)
        for id in sorted(images):
            self.parts[part_of_folders(id)].append(id)

    def file_of(self, id: str) -> Path | None:
        """Return the json file that annotates an image."""
        return self._of[id][0] if id in self._of else None

    def draw(self, id: str) -> Drawing:
        """Draw the annotation of an image. Raises DataError: a region cannot be read, or a label is no class."""
        size = self._checked(id, lambda one: size_in(one.result, one.data)) or self._size_of_image(id)
        ids = {name: number for number, name in enumerate(self.classes)}
        return self._checked(id, lambda one: decode(one.result, ids, *size, self._line_width))

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
            labels |= self._checked(id, lambda one: labels_of(shapes_in(one.result), self._line_width))
        return ("background", *sorted(labels - {"background"}))

    def _checked(self, id: str, use: Callable[[Annotation], T]) -> T:
        path, annotation = self._of[id]
        try:
            return use(annotation)
        except UnknownLabelError as error:
            raise unknown(f"{path}: {id}", error, self._named or ()) from error
        except DataError as error:
            raise DataError(f"{path}: {id}: {error}", error.code) from error
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise DataError(
                f"{path}: {id}: {error_text(error)}. Mend it in Label Studio, and export again.", "H201"
            ) from error


def read_annotations(path: Path) -> dict[str, Annotation | None]:
    """Read the annotation of each task, by the name of its image; `None`: it has drafts at most, or was skipped.

    Raises:
        DataError: broken json, another kind of export, or nothing but drafts.
    """
    tasks = load_json(path)
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
    """Return the path of a task's image, of whatever storage.

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
