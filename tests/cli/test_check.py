"""`halfmask check`: each broken folder ends in one clear finding with a code, a cure and the right exit code."""

import json
import sys
import warnings

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from halfmask.cli.app import app
from halfmask.codes import CODES
from halfmask.data.splits import split as splits
from halfmask.errors import HalfmaskError
from halfmask.recipe.read import load, parse_override
from tests.data import broken_images, broken_masks  # noqa: F401  (cases)
from tests.data.broken import CASES, NAMED, good, ids, picture, save


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="halfmask")


@pytest.mark.parametrize("name", CASES)
def test_a_broken_folder_ends_in_one_clear_message(name, tmp_path, monkeypatch):
    case = CASES[name]
    if case.code == "H213":
        monkeypatch.setitem(sys.modules, "rasterio", None)  # not installed
    root = tmp_path / "field"
    root.mkdir()
    case.build(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run("check", "--data", root, *case.overrides)
        as_json = run("check", "--data", root, *case.overrides, "--json")
    assert (result.exit_code, as_json.exit_code) == (case.exit, case.exit), result.output
    assert "Traceback" not in result.output
    told = " ".join(result.output.split())
    assert f"[{case.code}]" in told
    assert case.cure in told
    if case.exit == 3:
        return
    report = json.loads(as_json.stdout)
    (finding,) = [finding for finding in report["findings"] if finding["code"] == case.code][:1]
    assert finding["message"]
    assert case.cure in finding["cure"] + finding["message"]
    assert finding["count"] >= 1
    assert finding["code"] in CODES
    errors = [finding["code"] for finding in report["findings"] if finding["level"] == "error"]
    assert report["usable"] is (case.exit == 0) is (not errors)
    if case.exit:  # one cause, one error
        assert errors == [case.code] or case.code[1] == "1", result.stdout


def prepare(recipe):
    """What training does with its data before the first step, and with each image when its turn comes."""
    dataset = splits.open_dataset(recipe)
    split = splits.resolve_split(recipe, dataset)
    splits.verify(dataset, split, dataset)
    for id in (*split.unlabeled, *split.val):
        dataset.read_image(id)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.exit])
def test_what_check_calls_an_error_stops_training_before_it_starts(name, tmp_path):  # with or without rasterio
    case = CASES[name]
    root = tmp_path / "field"
    root.mkdir()
    case.build(root)
    recipe = load(None, {"data.root": str(root)} | dict(parse_override(item) for item in case.overrides)).data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(HalfmaskError):
            prepare(recipe)


USABLE = [name for name, case in CASES.items() if case.exit == 0 and name != "seventy_million_pixels"]  # takes seconds


@pytest.mark.parametrize("name", USABLE)
def test_what_check_calls_usable_trains(name, tmp_path):
    prepared(name, tmp_path)


def prepared(name, root):
    """The dataset of a case, after all of it was read as training reads it."""
    case = CASES[name]
    case.build(root)
    recipe = load(None, {"data.root": str(root)} | dict(parse_override(item) for item in case.overrides)).data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepare(recipe)
    return splits.open_dataset(recipe)


def test_of_an_animated_image_the_first_frame_is_read(tmp_path):
    dataset = prepared("animated_gif", tmp_path)
    pixels = dataset.read_image("images/train/moving.gif").astype(int)
    apart = [np.abs(pixels - np.asarray(picture(seed))).mean() for seed in (20, 21, 22)]
    assert apart[0] < 20 < min(apart[1:])  # 256 colors are close to those of the frame


def test_names_that_differ_in_case_are_two_images(tmp_path):
    dataset = prepared("names_differing_in_case", tmp_path)
    np.testing.assert_array_equal(dataset.read_image("images/train/im_0.png"), np.asarray(picture(0)))
    np.testing.assert_array_equal(dataset.read_image("images/train/IM_0.png"), np.asarray(picture(50)))
    assert dataset.mask_path("images/train/im_0.png") is not None
    assert dataset.mask_path("images/train/IM_0.png") is None


@pytest.mark.parametrize("name", ["not_a_number_with_a_range", "geotiff_with_nan_and_a_range"])
def test_pixels_that_are_no_numbers_are_black(name, tmp_path):
    read = prepared(name, tmp_path).read_image("images/train/field.tif")
    expected = np.repeat(255 * ids((0, 1))[:, :, None], 3, axis=2)
    expected[3, 40] = 0
    np.testing.assert_array_equal(read, expected)


