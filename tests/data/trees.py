"""Tiny fake folders in the layouts of the public datasets."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from halfmask.recipe.read import DataRecipe

H, W = 6, 8


def image(path: Path, size: tuple[int, int] = (H, W), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, values: Sequence[int] | np.ndarray, size: tuple[int, int] = (H, W), palette: bool = False) -> Path:
    """Write a mask whose pixels cycle through `values`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.resize(np.asarray(values, dtype=np.uint8), size)
    saved = Image.fromarray(ids)
    if palette:
        saved = Image.fromarray(ids, mode="L")
        saved.putpalette([c for i in range(256) for c in (255 - i, i // 2, 7)])
    saved.save(path)
    return path


def describe(root: Path, text: str) -> Path:
    """Write the `halfmask.yaml` of a folder."""
    (root / "halfmask.yaml").write_text(text)
    return root


def recipe(root: Path, dataset: str = "change_folder", **keys: object) -> DataRecipe:
    """The `data` part of a recipe."""
    return DataRecipe.model_validate({"root": str(root), "dataset": dataset, **keys})


def folder(root: Path, labeled: int = 3, unlabeled: int = 2, values: Sequence[int] = (0, 1, 2)) -> Path:
    for index in range(labeled + unlabeled):
        image(root / f"images/im_{index}.png", seed=index)
    for index in range(labeled):
        mask(root / f"masks/im_{index}_mask.png", values)
    return root


def pascal(root: Path) -> Path:
    for stem in ("2007_000032", "2008_000002", "2009_000003", "2010_000004"):
        image(root / f"JPEGImages/{stem}.jpg")
    mask(root / "SegmentationClass/2007_000032.png", (0, 15, 255), palette=True)
    mask(root / "SegmentationClassAug/2007_000032.png", (0, 15))
    mask(root / "SegmentationClassAug/2008_000002.png", (0, 20))
    mask(root / "SegmentationClass/2009_000003.png", (0, 1, 255), palette=True)
    sets = root / "ImageSets/Segmentation"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("2007_000032")
    (sets / "val.txt").write_text("2009_000003\r\n")
    return root


def cityscapes(root: Path, train_ids: bool = False) -> Path:
    for part, city in (("train", "jena"), ("val", "ulm"), ("test", "bonn"), ("train_extra", "bayreuth")):
        image(root / f"leftImg8bit/{part}/{city}/{city}_000001_000019_leftImg8bit.png")
    for part, city in (("train", "jena"), ("val", "ulm"), ("test", "bonn")):
        stem = root / f"gtFine/{part}/{city}/{city}_000001_000019_gtFine"
        mask(Path(f"{stem}_labelIds.png"), (0, 1, 7, 24, 33, 255, 29))
        if train_ids:
            mask(Path(f"{stem}_labelTrainIds.png"), (0, 11, 18, 255))
    return root


def ade20k(root: Path, shifted: bool = False) -> Path:
    for part, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        image(root / f"images/{part}/{stem}.jpg")
        mask(root / f"annotations/{part}/{stem}.png", (255, 0, 149) if shifted else (0, 1, 150))
    return root


def coco(root: Path, png: bool = True) -> Path:
    for part, number in (("train2017", 9), ("val2017", 139), ("unlabeled2017", 8)):
        image(root / part / f"{number:012}.jpg")
        if png and part != "unlabeled2017":
            mask(root / f"masks/{number:012}.png", (0, 1, 80))
        if not png and part != "unlabeled2017":
            coco_json(root / f"annotations/instances_{part}.json", [f"{number:012}.jpg"])
    return root


def coco_json(
    path: Path, names: Sequence[str], categories: Sequence[tuple[int, str]] = ((1, "person"), (18, "dog"))
) -> Path:
    """Every image: a large rectangle of the first category with a small one of the second on it, and a crowd."""
    annotations = []
    for number in range(len(names)):
        big, small = [0, 0, 6, 0, 6, 4, 0, 4], [1, 1, 3, 1, 3, 3, 1, 3]
        crowd = {"size": [H, W], "counts": [(W - 1) * H, H]}  # the last column
        for (category, _), outline, is_crowd in (
            (categories[1], [small], 0),
            (categories[0], [big], 0),
            (categories[0], crowd, 1),
        ):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": category,
                    "iscrowd": is_crowd,
                    "segmentation": outline,
                }
            )
    content = {
        "images": [{"id": n, "file_name": name, "height": H, "width": W} for n, name in enumerate(names)],
        "annotations": annotations,
        "categories": [{"id": id, "name": name, "supercategory": "x"} for id, name in categories],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


COCO_EXPECTED = np.array(
    [
        [2 if 1 <= x < 3 and 1 <= y < 3 else 1 if x < 6 and y < 4 else 255 if x == 7 else 0 for x in range(W)]
        for y in range(H)
    ]
)


def camvid_segnet(root: Path) -> Path:
    for part in ("train", "val", "test"):
        image(root / part / f"{part}_1.png")
        mask(root / f"{part}annot" / f"{part}_1.png", (0, 10, 11))
    return root


def camvid_full(root: Path) -> Path:
    image(root / "701_StillsRaw_full/0001TP_006690.png")
    colors = np.resize(np.array([[64, 128, 64], [128, 0, 192], [0, 0, 0], [128, 128, 128]], dtype=np.uint8), (H, W, 3))
    path = root / "LabeledApproved_full/0001TP_006690_L.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(colors).save(path)
    (root / "label_colors.txt").write_text(
        "64 128 64\tAnimal\n128 0 192\tMotorcycleScooter\n0 0 0\t\tVoid\n128 128 128\tSky\n"
    )
    return root


def camvid_folders(root: Path) -> Path:
    for part in ("train", "val", "test"):
        image(root / f"images/{part}/{part}_1.jpg")
        mask(root / f"masks/{part}/{part}_1.png", (0, 10, 255), palette=True)
    return root


def sun_rgbd(root: Path) -> Path:
    for part in ("train", "test"):
        image(root / f"images/{part}/img-000001.jpg")
        mask(root / f"masks/{part}/img-000001.png", (0, 1, 22, 37))
    return root


def change(root: Path, names: Sequence[str] = ("p_1", "p_2", "p_3"), values: Sequence[int] = (0, 255)) -> Path:
    """A/, B/ and label/ without any parts."""
    for seed, name in enumerate(names):
        image(root / f"A/{name}.png", seed=seed)
        image(root / f"B/{name}.png", seed=100 + seed)
        mask(root / f"label/{name}.png", values)
    return root


def change_parts_inside(root: Path) -> Path:
    """A fixed camera: one earlier image per scene, several later ones; ids with 255 = unknown."""
    for part, scene in (("train", "bridge"), ("val", "gate"), ("test", "hall")):
        image(root / f"A/{part}/{scene}.jpg")
        for frame in (25, 30):
            image(root / f"B/{part}/{scene}_{frame:04}.jpg", seed=frame)
            mask(root / f"label/{part}/{scene}_{frame:04}.png", (0, 1, 255))
    return root


def change_parts(root: Path) -> Path:
    for part in ("train", "val", "test"):
        change(root / part, (f"{part}_1", f"{part}_2"))
    return root


def change_lists(root: Path, folder: str = "list") -> Path:
    """Parts by lists of bare names, whose suffix is not that of the files."""
    change(root, [f"n_{number:05}" for number in range(6)])
    (root / folder).mkdir()
    (root / folder / "train.txt").write_text("n_00000.jpg\nn_00003.jpg\nn_00001.jpg")
    (root / folder / "val.txt").write_text("n_00002.jpg\r\n")
    (root / folder / "test.txt").write_text("n_00004.jpg\n")
    return root


def levir(root: Path) -> Path:
    """Tiles whose names tell their part."""
    return change(root, ("train_1_1", "train_1_2", "train_20_16", "val_3_1", "test_7_9"))


def classes(root: Path, names: Sequence[str] = ("cat", "dog"), per_class: int = 3, parts: bool = True) -> Path:
    for number, name in enumerate(names):
        for part in ("train", "test") if parts else ("",):
            for index in range(per_class):
                image(root / part / name / f"{index}.png", seed=10 * number + index)
    image(root / "unlabeled/x.png")
    return root


def _bytes(seed: int, count: int, pixels: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, pixels), dtype=np.uint8)


def cifar10_binary(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        labels = (np.arange(4, dtype=np.uint8) + seed)[:, None]
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels, _bytes(seed, 4, 3072)], axis=1).tobytes())
    (folder / "batches.meta.txt").write_text("".join(f"class{k}\n" for k in range(10)) + "\n")
    return root


