"""Copies of validation images among the unlabeled ones of another folder are found, whatever their name or format."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from halfmask.data.check.check import check
from halfmask.data.splits.copies import find_copies
from halfmask.data.splits.split import open_dataset, resolve_split
from halfmask.recipe.read import load
from tests.data.broken import good, picture, save


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    data, other = tmp_path / "data", tmp_path / "other"
    good(data)
    for number in range(4):
        save(other / f"new_{number}.png", picture(500 + number))
    shutil.copy(data / "images/val/v_3.png", other / "holiday.png")  # the same bytes
    with Image.open(data / "images/val/v_5.png") as image:
        image.save(other / "beach.tiff", compression="tiff_lzw")  # the same pixels
        image.convert("RGBA").save(other / "sea.webp", lossless=True)
    with Image.open(data / "images/val/v_6.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other / "mirrored.png")  # another image
    return data, other


def test_training_leaves_copies_of_judged_images_out_and_says_so(places: tuple[Path, Path]) -> None:
    data, other = places
    recipe = load({}, {"data.root": str(data), "data.unlabeled": {"root": str(other)}}).data
    split = resolve_split(recipe, open_dataset(recipe))
    assert split.unlabeled == ("mirrored.png", "new_0.png", "new_1.png", "new_2.png", "new_3.png")
    (remark,) = (text for text in split.remarks if "copies" in text)
    assert "3 images" in remark
    assert "holiday.png of images/val/v_3.png" in remark


def test_copies_on_a_list_are_told_and_kept(places: tuple[Path, Path]) -> None:
    data, other = places
    (other / "mine.txt").write_text("holiday.png\nnew_1.png\n")
    section = {"root": str(other), "list": str(other / "mine.txt")}
    recipe = load({}, {"data.root": str(data), "data.unlabeled": section}).data
    split = resolve_split(recipe, open_dataset(recipe))
    assert split.unlabeled == ("holiday.png", "new_1.png")
    assert any("1 unlabeled images are copies" in text for text in split.remarks)


def test_check_looks_at_the_other_folder_and_finds_copies(places: tuple[Path, Path]) -> None:
    data, other = places
    report = check(data, overrides=[f"data.unlabeled.root={other}"], workers=1)
    unlabeled = report.seen.parts["unlabeled"]
    assert str(other / "new_0.png") in unlabeled
    found = [finding for finding in report.findings if finding.code == "H130" and "unlabeled" in finding.message]
    assert {file for finding in found for file in finding.files} == {"images/val/v_3.png", "images/val/v_5.png"}
    (other / "broken.png").write_bytes(b"x")
    codes = {finding.code for finding in check(data, overrides=[f"data.unlabeled.root={other}"], workers=1).findings}
    assert {"H201", "H130"} <= codes
    assert "H143" not in codes  # there are unlabeled images


def test_pixels_count_and_names_do_not(places: tuple[Path, Path]) -> None:
    data, other = places
    original, renamed = data / "images/val/v_5.png", other / "v_5.png"
    save(renamed, picture(77))  # of the same name
    assert find_copies([original], [renamed, other / "beach.tiff"]) == {other / "beach.tiff": original}
    gone = other / "gone.png"
    assert find_copies([original, gone], [gone]) == {}
