"""The published split lists, read completely: their sizes, and what they resolve to."""

from pathlib import Path

import pytest

from halfmask.data.splits.split import read_list
from tests.data.test_splits import resolved

PUBLISHED = {
    "pascal": {
        "92": (92, 10490), "183": (183, 10399), "366": (366, 10216), "732": (732, 9850), "1464": (1464, 9118),
        "1_16": (662, 9920), "1_8": (1323, 9259), "1_4": (2646, 7936),
        "u2pl_1_16": (662, 9920), "u2pl_1_8": (1323, 9259), "u2pl_1_4": (2646, 7936),
    },
    "cityscapes": {
        "1_16": (186, 2789), "1_8": (372, 2603), "1_4": (744, 2231), "1_2": (1488, 1487), "1_30": (100, 2875),
    },
    "ade20k": {
        "1_64": (316, 19894), "1_32": (631, 19579), "1_16": (1263, 18947), "1_8": (2526, 17684), "1_4": (5052, 15158),
        "1_2": (10105, 10105),
    },
    "coco": {"1_512": (232, 0), "1_256": (463, 0), "1_128": (925, 0), "1_64": (1849, 0), "1_32": (3697, 0)},
    "levir": {"5pct": (356, 6764), "10pct": (712, 6408), "20pct": (1424, 5696), "40pct": (2848, 4272)},
    "whu": {"5pct": (297, 5650), "10pct": (594, 5353), "20pct": (1189, 4758), "40pct": (2378, 3569)},
    "acdc": {"1": (32, 1280), "3": (68, 1244), "7": (136, 1176)},
}  # fmt: skip
TRAINING = {
    "pascal": "train_aug.txt", "cityscapes": "all/train.txt", "ade20k": "all/labeled.txt", "levir": "train.txt",
    "whu": "train.txt", "acdc": "train_slices.txt",
}  # fmt: skip
VALIDATION = {"pascal": 1449, "cityscapes": 500, "ade20k": 2000, "coco": 5000, "levir": 1024, "whu": 743, "acdc": 20}


@pytest.mark.shared
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_lists_have_their_published_sizes(name: str, shared: Path) -> None:
    base = shared / "data" / "splits" / name
    assert len(read_list(base / "val.txt")) == VALIDATION[name]
    known = {path.parent.name for path in base.glob("*/labeled.txt")} - {"all"}
    assert known == set(PUBLISHED[name])
    whole = {entry.image for entry in read_list(base / TRAINING[name])} if name in TRAINING else None
    for split, (labeled_count, unlabeled_count) in PUBLISHED[name].items():
        labeled = {entry.image for entry in read_list(base / split / "labeled.txt")}
        assert len(labeled) == labeled_count
        if whole is not None:
            unlabeled = {entry.image for entry in read_list(base / split / "unlabeled.txt")}
            assert len(unlabeled) == unlabeled_count
            assert labeled | unlabeled == whole
            assert not labeled & unlabeled


@pytest.mark.shared
def test_the_cityscapes_extra_list_has_no_masks(shared: Path) -> None:
    entries = read_list(shared / "data/splits/cityscapes/all/unlabeled.txt")
    assert len(entries) == 19998
    assert all(entry.mask is None for entry in entries)


@pytest.mark.shared
def test_a_published_split_resolves_on_a_full_size_tree(shared: Path, tmp_path: Path) -> None:
    base = shared / "data/splits/cityscapes"
    for entry in (*read_list(base / "all/train.txt"), *read_list(base / "val.txt")):
        path = tmp_path / entry.image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    # The download holds labelIds, the lists say labelTrainIds.
    for entry in (*read_list(base / "1_30/labeled.txt"), *read_list(base / "val.txt")):
        path = tmp_path / (entry.mask or "").replace("labelTrainIds", "labelIds")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    data, split = resolved(tmp_path, dataset="cityscapes", split="1_30", splits=str(base.parent))
    assert (len(split.labeled), len(split.unlabeled), len(split.val)) == (100, 2875, 500)
    assert split.labeled[0] == read_list(base / "1_30/labeled.txt")[0].image
    assert str(data.mask_path(split.labeled[0])).endswith("_gtFine_labelIds.png")


@pytest.mark.shared
@pytest.mark.parametrize(("name", "count"), [("1_16", 23), ("1_8", 46), ("1_4", 92), ("1_2", 184)])
def test_camvid_splits_resolve_in_place(name: str, count: int, shared: Path) -> None:
    for dataset in ("camvid", "folder"):
        for seed in range(3):
            _, split = resolved(shared / "data/camvid", dataset=dataset, split=f"{name}_seed{seed}")
            assert (len(split.labeled), len(split.unlabeled), len(split.val)) == (count, 367 - count, 101)
