"""Decoding images: every color mode, EXIF orientation, more than 8 bits, broken files."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from halfmask.data.folder.images import decode as images
from halfmask.data.folder.images.decode import decode, is_image, read_header, read_image
from halfmask.data.folder.masks.decode import read_stored
from halfmask.errors import DataError, MissingExtraError

RGB = np.random.default_rng(3).integers(0, 256, (9, 14, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def png(path: Path, rows: list[bytes], width: int, depth: int, color_type: int, interlaced: bool = False) -> Path:
    """Write a PNG of any depth, which Pillow cannot."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, interlaced)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "PA", "CMYK"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    source = Image.fromarray(RGB).convert("P").convert("PA") if mode == "PA" else Image.fromarray(RGB).convert(mode)
    path = save(tmp_path / ("a.tif" if mode in {"CMYK", "PA"} else "a.png"), source)
    pixels = read_image(path)
    assert pixels.shape == (9, 14, 3)
    with Image.open(path) as opened:  # alpha dropped, not blended
        assert np.array_equal(pixels, np.array(opened.convert("RGBA").convert("RGB")))


def test_palette_image_with_transparency_keeps_its_colors(tmp_path: Path) -> None:
    source = Image.fromarray(RGB).convert("P")
    path = save(tmp_path / "a.png", source, transparency=source.getpixel((0, 0)))
    assert np.array_equal(read_image(path), np.array(source.convert("RGB")))


def test_jpeg_gives_the_same_pixels_with_and_without_the_fast_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode in ("RGB", "L", "CMYK"):
        path = save(tmp_path / f"{mode}.jpg", Image.fromarray(RGB).convert(mode), quality=80)
        fast = read_image(path)
        with monkeypatch.context() as patch:
            patch.setattr(images, "simplejpeg", None)
            assert np.array_equal(read_image(path), fast)


