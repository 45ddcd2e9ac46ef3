"""What annotations of many images in one json file have in common, whatever tool exported them."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from halfmask.data.annotations.drawing import Drawing, Remark
from halfmask.data.annotations.layers import composed
from halfmask.errors import DataError, first_few


@runtime_checkable
class Exports(Protocol):
    """The json files of a folder, joined with its images by file name.

    Attributes:
        classes: names by training id.
        parts: sorted ids per part.
        left_out: images that a file lists without an annotation, so that they count as unlabeled.
        remarks: what is worth saying of the files.
        categories: category id by training id, 0 of the background; `None`: the tool numbers no classes.
    """

    classes: tuple[str, ...]
    parts: dict[str, list[str]]
    left_out: list[str]
    categories: tuple[int, ...] | None
    remarks: tuple[Remark, ...]

    def file_of(self, id: str) -> Path | None:
        """Return the json file that annotates an image, if one does."""
        ...

    def draw(self, id: str) -> Drawing:
        """Draw the annotations of an image as training ids.

        Raises:
            DataError: one that cannot be read, or a label that is no class.
        """
        ...


def load_json(path: Path) -> Any:
    """Read an export. Raises DataError: broken json."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a json file ({error}). Export it again.", "H201") from error


def similar_names(classes: Iterable[str]) -> tuple[Remark, ...]:
    """Say which classes may be one, because their names differ in upper case, spaces or hyphens only.

    >>> [remark.labels for remark in similar_names(["Road", "road", "traffic-light", "traffic light", "sky"])]
    [('Road', 'road'), ('traffic-light', 'traffic light')]
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[re.sub(r"[\s_-]+", "", name.casefold()) or name].append(name)
    return tuple(
        Remark(
            "warning",
            "H162",
            f"{len(names)} classes whose names are nearly the same: {', '.join(names)}",
            len(names),
            "give them one name and id, if they are one class: each is learned on its own",
            labels=tuple(names),
        )
        for names in alike.values()
        if len(names) > 1
    )


def not_here(names: Sequence[str], images: int) -> tuple[Remark, ...]:
    """Say which annotated images are not in the folder, so that work on them is not used."""
    if not names:
        return ()
    text = f"{len(names)} of {images} annotated images are not in the folder: {first_few(names)}"
    cure = "copy them there, or name the files as the annotations do; nothing, if they were left out on purpose"
    return (Remark("warning", "H166", text, len(names), cure, tuple(names)),)


class ImageNames:
    """Finds images by the end of a path: the folders of another machine or storage need not be here.

    `é` in one character and `é` in two are one name.

    Args:
        ids: of all images.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for id in ids:
            self._by_name[composed(id).rpartition("/")[2]].append(id)

    def most_alike(self, path: str) -> list[str]:
        """Return the images of the same file name; of several, those that share the most folders, from the end on.

        >>> ImageNames(["a/1.png", "b/1.png", "b/2.png"]).most_alike("bucket/b/1.png")
        ['b/1.png']
        """
        path = composed(path)
        found = self._by_name.get(path.rpartition("/")[2], [])
        if len(found) < 2:
            return found
        alike = [_shared_end(composed(id), path) for id in found]
        return [id for id, shared in zip(found, alike, strict=True) if shared == max(alike)]


def _shared_end(a: str, b: str) -> int:
    pairs = zip(reversed(a.split("/")), reversed(b.split("/")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
