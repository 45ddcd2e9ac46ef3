"""Masks that lie as labelme json or GeoJSON beside their images."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from halfmask.data.annotations import geojson, labelme
from halfmask.data.annotations.drawing import Drawing, Remark, labels_of
from halfmask.data.annotations.exports import similar_names
from halfmask.data.annotations.layers import UnknownLabelError, error_text, unknown_label
from halfmask.data.folder.images.decode import read_header
from halfmask.data.folder.images.ground import Ground, is_georeferenced
from halfmask.data.folder.masks.decode import fit_to_image
from halfmask.errors import DataError

T = TypeVar("T")

_FORMATS: dict[str, ModuleType] = {"labelme": labelme, "geojson": geojson}


class Outlines:
    """The outlines of a folder as masks.

    Training id 0 is the background; the labels follow in alphabetical order, unless they are named.

    Args:
        root: the folder.
        kind: "labelme" or "geojson".
        files: json file of each annotated image, both relative to the root.
        named: class names by training id, where somebody named them.
        line_width: of lines, in pixels; `None`: they are left out.
        resize: bring masks of another size than the image to its size.
        images: the images are there; without them the files tell the sizes, which those of labelme alone can.
    """

    def __init__(
        self,
        root: Path,
        kind: str,
        files: Mapping[str, str],
        named: Sequence[str] | None = None,
        *,
        line_width: float | None = None,
        resize: bool = False,
        images: bool = True,
    ) -> None:
        self.root, self.files, self._line_width, self._resize = root, files, line_width, resize
        self._format, self._images = _FORMATS[kind], images
        self._named = tuple(named) if named is not None else None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names, as given or as found in the files."""
        if self._named is not None:
            return self._named
        found: set[str] = set()
        for file in sorted(set(self.files.values())):
            found |= self._checked(
                self.root / file, lambda content: labels_of(self._format.shapes_in(content), self._line_width)
            )
        return ("background", *sorted(found - {"background"}))

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Remarks on class names so alike that they may mean one class."""
        return similar_names(self.classes)

    def draw(self, id: str) -> Drawing:
        """Draw the outlines of an image as training ids, in the size of the upright image.

        Raises:
            DataError: broken file, a label that is no class, or a file made for an image of another size.
        """
        path = self.root / self.files[id]
        told = self._size_told(path) if self._format is labelme else None
        size = told if told is not None else read_header(self.root / id).upright
        ids = {name: number for number, name in enumerate(self.classes)}
        geo = self._format is geojson and is_georeferenced(self.root / id)
        place = {"to_pixels": Ground(self.root / id).to_pixels} if geo else {}
        drawing: Drawing = self._checked(
            path, lambda content: self._format.decode(content, ids, *size, self._line_width, **place)
        )
        if self._images:
            drawing.target = fit_to_image(drawing.target, path, self.root / id, self._resize)
        return drawing

    def _size_told(self, path: Path) -> tuple[int, int] | None:
        size: tuple[int, int] | None = self._checked(path, labelme.size_in)
        if size is None and not self._images:
            raise DataError(
                f"{path}: it tells no size (`imageHeight`, `imageWidth`), and the image is not there to tell it. Copy "
                "the image there, or export again.",
                "H201",
            )
        return size

    def image_of(self, id: str) -> str:
        """Return the path of the image that the file of an id names, relative to that file; only labelme names one.

        Raises:
            DataError: broken file, or it names none.
        """
        return self._checked(self.root / self.files[id], lambda one: str(one["imagePath"]).replace("\\", "/"))

    def _checked(self, path: Path, use: Callable[[Any], T]) -> T:
        try:
            return use(json.loads(path.read_text(encoding="utf-8-sig")))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}). Restore it, or remove its image.", "H201") from error
        except UnknownLabelError as error:
            raise unknown_label(path, error, self._named or ()) from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise DataError(
                f"{path}: not an annotation that can be read ({error_text(error)}). Export it again.", "H201"
            ) from error
