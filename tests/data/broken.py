"""Folders of images with one thing wrong each, and what `halfmask check` has to say about it.

Each builder gets an empty folder, fills it, and may give another path to check, or overrides.
"""

import zipfile
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
