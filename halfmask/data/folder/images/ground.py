"""Where the pixels of a GeoTIFF lie on Earth (extra `geo`), and whether a mask covers the ground of its image."""

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from halfmask.data.folder.images.decode import open_geotiff
from halfmask.errors import DataError

SUFFIXES = frozenset({".tif", ".tiff"})
_GEO_TAGS = frozenset({33550, 33922, 34264, 34735})  # pixel scale, tie points, transformation, keys
_SHIFT = 0.5  # pixels
_WGS84 = "EPSG:4326"


def is_georeferenced(path: Path) -> bool:
    """Return whether a file is a TIFF that says where it lies; a broken one is not.

    Raises:
        MissingExtraError: it is, or Pillow cannot open it, and rasterio is not installed.
    """
    if path.suffix.lower() not in SUFFIXES or not path.stat().st_size:
        return False
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            tags = set(getattr(image, "tag_v2", ()))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass  # of many bands, or large
    else:
        if not tags & _GEO_TAGS:
            return False
    try:
        with open_geotiff(path) as source:
            return source.crs is not None or not source.transform.is_identity or bool(source.gcps[0])
    except DataError:
        return False


def world_file(path: Path) -> Path | None:
    """Return the world file beside a raster (`a.tfw`, `a.pgw`, `a.pngw`, `a.wld`), if there is one."""
    suffix = path.suffix.lower()
    ends = (f".{suffix[1:2]}{suffix[-1:]}w", f"{suffix}w", ".wld")
    names = (path.with_suffix(end) for lower in ends for end in (lower, lower.upper()))
    return next((name for name in names if name.is_file()), None)


class Ground:
    """Where the pixels of a GeoTIFF lie: longitude and latitude (WGS 84), the coordinates of GeoJSON (RFC 7946).

    A file without a reference system keeps the coordinates of its transform; control points count as the affine map
    that fits them best.

    Args:
        path: of the file.

    Raises:
        DataError: a broken file.
    """

    def __init__(self, path: Path) -> None:
        from rasterio.transform import from_gcps

        with open_geotiff(path) as source:
            points, points_crs = source.gcps
            self._affine = from_gcps(points) if points else source.transform
            self._system = points_crs if points else source.crs

    def of_pixels(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
        """Return the coordinates of corners of pixels (column, row)."""
        return self._warped(_moved(points, self._affine), back=False)

    def to_pixels(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
        """Return columns and rows of coordinates."""
        return _moved(self._warped(points, back=True), ~self._affine)

    def to_map(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
        """Return the coordinates of corners of pixels in the file's own system."""
        return _moved(points, self._affine)

    def of_map(self, points: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2"]:
        """Return columns and rows of coordinates in the file's own system."""
        return _moved(points, ~self._affine)

    def _warped(self, points: Float[np.ndarray, "N 2"], *, back: bool) -> Float[np.ndarray, "N 2"]:
        if self._system is None:
            return points
        from rasterio.warp import transform

        systems = (_WGS84, self._system) if back else (self._system, _WGS84)
        return np.stack([np.asarray(axis) for axis in transform(*systems, *points.T)], axis=1)


def require_same_ground(mask: Path, image: Path) -> None:
    """Compare where a mask and its image lie; one of them without coordinates lies on the other.

    Raises:
        DataError: the mask covers other ground than the image, by half a pixel or more.
    """
    if image.is_file() and (image.suffix.lower() in SUFFIXES or world_file(image) is not None):
        states = [(state.st_size, state.st_mtime_ns) for state in (mask.stat(), image.stat())]
        _require_same_ground(mask, image, tuple(states))


@lru_cache(maxsize=1 << 16)  # training reads a mask many times
def _require_same_ground(mask: Path, image: Path, states: tuple[tuple[int, int], ...]) -> None:
    if not all(is_georeferenced(path) or world_file(path) is not None for path in (mask, image)):
        return
    with open_geotiff(mask) as one, open_geotiff(image) as other:
        if one.shape == other.shape and one.crs == other.crs and one.transform == other.transform and not one.gcps[0]:
            return
        (rows, columns), (height, width), same_system = one.shape, other.shape, (one.crs is None) == (other.crs is None)
    corners = np.array([[0, 0], [columns, 0], [0, rows], [columns, rows]], dtype=np.float64)
    here, there = Ground(mask), Ground(image)
    # Without a reference system on one side, its numbers are taken for those of the other.
    found = there.to_pixels(here.of_pixels(corners)) if same_system else there.of_map(here.to_map(corners))
    expected = np.array([[0, 0], [width, 0], [0, height], [width, height]], dtype=np.float64)
    if np.isfinite(found).all() and np.abs(found - expected).max() < _SHIFT:
        return
    left, top = found[0]
    right, bottom = found[3]
    raise DataError(
        f"{mask}: its ground is not that of its image {image.name}: by its coordinates it covers the columns "
        f"{left:.1f} to {right:.1f} and the rows {top:.1f} to {bottom:.1f} of {width}x{height}. Cut or warp it to the "
        f"image's grid (rio warp {mask.name} OUT.tif --like {image.name} --resampling nearest), or remove coordinates "
        "that are wrong.",
        "H216",
    )


def _moved(points: Float[np.ndarray, "N 2"], affine: Any) -> Float[np.ndarray, "N 2"]:
    a, b, c, d, e, f = affine[:6]
    return np.asarray(points @ np.array([[a, d], [b, e]]) + (c, f))