def cifar10_python(root: Path) -> Path:
    """The same images as `cifar10_binary`."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("data_batch_1", "data_batch_2", "test_batch")):
        content = {b"data": _bytes(seed, 4, 3072), b"labels": [seed, seed + 1, seed + 2, seed + 3]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    names = [f"class{k}".encode() for k in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return root


def cifar100_binary(root: Path) -> Path:
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("train", "test")):
        labels = np.array([[3, 70], [19, 99]], dtype=np.uint8)  # coarse, fine
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels, _bytes(seed, 2, 3072)], axis=1).tobytes())
    (folder / "fine_label_names.txt").write_text("".join(f"fine{k}\n" for k in range(100)))
    (folder / "coarse_label_names.txt").write_text("".join(f"coarse{k}\n" for k in range(20)))
    return root


def cifar100_python(root: Path) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("train", "test")):
        content = {b"data": _bytes(seed, 2, 3072), b"coarse_labels": [3, 19], b"fine_labels": [70, 99]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    names = {
        f"{kind}_label_names".encode(): [f"{kind}{k}".encode() for k in range(count)]
        for kind, count in (("fine", 100), ("coarse", 20))
    }
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return root


def stl10(root: Path) -> Path:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for seed, (part, count) in enumerate((("train", 4), ("test", 2), ("unlabeled", 3))):
        (folder / f"{part}_X.bin").write_bytes(_bytes(seed, count, 3 * 96 * 96).tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 10, 2, 3]))
    (folder / "test_y.bin").write_bytes(bytes([5, 6]))
    (folder / "class_names.txt").write_text("".join(f"class{k}\n" for k in range(10)))
    (folder / "fold_indices.txt").write_text("1 3 \n0 2 \n")
    return root
