"""Prediction into files, on real photographs and on the awkward cases: orientation, broken files, interruption."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfmask.errors import DataError, RecipeError
from halfmask.infer.bundle import load_bundle, save_bundle
from halfmask.infer.inference import class_map
from halfmask.infer.predict import outputs as files_module
from halfmask.infer.predict.predict import plan, predict
from halfmask.palette import colorize, default_palette, legend, overlay, palette_of
from halfmask.recipe.read import EvalRecipe
from halfmask.task import Task
from tests.run.toy import THREE, small_model

BESIDE = ["halfmask.yaml", "predict.json", "written.sha256"]
FACADE = Task("segmentation", ("Door", "Shop", "Balcony", "Window", "Wall", "Sky", "Roof"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "run", small_model(), THREE)
    return tmp_path / "run"


def photo(path: Path, size: tuple[int, int] = (40, 30), orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(size[0]).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_three_real_photographs_end_to_end(shared: Path, tmp_path: Path) -> None:
    save_bundle(tmp_path / "run", small_model(FACADE), FACADE)
    photos = sorted((shared / "data" / "facades" / "images").rglob("*.jpg"))[:3]
    for path in photos:
        (tmp_path / "in" / path.name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "out"
    assert predict(tmp_path / "run", tmp_path / "in", out, overlay=True, probabilities=True, quiet=True) == 3
    bundle = load_bundle(tmp_path / "run")
    for path in photos:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        with Image.open(out / f"{path.stem}.png") as mask:
            assert mask.mode == "P"
            assert tuple(mask.getpalette()[:21]) == sum(default_palette(7), ())
            found = np.asarray(mask)
        assert found.shape == pixels.shape[:2]
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        assert np.array_equal(found, class_map(bundle.model, image, EvalRecipe())[0].numpy())
        shares = np.load(out / "probabilities" / f"{path.stem}.npy")
        assert shares.dtype == np.float16
        assert shares.shape == (7, *found.shape)
        assert shares.astype(np.float32).sum(0) == pytest.approx(1, abs=5e-3)
        with Image.open(out / "overlays" / f"{path.stem}.jpg") as blended:
            assert blended.size == found.shape[::-1]


def test_folders_are_kept_and_results_below_the_input_are_no_input(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a" / "one.png")
    photo(tmp_path / "in" / "b.v2" / "two.x.jpg")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    out = tmp_path / "in" / "masks"
    assert predict(run, tmp_path / "in", out, overlay=True, quiet=True) == 2
    assert (out / "a" / "one.png").exists()
    assert (out / "b.v2" / "two.x.png").exists()
    assert (out / "overlays" / "b.v2" / "two.x.jpg").exists()
    assert predict(run, tmp_path / "in", out, overlay=True, quiet=True) == 0
    with pytest.raises(RecipeError, match="input folder itself"):
        predict(run, tmp_path / "in", tmp_path / "in", quiet=True)


def test_finished_images_are_skipped_unless_asked(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "b.png", (36, 36))
    assert predict(run, tmp_path / "in", tmp_path / "out", limit=1, quiet=True) == 1
    stamp = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    assert predict(run, tmp_path / "in", tmp_path / "out", quiet=True) == 1
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == stamp
    # a result asked for later is made up for
    assert predict(run, tmp_path / "in", tmp_path / "out", overlay=True, quiet=True) == 2
    assert predict(run, tmp_path / "in", tmp_path / "out", overwrite=True, quiet=True) == 2


def test_masks_of_another_model_are_neither_kept_silently_nor_lost(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    predict(run, tmp_path / "in", out, quiet=True)
    save_bundle(tmp_path / "other", small_model(FACADE), FACADE)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DataError, match=r"another model \(.*run; here .*other\).*--overwrite.*--out") as caught:
        predict(tmp_path / "other", tmp_path / "in", out, quiet=True)
    assert caught.value.code == "H408"
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert predict(tmp_path / "other", tmp_path / "in", out, overwrite=True, quiet=True) == 1
    assert predict(tmp_path / "other", tmp_path / "in", out, quiet=True) == 0
    with pytest.raises(DataError, match="another model"):
        predict(run, tmp_path / "in", out, quiet=True)
    (out / "predict.json").unlink()  # of an earlier version: nothing tells whose masks they are, so nothing is claimed
    assert predict(run, tmp_path / "in", out, quiet=True) == 0
    assert not (out / "predict.json").exists()


def test_masks_have_the_size_of_the_upright_image(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "lying.jpg", (40, 30), orientation=6)
    predict(run, tmp_path / "in", tmp_path / "out", overlay=True, quiet=True)
    for name in ("lying.png", "overlays/lying.jpg"):
        with Image.open(tmp_path / "out" / name) as result:
            assert result.size == (30, 40)


def test_one_file_and_a_pattern_are_inputs_too(run: Path, tmp_path: Path) -> None:
    first = photo(tmp_path / "in" / "a" / "one.png")
    photo(tmp_path / "in" / "b" / "two.png")
    assert predict(run, first, tmp_path / "single", quiet=True) == 1
    assert (tmp_path / "single" / "one.png").exists()
    assert predict(run, tmp_path / "in" / "*" / "t*.png", tmp_path / "glob", quiet=True) == 1
    assert (tmp_path / "glob" / "b" / "two.png").exists()


def test_a_broken_image_costs_only_itself(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.jpg")
    whole = photo(tmp_path / "in" / "b.jpg").read_bytes()
    (tmp_path / "in" / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "c.png").write_bytes(b"")
    photo(tmp_path / "in" / "d.png")
    with pytest.raises(DataError, match=r"2 of 4 images could not be read") as caught:
        predict(run, tmp_path / "in", tmp_path / "out", quiet=True)
    assert "b.jpg" in str(caught.value)
    assert "[H201] " in str(caught.value)
    assert "c.png" in str(caught.value)
    assert (caught.value.code, caught.value.exit_code) == ("H201", 3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "d.png", *BESIDE]


def test_an_interruption_leaves_only_complete_files(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        photo(tmp_path / "in" / f"{name}.png")
    done = files_module.mask_image
    calls = []

    def interrupted(*arguments: object) -> Image.Image:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return done(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files_module, "mask_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(run, tmp_path / "in", tmp_path / "out", quiet=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", *BESIDE]
    assert predict(run, tmp_path / "in", tmp_path / "out", quiet=True) == 2


def test_inputs_without_images_say_so(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in this folder"):
        predict(run, tmp_path / "empty", tmp_path / "out", quiet=True)
    with pytest.raises(DataError, match="does not exist"):
        predict(run, tmp_path / "nowhere", tmp_path / "out", quiet=True)
    with pytest.raises(DataError, match="Put it in quotes"):
        predict(run, tmp_path / "*.jpg", tmp_path / "out", quiet=True)


def test_two_images_for_one_mask_are_refused_before_any_work(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "a.jpg")
    with pytest.raises(DataError, match="only their suffix differs"):
        plan(tmp_path / "in", tmp_path / "out")


def test_only_the_protocol_can_be_overridden(run: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    with pytest.raises(RecipeError, match="only eval"):
        predict(run, tmp_path / "in", tmp_path / "out", overrides=["data.crop=32"], quiet=True)
    assert predict(run, tmp_path / "in", tmp_path / "out", overrides=["eval.flip=true"], quiet=True) == 1


def test_the_range_of_deep_images_comes_from_the_bundle(tmp_path: Path) -> None:
    save_bundle(tmp_path / "run", small_model(), THREE, extra={"range": [0, 4095]})
    (tmp_path / "in").mkdir()
    ramp = np.linspace(0, 4095, 40 * 30).reshape(30, 40).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "in" / "deep.png")
    assert predict(tmp_path / "run", tmp_path / "in", tmp_path / "out", quiet=True) == 1
    meta = json.loads((tmp_path / "run" / "model.json").read_text())
    assert meta["range"] == [0, 4095]


def test_more_classes_than_a_palette_holds_give_a_16_bit_mask() -> None:
    mask = np.full((2, 2), 299)
    image = files_module.mask_image(mask, default_palette(300))
    assert image.mode == "I;16"
    assert np.asarray(image).tolist() == [[299, 299], [299, 299]]


def test_the_default_palette_is_that_of_pascal_voc() -> None:
    palette = default_palette(256)
    # from the table in the development kit: bicycle, bottle, person, tv monitor, void
    assert [palette[k] for k in (2, 5, 15, 20, 255)] == [
        (0, 128, 0), (128, 0, 128), (192, 128, 128), (0, 64, 128), (224, 224, 192),
    ]  # fmt: skip
    assert len(set(palette)) == 256


def test_a_tasks_own_colors_win() -> None:
    task = Task("segmentation", ("a", "b"), palette=((1, 2, 3), (4, 5, 6)))
    assert palette_of(task) == ((1, 2, 3), (4, 5, 6))
    assert colorize(np.array([[0, 1, 9]]), palette_of(task)).tolist() == [[[1, 2, 3], [4, 5, 6], [255, 255, 255]]]


def test_overlay_blends_by_opacity_and_takes_gray_images() -> None:
    image = np.full((1, 1, 1), 100, dtype=np.uint8)
    mask = np.array([[1]])
    palette = ((0, 0, 0), (200, 0, 50))
    assert overlay(image, mask, palette, opacity=0.25).tolist() == [[[125, 75, 88]]]
    assert overlay(image, mask, palette, opacity=0.0).tolist() == [[[100, 100, 100]]]


def test_a_legend_shows_every_color() -> None:
    colors = {tuple(color) for color in legend(("road", "car"), ((9, 8, 7), (1, 2, 3))).reshape(-1, 3).tolist()}
    assert {(9, 8, 7), (1, 2, 3), (255, 255, 255)} <= colors
