"""`halfmask compare`: every row at equal terms, each run once, a failed one told, the tables right."""

import csv
import json
import runpy
import shlex
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from halfmask.cli.app import app
from halfmask.compare import cell
from halfmask.compare.cell import Order, forget, lists_of, other_settings, record_of, write_record
from halfmask.compare.compare import check_same, note_death
from halfmask.compare.forms import Cell, Form, Settings, default_methods
from halfmask.compare.table import command, table_of
from halfmask.errors import DataError, RecipeError
from halfmask.infer.bootstrap import Draws, draws_of, mean_over_seeds, scored
from halfmask.recipe.read import load
from tests.run.tiny import write_dataset

TOY = '''
"""Learns from the labeled images and pulls unlabeled logits to zero."""

from halfmask.batch import Batch, Progress
from halfmask.losses.cross_entropy import cross_entropy
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.task import Task


class Toy(Method):
    """Small logits on unlabeled images.

    Args:
        unlabeled_weight: of their square; above 9 the toy breaks.
    """

    def __init__(self, task: Task, build: ModelBuilder, *, unlabeled_weight: float = 0.1) -> None:
        super().__init__(task)
        self.net, self.unlabeled_weight = build(), unlabeled_weight

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        if self.unlabeled_weight > 9:
            raise ValueError("too heavy")
        loss_l = cross_entropy(self.net(batch.labeled.image), batch.labeled.target)
        loss_u = self.net(batch.unlabeled.image).square().mean()
        return StepOutput(loss_l + self.unlabeled_weight * loss_u, {"loss_sup": loss_l})
'''
NETWORK = (
    "model.encoder={name: timm, model: test_resnet}",
    "model.decoder={name: segformer, embedding: 16}",
    "run.accelerator=cpu",
    "run.precision=32-true",
    "data.workers=0",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images in the parts train and test, and toy.py where imports find it."""
    for part in ("train", "test"):
        write_dataset(tmp_path / part, images=6, masks=6)
    for kind in ("images", "masks"):
        for part in ("train", "test"):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / part / kind).rename(tmp_path / "data" / kind / part)
    (tmp_path / "train" / "classes.txt").rename(tmp_path / "data" / "classes.txt")
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def compare(folder: Path, *arguments: object):
    shared = ("--data", folder / "data", "--out", folder / "out", "--labeled", 2, "--steps", 2, "--crop", 32)
    asked = ["compare", *shared, "--batch-size", 2, *arguments, *NETWORK]
    return CliRunner().invoke(app, [str(one) for one in asked], prog_name="halfmask")


def test_a_method_of_ones_own_enters_the_table_by_one_command(folder):
    done = compare(
        folder,
        "--methods",
        "supervised,toy=toy:Toy,heavy=toy:Toy",
        "--seeds",
        "0,1",
        "heavy:method.unlabeled_weight=10",
    )
    assert done.exit_code == 1, done.output  # heavy fails

    out = folder / "out"
    board = json.loads((out / "table.json").read_text())
    rows = {row["method"]: row for row in board["rows"]}
    assert list(rows) == ["supervised", "toy", "toy-control", "heavy", "heavy-control"]
    assert board["settings"]["images"] == 6
    assert str(folder) not in (out / "table.json").read_text().replace(str(folder / "out"), "")

    # What the page says are the means of the runs, and paired differences.
    scores = {name: [run["score"] for run in row["runs"]] for name, row in rows.items()}
    assert rows["toy"]["mean"] == pytest.approx(np.mean(scores["toy"]))
    gain = np.mean(scores["toy"]) - np.mean(scores["toy-control"])
    assert rows["toy"]["over_control"]["value"] == pytest.approx(gain)
    assert rows["toy"]["over_control"]["low"] <= gain <= rows["toy"]["over_control"]["high"]
    assert rows["toy"]["minutes"] is not None
    assert rows["toy"]["peak_gib"] > 0

    # A run that fails says why in its cell, and its control is there.
    assert scores["heavy"] == [None, None]
    assert rows["heavy"]["runs"][0]["problem"] == "ValueError: too heavy"
    assert all(score is not None for score in scores["heavy-control"])
    assert "ValueError: too heavy" in done.stdout

    # Masks of a seed are the same in all rows, and other ones in the other seed.
    lists = {
        (name, seed): json.loads((out / name / f"seed-{seed}" / "split.json").read_text())["labeled"]["ids"]
        for name in ("supervised", "toy", "toy-control")
        for seed in (0, 1)
    }
    assert lists["supervised", 0] == lists["toy", 0] == lists["toy-control", 0] != lists["toy", 1]

    # Every cell leads to its run; the figures are files of their own.
    for row in board["rows"]:
        assert all((out / run["folder"]).is_dir() for run in row["runs"])
    assert f"]({rows['toy']['runs'][0]['folder']})" in (out / "table.md").read_text()
    assert len(list(csv.DictReader((out / "table.csv").open()))) == 10
    assert (out / "table.tex").read_text().count("\\\\\n") == 4
    assert (out / "scores.svg").read_text().startswith("<svg xmlns=")
    assert "toy" in (out / "gains.svg").read_text()

    # The same command trains no finished run again, and scores one that was killed; other settings are refused.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    record = record_of(out / "toy" / "seed-1")
    (out / "toy" / "seed-1.json").write_text(json.dumps({"state": "begun", "recipe": record["recipe"]}))  # as if killed
    again = compare(folder, "--methods", "supervised,toy=toy:Toy", "--seeds", "0,1")
    assert again.exit_code == 0, again.output
    assert "5 of them done" in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    resumed = json.loads((out / "table.json").read_text())["rows"][1]
    assert [run["score"] for run in resumed["runs"]] == scores["toy"]
    other = compare(folder, "--methods", "supervised", "--seeds", "0,1", "--steps", "3")
    assert other.exit_code == 2
    assert "other settings (run.steps)" in other.stderr


def test_all_rows_share_what_is_not_the_method():
    settings = Settings(
        overrides=("data.root=d", "data.labeled=4", "run.steps=7", "model.encoder={name: mit, size: b0}")
    )
    forms = {form.label: form for form in settings.forms()}
    assert {"supervised", "fixmatch", "fixmatch-control", "st_plus_plus", "cps"} <= forms.keys()
    assert not {"cam", "multi_domain"} & set(default_methods())
    assert "st_plus_plus-control" not in forms  # it trains in stages: only supervised is left
    assert "supervised-control" not in forms
    recipes = {label: settings.recipe(Cell(form, 3)) for label, form in forms.items()}
    first = recipes["supervised"]
    for label, recipe in recipes.items():
        assert (recipe.data, recipe.optim, recipe.eval) == (first.data, first.optim, first.eval), label
        assert (recipe.model.encoder, recipe.model.decoder) == (first.model.encoder, first.model.decoder), label
        assert recipe.run.model_copy(update={"passes": first.run.passes}) == first.run, label
    assert (first.data.labeled_seed, first.run.seed) == (3, 3)
    assert recipes["allspark"].model.bottleneck is not None
    assert recipes["fixmatch"].model.bottleneck is None
    assert recipes["fixmatch-control"].method.params["unlabeled_weight"] == 0
    assert recipes["fixmatch"].method.params == {**recipes["fixmatch-control"].method.params, "unlabeled_weight": 0.3}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"methods": ("fixmatch", "fixmatch")}, "fixmatch is named twice"),
        ({"methods": ("fixmatch",), "overrides": ("fixmach:method.threshold=1",)}, "Did you mean `fixmatch`"),
        ({"methods": ("fixmach",)}, "Did you mean `fixmatch`"),
        ({"overrides": ("method.threshold=0.5",)}, "fixmatch:method.cutmix=0"),
        ({"overrides": ("run.steps=null", "run.epochs=3")}, "equal steps"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused_with_the_cure(asked, told):
    with pytest.raises(RecipeError, match=told):
        Settings(**asked).forms()


def test_only_what_changes_a_result_makes_other_settings():
    recipe = Settings(methods=("supervised",)).recipe(Cell(Form("a", "supervised"), 0)).model_dump(mode="json")
    moved = json.loads(json.dumps(recipe))
    moved["data"]["root"], moved["run"]["accelerator"], moved["optim"]["lr"] = "elsewhere", "cpu", 0.5
    assert other_settings({"recipe": recipe}, recipe) == []
    assert other_settings({"recipe": recipe}, moved) == ["optim.lr"]
    del recipe["optim"]["lr"]  # written by a version that had no such key
    assert other_settings({"recipe": recipe}, moved) == []


def test_a_name_and_a_section_in_its_place_are_other_settings():
    def recipe(*overrides):
        return load({"method": "cps"}, overrides).model_dump(mode="json")

    plain, hard = recipe(), recipe("method.loss=ohem")
    assert other_settings({"recipe": plain}, hard) == other_settings({"recipe": hard}, plain) == ["method.loss"]
    assert other_settings({"recipe": hard}, hard) == []
    old = {**hard, "method": {**hard["method"], "loss": "ohem", "ohem_threshold": 0.6, "ohem_min_kept": 200_000}}
    assert other_settings({"recipe": old}, hard) == ["method.loss.threshold"]
    old["method"]["ohem_threshold"] = 0.7
    assert other_settings({"recipe": old}, hard) == []


def test_an_empty_section_and_a_filled_one_are_other_settings():
    plain, other = (load({"optim": {"optimizers": one}}).model_dump(mode="json") for one in ({}, {"flow": {"lr": 0.5}}))
    assert other_settings({"recipe": plain}, other) == other_settings({"recipe": other}, plain) == ["optim.optimizers"]
    assert other_settings({"recipe": plain}, plain) == other_settings({}, plain) == []


def order_of(folder: Path, data: Path, part: str = "test") -> Order:
    settings = Settings(methods=("supervised",), overrides=(f"data.root={data}", "data.labeled=2"))
    recipe = settings.recipe(Cell(settings.forms()[0], 0))
    return Order(folder, recipe.model_dump(mode="json"), part, lists=lists_of(recipe.data, part))


def test_runs_of_other_images_or_another_part_are_refused_and_data_may_move(folder):
    run = folder / "out" / "seed-0"
    order = order_of(run, folder / "data")
    write_record(order, state="done", images=6)
    check_same(order)
    moved = shutil.copytree(folder / "data", folder / "moved")
    check_same(order_of(run, moved))
    few = folder / "few.txt"
    few.write_text(f"{min((moved / 'images' / 'test').iterdir()).relative_to(moved)}\n")
    with pytest.raises(RecipeError, match=r"other settings \(part, scored images\)") as refused:
        check_same(order_of(run, moved, str(few)))
    assert refused.value.code == "H408"
    with pytest.raises(DataError, match="2 of the 6 images of part 'train' are trained on"):
        order_of(run, moved, "train")
    for kind in ("images", "masks"):
        last = max((moved / kind / "test").iterdir())
        last.rename(last.with_stem("renamed"))
    with pytest.raises(RecipeError, match=r"\(scored images\)"):
        check_same(order_of(run, moved))
    classes = folder / "data" / "classes.txt"
    before = classes.read_text()
    classes.write_text("".join(f"other-{name}\n" for name in before.split()))
    with pytest.raises(RecipeError, match=r"\(classes\)"):
        check_same(order_of(run, folder / "data"))
    classes.write_text(before)
    added = max((folder / "data" / "images" / "train").iterdir())
    shutil.copy(added, added.with_stem("added"))
    with pytest.raises(RecipeError, match=r"\(unlabeled images\)"):
        check_same(order_of(run, folder / "data"))


def test_without_a_part_to_score_the_advice_leads_to_a_comparison(folder):
    data = folder / "data"
    for kind in ("images", "masks"):
        shutil.rmtree(data / kind / "test")
    for part, code in (("test", "H210"), ("train", "H605"), ("all", "H605")):
        with pytest.raises(DataError, match="Hold some of the 6 masks out first") as refused:
            order_of(folder / "run", data, part)
        assert refused.value.code == code
        assert "--part train" not in str(refused.value)
    split, compared = (shlex.split(line)[1:] for line in str(refused.value).splitlines()[1:])
    assert CliRunner().invoke(app, split).exit_code == 0
    named = dict(pairwise(compared))
    asked = Settings(methods=("supervised",), overrides=(f"data.root={named['--data']}", compared[3]))
    lists = lists_of(asked.recipe(Cell(asked.forms()[0], 0)).data, named["--part"])
    assert (lists["labeled"]["count"], lists["scored"]["count"]) == (2, 2)
    for kind in ("images", "masks"):  # a validation part that no run uses is as good
        (data / kind / "val").mkdir()
        for number in (0, 1):
            (data / kind / "train" / f"shape_{number:02d}.png").rename(data / kind / "val" / f"shape_{number:02d}.png")
    with pytest.raises(DataError, match=r"Score the part 'val': --part val \(2 images\)\.$"):
        order_of(folder / "run", data)
    assert order_of(folder / "run", data, "val").lists["scored"]["count"] == 2


def test_records_without_lists_are_compared_by_what_they_have(folder):
    run = folder / "out" / "seed-0"
    order = order_of(run, folder / "data")
    old = {"recipe": order.recipe, "state": "done", "images": 6}
    run.mkdir(parents=True)
    run.with_suffix(".json").write_text(json.dumps(old))
    check_same(order)
    moved = shutil.copytree(folder / "data", folder / "moved")
    with pytest.raises(RecipeError, match=r"\(data.root\)"):  # nothing says that it holds the same images
        check_same(order_of(run, moved))
    (run / "split.json").write_text(json.dumps({name: order.lists[name] for name in ("labeled", "unlabeled", "val")}))
    check_same(order_of(run, moved))
    run.with_suffix(".json").write_text(json.dumps({**old, "images": 5}))
    with pytest.raises(RecipeError, match=r"\(scored images\)"):
        check_same(order)


def test_a_process_that_dies_before_its_first_word_has_failed(tmp_path):
    order = Order(tmp_path / "seed-0", {}, "test", overwrite=True)
    (order.folder / "checkpoints").mkdir(parents=True)
    old = [order.folder.with_suffix(".npz"), order.folder / "checkpoints" / "last.ckpt"]
    for path in old:
        path.touch()
    write_record(order, state="done")
    forget(order.folder)  # else the record of the run before would be taken for this one's
    assert record_of(order.folder) == {}
    assert not any(path.exists() for path in old)
    for code, state in ((1, "failed"), (0, "failed"), (-9, "failed"), (143, "interrupted")):
        forget(order.folder)
        note_death(order, code)
        assert record_of(order.folder)["state"] == state, code
    assert record_of(order.folder)["part"] == "test"


def test_the_module_of_runs_loads_where_files_cannot_be_locked(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ImportError):
        runpy.run_path(cell.__file__)
    monkeypatch.setattr(sys, "platform", "win32")
    assert "fcntl" not in runpy.run_path(cell.__file__)


def test_long_problems_are_cut_and_without_controls_there_is_no_column_for_them():
    run = {"seed": 0, "score": None, "problem": "DataError: " + "x" * 200, "folder": "a/seed-0"}
    empty = dict.fromkeys(("mean", "sd", "over_control", "over_supervised", "minutes", "peak_gib", "images_per_second"))
    row = {"method": "cps", "control_of": None, "runs": [run, run], **empty}
    content = {"settings": {"metric": "miou"}, "rows": [row]}
    heads, [cells] = table_of(content)
    assert heads == ["method", "mIoU", "seeds", "- supervised", "minutes", "peak GiB", "images/s"]
    assert len(cells) == len(heads)
    assert cells[2].startswith("DataError: xx")
    assert len(cells[2]) == 90
    heads, [cells, _] = table_of({**content, "rows": [row, {**row, "method": "b"}, {**row, "control_of": "b"}]})
    assert (heads[3], cells[3]) == ("- control", "has none")


def test_the_recorded_command_names_no_folder_of_this_machine_and_can_be_pasted():
    overrides = ('data.root="/disk/me/facades"', "cct:method.heads={i_vat: 1, dropout: 1}", "run.steps=5")
    settings = Settings(methods=("cct", "cps"), seeds=(0, 4), overrides=overrides)
    words = shlex.split(command(settings, Path("/disk/me/out")))
    assert words[:4] == ["halfmask", "compare", "--out", "runs/out"]
    assert words[-3:] == ["data.root=DIR/facades", *overrides[1:]]
    assert "--methods cct,cps --seeds 0,4" in " ".join(words)


def test_a_damaged_record_is_none(tmp_path):
    (tmp_path / "seed-0.json").write_text('{"state": "do')
    assert record_of(tmp_path / "seed-0") == record_of(tmp_path / "seed-1") == {}


def test_the_interval_over_seeds_and_images_is_paired():
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 40, (12, 1))  # images differ much, and both runs alike
    counts = [np.zeros((12, 3, 2), dtype=np.int64) for _ in range(4)]
    for number, table in enumerate(counts):
        table[:, 0, 0] = table[:, 1, 1] = 60 - hard[:, 0] + (2 if number >= 2 else 0)
        table[:, 0, 1] = table[:, 1, 0] = hard[:, 0] - (2 if number >= 2 else 0)
    draws = [draws_of(table, "segmentation") for table in counts]
    assert draws[0].value == pytest.approx(scored(counts[0], "segmentation").main.value)
    alone, gain = mean_over_seeds(draws[2:]), mean_over_seeds(draws[2:], draws[:2])
    assert gain.low > 0
    assert alone.high - alone.low > 5 * (gain.high - gain.low)
    # Seeds that disagree widen it, also where images do not.
    flat = [Draws(value, np.full_like(draws[0].drawn, value)) for value in (0.2, 0.6)]
    assert mean_over_seeds(flat) == pytest.approx((0.4, 0.2, 0.6))
