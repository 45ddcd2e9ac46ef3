"""How mask files hold their values: what one file cannot say, and masks that disagree, are never read in silence."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from halfmask.data.check.check import check
from halfmask.data.check.class_rules import count_classes
from halfmask.data.convert.mask_source import open_masks
from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.masks.decode import LabelMap, read_mask, read_stored
from halfmask.data.splits.split import Split
from halfmask.data.splits.verify import inspect
from halfmask.errors import DataError
from halfmask.recipe.sections import DataRecipe
from tests.data.trees import image

H, W = 16, 20
IDS = np.repeat(np.array([0, 1, 2], np.uint8)[np.arange(W) * 3 // W][None], H, axis=0)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def pictures(root: Path, masks: int = 4, suffix: str = ".png") -> Path:
    for number in range(masks):
        image(root / f"images/{number}{suffix}", (H, W), seed=number)
    (root / "masks").mkdir()
    return root


def raster(path: Path, values: np.ndarray, **more: Any) -> Path:
    layers = values if values.ndim == 3 else values[None]
    count, height, width = layers.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": layers.dtype}
    with rasterio.open(path, "w", **profile, **more) as out:
        out.write(layers)
    return path


def paletted(path: Path, ids: np.ndarray, colors: Mapping[int, tuple[int, int, int]]) -> Path:
    saved = Image.fromarray(ids).convert("P")
    saved.putdata(ids.ravel().tolist())
    saved.putpalette([value for index in range(256) for value in colors.get(index, (7, 7, index))])
    saved.save(path)
    return path


def codes(root: Path) -> dict[str, str]:
    return {finding.code: finding.level for finding in check(root, workers=1).findings}


def train_errors(root: Path, stamps: Path | None = None) -> tuple[list[str], tuple[str, ...]]:
    data = Folder(root)
    found = inspect(data, Split(tuple(data.ids("train")), (), ()), stamps=stamps)
    return [error.code for error in found.errors], found.warnings


LOSSY: dict[str, Callable[[Path], None]] = {
    "a.webp": lambda path: Image.fromarray(IDS).save(path, quality=80),
    "b.png": lambda path: Image.fromarray(IDS).save(path, "WEBP", quality=80),
    "c.tif": lambda path: Image.fromarray(IDS).save(path, compression="jpeg"),
    "d.avif": lambda path: Image.fromarray(IDS).convert("RGB").save(path),
    "e.jp2": lambda path: Image.fromarray(IDS).save(path, irreversible=True),
    "f.jfif": lambda path: Image.fromarray(IDS).save(path, "JPEG"),
    "g.jpe": lambda path: Image.fromarray(IDS).save(path, "JPEG"),
    "h.png": lambda path: Image.fromarray(IDS).save(path, "JPEG"),
    "i.tif": lambda path: raster(path, IDS, compress="jpeg") and None,
}
WHOLE: dict[str, Callable[[Path], None]] = {
    "a.webp": lambda path: Image.fromarray(IDS).convert("RGB").save(path, lossless=True),
    "b.jp2": lambda path: Image.fromarray(IDS).save(path),
    "c.tif": lambda path: Image.fromarray(IDS).save(path, compression="tiff_lzw"),
    "d.tiff": lambda path: raster(path, IDS, compress="zstd") and None,
    "e.tga": lambda path: Image.fromarray(IDS).save(path),
    "f.dib": lambda path: Image.fromarray(IDS).save(path),
    "g.gif": lambda path: Image.fromarray(IDS).save(path),
    "h.jpg": lambda path: Image.fromarray(IDS).save(path, "PNG"),
}


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_coding_is_refused_in_any_container(name: str, tmp_path: Path) -> None:
    LOSSY[name](tmp_path / name)
    with pytest.raises(DataError, match="lossy coding") as caught:
        read_stored(tmp_path / name)
    assert caught.value.code == "H208"


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.filterwarnings("ignore:.*three equal channels")
def test_coding_without_loss_is_read_in_any_container(name: str, tmp_path: Path) -> None:
    WHOLE[name](tmp_path / name)
    assert np.array_equal(read_mask(tmp_path / name, LabelMap(3)), IDS)


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64", "float32", "int32", "uint32", "uint16", "int8"])
def test_tiff_of_every_type_is_read(dtype: str, tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", IDS.astype(dtype))
    assert np.array_equal(read_mask(path, LabelMap(3)), IDS)
    raster(path, (IDS + 100).astype(dtype))
    assert np.array_equal(read_mask(path, LabelMap(3, values={100: 0, 101: 1, 102: 255})), np.where(IDS == 2, 255, IDS))


def test_fractions_and_holes_in_64_bits_are_named_as_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="float64 values with fractions"):
        read_stored(raster(tmp_path / "a.tif", IDS / 2))
    with pytest.raises(DataError, match="no numbers"):
        read_stored(raster(tmp_path / "b.tif", np.where(IDS == 1, np.nan, IDS)))


ONE_HOT = (IDS[None] == np.arange(3)[:, None, None]).astype(np.uint8)
LAYERS: dict[str, Callable[[Path], None]] = {
    "pages.tif": lambda path: _frames(path, ONE_HOT),
    "frames.gif": lambda path: _frames(path, ONE_HOT * 255),
    "frames.png": lambda path: _frames(path, ONE_HOT * 255),
    "first.npy": lambda path: np.save(path, ONE_HOT),
    "last.npy": lambda path: np.save(path, np.moveaxis(ONE_HOT, 0, 2)),
    "two.tif": lambda path: raster(path, ONE_HOT[:2]) and None,
    "five.tif": lambda path: raster(path, np.concatenate([ONE_HOT, ONE_HOT[:2]])) and None,
    "deep.tif": lambda path: raster(path, ONE_HOT.astype(np.uint16)) and None,
    "wide.tif": lambda path: raster(path, ONE_HOT.astype(np.float64)) and None,
}


def _frames(path: Path, layers: np.ndarray) -> None:
    first, *rest = (Image.fromarray(layer) for layer in layers)
    first.save(path, save_all=True, append_images=rest)


@pytest.mark.parametrize("name", LAYERS)
def test_masks_of_several_layers_are_refused(name: str, tmp_path: Path) -> None:
    LAYERS[name](tmp_path / name)
    with pytest.raises(DataError, match=r"several layers.*argmax") as caught:
        read_stored(tmp_path / name)
    assert caught.value.code == "H215"


def test_smaller_copies_in_a_tiff_are_no_layers(tmp_path: Path) -> None:
    path = raster(tmp_path / "a.tif", IDS)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    assert np.array_equal(read_mask(path, LabelMap(3)), IDS)


def test_transparency_that_says_more_than_the_colors_is_refused(tmp_path: Path) -> None:
    root = pictures(tmp_path)
    said = {0: (0, 0, 0), 1: RED, 2: GREEN}
    colors = np.array(list(said.values()), np.uint8)[IDS]
    opaque = np.full((H, W), 255, np.uint8)
    for number, alpha in enumerate((opaque, np.where(IDS == 0, 0, 255), np.where(IDS == 2, 128, 255), opaque)):
        Image.fromarray(np.dstack([colors, alpha.astype(np.uint8)])).save(root / f"masks/{number}.png")
    (root / "halfmask.yaml").write_text(f"{{classes: [a, b, c], palette: { {k: list(v) for k, v in said.items()} }}}")
    data = Folder(root)
    for id in data.ids("train"):  # alpha follows the color
        assert np.array_equal(data.read_target(id), IDS)
    half = opaque.copy()
    half[: H // 2] = 0
    Image.fromarray(np.dstack([colors, half])).save(root / "masks/3.png")
    with pytest.raises(DataError, match=r"by the color, or by alpha.*transparent_ignored=true") as caught:
        data.read_target("images/3.png")
    assert caught.value.code == "H215"
    assert codes(root)["H215"] == "error"
    ignored = Folder(root, transparent_ignored=True).read_target("images/3.png")
    assert (ignored[: H // 2] == 255).all()
    assert np.array_equal(ignored[H // 2 :], IDS[H // 2 :])


def test_gray_ids_that_a_gif_renumbered_are_the_gray_values(tmp_path: Path) -> None:
    root = pictures(tmp_path)
    drawn = [np.where(IDS == 1, 0, IDS), IDS, np.where(IDS == 0, 2, IDS), np.full_like(IDS, 2)]
    for number, ids in enumerate(drawn):
        Image.fromarray(ids).save(root / f"masks/{number}.gif")
    data = Folder(root)
    for id, ids in zip(data.ids("train"), drawn, strict=True):
        assert np.array_equal(data.read_target(id), ids)
    assert {"H214", "H124"}.isdisjoint(codes(root))


def test_gray_ids_in_an_optimized_png_palette_are_the_gray_values(tmp_path: Path) -> None:
    ids = np.where(IDS == 1, 0, IDS)
    path = paletted(tmp_path / "a.png", ids // 2, {0: (0, 0, 0), 1: (2, 2, 2)})
    assert np.array_equal(read_mask(path, LabelMap(3)), ids)
    path = paletted(tmp_path / "b.png", ids // 2, {0: (0, 0, 0), 1: (255, 255, 255)})  # to be looked at
    assert np.array_equal(read_mask(path, LabelMap(3)), ids // 2)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif"])
def test_palettes_that_differ_are_refused_wherever_masks_are_read(suffix: str, tmp_path: Path) -> None:
    root, stamps = pictures(tmp_path / "data"), tmp_path / "stamps"
    for number in range(4):
        colors = {0: (0, 0, 0), 1: RED, 2: BLUE} if number != 2 else {0: (0, 0, 0), 1: BLUE, 2: RED}
        paletted(root / f"masks/{number}{suffix}", IDS, colors)
    (found,) = (finding for finding in check(root, workers=1).findings if finding.code == "H214")
    assert (found.level, found.files) == ("error", (f"masks/2{suffix}",))
    assert "index 1 is 0,0,255 in" in found.message
    for _ in range(2):  # looked at, then remembered
        assert train_errors(root, stamps)[0] == ["H214"]
    with pytest.raises(DataError, match="palettes of masks differ"):
        open_masks(root, DataRecipe(root=str(root)))
    (root / "halfmask.yaml").write_text("{classes: [a, b, c], palette: {0: [0, 0, 0], 1: [255, 0, 0], 2: [0, 0, 255]}}")
    data = Folder(root)  # the colors are named, so they count
    assert train_errors(root)[0] == []
    assert "H214" not in codes(root)
    assert np.array_equal(data.read_target("images/0.png"), IDS)
    assert np.array_equal(data.read_target("images/2.png"), np.array([0, 2, 1], np.uint8)[IDS])
    counts = {count.name: count.pixels for count in count_classes(check(root, workers=1).seen)}
    ground, one, two = (int((IDS == id).sum()) for id in range(3))
    assert counts == {"a": 4 * ground, "b": 3 * one + two, "c": 3 * two + one}


def test_a_palette_that_is_named_in_part_is_refused(tmp_path: Path) -> None:
    root = pictures(tmp_path)
    for number in range(4):
        paletted(root / f"masks/{number}.png", IDS, {0: RED, 1: (0, 0, 0), 2: (9, 9, 9)})
    (root / "halfmask.yaml").write_text("{classes: [a, b, c], palette: {0: [0, 0, 0], 1: [255, 0, 0], 2: [0, 0, 255]}}")
    with pytest.raises(DataError, match=r"index 0 has the color of class 1, and 2 \(9,9,9\)"):
        Folder(root).read_target("images/0.png")
    assert codes(root)["H206"] == "error"


def test_palettes_of_equal_colors_in_use_agree(tmp_path: Path) -> None:
    root = pictures(tmp_path)
    for number in range(4):
        ids = IDS if number else np.minimum(IDS, 1)
        paletted(root / f"masks/{number}.png", ids, {0: (0, 0, 0), 1: RED, 2: BLUE if number else GREEN})
    assert "H214" not in codes(root)
    assert train_errors(root) == ([], ())


def test_types_that_differ_are_told(tmp_path: Path) -> None:
    root = pictures(tmp_path)
    for number in range(3):
        Image.fromarray(IDS).save(root / f"masks/{number}.png")
    paletted(root / "masks/3.png", IDS, {0: (0, 0, 0), 1: RED, 2: BLUE})
    assert codes(root)["H124"] == "warning"
    assert any("8-bit gray (3), palette (1)" in warning for warning in train_errors(root)[1])


@pytest.mark.parametrize("named", ["", "classes: [a, b]"])
def test_0_and_1_in_one_type_and_0_and_255_in_another_are_the_same_class_or_not(named: str, tmp_path: Path) -> None:
    root = pictures(tmp_path)
    two = np.minimum(IDS, 1)
    for number in range(4):
        saved = Image.fromarray(two * 255) if number % 2 else Image.fromarray(two.astype(bool))
        saved.save(root / f"masks/{number}.png")
    (root / "halfmask.yaml").write_text(named)
    assert codes(root)["H204"] == "error"
    (root / "halfmask.yaml").write_text("binary: true")
    data = Folder(root)
    assert all(np.array_equal(data.read_target(id), two) for id in data.ids("train"))


PLACE = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 10, 10)}


def placed(root: Path, **mask: Any) -> Folder:
    rng = np.random.default_rng(0)
    for number in range(2):
        raster(root / f"images/{number}.tif", rng.integers(0, 255, (3, H, W), dtype=np.uint8), **PLACE)
        raster(root / f"masks/{number}.tif", IDS, **(PLACE | mask))
    return Folder(root)


@pytest.mark.parametrize(
    "mask",
    [
        {"transform": from_origin(500_030, 5_000_000, 10, 10)},
        {"transform": from_origin(500_000, 5_000_000, 5, 5)},
        {"transform": from_origin(500_000, 4_999_840, 10, -10)},
        {"crs": "EPSG:32634"},
    ],
)
def test_masks_on_other_ground_than_their_images_are_refused(mask: dict[str, Any], tmp_path: Path) -> None:
    data = placed(tmp_path, **mask)
    with pytest.raises(DataError, match=r"its ground is not that of its image 0\.tif.*rio warp") as caught:
        data.read_target("images/0.tif")
    assert caught.value.code == "H216"
    assert codes(tmp_path)["H216"] == "error"
    assert train_errors(tmp_path)[0] == ["H216", "H216"]


def test_masks_on_the_same_ground_are_read_in_any_system(tmp_path: Path) -> None:
    data = placed(tmp_path)
    assert np.array_equal(data.read_target("images/0.tif"), IDS)
    near = from_origin(500_000.5, 5_000_000, 10, 10)  # rounding of another program
    assert np.array_equal(placed(tmp_path, transform=near).read_target("images/0.tif"), IDS)
    coarse = raster(tmp_path / "masks/1.tif", IDS[::2, ::2], **(PLACE | {"transform": from_origin(5e5, 5e6, 20, 20)}))
    assert coarse.is_file()
    resized = Folder(tmp_path, resize_masks=True).read_target("images/1.tif")
    assert (resized == IDS).mean() > 0.9


def test_masks_with_and_without_coordinates_are_told(tmp_path: Path) -> None:
    placed(tmp_path)
    raster(tmp_path / "masks/1.tif", IDS)
    assert codes(tmp_path)["H125"] == "warning"
    assert train_errors(tmp_path)[0] == []


@pytest.mark.parametrize("kind", ["P2", "P5"])
@pytest.mark.parametrize("most", [1, 3, 20, 255])
def test_gray_maps_hold_the_values_they_say(kind: str, most: int, tmp_path: Path) -> None:
    ids = (np.arange(48) % (min(most, 7) + 1)).astype(np.uint8).reshape(6, 8)
    body = " ".join(map(str, ids.ravel())).encode() if kind == "P2" else ids.tobytes()
    (tmp_path / "a.pgm").write_bytes(f"{kind}\n# drawn by hand\n8 6\n{most}\n".encode() + body)
    assert np.array_equal(read_stored(tmp_path / "a.pgm").values, ids)
