"""Prediction of large images and GeoTIFF: tiles, coordinates, pixels without data, memory, frames of videos."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.data.folder.images.rasters import Reading, image_size, open_raster, read_picture
from halfmask.errors import DataError, MissingExtraError
from halfmask.infer.bundle import save_bundle
from halfmask.infer.predict import predict as predict_module
from halfmask.infer.predict.predict import plan, predict
from halfmask.models.build import Builder
from halfmask.palette import default_palette
from halfmask.recipe.read import ModelRecipe
from halfmask.task import Task
from tests.run.toy import THREE, small_model

rasterio = pytest.importorskip("rasterio")

CRS, PLACE = "EPSG:32640", (0.5, 0.0, 330_000.0, 0.0, -0.5, 2_780_000.0)


def five_band_model(folder: Path, **extra: object) -> Path:
    section = {
        "encoder": {"name": "resnet", "depth": 18, "width": 8, "blocks": [1, 1, 1, 1]},
        "decoder": {"name": "deeplabv3plus", "aspp": 8, "low": 4, "embedding": 8},
    }
    statistics = {"channels": 5, "mean": (0.5,) * 5, "std": (0.2,) * 5}
    model = Builder(ModelRecipe.model_validate(section), THREE, crop=64, **statistics)().eval()
    save_bundle(folder, model, THREE, extra={"range": [0, 4095], **extra})
    return folder


def field(path: Path, size: tuple[int, int] = (150, 201), **more: object) -> np.ndarray:
    """Write five bands of 12 bits with a corner and a hole without data, and give them (C, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(1, 4095, (5, *size), dtype=np.uint16)
    values[:, :20, :30] = 0
    values[:, 100, 90] = 0
    values[2, 50, 50] = 0  # in one band only: there is data
    profile = {"driver": "GTiff", "count": 5, "height": size[0], "width": size[1], "dtype": "uint16", "nodata": 0}
    where = {"crs": CRS, "transform": rasterio.Affine(*PLACE)}
    with rasterio.open(path, "w", **profile | where | more) as out:
        out.write(values)
    return values


@pytest.mark.parametrize("tile", [None, 64])
def test_the_mask_of_a_geotiff_keeps_its_place_nodata_and_colors(tmp_path: Path, tile: int | None) -> None:
    run = five_band_model(tmp_path / "run")
    values = field(tmp_path / "in" / "a" / "field.tif")
    out = tmp_path / "out"
    options = {"overlay": True, "probabilities": True, "tile": tile, "quiet": True}
    assert predict(run, tmp_path / "in", out, **options) == 1
    with rasterio.open(out / "a" / "field.tif") as mask:
        assert mask.crs.to_string() == CRS
        assert tuple(mask.transform)[:6] == PLACE
        assert (mask.count, mask.dtypes[0], mask.nodata) == (1, "uint8", 255)
        ids = mask.read(1)
        colors = mask.colormap(1)
    assert [colors[id][:3] for id in range(3)] == list(default_palette(3))
    assert colors[255][3] == 0
    empty = (values == 0).all(0)
    assert np.array_equal(ids == 255, empty)
    assert empty.sum() == 601
    assert set(np.unique(ids)) <= {0, 1, 2, 255}
    shares = np.load(out / "probabilities" / "a" / "field.npy")
    assert shares.shape == (3, 150, 201)
    assert (shares[:, empty] == 0).all()
    assert shares.astype(np.float32).sum(0)[~empty] == pytest.approx(1, abs=5e-3)
    assert (shares.argmax(0)[~empty] == ids[~empty]).mean() > 0.99  # float16 has ties
    with Image.open(out / "overlays" / "a" / "field.jpg") as shown:
        assert shown.size == (201, 150)
    assert predict(run, tmp_path / "in", out, **options) == 0


def test_control_points_are_kept(tmp_path: Path) -> None:
    run = five_band_model(tmp_path / "run")
    points = [
        rasterio.control.GroundControlPoint(row, col, 3e5 + col, 2e6 - row) for row, col in [(0, 0), (9, 0), (0, 9)]
    ]
    field(tmp_path / "in" / "field.tif", transform=None, gcps=points)
    predict(run, tmp_path / "in", tmp_path / "out", quiet=True)
    with rasterio.open(tmp_path / "out" / "field.tif") as mask:
        kept, crs = mask.gcps
    assert [(point.row, point.col, point.x, point.y) for point in kept] == [(p.row, p.col, p.x, p.y) for p in points]
    assert crs.to_string() == CRS


def test_nodata_of_the_training_data_and_of_the_command_is_ignored(tmp_path: Path) -> None:
    """In a plain file that does not declare it; the pixels are black for the network, as in training."""
    for name, extra, options in (("data", {"nodata": 7}, {}), ("flag", {}, {"nodata": 7.0})):
        run = five_band_model(tmp_path / name, **extra)
        values = np.random.default_rng(0).integers(8, 4095, (90, 80, 5), dtype=np.uint16)
        values[10:20, 30:40] = 7
        (tmp_path / "in").mkdir(exist_ok=True)
        np.save(tmp_path / "in" / "a.npy", values)
        for tile in (None, 64):
            out = tmp_path / f"out-{name}-{tile}"
            predict(run, tmp_path / "in", out, tile=tile, quiet=True, **options)
            with Image.open(out / "a.png") as mask:
                ids = np.asarray(mask)
                assert mask.getpalette()[255 * 3 :] == [255, 255, 255]
            assert np.array_equal(ids == 255, (values == 7).all(2))
    black = read_picture(tmp_path / "in" / "a.npy", Reading(5, (0.0, 4095.0), 7.0)).pixels
    assert (black[10:20, 30:40] == 0).all()
    assert black[0, 0].max() > 0


def test_not_a_number_can_mean_no_data(tmp_path: Path) -> None:
    save_bundle(tmp_path / "run", small_model(), THREE, extra={"range": [0.0, 1.0]})
    values = np.random.default_rng(0).random((3, 70, 70), dtype=np.float32)
    values[:, 5:9, 60:] = np.nan
    profile = {"driver": "GTiff", "count": 3, "height": 70, "width": 70, "dtype": "float32", "nodata": np.nan}
    with rasterio.open(tmp_path / "a.tif", "w", crs=CRS, transform=rasterio.Affine(*PLACE), **profile) as out:
        out.write(values)
    predict(tmp_path / "run", tmp_path / "a.tif", tmp_path / "out", tile=64, quiet=True)
    with rasterio.open(tmp_path / "out" / "a.tif") as mask:
        assert np.array_equal(mask.read(1) == 255, np.isnan(values).all(0))


def test_a_geotiff_without_rasterio_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    field(tmp_path / "field.tif", count=5)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(MissingExtraError, match=r"halfmask\[geo\]"):
        plan(tmp_path / "field.tif", tmp_path / "out")


def test_outlines_of_geotiff_masks(tmp_path: Path) -> None:
    run = five_band_model(tmp_path / "run")
    field(tmp_path / "in" / "field.tif", (110, 95))
    predict(run, tmp_path / "in", tmp_path / "out", outlines="coco", quiet=True)
    content = json.loads((tmp_path / "out" / "coco" / "annotations.json").read_text())
    assert [(image["height"], image["width"]) for image in content["images"]] == [(110, 95)]


@pytest.mark.parametrize(
    "name", ["a.png", "a.tif", "a.jpg", "a.npy", "gray.png", "palette.png", "palette.tif", "lying.jpg"]
)
def test_every_format_reads_in_rows_what_it_reads_whole(tmp_path: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    path = tmp_path / name
    exif = Image.Exif()
    match name:
        case "a.npy":
            np.save(path, pixels)
        case "gray.png":
            Image.fromarray(pixels[:, :, 0]).save(path)
        case "palette.png" | "palette.tif":
            Image.fromarray(pixels).quantize(17).save(path)
        case "lying.jpg":
            exif[0x0112] = 6
            Image.fromarray(pixels).save(path, exif=exif)
        case _:
            Image.fromarray(pixels).save(path)
    whole = read_picture(path, Reading()).pixels
    assert image_size(path) == whole.shape[:2]
    with open_raster(path, Reading()) as raster:
        rows = np.concatenate(
            [raster.rows(top, min(top + 20, raster.size[0])).pixels for top in range(0, raster.size[0], 20)]
        )
    assert np.array_equal(rows, whole)


def test_large_images_are_tiled_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bundle(tmp_path / "run", small_model(), THREE)
    pixels = np.random.default_rng(0).integers(0, 256, (130, 170, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    Image.fromarray(pixels[:40]).save(tmp_path / "in" / "b.png")
    tiled = []
    original = predict_module.predict_tiled
    monkeypatch.setattr(
        predict_module, "predict_tiled", lambda job, *rest: (tiled.append(job.row), original(job, *rest))
    )
    monkeypatch.setattr(predict_module, "LARGE", 10_000)
    for out, tile, expected in (("auto", None, ["a.png"]), ("never", 0, []), ("always", 64, ["a.png", "b.png"])):
        tiled.clear()
        assert predict(tmp_path / "run", tmp_path / "in", tmp_path / out, tile=tile, overlay=True, quiet=True) == 2
        assert tiled == expected
        assert not list((tmp_path / out).glob(".*"))
    masks = {out: np.asarray(Image.open(tmp_path / out / "a.png")) for out in ("auto", "never", "always")}
    assert np.array_equal(masks["auto"], masks["never"])  # one tile of 512


def test_pairs_of_dates_are_tiled_too(tmp_path: Path) -> None:
    task = Task("change", ("same", "changed"))
    section = {
        "encoder": {"name": "resnet", "depth": 18, "width": 8, "blocks": [1, 1, 1, 1]},
        "decoder": {"name": "deeplabv3plus", "aspp": 8, "low": 4, "embedding": 8},
    }
    save_bundle(tmp_path / "run", Builder(ModelRecipe.model_validate(section), task, crop=64)().eval(), task)
    for date in "AB":
        (tmp_path / "in" / date).mkdir(parents=True)
        pixels = np.random.default_rng(ord(date)).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / date / "x.png")
    assert predict(tmp_path / "run", tmp_path / "in", tmp_path / "out", tile=64, overlay=True, quiet=True) == 1
    with Image.open(tmp_path / "out" / "x.png") as mask:
        assert mask.size == (120, 90)


def test_a_broken_large_image_costs_only_itself(tmp_path: Path) -> None:
    save_bundle(tmp_path / "run", small_model(), THREE)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    whole = (tmp_path / "in" / "b.png").read_bytes()
    (tmp_path / "in" / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="1 of 3 images could not be read") as caught:
        predict(tmp_path / "run", tmp_path / "in", tmp_path / "out", tile=64, quiet=True)
    assert "b.png" in str(caught.value)
    beside = ["halfmask.yaml", "predict.json", "written.sha256"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png", *beside]


def test_frames_of_a_video_keep_their_order(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10, 100):
        for clip in ("clip 2", "clip 10"):
            path = tmp_path / "in" / clip / f"frame{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
    rows = [job.row for job in plan(tmp_path / "in", tmp_path / "out")]
    assert rows == [f"{clip}/frame{n}.jpg" for clip in ("clip 2", "clip 10") for n in (1, 2, 9, 10, 100)]
    matched = [job.image.name for job in plan(tmp_path / "in" / "clip 2" / "*.jpg", tmp_path / "out")]
    assert matched == [f"frame{n}.jpg" for n in (1, 2, 9, 10, 100)]


SIZE = (9000, 12000)
# What the masks and images would take at once: 108 million pixels of 3 bytes; as float32, four times as much.
MEMORY = """
import resource, sys
from pathlib import Path
from halfmask.infer.predict import tiled as predict_tiled
from halfmask.infer.predict.predict import predict
predict_tiled.probabilities = lambda model, pixels, protocol: pixels.softmax(1)  # the tiles matter here
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
run, small, large, out = map(Path, sys.argv[1:])
predict(run, small, out / "small", tile=512, quiet=True)
before = peak()
predict(run, large, out / "large", overlay=True, quiet=True)
print(before, peak())
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_memory_does_not_grow_with_the_image(tmp_path: Path, suffix: str) -> None:
    save_bundle(tmp_path / "run", small_model(), THREE)
    strip = np.random.default_rng(0).integers(0, 256, (500, SIZE[1], 3), dtype=np.uint8)
    profile = {"driver": "GTiff", "count": 3, "width": SIZE[1], "height": SIZE[0], "dtype": "uint8"}
    large = tmp_path / f"large{suffix}"
    if suffix == ".tif":
        with rasterio.open(large, "w", crs=CRS, transform=rasterio.Affine(*PLACE), **profile) as out:
            for top in range(0, SIZE[0], 500):
                out.write(np.moveaxis(strip, 2, 0), window=((top, top + 500), (0, SIZE[1])))
    else:
        Image.fromarray(np.tile(strip, (SIZE[0] // 500, 1, 1))).save(large, compress_level=0)
    Image.fromarray(strip[:, :1200]).save(tmp_path / f"small{suffix}")
    command = [sys.executable, "-c", MEMORY, tmp_path / "run", tmp_path / f"small{suffix}", large, tmp_path / "out"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    mask = tmp_path / "out" / "large" / f"large{suffix}"
    assert image_size(mask) == SIZE
    # Whole, pixels and probabilities alone would be 2.6 GB of float32. What is counted here is a few rows of tiles,
    # GDAL's cache of 64 MB, libraries loaded late, and the mask, whose pages the system may drop at any time.
    assert after - before < 600 * 2**20, f"{(after - before) / 2**20:.0f} MiB"
