"""Masks that lie as labelme json or GeoJSON beside their images."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from halfmask.data.annotations import geojson, labelme
from halfmask.data.annotations.layers import UnknownLabelError, unknown_label, what_is_wrong
from halfmask.data.folder.geotiff import Ground, is_georeferenced
from halfmask.data.folder.images import read_header
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
        images: the images are there; without them the files tell the sizes, which those of labelme alone can.
    """

    def __init__(
        self,
        root: Path,
        kind: str,
        files: Mapping[str, str],
        named: Sequence[str] | None = None,
        *,
        images: bool = True,
    ) -> None:
        self.root, self.files = root, files
        self._format, self._images = _FORMATS[kind], images
        self._named = tuple(named) if named is not None else None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names as given, or as found in the files."""
        if self._named is not None:
            return self._named
        found: set[str] = set()
        for file in sorted(set(self.files.values())):
            found |= self._checked(self.root / file, self._format.labels_in)
        return ("background", *sorted(found - {"background"}))

    def paint(self, id: str) -> UInt8[np.ndarray, "H W"]:
        """Paint the outlines of an image as training ids, in the size of the upright image.

        Raises:
            DataError: broken file, or a label that is no class.
        """
        path = self.root / self.files[id]
        size = read_header(self.root / id).upright if self._images else self._size_told(path)
        ids = {name: number for number, name in enumerate(self.classes)}
        geo = self._format is geojson and is_georeferenced(self.root / id)
        place = {"to_pixels": Ground(self.root / id).to_pixels} if geo else {}
        painted: UInt8[np.ndarray, "H W"] = self._checked(
            path, lambda content: self._format.decode(content, ids, *size, **place)
        )
        return painted

    def _size_told(self, path: Path) -> tuple[int, int]:
        size: tuple[int, int] | None = self._checked(path, self._format.size_in)
        if size is None:
            raise DataError(
                f"{path}: it tells no size (`imageHeight`, `imageWidth`), and the image is not there to tell it. Copy "
                "the image there, or export again.",
                "H201",
            )
        return size

    def image_of(self, id: str) -> str:
        """Path of the image as the file of an id names it, relative to that file; labelme alone does.

        Raises:
            DataError: broken file, or it names none.
        """
        named: str = self._checked(self.root / self.files[id], self._format.image_in)
        return named

    def _checked(self, path: Path, use: Callable[[Any], T]) -> T:
        try:
            return use(json.loads(path.read_text(encoding="utf-8-sig")))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}). Restore it, or remove its image.", "H201") from error
        except UnknownLabelError as error:
            raise unknown_label(path, error, self._named or ()) from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise DataError(
                f"{path}: not an annotation that can be read ({what_is_wrong(error)}). Export it again.", "H201"
            ) from error