def png_forms() -> dict[str, bytes]:
    rgb = Image.fromarray(RGB)
    forms = {mode: (rgb.convert(mode), {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")}
    forms |= {"4 bits": (rgb.quantize(16), {"bits": 4}), "16 bits": (Image.fromarray(RGB[..., 0].astype("u2")), {})}
    forms |= {f"transparent {mode}": (rgb.convert(mode), {"transparency": 7}) for mode in ("L", "P")}
    forms["transparent RGB"] = (rgb, {"transparency": tuple(RGB[0, 0].tolist())})
    return {name: _png(image, **options) for name, (image, options) in forms.items()}


def _png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", png_forms())
def test_png_gives_the_same_pixels_with_and_without_the_fast_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_forms()[name])
    fast, mask = decode(path), read_stored(path).values
    monkeypatch.setattr(images, "_png_decoder", lambda: None)
    assert np.array_equal(decode(path), fast)
    assert np.array_equal(read_stored(path).values, mask)


def test_the_fast_extra_decodes_plain_png(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    monkeypatch.setattr(images, "_png_decoder", lambda: lambda data: seen.append(data) or RGB)
    for name, data in png_forms().items():
        images.decode_bytes(data, Path(name))
    assert seen == [png_forms()[name] for name in ("RGB", "RGBA", "L", "LA")]


@pytest.mark.parametrize("error", [RuntimeError, UnicodeDecodeError])
def test_what_the_fast_extra_cannot_decode_is_left_to_pillow(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: bytes) -> np.ndarray:
        raise error("utf-8", b"", 0, 1, "odd") if error is UnicodeDecodeError else error("odd")

    monkeypatch.setattr(images, "_png_decoder", lambda: refuse)
    assert np.array_equal(images.decode_bytes(png_forms()["RGB"], Path("a.png")), RGB)


def test_interlaced_png_and_odd_profiles_decode_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    odd = _png(Image.fromarray(RGB), icc_profile=b"\0" * 200)
    interlaced = tmp_path / "b.png"
    png(interlaced, [RGB[0, :1].tobytes()], width=1, depth=8, color_type=2, interlaced=True)  # of one pixel: one pass
    with caplog.at_level("WARNING"):
        assert np.array_equal(images.decode_bytes(odd, Path("a.png")), RGB)
        assert read_image(interlaced).tolist() == [[RGB[0, 0].tolist()]]
    assert not caplog.records


@pytest.mark.parametrize("fast", [True, False])
def test_damaged_png_is_an_error_and_an_odd_end_is_not(
    fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(images, "_png_decoder", lambda: None)
    whole = png_forms()["RGB"]
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 0xFF
    for content in (whole[: len(whole) // 2], bytes(changed)):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DataError, match="broken or truncated"):
            read_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(whole[:-20])  # all pixels are there
    assert np.array_equal(read_image(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, suffix: str, tmp_path: Path) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(RGB), exif=exif)
    with Image.open(path) as opened:
        opened.load()
        expected = np.array(ImageOps.exif_transpose(opened))
    assert np.array_equal(read_image(path), expected)
    header = read_header(path)
    assert header.upright == expected.shape[:2] == ((14, 9) if orientation >= 5 else (9, 14))


def test_16_bit_gray_is_refused_without_a_range_and_scaled_with_one(tmp_path: Path) -> None:
    values = np.array([[0, 1000, 2000], [4095, 5000, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        path = save(tmp_path / name, Image.fromarray(values))
        with pytest.raises(DataError, match=r"0 to 65535.*range: \[0, 65535\]"):
            read_image(path)
        scaled = read_image(path, value_range=(0.0, 4095.0))
        assert scaled[:, :, 0].tolist() == [[0, 62, 125], [255, 255, 255]]


def test_16_bit_color_png_is_not_cut_to_its_upper_bytes(tmp_path: Path) -> None:
    for color_type, bands in ((2, 3), (6, 4)):
        rows = np.random.default_rng(bands).integers(0, 65536, (5, 7, bands)).astype(">u2")
        path = png(tmp_path / f"{bands}.png", [row.tobytes() for row in rows], width=7, depth=16, color_type=color_type)
        assert decode(path).tolist() == rows.tolist()
    with pytest.raises(DataError, match="range"):
        read_image(path)


def test_float_images_need_a_range_and_nan_is_black(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.array([[-1.0, 0.0, np.nan, 1.0]], dtype=np.float32)))
    with pytest.raises(DataError, match="float32"):
        read_image(path)
    assert read_image(path, value_range=(-1.0, 1.0))[0, :, 0].tolist() == [0, 128, 0, 255]


def test_npy_bands_may_come_first_or_last(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(0, 256, (15, 17, 6), dtype=np.uint8)
    np.save(tmp_path / "last.npy", bands)
    np.save(tmp_path / "first.npy", np.moveaxis(bands, 2, 0))
    assert np.array_equal(read_image(tmp_path / "last.npy", channels=6), bands)
    assert np.array_equal(read_image(tmp_path / "first.npy", channels=6), bands)
    assert read_header(tmp_path / "last.npy").upright == (15, 17)


def test_four_bands_are_kept_when_four_are_wanted(tmp_path: Path) -> None:
    four = np.dstack([RGB, RGB[:, :, 0]])
    path = save(tmp_path / "a.tif", Image.fromarray(four, mode="RGBA"))
    assert np.array_equal(read_image(path, channels=4), four)
    assert np.array_equal(read_image(path), RGB)


def test_another_number_of_bands_names_the_setting(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((20, 20, 6), dtype=np.uint8))
    with pytest.raises(DataError, match="bands: 6"):
        read_image(tmp_path / "a.npy")


def test_tiff_that_pillow_cannot_open_asks_for_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + b"\x08\0\0\0" + b"\0" * 40)
    with pytest.raises(MissingExtraError, match=r"halfmask\[geo\]"):
        read_image(tmp_path / "a.tif")


def jpeg_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (jpeg_bytes()[:900], "truncated"), (b"GIF?", "broken")]
)
def test_broken_files_are_named(
    content: bytes, reason: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr(images, "simplejpeg", None)
    (tmp_path / "a b.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"a b\.jpg.*{reason}.*Copy it again") as caught:
        read_image(tmp_path / "a b.jpg")
    assert caught.value.exit_code == 3


def test_missing_files_are_named(tmp_path: Path) -> None:
    for call in (read_image, read_header, decode):
        for name in ("a.png", "a.npy"):
            with pytest.raises(DataError, match="no such file"):
                call(tmp_path / name)


def test_hidden_files_and_thumbnails_databases_are_no_images() -> None:
    for name in (".a.png", "._a.jpg", "Thumbs.db", ".DS_Store", "a.txt", "a.json"):
        assert not is_image(Path(name))
    assert all(is_image(Path(name)) for name in ("a.JPG", "a.jpeg", "ä ö.tif", "a.npy"))
