"""Where `predict` reads and writes: it predicts no masks, and never touches a file that it did not write."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.errors import DataError
from halfmask.infer.bundle import save_bundle
from halfmask.infer.predict.inputs import find_input
from halfmask.infer.predict.predict import predict
from tests.run.toy import THREE, small_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "run", small_model(), THREE)
    return tmp_path / "run"


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


def drawn(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(32, dtype=np.uint8)).save(path)
    return path


def state(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("where", ["masks", "images", ".", "masks/sub"])
def test_results_do_not_mix_with_files_of_other_origin(where: str, overwrite: bool, run: Path, tmp_path: Path) -> None:
    for name in "ab":
        photo(tmp_path / f"data/images/{name}.png")
    drawn(tmp_path / "data/masks/a.png")
    drawn(tmp_path / "data/masks/sub/notes/a.png")
    before = state(tmp_path / "data")
    with pytest.raises(DataError, match=r"(?s)did not write.*Choose another --out.*a\.png") as caught:
        predict(run, tmp_path / "data/images/*.png", tmp_path / "data" / where, overwrite=overwrite, quiet=True)
    assert caught.value.code == "H408"
    assert state(tmp_path / "data") == before


def test_a_mask_that_somebody_corrected_is_not_replaced(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in/a.png")
    predict(run, tmp_path / "in", tmp_path / "out", outlines="labelme", quiet=True)
    before = state(tmp_path / "out")
    assert predict(run, tmp_path / "in", tmp_path / "out", outlines="labelme", overwrite=True, quiet=True) == 1
    for name, options in (("a.png", {"overwrite": True}), ("labelme/a.json", {"outlines": "labelme"})):
        file = tmp_path / "out" / name
        file.write_bytes(before[file] + b" ")
        with pytest.raises(DataError, match=f"(?s)changed since.*{name}") as caught:
            predict(run, tmp_path / "in", tmp_path / "out", quiet=True, **options)
        assert caught.value.code == "H408"
        assert file.read_bytes() == before[file] + b" "
        file.write_bytes(before[file])
    (tmp_path / "out/labelme/export.json").write_text("{}")
    with pytest.raises(DataError, match=r"(?s)did not write.*labelme/export\.json"):
        predict(run, tmp_path / "in", tmp_path / "out", overwrite=True, quiet=True)


def test_a_list_of_written_files_that_is_lost_makes_them_unknown(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in/a.png")
    predict(run, tmp_path / "in", tmp_path / "out", quiet=True)
    (tmp_path / "out/written.sha256").unlink()
    with pytest.raises(DataError, match="before it kept a list"):
        predict(run, tmp_path / "in", tmp_path / "out", overwrite=True, quiet=True)
    for leftover in (".DS_Store", "Thumbs.db"):
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / "new" / leftover).write_bytes(b"")
    assert predict(run, tmp_path / "in", tmp_path / "new", quiet=True) == 1


LAYOUTS = {
    "images+masks": (["images/a.png", "images/b.png", "unlabeled/c.png"], ["masks/a.png", "masks/z.png"]),
    "labels beside": (["images/a.png"], ["labels/a.png", "gt/a.png"]),
    "parts": (["train/images/a.png", "val/images/b.png"], ["train/masks/a.png", "val/masks/b.png"]),
    "parts inside": (["images/train/a.png", "images/val/b.png"], ["masks/train/a.png", "masks/val/b.png"]),
    "side by side": (["a.png", "sub/b.png"], ["a_mask.png", "sub/b_mask.png"]),
    "voc": (["JPEGImages/a.png"], ["SegmentationClass/a.png", "SegmentationObject/a.png"]),
    "cityscapes": (
        ["leftImg8bit/train/x/x_1_2_leftImg8bit.png"],
        ["gtFine/train/x/x_1_2_gtFine_labelIds.png", "gtFine/train/x/x_1_2_gtFine_color.png"],
    ),
    "ade20k": (["images/training/a.png"], ["annotations/training/a.png"]),
    "loose": (["a.png", "b.png"], ["masks/a.png"]),
    "several sets": (["x/images/a.png", "deep/y/images/b.png"], ["x/masks/a.png", "deep/y/masks/b.png"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_masks_of_a_data_set_are_no_images(name: str, tmp_path: Path) -> None:
    images, masks = LAYOUTS[name]
    for path in images:
        photo(tmp_path / path)
    for path in masks:
        drawn(tmp_path / path)
    for source in (tmp_path, tmp_path / "**" / "*.png"):
        found = find_input(source, tmp_path / "out")
        assert {image.relative_to(tmp_path).as_posix() for _, image, _ in found.images} == set(images)
        assert [path.relative_to(tmp_path).as_posix() for path in found.left_out["masks"]] == sorted(masks)
        assert f"not predicted: {len(masks)} masks" in found.left_out_text()
    assert len(find_input(tmp_path / masks[0], tmp_path / "out").images) == 1  # named by itself it is wanted


def test_results_of_earlier_calls_are_no_images(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photo(tmp_path / "in/a.png")
    photo(tmp_path / "in/deep/b.png")
    assert predict(run, tmp_path / "in", tmp_path / "in/deep/first", overlay=True, quiet=True) == 2
    assert "" == capsys.readouterr().err
    assert predict(run, tmp_path / "in", tmp_path / "second") == 2
    assert "not predicted: 4 earlier results (in " in capsys.readouterr().err
    # copies without their list: each mask says itself what it is; an overlay is known by the mask beside its folder
    (tmp_path / "in/deep/first/written.sha256").unlink()
    (tmp_path / "in/deep/first/predict.json").rename(tmp_path / "in/deep/first/moved.json")
    assert predict(run, tmp_path / "in", tmp_path / "third", quiet=True) == 2
    with pytest.raises(DataError, match=r"no image in this folder.*Not predicted: .* masks"):
        predict(run, tmp_path / "in/deep/first", tmp_path / "fourth", quiet=True)


def test_a_corrected_mask_is_not_replaced_for_a_missing_overlay_nor_is_the_table_of_ids(
    run: Path, tmp_path: Path
) -> None:
    photo(tmp_path / "in/a.png")
    predict(run, tmp_path / "in", tmp_path / "out", quiet=True)
    Image.fromarray(np.ones((32, 32), dtype=np.uint8)).save(tmp_path / "out/a.png")
    before = state(tmp_path / "out")
    with pytest.raises(DataError, match=r"(?s)changed since.*a\.png"):
        predict(run, tmp_path / "in", tmp_path / "out", overlay=True, quiet=True)
    assert state(tmp_path / "out") == before

    predict(run, tmp_path / "in", tmp_path / "other", quiet=True)
    table = tmp_path / "other/halfmask.yaml"
    table.write_text(table.read_text() + "# mine\n")
    with pytest.raises(DataError, match=r"(?s)changed since.*halfmask\.yaml"):
        predict(run, tmp_path / "in", tmp_path / "other", overwrite=True, quiet=True)
    assert table.read_text().endswith("# mine\n")
