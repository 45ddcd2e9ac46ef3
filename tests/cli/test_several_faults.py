"""Several faults in one command: all of them come in one error, each with its code, its place and its cure."""

import os

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from halfmask.cli.app import app
from halfmask.errors import RecipeError
from halfmask.recipe.sections import RunRecipe
from halfmask.run.loop.trainer import check_device
from halfmask.run.prepare import prepare
from tests.cli.test_bad_input import TRY, Case, Place, cut, edit_recipe, place
from tests.run.tiny import recipe

__all__ = ["place"]  # a fixture

_LISTS = "data.labeled=labeled.txt data.val=val.txt data.unlabeled=unlabeled.txt"


@pytest.fixture(autouse=True)
def _inside(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)


def run(command: str) -> Result:
    return CliRunner().invoke(app, command.split())


def wrong_lists(place: Place) -> None:
    place.write("data/labeled.txt", "images/shape_00.png", "images/shape_01.png", "images/absent.png")
    place.write("data/val.txt", "images/shape_01.png", "images/shape_09.png")
    place.write("data/unlabeled.txt", "images/shape_00.png", "images/shape_08.png", "images/gone.png")


def wrong_lists_and_files(place: Place) -> None:
    wrong_lists(place)
    cut(place.images()[0])
    cut(place.images()[8])


def typo_and_cut_image(place: Place) -> None:
    edit_recipe(place, data={"crp": 32}, optim={"lr": -1})
    cut(place.images()[0])


def cut_files(place: Place) -> None:
    cut(place.images()[0])
    place.masks()[1].write_bytes(b"")


OVERLAPS = (
    "labeled.txt: not below data (1 of 3): images/absent.png | val.txt: val, but without a mask (1): "
    "images/shape_09.png | unlabeled.txt: not below data (1 of 3): images/gone.png | both labeled and for validation "
    "(1): images/shape_01.png | both labeled and unlabeled (1): images/shape_00.png"
)
CASES = {
    "device, batch, lists and files": Case(
        2, f"{TRY} {_LISTS} run.accelerator=mps run.devices=3",
        f"H301 | problems: | data.batch.labeled=2 | cannot be divided by 3 | [H503] run.accelerator=mps | {OVERLAPS} | "
        "[H201] data/images/shape_00.png | [H201] data/images/shape_08.png",
        wrong_lists_and_files,
    ),
    "keys and files": Case(
        2, TRY,
        "H303 | 2 problems: | data.crp | Did you mean `crop` | optim.lr=-1 | [H201] data/images/shape_00.png",
        typo_and_cut_image,
    ),
    "keys and a folder": Case(
        2, f"{TRY} data.root=dta optim.lr=-1", "H303 | 2 problems: | optim.lr=-1 | [H208] dta: no such folder | --data"
    ),
    "lists that are not there": Case(
        3, f"{TRY} data.labeled=a.txt data.val=vall data.unlabeled=c.txt",
        "H211 | 3 problems: | data.labeled=a.txt: no such list | data.val=vall: no such list | Did you mean `val` | "
        "data.unlabeled=c.txt",
    ),
    "crop, logger and files": Case(
        5, f"{TRY} model.encoder.name=dinov2 data.crop=50 run.logger=mlflow",
        "H213 | 3 problems: | pip install mlflow | [H302] data.crop=50 | data.crop=42 or 56 | [H201] data/images/"
        "shape_00.png",
        lambda place: cut(place.images()[0]),
    ),
    "a mask that hides the classes, and an image": Case(
        3, TRY, "H201 | 2 problems: | data/images/shape_00.png | data/masks/shape_01.png: the file is empty", cut_files
    ),
    "no place and no data": Case(
        2, "train --data dta", "H301 | 2 problems: | --out runs/first | [H208] dta: no such folder"
    ),
    "a place in use and no data": Case(
        3, "train recipe.yaml --data dta --out .", "H408 | 2 problems: | --overwrite | [H208] dta: no such folder"
    ),
    "a plan's device, lists and files": Case(
        2, f"train --data data --out out run.accelerator=mps {_LISTS}",
        f"H503 | run.accelerator=mps | {OVERLAPS} | [H201] data/images/shape_00.png", wrong_lists_and_files,
    ),
    "a plan's keys and lists": Case(
        2, "train --data data --out out --labeled a.txt data.crp=3",
        "H303 | data.crp | data.labeled=a.txt: no such list",
    ),
    "keys and lists of a check": Case(2, f"check --data data {_LISTS} data.crp=9", f"H303 | data.crp | {OVERLAPS}",
                                      wrong_lists),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_all_faults_come_in_one_error(name: str, place: Place) -> None:
    case = CASES[name]
    case.spoil(place)
    done = run(case.command)
    assert done.exit_code == case.code, done.output
    assert done.stdout == ""
    code, *says = case.says.split(" | ")
    assert f"Error[{code}]: " in done.stderr
    assert [text for text in says if text not in done.stderr] == [], done.stderr
    assert not (place.root / "out").exists()


def test_check_lists_each_missing_list_and_still_looks_at_the_files(place: Place) -> None:
    cut(place.images()[0])
    done = run("check --data data data.labeled=a.txt data.val=b.txt --quiet")
    assert done.exit_code == 1, done.output
    for says in ("error[H211]: data.labeled=a.txt", "error[H211]: data.val=b.txt", "error[H201]", "shape_00.png"):
        assert says in done.stdout, done.stdout


def test_weights_are_not_fetched_for_a_run_that_cannot_begin(place: Place) -> None:
    cut(place.images()[0])
    where = "model.encoder.weights=absent.safetensors"
    done = run(f"{TRY} {where} run.accelerator=mps")
    assert done.exit_code == 2, done.output
    assert "absent.safetensors" not in done.stderr
    assert "absent.safetensors" in run(f"{TRY} {where}").stderr


@pytest.mark.parametrize(
    ("gpus", "settings", "says"),
    [
        (
            0,
            {"devices": 4},
            r"run\.devices=4, but torch sees no GPU here\. Use run\.devices=1; or run\.accelerator=cpu",
        ),
        (0, {"accelerator": "gpu"}, "sees no GPU"),
        (2, {"devices": 4}, r"has 2 GPU"),
        (0, {"devices": 4, "accelerator": "cpu"}, None),
        (4, {"devices": 4}, None),
    ],
)
def test_devices_that_are_not_there_are_named_before_the_network_is_built(
    gpus: int, settings: dict[str, object], says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    asked = RunRecipe.model_validate(settings)
    if says is None:
        check_device(asked)
        return
    with pytest.raises(RecipeError, match=says):
        check_device(asked)


def test_settings_without_effect_are_named(place: Place) -> None:
    made = prepare(recipe(place.data, "eval.window=64", "eval.stride=9", "eval.select_on=test"), look=False)
    told = os.linesep.join(made.warnings)
    for says in (
        "eval.window=64 has no effect with eval.mode=whole",
        "eval.stride=9 has no",
        "eval.select_on=test, but",
    ):
        assert says in told
    made = prepare(recipe(place.data, "eval.window=64", "eval.stride=9", "eval.mode=slide"), look=False)
    assert "no effect" not in os.linesep.join(made.warnings)
