"""Folders of images with one thing wrong each, and what `halfmask check` has to say about it.

Each builder gets an empty folder, fills it, and may give another path to check, or overrides.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

H, W = 40, 48


@dataclass(frozen=True)
class Broken:
    """One case.

    Args:
        build: fills a folder.
        code: of the finding.
        cure: part of the cure.
        exit: 1 = an error is found, 0 = usable, 3 = nothing to look at.
        overrides: keys given on the command line.
    """

    build: Callable[[Path], None]
    code: str
    cure: str
    exit: int = 1
    overrides: tuple[str, ...] = ()


CASES: dict[str, Broken] = {}


def case(code: str, cure: str, exit: int = 1, *overrides: str) -> Callable[[Callable[[Path], None]], None]:
    """Put a builder into `CASES`."""

    def add(build: Callable[[Path], None]) -> None:
        CASES[build.__name__.strip("_")] = Broken(build, code, cure, exit, overrides)

    return add


def picture(seed: int, size: tuple[int, int] = (H, W)) -> Image.Image:
    """Smooth blobs, which differ from seed to seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


def ids(values: Sequence[int] = (0, 1, 2), size: tuple[int, int] = (H, W)) -> np.ndarray:
    """Vertical stripes of the values."""
    columns = np.asarray(values)[np.arange(size[1]) * len(values) // size[1]]
    return np.broadcast_to(columns, size).copy()


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, np.ndarray):
        pixels = Image.fromarray(pixels.astype(np.uint8) if pixels.dtype == np.int64 else pixels)
    pixels.save(path, **options)
    return path


def good(root: Path, masks: Sequence[int] = (0, 1, 2), labeled: int = 6, yaml: str = "") -> None:
    """Twelve images, six with masks, a validation part: nothing to complain about but its size."""
    for number in range(labeled + 6):
        save(root / f"images/train/im_{number}.png", picture(number))
        if number < labeled:
            save(root / f"masks/train/im_{number}.png", ids(masks))
    for number in range(10):
        save(root / f"images/val/v_{number}.png", picture(100 + number))
        save(root / f"masks/val/v_{number}.png", ids(masks))
    if yaml:
        (root / "halfmask.yaml").write_text(yaml)


NAMED = "classes: [ground, leaf, stem]\n"


# --- the folder ------------------------------------------------------------------------------------------------


@case("H208", "--data DIR", 3)
def missing_folder(root):
    root.rmdir()


@case("H208", "Unpack", 3)
def zip_instead_of_folder(root):
    root.rmdir()
    with zipfile.ZipFile(root, "w") as archive:
        archive.writestr("images/a.png", b"")


@case("H208", "images/ and")
def empty_folder(root):
    pass


@case("H152", "convert")
def folder_with_an_archive(root):
    (root / "images.zip").write_bytes(b"PK")


@case("H152", "convert")
def heic_only(root):
    (root / "images").mkdir()
    (root / "images/a.heic").write_bytes(b"ftypheic")


@case("H152", "convert", 0)
def heic_among_others(root):
    good(root, yaml=NAMED)
    (root / "images/train/phone.HEIC").write_bytes(b"ftypheic")


@case("H208", "rename or remove")
def duplicate_stems(root):
    good(root)
    save(root / "images/train/im_0.jpg", picture(77))


@case("H208", "rename or remove")
def two_masks_for_one_image(root):
    good(root)
    save(root / "masks/train/im_0_mask.png", ids())


@case("H208", "Name each mask like its image")
def names_that_do_not_pair(root):
    for number in range(4):
        save(root / f"images/photo_{'abcd'[number]}.png", picture(number))
        save(root / f"masks/drawing_of_{'wxyz'[number]}.png", ids())


@case("H208", "Name each mask like its image")
def pictures_whose_masks_have_other_names(root):
    save(root / "pictures/a.png", picture(1))
    save(root / "masks/b.png", ids())


@case("H110", "name each mask", 0)
def orphan_masks(root):
    good(root, yaml=NAMED)
    save(root / "masks/train/lost.png", ids())


