"""Annotations as other tools write them: outlines from class maps, and class maps from outlines, exact to the pixel."""

from halfmask.data.annotations.contours import Region, polygons
from halfmask.data.annotations.fill import Patch, fill

__all__ = ["Patch", "Region", "fill", "polygons"]
