"""Split lists in every published form, draws that cover all classes, and all problems in one error."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from halfmask.data.annotations.coco.regions import decode_region
from halfmask.data.contract import Dataset
from halfmask.data.datasets.camvid import CamVid
from halfmask.data.datasets.folder import Folder
from halfmask.data.splits.drawing import draw
from halfmask.data.splits.split import (
    ListEntry,
    Split,
    inspect,
    make_split,
    open_dataset,
    read_list,
    resolve_split,
    unlabeled_dataset,
    verify,
)
from halfmask.errors import DataError, RecipeError
from halfmask.recipe.read import DataRecipe
from tests.data import trees
from tests.data.trees import image, mask


def resolved(root: Path, **keys: object) -> tuple[Dataset, Split]:
    recipe = DataRecipe.model_validate({"root": str(root), **keys})
    dataset = open_dataset(recipe)
    return dataset, resolve_split(recipe, dataset)


def lists(root: Path, **files: list[str]) -> None:
    for name, lines in files.items():
        path = root / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/x.jpg m/x.png", [ListEntry("a/x.jpg", "m/x.png")]),
        ("/a/x.jpg /m/x.png\r\n/a/y.jpg /m/y.png", [ListEntry("a/x.jpg", "m/x.png"), ListEntry("a/y.jpg", "m/y.png")]),
        ("a/x.png None", [ListEntry("a/x.png")]),
        ("a/x.png\n\n", [ListEntry("a/x.png")]),
        ("2007_000032\n2007_000039", [ListEntry("2007_000032"), ListEntry("2007_000039")]),
        ("Tile 1/images/a 1.jpg\tTile 1/masks/a 1.png", [ListEntry("Tile 1/images/a 1.jpg", "Tile 1/masks/a 1.png")]),
        ("Tile 1/images/a 1.jpg Tile 1/masks/a 1.png", [ListEntry("Tile 1/images/a 1.jpg", "Tile 1/masks/a 1.png")]),
        ("Tile 1/images/a 1.jpg", [ListEntry("Tile 1/images/a 1.jpg")]),
        ("A/x.png B/x.png label/x.png", [ListEntry("A/x.png", "label/x.png", "B/x.png")]),
        ("\ufeffa\\b\\x.jpg  ./m/x.png", [ListEntry("a/b/x.jpg", "m/x.png")]),
    ],
)
def test_every_form_of_list_is_read(text: str, expected: list[ListEntry], tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(text.encode())
    assert read_list(tmp_path / "l.txt") == expected


def test_csv_lists_may_have_a_header_and_commas_in_names(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text('image,mask\n"a, b.jpg",m 1.png\n')
    assert read_list(tmp_path / "l.csv") == [ListEntry("a, b.jpg", "m 1.png")]


@pytest.mark.parametrize(("text", "message"), [("", "empty"), ("a b c d", "4 columns.*tabs")])
def test_bad_lists_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_list(tmp_path / "l.txt")
    with pytest.raises(DataError, match="no such list"):
        read_list(tmp_path / "other.txt")


def test_a_named_split_keeps_the_order_of_its_lists(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=4, unlabeled=2)
    lists(
        tmp_path / "splits",
        own__labeled=["images/im_2.png masks/im_2_mask.png", "images/im_0.png masks/im_0_mask.png"],
        own__unlabeled=["images/im_5.png None", "images/im_1.png masks/absent.png"],
        val=["images/im_3.png"],
    )
    data, split = resolved(tmp_path, split="own")
    assert split == Split(
        ("images/im_2.png", "images/im_0.png"), ("images/im_5.png", "images/im_1.png"), ("images/im_3.png",)
    )
    assert data.sealed == set(split.unlabeled)
    assert data.mask_overrides["images/im_2.png"] == "masks/im_2_mask.png"
    assert "images/im_1.png" not in data.mask_overrides


def test_without_unlabeled_list_the_rest_of_the_training_images_is_unlabeled(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=4, unlabeled=2)
    image(tmp_path / "unlabeled/extra.png")
    lists(tmp_path / "splits", own__labeled=["images/im_0.png"], own__val=["images/im_3.png"])
    _, split = resolved(tmp_path, split="own")
    # Extra images are no part of a published protocol.
    assert split.unlabeled == ("images/im_1.png", "images/im_2.png", "images/im_4.png", "images/im_5.png")
    _, split = resolved(tmp_path, val="none")
    assert split.unlabeled == ("images/im_4.png", "images/im_5.png", "unlabeled/extra.png")


def test_the_masks_of_unlabeled_images_are_never_opened(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=4, unlabeled=1)
    lists(tmp_path / "splits", own__labeled=["images/im_0.png"], own__val=["images/im_3.png"])
    (tmp_path / "masks/im_1_mask.png").write_bytes(b"broken")
    mask(tmp_path / "masks/im_2_mask.png", (0, 1, 2, 3, 4, 5))
    data, split = resolved(tmp_path, split="own")
    verify(data, split, data)
    with_masks = (data.task, split)
    for name in ("im_1", "im_2"):
        (tmp_path / f"masks/{name}_mask.png").unlink()
    data, split = resolved(tmp_path, split="own")
    assert (data.task, split) == with_masks
    assert data.task.n_classes == 3


def test_an_unknown_split_lists_the_known_ones(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    lists(tmp_path / "splits", **{"1_16__labeled": ["images/im_0.png"], "1_8__labeled": ["images/im_0.png"]})
    with pytest.raises(
        DataError, match=r"'1_6' of folder not found.*Did you mean.*1_16, 1_8.*data\.split=null data\.labeled=COUNT"
    ):
        resolved(tmp_path, split="1_6")


def test_counts_and_fractions_cover_every_class(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=40, unlabeled=0, values=(0,))
    for number, value in ((7, 1), (23, 2)):
        mask(tmp_path / f"masks/im_{number}_mask.png", (0, value))
    for seed in range(5):
        _, split = resolved(tmp_path, labeled=4, labeled_seed=seed, val="none")
        assert {"images/im_7.png", "images/im_23.png"} < set(split.labeled)
        assert len(split.labeled) == 4
        assert len(split.unlabeled) == 36
    _, again = resolved(tmp_path, labeled=0.1, labeled_seed=4, val="none")
    assert again == split
    draws = {resolved(tmp_path, labeled=4, labeled_seed=seed, val="none")[1].labeled for seed in range(5)}
    assert len(draws) == 5


def test_too_few_images_for_all_classes_are_remarked_on(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=3, unlabeled=0, values=(0,))
    mask(tmp_path / "masks/im_1_mask.png", (0, 1))
    mask(tmp_path / "masks/im_2_mask.png", (0, 2))
    (remark,) = [text for text in resolved(tmp_path, labeled=1)[1].remarks if "no labeled image shows" in text]
    assert re.search(r"shows class_[12]: these classes cannot be learned", remark)


def test_more_labels_than_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only 3 images have a mask"):
        resolved(trees.folder(tmp_path), labeled=50)


def test_a_fifth_is_held_out_without_a_validation_part(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=10, unlabeled=1, values=(0, 1))
    mask(tmp_path / "masks/im_4_mask.png", (0, 2))  # the only image with class 2 must stay
    for seed in range(6):
        _, split = resolved(tmp_path, labeled_seed=seed)
        assert (len(split.labeled), len(split.val), split.unlabeled) == (8, 2, ("images/im_10.png",))
        assert "images/im_4.png" in split.labeled
        assert not set(split.labeled) & set(split.val)
    _, split = resolved(tmp_path, val="none")
    assert (len(split.labeled), split.val) == (10, ())


def test_fewer_than_five_masks_are_not_divided(tmp_path: Path) -> None:
    _, split = resolved(trees.folder(tmp_path, labeled=4))
    assert (len(split.labeled), split.val) == (4, ())


def test_validation_by_part_list_or_not_at_all(tmp_path: Path) -> None:
    root = trees.camvid_folders(tmp_path)
    assert resolved(root, val="auto")[1].val == ("images/val/val_1.jpg",)
    assert resolved(root, val="test")[1].val == ("images/test/test_1.jpg",)
    assert resolved(root, val="none")[1].val == ()
    lists(tmp_path, own=["val_1"])
    assert resolved(root, val="own.txt")[1].val == ("images/val/val_1.jpg",)
    with pytest.raises(DataError, match="Allowed: auto, none, train"):
        resolved(root, val="vall")
    with pytest.raises(DataError, match="part has no image"):
        resolved(root, val="unlabeled")


def test_unlabeled_images_from_another_folder(tmp_path: Path) -> None:
    trees.folder(tmp_path / "a", labeled=2, unlabeled=0)
    image(tmp_path / "b/sub/x.png")
    image(tmp_path / "b/y.png")
    recipe = DataRecipe.model_validate({"root": str(tmp_path / "a"), "unlabeled": {"root": str(tmp_path / "b")}})
    data = open_dataset(recipe)
    split, other = resolve_split(recipe, data), unlabeled_dataset(recipe, data)
    assert split.unlabeled == ("sub/x.png", "y.png")
    assert other.read_image("y.png").shape == (trees.H, trees.W, 3)
    verify(data, split, other)


def test_the_same_files_under_another_root_are_not_used_twice(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=2, unlabeled=1)
    _, split = resolved(tmp_path, unlabeled={"root": str(tmp_path / "images")})
    assert split.unlabeled == ("im_2.png",)


@pytest.mark.parametrize("place", ["the root itself", "a link to it", "a part of it", "hard links elsewhere"])
def test_images_of_the_validation_and_test_parts_never_become_unlabeled(place: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for part, count in (("train", 3), ("val", 2), ("test", 2)):
        for number in range(count):
            image(root / part / "images" / f"{part}_{number}.png", seed=10 * len(part) + ord(part[1]) + number)
            mask(root / part / "masks" / f"{part}_{number}.png", (0, 1, 2))
    image(root / "unlabeled/more.png")
    other = {"the root itself": root, "a part of it": root / "test"}.get(place, tmp_path / "other")
    if place == "a link to it":
        other.symlink_to(root)
    if place == "hard links elsewhere":
        other.mkdir()
        for path in root.glob("*/images/*.png"):
            (other / path.name).hardlink_to(path)
        (other / "new.png").hardlink_to(root / "unlabeled/more.png")
    _, split = resolved(root, labeled=2, unlabeled={"root": str(other)})
    names = {Path(id).name for id in split.unlabeled}
    assert not any(name.startswith(("val", "test")) for name in names)
    assert not names & {Path(id).name for id in split.labeled}
    if place != "a part of it":
        assert len(names) == 2  # the third training image, and the one that was unlabeled before
    assert f"{6 if place != 'a part of it' else 2} that are labeled, or of the validation or test part" in "".join(
        split.remarks
    )


def test_a_listed_unlabeled_image_that_validates_under_another_name_is_refused(tmp_path: Path) -> None:
    root = trees.folder(tmp_path / "data", labeled=3, unlabeled=2)
    (root / "images/alias.png").symlink_to(root / "images/im_2.png")
    lists(root, val=["images/im_2.png"], rest=["images/im_3.png", "images/alias.png"])
    with pytest.raises(DataError, match=r"both unlabeled and for validation \(1\): images/im_2\.png"):
        resolved(root, val="val.txt", unlabeled="rest.txt")


def test_a_list_of_labeled_images_is_used_as_it_is(tmp_path: Path) -> None:
    root = trees.folder(tmp_path / "data", labeled=12, unlabeled=2)
    names = [f"images/im_{number}.png" for number in range(10)]
    lists(root, splits__mine__labeled=names)
    for keys in ({"split": "mine"}, {"labeled": "splits/mine/labeled.txt"}):
        _, split = resolved(root, **keys)
        assert (list(split.labeled), split.val, split.remarks) == (names, (), ())


def test_masks_that_are_held_out_are_counted_and_the_key_is_named(tmp_path: Path) -> None:
    root = trees.folder(tmp_path / "data", labeled=12, unlabeled=2)
    _, split = resolved(root, labeled=10)
    assert (len(split.labeled), len(split.val)) == (8, 2)
    assert any("2 of the 10 masks are held out for validation, 8 train" in line for line in split.remarks)
    assert any("data.val=none" in line for line in split.remarks)


def test_all_problems_come_in_one_error(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=4, unlabeled=2)
    names = [f"images/im_{i}.png" for i in range(6)]
    lists(
        tmp_path / "splits",
        bad__labeled=[names[0], names[0], names[5], "images/absent.png", "images/gone.png"],
        bad__unlabeled=[names[0], names[1]],
        bad__val=[names[1], names[0]],
    )
    with pytest.raises(DataError) as caught:
        resolved(tmp_path, split="bad")
    for part in (
        "(2 of 5): images/absent.png, images/gone.png",
        "labeled, but without a mask (1): images/im_5.png",
        "listed more than once (1): images/im_0.png",
        "both labeled and for validation (1): images/im_0.png",
        "both labeled and unlabeled (1): images/im_0.png",
        "both unlabeled and for validation (2): images/im_0.png, images/im_1.png",
    ):
        assert part in str(caught.value)
    assert caught.value.exit_code == 3


def test_no_labeled_image_is_an_error(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    with pytest.raises(DataError, match="no labeled image: put masks"):
        resolved(tmp_path, dataset={"name": "folder", "classes": ["a", "b"]})


def test_paths_of_another_machine_are_rerooted(tmp_path: Path) -> None:
    root = trees.camvid_segnet(tmp_path / "CamVid")
    lists(root, train=["/SegNet/CamVid/train/train_1.png /SegNet/CamVid/trainannot/train_1.png"])
    data, split = resolved(tmp_path, dataset="camvid", labeled="train.txt")
    assert isinstance(data, CamVid)
    assert split.labeled == ("train/train_1.png",)
    assert data.mask_overrides == {"train/train_1.png": "trainannot/train_1.png"}


def test_dataset_parameters_are_checked(tmp_path: Path) -> None:
    trees.folder(tmp_path, values=(0, 255))
    data, _ = resolved(tmp_path, dataset={"name": "folder", "binary": True, "map": {"7": "1"}})
    assert data.read_target("images/im_0.png").ravel()[:2].tolist() == [0, 1]
    with pytest.raises(RecipeError, match="binry"):
        resolved(tmp_path, dataset={"name": "folder", "binry": True})
    with pytest.raises(DataError, match="--data DIR"):
        open_dataset(DataRecipe())


def test_new_splits_are_lists_that_can_be_read_back(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=12, unlabeled=3, values=(0, 1))
    data = Folder(tmp_path)
    made = make_split(data, fraction=0.25, seeds=(0, 1), val=4, out=tmp_path / "splits")
    assert [split.folder.name for split in made] == ["1_4_seed0", "1_4_seed1"]
    assert made[0].labeled != made[1].labeled
    for split in made:
        _, read = resolved(tmp_path, split=split.folder.name)
        assert (read.labeled, read.unlabeled) == (split.labeled, split.unlabeled)
        assert (len(read.labeled), len(read.unlabeled), len(read.val)) == (2, 9, 4)
        assert split.missing == ()
    with pytest.raises(ValueError, match="either count or fraction"):
        make_split(data, out=tmp_path)


def test_new_splits_name_the_classes_they_cannot_cover(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=2, unlabeled=0, values=(0, 1))
    mask(tmp_path / "masks/im_1_mask.png", (0, 2))
    (made,) = make_split(Folder(tmp_path), count=1, out=tmp_path / "splits")
    assert made.missing in {("class_1",), ("class_2",)}


def test_draws_look_at_masks_only_until_every_class_was_seen(tmp_path: Path) -> None:
    data = Folder(trees.folder(tmp_path, labeled=200, unlabeled=0), classes=["a", "b", "c"])
    opened: list[str] = []
    real: Callable[[str], np.ndarray] = data.read_target
    data.read_target = lambda id: opened.append(id) or real(id)  # type: ignore[assignment,method-assign,func-returns-value]
    assert draw(data, data.ids("train"), 3, seed=0).missing == ()
    assert len(opened) == 64


def test_verification_names_every_broken_file(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=5, unlabeled=1, values=(0, 1))
    data = Folder(tmp_path, classes=["a", "b", "c"])
    split = Split(tuple(data.ids("train")[:5]), (data.ids("train")[5],), ())
    assert verify(data, split, data) == ("c: not in any of the 5 labeled masks, nor in validation",)
    mask(tmp_path / "masks/im_0_mask.png", (0, 1), size=(3, 3))
    mask(tmp_path / "masks/im_1_mask.png", (0, 9))
    (tmp_path / "masks/im_2_mask.png").write_bytes(b"")
    (tmp_path / "images/im_3.png").unlink()
    (tmp_path / "images/im_5.png").unlink()
    with pytest.raises(DataError) as caught:
        verify(data, split, data)
    for code, name in (("H202", "im_0"), ("H203", "im_1"), ("H201", "im_2"), ("H201", "im_3"), ("H201", "im_5")):
        assert any(f"[{code}]" in line and name in line for line in str(caught.value).splitlines())
    assert len(inspect(data, split, data).errors) == 5


def test_verification_counts_pixels_per_class(tmp_path: Path) -> None:
    data = Folder(trees.folder(tmp_path, labeled=2, unlabeled=0, values=(0, 0, 1)))
    findings = inspect(data, Split(tuple(data.ids("train")), (), ()))
    assert (findings.pixels, findings.errors, findings.warnings) == ((64, 32), (), ())


def test_run_length_codes_and_polygons_agree_with_the_reference_implementation() -> None:
    reference = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = (int(n) for n in rng.integers(1, 60, 2))
        region = np.asfortranarray(rng.random((height, width)) < 0.4)
        packed = reference.encode(region.astype(np.uint8, order="F"))["counts"].decode()
        assert np.array_equal(decode_region({"size": [height, width], "counts": packed}, height, width), region)
    for _ in range(20):
        angles = np.sort(rng.random(7) * 2 * np.pi)
        polygon = np.stack([32 + 25 * np.cos(angles), 30 + 20 * np.sin(angles)], axis=1).ravel().tolist()
        ours = decode_region([polygon], 60, 64)
        theirs = reference.decode(reference.frPyObjects([polygon], 60, 64))[:, :, 0].astype(bool)
        # The reference rounds outlines on a finer grid: only pixels on the outline may differ.
        inner = theirs.copy()
        outer = theirs.copy()
        for axis in (0, 1):
            for shift in (-1, 1):
                inner &= np.roll(theirs, shift, axis)
                outer |= np.roll(theirs, shift, axis)
        assert not (inner & ~ours).any()
        assert not (ours & ~outer).any()
