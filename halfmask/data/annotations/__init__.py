"""Annotations as other tools write them: outlines from class maps, and class maps from outlines, exact to the pixel.

Reading order: `contours` and `fill` (from pixels to outlines and back), `layers` (formats without holes), `drawing`
(the shapes of all tools), `labelme`, `geojson`, `label_studio` and `coco/` (one tool each), `outlines` (files beside
images), `exports` (one file for many images), `instances` (masks that number objects).
"""

from halfmask.data.annotations.contours import Region, polygons
from halfmask.data.annotations.fill import Patch, fill

__all__ = ["Patch", "Region", "fill", "polygons"]
