"""Read GeoTIFF by rasterio (extra `geo`) in rows, and write masks that keep their place on Earth."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, Shaped

from halfmask.data.folder.ids import KEY, IdTable
from halfmask.data.folder.images import open_geotiff
from halfmask.palette import Color

_BLOCK = 256
_BYTE = 256  # ids that a color table has room for


class GeoRows:
    """Rows of an open raster, read when they are asked for.

    Args:
        source: opened by `open_geotiff`.
        masked: ask it where there is no data.
    """

    def __init__(self, source: Any, *, masked: bool = True) -> None:
        self._source = source
        self.size: tuple[int, int] = source.shape
        self._whole = not masked or all(
            [flag.name for flag in flags] == ["all_valid"] for flags in source.mask_flag_enums
        )
        self._colors = _color_table(source)

    def read(self, top: int, bottom: int) -> tuple[Shaped[np.ndarray, "H W C"], Bool[np.ndarray, "H W"] | None]:
        """Return the stored values of some rows, and where the file says that there is no data (`None`: nowhere)."""
        window = ((top, bottom), (0, self.size[1]))
        values = np.moveaxis(np.asarray(self._source.read(window=window)), 0, 2)
        empty = None if self._whole else self._source.dataset_mask(window=window) == 0
        return (values if self._colors is None else self._colors[values[:, :, 0]]), empty


def empty_pixels(path: Path) -> Bool[np.ndarray, "H W"] | None:
    """Where a file says that there is no data: its nodata value in all bands, its alpha, its own mask.

    Raises:
        DataError: a broken file.
    """
    with open_geotiff(path) as source:
        rows = GeoRows(source)
        return rows.read(0, rows.size[0])[1]


def write_mask(
    path: Path, mask: Integer[np.ndarray, "H W"], like: Path, colors: tuple[Color, ...], table: IdTable, told: str
) -> None:
    """Write class ids as a GeoTIFF with the place of an image: reference system, transform or control points.

    Args:
        path: of the mask.
        mask: training ids; may lie on the disk, it is read block by block.
        like: the image.
        colors: of the classes; written where a color table has room for them.
        table: ids to write; that of pixels without a class is declared as nodata.
        told: what the ids mean, kept as the description of the file.
    """
    import rasterio
    from rasterio.enums import ColorInterp

    small = not table.wide
    with open_geotiff(like) as source:  # it stays open: with it the bound on GDAL's cache ends
        points, points_crs = source.gcps
        place = {"gcps": points, "crs": points_crs} if points else {"transform": source.transform, "crs": source.crs}
        profile = {
            "driver": "GTiff", "count": 1, "height": mask.shape[0], "width": mask.shape[1], "compress": "deflate",
            "dtype": "uint8" if small else "uint16", "nodata": table.ignore, "tiled": True, "blockxsize": _BLOCK,
            "blockysize": _BLOCK, "bigtiff": "if_safer", **place,
        }  # fmt: skip
        with rasterio.open(path, "w", **profile) as out:
            out.update_tags(TIFFTAG_IMAGEDESCRIPTION=f"{KEY}{told}")
            if small:
                shown = {id: (*color, 255) for id, color in zip(table.ids, colors, strict=True)}
                out.colorinterp = [ColorInterp.palette]
                out.write_colormap(1, shown | {table.ignore: (0, 0, 0, 0)})
            for top in range(0, mask.shape[0], _BLOCK):
                rows = table.store(np.asarray(mask[top : top + _BLOCK]))
                out.write(rows, 1, window=((top, top + len(rows)), (0, mask.shape[1])))


def _color_table(source: Any) -> np.ndarray | None:
    """RGB by value, of an image that is stored as indices of colors."""
    if source.count != 1 or source.colorinterp[0].name != "palette" or source.dtypes[0] != "uint8":
        return None
    table = np.zeros((_BYTE, 3), dtype=np.uint8)
    for value, color in source.colormap(1).items():
        table[value] = color[:3]
    return table
