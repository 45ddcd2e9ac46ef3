"""Write COCO json (instances): one annotation per region, exact to the pixel.

A region without holes is a polygon along pixel edges; one with holes is a run-length code, because a list of polygons
cannot say what is a hole. Ignored pixels are a crowd, which evaluation tools leave out and `halfmask` reads as 255.
An image that is background alone has no annotation, like one that nobody has looked at; a key of its own, which other
tools pass over, marks it as labeled. Reading: `halfmask.data.annotations.coco.read`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Integer

from halfmask.data.annotations.coco.read import BACKGROUND_NAMES, LABELED, UNKNOWN
from halfmask.data.annotations.coco.regions import pycocotools, run_lengths
from halfmask.data.annotations.contours import Region, polygons
from halfmask.data.annotations.fill import fill
from halfmask.data.folder.masks.decode import IGNORE
from halfmask.data.folder.masks.ids import IdTable

Geometry = Literal["polygon", "rle"]


class CocoWriter:
    """Collects images, then gives the content of the json file.

    Args:
        classes: names; a first one called "background" is what no annotation covers.
        geometry: "polygon" where a region has no holes, or "rle" for all.
        table: ids of the classes, which their categories have too; by default they are numbered from 1.

    Raises:
        MissingExtraError: pycocotools is not installed.
    """

    def __init__(self, classes: Sequence[str], geometry: Geometry = "polygon", table: IdTable | None = None) -> None:
        pycocotools()  # nearly every mask has a hole somewhere: better told now than after hours of predictions
        self.classes, self.geometry = tuple(classes), geometry
        self._background = {0} if classes and classes[0] in BACKGROUND_NAMES else set()
        ids = tuple(range(len(classes))) if table is None else table.categories or table.ids
        # Many tools take a category 0 for the background.
        start = 1 if any(id < 1 for place, id in enumerate(ids) if place not in self._background) else 0
        self._categories = [id + start for id in ids]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, mask: Integer[np.ndarray, "H W"]) -> None:
        """Add an image with its class map (255 = ignore)."""
        height, width = mask.shape
        image, before = len(self.images) + 1, len(self.annotations)
        self.images.append({"id": image, "file_name": file_name, "height": height, "width": width})
        for region in polygons(mask, skip={*self._background, IGNORE}):
            outline, corners = self._outline(region, height, width), region.exterior
            self._annotate(image, self._categories[region.value], outline, region.area, corners.min(0), corners.max(0))
        if (ignored := mask == IGNORE).any():
            places = np.argwhere(ignored)[:, ::-1]  # (x, y)
            area, ends = len(places), (places.min(0), places.max(0) + 1)
            # A crowd needs some category.
            self._annotate(image, self._categories[-1], run_lengths(ignored), area, *ends, crowd=True)
        if len(self.annotations) == before:
            self.images[-1].update(LABELED)

    def content(self) -> dict[str, Any]:
        """Return the whole file."""
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [
                {"id": id, "name": name, "supercategory": ""}
                for place, (id, name) in enumerate(zip(self._categories, self.classes, strict=True))
                if place not in self._background
            ],
        }

    def _outline(self, region: Region, height: int, width: int) -> Any:
        if self.geometry == "polygon" and not region.holes:
            return [region.exterior.ravel().tolist()]
        return run_lengths(fill([region.exterior, *region.holes], height, width).whole(height, width))

    def _annotate(
        self, image: int, category: int, outline: Any, area: int, low: np.ndarray, high: np.ndarray, crowd: bool = False
    ) -> None:
        number, box = len(self.annotations) + 1, [*low.tolist(), *(high - low).tolist()]
        entry = {"id": number, "image_id": image, "category_id": category, "segmentation": outline, "area": area}
        self.annotations.append({**entry, "bbox": box, "iscrowd": int(crowd), **(UNKNOWN if crowd else {})})
