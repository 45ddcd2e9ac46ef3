"""Folders with one thing wrong in their masks, parts or annotations."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.data.broken import NAMED, H, W, case, good, ids, picture, save

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
