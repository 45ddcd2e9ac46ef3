"""Decoding masks: ids stay ids, and every value without meaning is reported with its count."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.data.folder.masks.decode import LabelMap, read_mask, read_stored
from halfmask.errors import DataError
from tests.data.test_images import png
from tests.data.trees import image, mask


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    Image.fromarray(array, mode=mode).save(path)
    return path


def test_palette_indices_are_ids_whatever_the_colors(tmp_path: Path) -> None:
    path = mask(tmp_path / "a.png", (0, 3, 255), palette=True)
    assert read_mask(path, LabelMap(4)).ravel()[:3].tolist() == [0, 3, 255]


def test_bits_gray_and_16_bit_values_are_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    Image.fromarray(ids * 255).convert("1").save(tmp_path / "bit.png")
    assert read_mask(tmp_path / "bit.png", LabelMap(2)).tolist() == ids.tolist()
    assert read_mask(save(tmp_path / "gray.png", ids), LabelMap(2)).tolist() == ids.tolist()
    wide = np.array([[7, 1000], [40000, 65535]], dtype=np.uint16)
    table = LabelMap(3, values={7: 0, 1000: 1, 40000: 2, 65535: 255}, complete=True)
    assert read_mask(save(tmp_path / "wide.png", wide), table).tolist() == [[0, 1], [2, 255]]


@pytest.mark.parametrize("depth", [2, 4])
def test_ids_in_gray_pngs_of_few_bits_are_not_stretched(depth: int, tmp_path: Path) -> None:
    packed = bytes([0b00011011]) if depth == 2 else bytes([0x01, 0x23])
    path = png(tmp_path / "a.png", [packed], width=4, depth=depth, color_type=0)
    assert read_stored(path).values.tolist() == [[0, 1, 2, 3]]


def test_ids_above_255_are_never_cut(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((2, 2), 256, dtype=np.uint16))
    with pytest.raises(DataError, match=r"256 \(4 px\)"):
        read_mask(path, LabelMap(2))


def test_npy_masks_may_hold_negative_and_huge_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[-1, 0, 10**9]], dtype=np.int64))
    table = LabelMap(2, values={-1: 255, 10**9: 1})
    assert read_mask(tmp_path / "a.npy", table).tolist() == [[255, 0, 1]]
    np.save(tmp_path / "b.npy", np.array([[0.5]]))
    with pytest.raises(DataError, match="fractions"):
        read_mask(tmp_path / "b.npy", table)


def test_three_equal_channels_are_read_as_ids_with_a_warning(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2]], dtype=np.uint8)
    path = save(tmp_path / "a.png", np.repeat(ids[:, :, None], 3, axis=2))
    with pytest.warns(UserWarning, match="three equal channels"):
        assert read_mask(path, LabelMap(3)).tolist() == ids.tolist()


def test_color_masks_need_a_table(tmp_path: Path) -> None:
    colors = np.array([[[255, 0, 0], [0, 0, 255], [0, 0, 255]]], dtype=np.uint8)
    path = save(tmp_path / "a.png", colors)
    with pytest.raises(DataError, match=r"0,0,255 \(2 px\), 255,0,0 \(1 px\).*palette"):
        read_mask(path, LabelMap(2))
    table = LabelMap(2, colors={(255, 0, 0): 1, (0, 0, 255): 0})
    assert read_mask(path, table).tolist() == [[1, 0, 0]]


def test_colors_outside_the_table_are_counted_never_matched_to_the_nearest(tmp_path: Path) -> None:
    colors = np.array([[[255, 0, 0], [254, 0, 0], [254, 0, 0], [1, 2, 3]]], dtype=np.uint8)
    path = save(tmp_path / "a.png", colors)
    with pytest.raises(DataError, match=r"75\.0% .*254,0,0 \(2 px\), 1,2,3 \(1 px\)") as caught:
        read_mask(path, LabelMap(2, colors={(255, 0, 0): 1, (0, 0, 0): 0}))
    assert caught.value.code == "H206"


def test_transparent_mask_pixels_are_ignored_on_request(tmp_path: Path) -> None:
    pixels = np.array([[[1, 1, 1, 255], [0, 0, 0, 0]]], dtype=np.uint8)
    path = save(tmp_path / "a.png", pixels)
    with pytest.warns(UserWarning, match="equal channels"):
        kept = read_mask(path, LabelMap(2))
    with pytest.warns(UserWarning, match="equal channels"):
        ignored = read_mask(path, LabelMap(2, transparent_ignored=True))
    assert (kept.tolist(), ignored.tolist()) == ([[1, 0]], [[1, 255]])


def test_unknown_values_name_file_counts_and_both_cures(tmp_path: Path) -> None:
    path = mask(tmp_path / "a.png", (0, 1, 9))
    with pytest.raises(DataError, match=r"a\.png.*9 \(16 px\).*classes: .*9: NAME.*map='\{9: 255\}'") as caught:
        read_mask(path, LabelMap(2))
    assert (caught.value.code, caught.value.exit_code) == ("H203", 3)


def test_ids_that_start_at_one_are_recognized(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"start at 1.*map: \{1: 0, 2: 1, 3: 2\}") as caught:
        read_mask(mask(tmp_path / "a.png", (1, 2, 3)), LabelMap(3))
    assert caught.value.code == "H205"


def test_binary_masks(tmp_path: Path) -> None:
    path = mask(tmp_path / "a.png", (0, 255))
    assert read_mask(path, LabelMap(2, binary=True)).ravel()[:2].tolist() == [0, 1]
    assert read_mask(path, LabelMap(2)).ravel()[:2].tolist() == [0, 255]
    with pytest.raises(DataError, match=r"128 \(16 px\)"):
        read_mask(mask(tmp_path / "b.png", (0, 255, 128)), LabelMap(2, binary=True))


def test_jpeg_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without loss"):
        read_mask(mask(tmp_path / "a.jpg", (0, 1)), LabelMap(2))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_mask_drawn_on_the_stored_pixels_is_turned_with_them(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0, 0] = 255  # marks the corner the mask labels
    Image.fromarray(pixels).save(tmp_path / "im.png", exif=exif)
    from halfmask.data.folder.images.decode import read_image

    upright = read_image(tmp_path / "im.png")
    drawn = (pixels[:, :, 0] > 0).astype(np.uint8)
    seen = (upright[:, :, 0] > 0).astype(np.uint8)
    on_upright = save(tmp_path / "b.png", seen)
    assert np.array_equal(read_mask(on_upright, LabelMap(2), tmp_path / "im.png"), seen)
    if orientation != 3:  # sizes tell; with 3 they cannot, and the mask counts as upright
        on_stored = save(tmp_path / "a.png", drawn)
        assert np.array_equal(read_mask(on_stored, LabelMap(2), tmp_path / "im.png"), seen)


def test_sizes_must_agree_unless_resizing_is_asked_for(tmp_path: Path) -> None:
    im = image(tmp_path / "im.png", (4, 6))
    path = save(tmp_path / "a.png", np.array([[0, 1, 2], [3, 4, 5]], dtype=np.uint8))
    with pytest.raises(DataError, match=r"mask is 3x2, its image im\.png is 6x4.*resize_masks") as caught:
        read_mask(path, LabelMap(6), im)
    assert caught.value.code == "H202"
    resized = read_mask(path, LabelMap(6, resize=True), im)
    assert resized.tolist() == np.kron([[0, 1, 2], [3, 4, 5]], np.ones((2, 2), dtype=int)).tolist()


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n broken"])
def test_broken_masks_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png.*Copy it again"):
        read_mask(tmp_path / "a.png", LabelMap(2))


def test_reading_a_mapped_mask_is_the_table_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 5, (30, 40))
    table = LabelMap(3, values={3: 1, 4: 255})
    expected = [[{0: 0, 1: 1, 2: 2, 3: 1, 4: 255}[int(v)] for v in row] for row in ids]
    for dtype in (np.uint8, np.uint16, np.int32, np.int64):
        assert table.apply(ids.astype(dtype), Path("a.png")).tolist() == expected


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_mask_with_a_rotation_of_its_own_is_turned_by_it(orientation: int, tmp_path: Path) -> None:
    """As every viewer shows it, and as the image from which a tool took over the EXIF entry."""
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(ids).save(tmp_path / "mask.png", exif=exif)
    Image.fromarray(np.repeat(ids[:, :, None], 3, 2)).save(tmp_path / "image.png", exif=exif)
    upright = {3: np.rot90(ids, 2), 6: np.rot90(ids, -1), 8: np.rot90(ids)}[orientation]
    read = read_mask(tmp_path / "mask.png", LabelMap(3), tmp_path / "image.png")
    np.testing.assert_array_equal(read, upright)
    Image.fromarray(np.repeat(upright[:, :, None], 3, 2)).save(tmp_path / "plain.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", LabelMap(3), tmp_path / "plain.png"), upright)
