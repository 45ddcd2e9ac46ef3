"""Folders with one thing wrong in their images."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.broken import NAMED, H, W, case, good, ids, picture, save

# --- images ----------------------------------------------------------------------------------------------------


@case("H201", "Copy it again")
def zero_bytes(root):
    good(root)
    (root / "images/train/im_8.png").write_bytes(b"")


@case("H201", "Copy it again")
def truncated_jpeg(root):
    good(root)
    path = save(root / "images/train/cut.jpg", picture(9, (200, 300)))
    path.write_bytes(path.read_bytes()[:-400])


@case("H201", "Copy it again")
def truncated_png(root):
    good(root)
    path = root / "images/train/im_2.png"
    path.write_bytes(path.read_bytes()[:-200])


@case("H201", "Copy it again")
def corrupt_png(root):
    good(root)
    path = root / "images/val/v_1.png"
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)


@case("H201", "Copy it again")
def text_named_png(root):
    good(root)
    (root / "images/train/im_1.png").write_text("not an image")


@case("H102", "thumbnails", 0)
def one_pixel(root):
    good(root, yaml=NAMED)
    save(root / "images/train/dot.png", picture(3, (1, 1)))


@case("H102", "thumbnails", 0)
def very_wide(root):
    good(root, yaml=NAMED)
    save(root / "images/train/strip.png", Image.new("RGB", (30_000, 2)))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds no pixel."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@case("H201", "tiles")
def thirty_thousand_squared(root):
    good(root)
    (root / "images/train/im_7.png").write_bytes(png_header(30_000, 30_000))


@case("H104", "tiles", 0)
def seventy_million_pixels(root):
    good(root, yaml=NAMED)
    save(root / "images/train/map.png", Image.new("1", (9_000, 8_000)))


@case("H103", "intended", 0)
def gray_color_and_alpha(root):
    good(root, yaml=NAMED)
    for mode in ("L", "RGBA", "LA"):
        save(root / f"images/train/{mode}.png", picture(ord(mode[0])).convert(mode))


@case("H105", "single images", 0)
def animated_gif(root):
    good(root, yaml=NAMED)
    frames = [picture(seed) for seed in (20, 21, 22)]
    save(root / "images/train/moving.gif", frames[0], save_all=True, append_images=frames[1:])


@case("H207", "range:")
def sixteen_bits(root):
    good(root)
    save(root / "images/train/deep.png", (ids((0, 900, 4000))).astype(np.uint16))


@case("H207", "range:")
def not_a_number(root):
    good(root)
    values = ids((0, 1)).astype(np.float32)
    values[3, 40] = np.nan
    save(root / "images/train/field.tif", values)


@case("H106", "nodata", 0, "data.dataset.range=[0, 1]")
def not_a_number_with_a_range(root):
    good(root, yaml=NAMED)
    values = ids((0, 1)).astype(np.float32)
    values[3, 40] = np.nan
    save(root / "images/train/field.tif", values)


@case("H106", "nodata", 0, "data.dataset.range=[0, 1]")
def geotiff_with_nan_and_a_range(root):
    rasterio = pytest.importorskip("rasterio")
    good(root, yaml=NAMED)
    values = np.repeat(ids((0, 1)).astype(np.float32)[None], 3, axis=0)
    values[:, 3, 40] = np.nan
    place = {"crs": "EPSG:32640", "transform": rasterio.Affine(1, 0, 330_000, 0, -1, 2_780_000)}
    path = root / "images/train/field.tif"
    with rasterio.open(path, "w", driver="GTiff", count=3, height=H, width=W, dtype="float32", **place) as out:
        out.write(values)


@case("H207", "bands: 5")
def five_bands(root):
    good(root)
    np.save(root / "images/train/five.npy", np.zeros((H, W, 5), np.uint8))


@case("H213", "halfmask[geo]")
def five_bands_of_a_geotiff(root):
    good(root)
    (root / "images/train/five.tif").write_bytes(tiff(np.zeros((8, 9, 5), np.uint8)))


def tiff(values: np.ndarray) -> bytes:
    """An uncompressed TIFF of any number of bands, by hand: Pillow writes up to four."""
    height, width, bands = values.shape
    depth = struct.pack(f"<{bands}H", *[8] * bands)
    tags = {256: width, 257: height, 258: None, 259: 1, 262: 1, 273: 0, 277: bands, 278: height, 279: values.size}
    after = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, value in sorted(tags.items()):
        if tag == 258:
            entries += struct.pack("<HHII", tag, 3, bands, after)
        else:
            entries += struct.pack("<HHII", tag, 4, 1, after + len(depth) if tag == 273 else value)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + depth + values.tobytes()


def rotated(path: Path, orientation: int, seed: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(path, picture(seed), exif=exif)


@case("H101", "turned upright", 0)
def exif_rotation(root):
    good(root, yaml=NAMED)
    rotated(root / "images/train/phone.jpg", 6, 30)


@case("H114", "check one", 0)
def exif_rotation_and_a_mask_of_the_stored_pixels(root):
    good(root, yaml=NAMED)
    rotated(root / "images/train/phone.jpg", 6, 30)
    save(root / "masks/train/phone.png", ids())


@case("H115", "check one", 0)
def exif_upside_down(root):
    good(root, yaml=NAMED)
    rotated(root / "images/train/phone.jpg", 3, 30)
    save(root / "masks/train/phone.png", ids())