@case("H116", "add their masks", 0)
def validation_images_without_masks(root):
    good(root, yaml=NAMED)
    (root / "masks/val/v_3.png").unlink()


@case("H117", "unlabeled/", 0)
def images_in_an_unknown_folder(root):
    good(root, yaml=NAMED)
    save(root / "more photos/a.png", picture(60))


@case("H118", "move masks into masks/", 0)
def masks_among_the_images(root):
    good(root, yaml=NAMED)
    save(root / "images/train/u_9.png", ids())


@case("H167", "COCO, Label Studio or labelme", 1)
def annotations_of_another_tool(root):
    for number in range(3):
        save(root / f"img/im_{number}.png", picture(number))
        (root / "ann").mkdir(exist_ok=True)
        (root / f"ann/im_{number}.png.json").write_text('{"objects": [{"classTitle": "car"}]}')


@case("H167", "COCO, Label Studio or labelme", 1)
def annotations_of_a_folder_in_xml(root):
    save(root / "im_0.png", picture(0))
    (root / "annotations.xml").write_text("<?xml version='1.0'?><annotations><image/></annotations>")


@case("H127", "ignore_index", 0)
def masks_that_declare_a_class_as_no_data(root):
    good(root, yaml=NAMED)
    for path in (root / "masks").rglob("*.png"):
        Image.open(path).save(path.with_suffix(".tif"), tiffinfo={42113: "0"})
        path.unlink()


@case("H216", "warp it", 1)
def world_files_of_other_ground(root):
    pytest.importorskip("rasterio")
    good(root, yaml=NAMED)
    for path in root.rglob("*.png"):
        left = 500020 if "masks" in path.parts else 500000
        path.with_suffix(".pgw").write_text(f"1\n0\n0\n-1\n{left}\n5000000\n")


@case("H209", "Rename it", 1)
def description_under_another_name(root):
    good(root)
    (root / "halfmask.yml").write_text(NAMED)


@case("H150", "rename", 0)
def names_differing_in_case(root):
    good(root, yaml=NAMED)
    save(root / "images/train/IM_0.png", picture(50))


@case("H151", "link the single files", 0)
def loop_of_folders(root):
    good(root, yaml=NAMED)
    (root / "images/train/again").symlink_to(root / "images")


@case("H201", "Copy it again")
def loop_of_files(root):
    good(root)
    (root / "images/train/loop.png").symlink_to("loop.png")


@case("H201", "Copy it again")
def folder_named_like_an_image(root):
    good(root)
    (root / "images/train/folder.png").mkdir()


@case("H209", "Did you mean `classes`")
def typo_in_the_description(root):
    good(root, yaml="clases: [ground, leaf, stem]\n")


@case("H209", "YAML")
def broken_description(root):
    good(root, yaml="classes: {0: [}\n")


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


# --- masks -----------------------------------------------------------------------------------------------------


@case("H201", "Copy it again")
def zero_bytes_of_a_mask(root):
    good(root)
    (root / "masks/train/im_1.png").write_bytes(b"")


@case("H201", "Copy it again")
def truncated_mask(root):
    good(root, yaml=NAMED)
    path = save(root / "masks/train/im_1.png", np.random.default_rng(0).integers(0, 3, (H, W)))
    path.write_bytes(path.read_bytes()[:-150])