def test_a_geotiff_of_five_bands_is_told_by_its_bands_where_it_can_be_read(tmp_path):
    pytest.importorskip("rasterio")
    CASES["five_bands_of_a_geotiff"].build(tmp_path)
    result = run("check", "--data", tmp_path)
    assert result.exit_code == 1
    assert "error[H207]" in result.stdout
    assert "bands: 5" in result.stdout


def test_a_sound_folder_has_nothing_to_mend(tmp_path):
    good(tmp_path, yaml=NAMED)
    result = run("check", "--data", tmp_path)
    assert result.exit_code == 0
    assert "[H" not in result.stdout
    assert "images   22: 6 labeled, 6 unlabeled, 10 val" in result.stdout
    assert "0 ground 33.3%   1 leaf 33.3%   2 stem 33.3%" in result.stdout
    assert "no errors. next: halfmask train --data" in result.stdout


def test_names_with_spaces_and_of_all_languages_work(tmp_path):
    for name in ("Grünfläche 1", "路面 (2)", "тест", "a b.c"):
        save(tmp_path / f"images/{name}.png", picture(len(name)))
        save(tmp_path / f"masks/{name}_mask.png", ids())
    report = json.loads(run("check", "--data", tmp_path, "--json").stdout)
    assert report["usable"]
    assert report["images"]["labeled"] == 4


def test_without_data_it_asks_for_the_folder():
    result = run("check")
    assert result.exit_code == 2
    assert "--data DIR" in result.stderr


# --- --fix -------------------------------------------------------------------------------------------------------


FIXED = {
    "zero_and_255": {"classes": {0: "background", 1: "foreground"}, "binary": True},
    "ids_from_one": {"classes": {1: "class_1", 2: "class_2", 3: "class_3"}},
    "ids_from_one_with_names": {"classes": ["ground", "leaf", "stem"], "map": {1: 0, 2: 1, 3: 2}},
    "stretched_ids": {"classes": {0: "class_0", 85: "class_85", 170: "class_170"}},
    "colors_without_a_table": {
        "classes": {0: "color_3c1098", 1: "color_6ec1e4", 2: "color_8429f6"},
        "palette": {0: "#3c1098", 1: "#6ec1e4", 2: "#8429f6"},
    },
    "not_a_number": {"classes": {0: "class_0", 1: "class_1", 2: "class_2"}, "range": [0.0, 1.0]},
    "sixteen_bits": {"classes": {0: "class_0", 1: "class_1", 2: "class_2"}, "range": [0, 4095]},
}


@pytest.mark.parametrize("name", FIXED)
def test_fix_writes_what_the_files_tell_and_touches_nothing_else(name, tmp_path):
    CASES[name].build(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file() and path.suffix != ".yaml"}
    result = run("check", "--data", tmp_path, "--fix")
    assert result.exit_code == 0, result.output
    assert f"[{CASES[name].code}]" not in result.stdout
    assert "wrote" in result.stderr
    written = yaml.safe_load((tmp_path / "halfmask.yaml").read_text())
    classes = written.pop("classes")
    expected = dict(FIXED[name])
    assert classes == expected.pop("classes")
    assert written == expected
    after = {path for path in tmp_path.rglob("*.*") if path.is_file()} - before.keys()
    assert after == {tmp_path / "halfmask.yaml"}
    assert all(path.read_bytes() == data for path, data in before.items())
    again = run("check", "--data", tmp_path, "--fix")
    assert "nothing to write" in again.stderr


def test_fix_keeps_what_halfmask_yaml_says_and_leaves_a_broken_one_alone(tmp_path):
    good(tmp_path, (1, 2, 3), yaml="# mine\n" + NAMED)
    run("check", "--data", tmp_path, "--fix")
    assert (tmp_path / "halfmask.yaml").read_text() == "# mine\n" + NAMED + "map: {1: 0, 2: 1, 3: 2}\n"
    (tmp_path / "halfmask.yaml").write_text("clases: [a]\n")
    assert run("check", "--data", tmp_path, "--fix").exit_code == 1
    assert (tmp_path / "halfmask.yaml").read_text() == "clases: [a]\n"


def test_fix_in_a_folder_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    good(tmp_path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    result = run("check", "--data", tmp_path, "--fix")
    assert result.exit_code == 3
    assert "writable" in result.stderr
    assert [path.name for path in tmp_path.iterdir() if "yaml" in path.name] == []


def test_a_folder_without_its_option_is_named_with_it(tmp_path):
    for verb, option in ((("check",), "--data"), (("convert", "masks"), "--out")):
        result = run(*verb, tmp_path)
        assert result.exit_code == 2
        assert f"Did you mean {option} {tmp_path}?" in result.stderr
        assert "recipe" not in result.stderr
