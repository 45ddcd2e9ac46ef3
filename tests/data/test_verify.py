"""What is looked at before training: every file that training will read, once for as long as it does not change."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.data.datasets.folder import Folder
from halfmask.data.splits.split import Split
from halfmask.data.splits.verify import inspect, is_plain, verify
from halfmask.errors import DataError
from tests.data import trees
from tests.data.trees import image, mask


def whole(data: Folder, labeled: int) -> Split:
    ids = data.ids("train")
    return Split(tuple(ids[:labeled]), tuple(ids[labeled:]), ())


def cut(path: Path, share: float = 0.7) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def photo(path: Path, size: tuple[int, int] = (40, 60)) -> Path:
    return image(path, size)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("stream", ["labeled", "unlabeled", "val"])
def test_a_truncated_image_is_found_wherever_it_is_used(stream: str, suffix: str, tmp_path: Path) -> None:
    for number in range(6):
        photo(tmp_path / f"images/im_{number}{suffix}")
        mask(tmp_path / f"masks/im_{number}.png", (0, 1), size=(40, 60))
    data = Folder(tmp_path, classes=["a", "b"])
    ids = tuple(data.ids("train"))
    split = Split(ids[:2], ids[2:4], ids[4:])
    assert verify(data, split, data) == ()
    broken = {"labeled": ids[1], "unlabeled": ids[3], "val": ids[5]}[stream]
    cut(tmp_path / broken)
    with pytest.raises(DataError, match=rf"1 problem in .*\n.*\[H201\].*{broken}.*truncated"):
        verify(data, split, data)


def test_every_labeled_mask_is_read_not_a_sample_of_them(tmp_path: Path) -> None:
    data = Folder(trees.folder(tmp_path, labeled=120, unlabeled=0), classes=["a", "b", "c"])
    for number in (7, 61, 119):
        mask(tmp_path / f"masks/im_{number}_mask.png", (0, 9))
    assert [error.code for error in inspect(data, whole(data, 120)).errors] == ["H203"] * 3


def test_a_deep_unlabeled_image_among_plain_ones_is_refused_with_its_cure(tmp_path: Path) -> None:
    data = Folder(trees.folder(tmp_path, labeled=2, unlabeled=3))
    deep = np.full((trees.H, trees.W), 3000, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "images/im_3.png")
    with pytest.raises(DataError, match=r"\[H207\].*im_3\.png: uint16 pixels.*range: \[0, 4095\]"):
        verify(data, whole(data, 2), data)
    assert Folder(tmp_path, range=(0.0, 4095.0)).read_image("images/im_3.png").shape == (trees.H, trees.W, 3)


def test_another_number_of_bands_is_found_in_unlabeled_images(tmp_path: Path) -> None:
    data = Folder(trees.folder(tmp_path, labeled=2, unlabeled=2))
    (tmp_path / "images/im_3.png").unlink()
    np.save(tmp_path / "images/im_3.npy", np.zeros((trees.H, trees.W, 5), dtype=np.uint8))
    data = Folder(tmp_path)
    with pytest.raises(DataError, match=r"\[H207\].*im_3\.npy: 5 bands, but the dataset has 3"):
        verify(data, whole(data, 2), data)


def test_oddities_at_the_end_of_a_good_file_are_no_problem(tmp_path: Path) -> None:
    data = Folder(trees.folder(tmp_path, labeled=2, unlabeled=0))
    for name in ("a", "b"):
        photo(tmp_path / f"images/{name}.jpg")
    with (tmp_path / "images/a.jpg").open("ab") as file:
        file.write(b"camera notes" * 100)
    (tmp_path / "images/b.jpg").write_bytes((tmp_path / "images/b.jpg").read_bytes() + bytes(16))
    data = Folder(tmp_path)
    assert not is_plain(tmp_path / "images/a.jpg")
    assert is_plain(tmp_path / "images/b.jpg")
    unlabeled = ("images/a.jpg", "images/b.jpg")
    assert verify(data, Split(("images/im_0.png", "images/im_1.png"), unlabeled, ()), data) == ()


@pytest.mark.parametrize("save", ["L", "LA", "P", "RGB", "RGBA", "1", "CMYK"])
def test_what_is_called_plain_decodes(save: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.jpg" if save == "CMYK" else "a.png")
    Image.new(save, (9, 7)).save(path)
    assert is_plain(path)
    assert Folder(tmp_path).read_image(path.name).shape == (7, 9, 3)
    cut(path, 0.9)
    assert not is_plain(path)


def counting_reads(data: Folder) -> list[str]:
    read: list[str] = []
    for name in ("read_image", "read_target"):
        real: Callable[[str], np.ndarray] = getattr(data, name)

        def spy(id: str, real: Callable[[str], np.ndarray] = real) -> np.ndarray:
            read.append(id)
            return real(id)

        setattr(data, name, spy)
    return read


def test_good_files_are_remembered_until_they_change(tmp_path: Path) -> None:
    root, stamps = tmp_path / "data", tmp_path / "stamps"
    data = Folder(trees.folder(root, labeled=3, unlabeled=2))
    split = whole(data, 3)
    first = inspect(data, split, data, stamps=stamps)
    again = counting_reads(data)
    assert inspect(data, split, data, stamps=stamps) == first
    assert again == []
    mask(root / "masks/im_1_mask.png", (0, 0, 2))
    assert inspect(data, split, data, stamps=stamps).pixels != first.pixels
    assert set(again) == {"images/im_1.png"}
    cut(root / "images/im_4.png")
    for _ in range(2):  # a broken file is looked at each time
        assert [error.code for error in inspect(data, split, data, stamps=stamps).errors] == ["H201"]


def test_a_change_that_keeps_the_size_is_seen_by_its_time(tmp_path: Path) -> None:
    root, stamps = tmp_path / "data", tmp_path / "stamps"
    data = Folder(trees.folder(root, labeled=2, unlabeled=1))
    inspect(data, whole(data, 2), data, stamps=stamps)
    path = root / "images/im_2.png"
    size, before = path.stat().st_size, path.stat().st_mtime_ns
    path.write_bytes(struct.pack("B", 0) * size)
    os.utime(path, ns=(before + 1, before + 1))
    assert [error.code for error in inspect(data, whole(data, 2), data, stamps=stamps).errors] == ["H201"]


def test_other_classes_look_anew(tmp_path: Path) -> None:
    root, stamps = tmp_path / "data", tmp_path / "stamps"
    three = Folder(trees.folder(root, labeled=2, unlabeled=0), classes=["a", "b", "c"])
    assert inspect(three, whole(three, 2), stamps=stamps).errors == ()
    two = Folder(root, classes=["a", "b"])
    assert {error.code for error in inspect(two, whole(two, 2), stamps=stamps).errors} == {"H203"}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}', b"[]"])
def test_a_damaged_or_unwritable_memory_only_costs_time(content: bytes, tmp_path: Path) -> None:
    data = Folder(trees.folder(tmp_path / "data", labeled=2, unlabeled=0))
    expected = inspect(data, whole(data, 2), stamps=tmp_path / "stamps")
    (path,) = (tmp_path / "stamps").iterdir()
    path.write_bytes(content)
    assert inspect(data, whole(data, 2), stamps=tmp_path / "stamps") == expected
    assert inspect(data, whole(data, 2), stamps=Path("/proc/nothing/here")) == expected


def test_progress_counts_every_file(tmp_path: Path) -> None:
    data = Folder(trees.folder(tmp_path, labeled=3, unlabeled=2))
    seen: list[tuple[int, int]] = []
    inspect(data, whole(data, 3), data, on_file=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 5) for number in range(1, 6)]


def test_masks_that_ignore_everything_label_nothing(tmp_path: Path) -> None:
    data = Folder(trees.folder(tmp_path, labeled=2, unlabeled=1, values=(255,)), classes=["a", "b"], map={255: 255})
    with pytest.raises(DataError, match=r"\[H210\].*every pixel of the 2 labeled masks is ignored"):
        verify(data, whole(data, 2), data)


def test_files_that_lie_there_for_nothing_are_counted_with_an_example(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number in range(2):
            image(tmp_path / part / f"images/{part}_{number}.png")
    mask(tmp_path / "train/masks/train_0.png", (0, 1))
    mask(tmp_path / "train/masks/trian_1.png", (0, 1))
    mask(tmp_path / "val/masks/val_0.png", (0, 1))
    image(tmp_path / "extra/a.png")
    image(tmp_path / "run/predictions/a.png")
    (tmp_path / "run/recipe.yaml").write_text("")
    data = Folder(tmp_path)
    split = Split(("train/images/train_0.png",), (), ("val/images/val_0.png",))
    orphan, bare, unused = verify(data, split)
    assert orphan.startswith("1 mask without an image, for example train/masks/trian_1.png")
    assert bare.startswith("1 image of the validation part without a mask, for example val/images/val_1.png")
    assert unused.startswith("1 image in no folder that the layout knows, for example extra/a.png")


def test_masks_of_a_voc_folder_without_an_image_are_counted(tmp_path: Path) -> None:
    image(tmp_path / "JPEGImages/a.jpg")
    for stem in ("a", "b"):
        mask(tmp_path / f"SegmentationClass/{stem}.png", (0, 1))
    mask(tmp_path / "SegmentationClassAug/a.png", (0, 1))
    assert Folder(tmp_path).layout.orphans == ("SegmentationClass/b.png",)
