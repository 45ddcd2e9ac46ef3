"""Masks that lie as labelme json or GeoJSON beside their images."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from halfmask.data.annotations import geojson, labelme
from halfmask.data.geotiff import Ground, is_georeferenced
from halfmask.data.images import read_header
from halfmask.errors import DataError

_FORMATS: dict[str, ModuleType] = {"labelme": labelme, "geojson": geojson}


class Outlines:
    """The outlines of a folder as masks.

    Training id 0 is the background; the labels follow in alphabetical order, unless they are named.

    Args:
        root: the folder.
        kind: "labelme" or "geojson".
        files: json file of each annotated image, both relative to the root.
        named: class names by training id, where somebody named them.
    """

    def __init__(self, root: Path, kind: str, files: Mapping[str, str], named: Sequence[str] | None = None) -> None:
        self.root, self.files = root, files
        self._format = _FORMATS[kind]
        self._named = tuple(named) if named is not None else None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names as given, or as found in the files."""
        if self._named is not None:
            return self._named
        found: set[str] = set()
        for file in sorted(set(self.files.values())):
            found |= self._checked(self.root / file, lambda content: self._format.labels_in(content))
        return ("background", *sorted(found - {"background"}))

    def paint(self, id: str) -> UInt8[np.ndarray, "H W"]:
        """Paint the outlines of an image as training ids, in the size of the upright image.

        Where the json is its own id, no image is there, and the json tells its size.

        Raises:
            DataError: broken file, or a label that is no class.
        """
        file = self.files[id]
        size = None if file == id else read_header(self.root / id).upright
        ids = {name: number for number, name in enumerate(self.classes)}
        geo = self._format is geojson and is_georeferenced(self.root / id)
        place = {"to_pixels": Ground(self.root / id).to_pixels} if geo else {}

        def paint(content: Any) -> Any:
            height, width = size or (int(content["imageHeight"]), int(content["imageWidth"]))
            return self._format.decode(content, ids, height, width, **place)

        painted: UInt8[np.ndarray, "H W"] = self._checked(self.root / file, paint)
        return painted

    def _checked(self, path: Path, use: Any) -> Any:
        try:
            return use(json.loads(path.read_text(encoding="utf-8-sig")))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}). Restore it, or remove its image.", "H201") from error
        except KeyError as error:
            known = ", ".join(self._named or ())
            raise DataError(
                f"{path}: {error} is missing or names no class{f' ({known})' if known else ''}. Add it to `classes` in "
                "halfmask.yaml, or correct the label.",
                "H203",
            ) from error
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            raise DataError(
                f"{path}: not an annotation that can be read ({error}). Export it again.", "H201"
            ) from error