@case("H202", "resize_masks")
def mask_of_another_size(root):
    good(root)
    save(root / "masks/train/im_1.png", ids(size=(H // 2, W // 2)))


@case("H203", "map: {7: 255}")
def unknown_id(root):
    good(root, yaml=NAMED)
    save(root / "masks/train/im_1.png", ids((0, 1, 7)))


@case("H203", "0: 255, 1: 0")
def one_class_more_than_named(root):
    good(root, (0, 1, 2, 3), yaml=NAMED)


@case("H203", "Name the classes")
def stretched_ids(root):
    good(root, (0, 85, 170))


@case("H203", "map: {700: 255}")
def ids_above_255(root):
    good(root, yaml=NAMED)
    save(root / "masks/train/im_1.png", ids((0, 1, 700)).astype(np.uint16))


@case("H203", "whole class ids")
def fractions_in_a_mask(root):
    good(root, yaml=NAMED)
    (root / "masks/train/im_1.png").unlink()
    np.save(root / "masks/train/im_1.npy", ids().astype(np.float32) + 0.5)


@case("H204", "binary: true")
def zero_and_255(root):
    good(root, (0, 255))


@case("H205", "map: {1: 0, 2: 1, 3: 2}")
def ids_from_one(root):
    good(root, (1, 2, 3))


@case("H205", "map: {1: 0, 2: 1, 3: 2}")
def ids_from_one_with_names(root):
    good(root, (1, 2, 3), yaml=NAMED)


def colored(root: Path, colors: Sequence[tuple[int, int, int]]) -> None:
    for path in root.glob("masks/*/*.png"):
        save(path, np.array(colors, np.uint8)[ids()])


@case("H206", "palette: {0: [R, G, B]")
def colors_without_a_table(root):
    good(root)
    colored(root, [(60, 16, 152), (132, 41, 246), (110, 193, 228)])


@case("H206", "palette")
def colors_missing_from_the_table(root):
    good(root, yaml="palette: {0: '#3c1098', 1: '#8429f6', 2: '#50e3c2'}\n" + NAMED)
    colored(root, [(60, 16, 152), (132, 41, 246), (110, 193, 228)])


@case("H208", "PNG")
def jpeg_masks(root):
    good(root)
    (root / "masks/train/im_1.png").unlink()
    save(root / "masks/train/im_1.jpg", ids((0, 100, 200)))


@case("H208", "PNG")
def jpeg_named_png_as_a_mask(root):
    good(root, yaml=NAMED)
    save(root / "masks/train/im_1.png", ids(), format="JPEG")


@case("H111", "first channel", 0)
def mask_saved_as_rgb(root):
    good(root, yaml=NAMED)
    save(root / "masks/train/im_1.png", np.repeat(ids()[:, :, None], 3, axis=2))


@case("H112", "255 means unknown", 0)
def ignored_pixels(root):
    good(root, (0, 1, 2, 255), yaml=NAMED)


@case("H113", "teaches nothing", 0)
def one_mask_ignored_as_a_whole(root):
    good(root, yaml=NAMED)
    save(root / "masks/train/im_1.png", ids((255,)))


@case("H203", "class ids from 0")
def all_masks_ignored_as_a_whole(root):
    good(root, (255,))


@case("H201", "json")
def broken_coco_json(root):
    save(root / "images/a.png", picture(1))
    (root / "annotations.json").write_text('{"images": [')


@case("H208", "Copy the images")
def coco_json_without_images(root):
    (root / "annotations.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))


def labelme(root: Path, text: str) -> None:
    for number in range(6):
        save(root / f"images/im_{number}.png", picture(number))
        (root / f"images/im_{number}.json").write_text(text)


@case("H201", "Export it again")
def truncated_labelme_json(root):
    labelme(root, '{"version": "5.0.0", "shapes": [{"label": "leaf"')


@case("H203", "Add it to `classes`")
def labelme_label_that_is_no_class(root):
    shape = {"label": "root", "shape_type": "polygon", "points": [[0, 0], [9, 0], [9, 9]]}
    labelme(root, json.dumps({"shapes": [shape], "imageHeight": H, "imageWidth": W}))
    (root / "halfmask.yaml").write_text(NAMED)


@case("H201", "Export it again")
def geojson_without_coordinates(root):
    save(root / "images/a.png", picture(1))
    feature = {"type": "Feature", "properties": {"class": "leaf"}, "geometry": {"type": "Polygon", "coordinates": [3]}}
    (root / "images/a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))


def label_studio(root: Path, made: dict[str, list[dict[str, object]]]) -> None:
    tasks = []
    for number in range(6):
        save(root / f"images/im_{number}.png", picture(number))
        tasks.append({"data": {"image": f"/data/local-files/?d=images/im_{number}.png"}} | made)
    (root / "tasks.json").write_text(json.dumps(tasks))
    (root / "halfmask.yaml").write_text(NAMED)


@case("H208", "Correct and submit them in Label Studio")
def label_studio_drafts_alone(root):
    label_studio(root, {"predictions": [{"result": []}]})


@case("H208", "Export from Label Studio as JSON")
def label_studio_tasks_that_are_none(root):
    label_studio(root, {"annotations": []})
    (root / "tasks.json").write_text('[1, {"annotations": []}]')


@case("H208", "Export brushes from Label Studio as COCO")
def label_studio_brushes(root):
    brush = {"type": "brushlabels", "value": {"format": "rle", "rle": [0, 1], "brushlabels": ["leaf"]}}
    label_studio(root, {"annotations": [{"result": [brush]}]})


# --- classes and parts ------------------------------------------------------------------------------------------


@case("H210", "masks/")
def zero_labeled(root):
    for number in range(4):
        save(root / f"images/im_{number}.png", picture(number))
    (root / "masks").mkdir()


@case("H210", "masks/")
def zero_labeled_with_names(root):
    zero_labeled_images(root)
    (root / "halfmask.yaml").write_text(NAMED)


def zero_labeled_images(root: Path) -> None:
    for number in range(4):
        save(root / f"images/im_{number}.png", picture(number))


@case("H142", "label more", 0)
def one_labeled(root):
    good(root, labeled=1, yaml=NAMED)


@case("H140", "or train with --folds 4", 0)
def four_labeled_and_no_validation(root):
    zero_labeled_images(root)
    for number in range(4, 12):
        save(root / f"images/im_{number}.png", picture(number))
    for number in range(4):
        save(root / f"masks/im_{number}.png", ids())


@case("H212", "Name the classes")
def single_class(root):
    good(root, (0,))


@case("H212", "Name a second one")
def single_class_with_a_name(root):
    good(root, (0,), yaml="classes: [ground]\n")


@case("H121", "label an image", 0)
def class_missing_from_the_labeled_part(root):
    good(root, (0, 1), yaml=NAMED)
    save(root / "masks/val/v_0.png", ids((0, 2)))


@case("H122", "cannot be measured", 0)
def class_missing_from_the_validation_part(root):
    good(root, (0, 1), yaml=NAMED)
    save(root / "masks/train/im_0.png", ids((0, 2)))


@case("H120", "label more images", 0)
def class_of_few_pixels(root):
    good(root, (0, 1), yaml=NAMED)
    speck = ids((0, 1))
    speck[0, 0] = 2
    save(root / "masks/train/im_0.png", speck)


@case("H130", "in one part", 0)
def validation_image_in_training(root):
    good(root, yaml=NAMED)
    picture(2).save(root / "images/val/v_4.jpg", quality=85)
    (root / "images/val/v_4.png").unlink()


@case("H131", "copies", 0)
def labeled_twice(root):
    good(root, yaml=NAMED)
    save(root / "images/train/im_1.png", picture(2))


@case("H143", "without masks", 0)
def nothing_unlabeled(root):
    good(root, yaml=NAMED)
    for number in range(6, 12):
        (root / f"images/train/im_{number}.png").unlink()


@case("H211", "one role per image", 1, "data.labeled=labeled.txt", "data.val=val.txt")
def overlapping_lists(root):
    good(root, yaml=NAMED)
    (root / "labeled.txt").write_text("images/train/im_0.png\nimages/train/im_1.png\n")
    (root / "val.txt").write_text("images/train/im_1.png\n")


@case("H153", "halfmask split", 0)
def stale_split(root):
    good(root, yaml=NAMED)
    (root / "splits/3").mkdir(parents=True)
    (root / "splits/3/labeled.txt").write_text("images/train/gone.png\nimages/train/im_1.png\n")


@case("H211", "one role per image", 1, "data.split=3")
def stale_split_in_use(root):
    stale = root / "splits/3"
    stale.mkdir(parents=True)
    good(root, yaml=NAMED)
    (stale / "labeled.txt").write_text("images/train/gone.png\nimages/train/im_1.png\n")


@case("H211", "No split is there", 1, "data.split=7")
def split_that_is_not_there(root):
    good(root, yaml=NAMED)
