"""Several runs in one table."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest

from halfmask.report.comparison import _names
from halfmask.report.make import report
from halfmask.report.records import Run, members, read_run
from tests.report.pages import assert_offline, read


def best_of(run: Path) -> float:
    return max(value for _, value in read_run(run).curve("val/miou"))


def test_seeds_share_a_row_with_mean_and_spread(seeds, fix, tmp_path):
    report(fix, quiet=True)
    result = report(seeds, fix, fix / "twin", out=tmp_path, quiet=True)
    page = read(result.page)
    assert_offline(page, tmp_path)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    # The twin has the settings of the seeds: it is another run of seed 0.
    assert [(row["name"], row["best"]["n"]) for row in rows] == [("supervised", 3), ("fixmatch", 1)]
    bests = [best_of(path) for path in (seeds / "seed-0", seeds / "seed-1", fix / "twin")]
    assert rows[0]["best"]["mean"] == pytest.approx(mean(bests), abs=1e-12)
    assert rows[0]["best"]["sd"] == pytest.approx(stdev(bests), abs=1e-12)
    assert f"{100 * mean(bests):.2f} ± {100 * stdev(bests):.2f}" in page.chapter("table")
    assert "sd" not in rows[1]["best"]
    assert any(link.endswith("fix/report.html") for link in page.links)
    assert {path.name for path in result.files} == {"report.html", "table.md", "table.tex", "table.json"}


def test_a_gain_is_paired_on_the_images_of_the_first_run(fix, tmp_path):
    rows = report(fix / "twin", fix, out=tmp_path, quiet=True).values["rows"]
    alone = report(fix, quiet=True).values["gain"]
    assert rows[1]["gain_over_first"] == pytest.approx(alone)
    assert "gain_over_first" not in rows[0]


def test_a_folder_of_seeds_is_a_comparison_and_the_page_lies_in_it(seeds):
    result = report(seeds, quiet=True)
    assert result.page == seeds / "report.html"
    page = read(result.page)
    assert_offline(page, seeds)
    assert "seed 0" in page.chapter("curves")
    assert "over 2 seeds" in page.text


def test_settings_that_differ_name_the_rows(fix, shapes, tmp_path):
    from halfmask.run.fit import fit
    from tests.report.conftest import QUICK
    from tests.run import tiny

    fit(tiny.recipe(shapes, *QUICK, threshold=0.9), tmp_path / "run", quiet=True)
    rows = report(fix, tmp_path / "run", out=tmp_path, quiet=True).values["rows"]
    assert [row["name"] for row in rows] == ["fixmatch (threshold=0.4)", "fixmatch (threshold=0.9)"]


def test_an_ablation_of_perturbations_is_one_command(shapes, tmp_path):
    """Decoders of other kinds and counts are rows of their own, seeds share one; all stand in one figure."""
    from halfmask.run.fit import fit
    from tests.report.conftest import QUICK
    from tests.run import tiny

    settings = {
        "lite-0": ({"heads": {"f_drop": 1}}, 0),
        "lite-1": ({"heads": {"f_drop": 1}}, 1),
        "vat": ({"heads": {"i_vat": 1}}, 0),
        "both": ({"heads": {"f_drop": 1, "f_noise": 2}}, 0),
    }
    for name, (params, seed) in settings.items():
        made = tiny.recipe(shapes, *QUICK, "run.steps=2", f"run.seed={seed}", method="cct", **params)
        fit(made, tmp_path / name, quiet=True)
    rows = report(*(tmp_path / name for name in settings), out=tmp_path, quiet=True)
    names = ["cct (heads={f_drop: 1})", "cct (heads={i_vat: 1})", "cct (heads={f_drop: 1, f_noise: 2})"]
    assert [(row["name"], row["last"]["n"]) for row in rows.values["rows"]] == list(zip(names, (2, 1, 1), strict=True))
    page = read(rows.page)
    assert_offline(page, tmp_path)
    chapter = page.chapter("table")
    assert "mIoU at the end: runs, mean ± standard deviation" in chapter
    assert all(chapter.count(name) == 3 for name in names)  # the table and two figures


def test_names_tell_all_rows_apart_however_many_settings_differ():
    base = {"method": {"name": "cct", "strength": {"a": 0, "b": 0, "c": 0, "d": 0}}, "run": {"seed": 0}}
    recipes = [copy.deepcopy(base) for _ in range(3)]
    recipes[0]["method"]["strength"] |= {"a": 1, "b": 1, "c": True}
    recipes[1]["method"]["strength"] |= {"d": None}
    runs = [Run(Path(str(n)), recipe, (), (), {}, {}, None, (), 0.0) for n, recipe in enumerate(recipes)]
    assert _names(runs) == ["cct (a=1, b=1, c=true, d=0)", "cct (a=0, b=0, c=0, d=null)", "cct (a=0, b=0, c=0, d=0)"]
    assert _names([runs[0], runs[2]]) == ["cct (a=1, b=1, c=true)", "cct (a=0, b=0, c=0)"]
    assert _names([runs[2], runs[2]]) == ["cct (2)", "cct (2)"]
    encoders = [{"name": "resnet", "depth": 18}, {"name": "mit", "size": "b5"}]
    both = [replace(runs[2], recipe=base | {"model": {"encoder": encoder}}) for encoder in encoders]
    assert _names(both) == ["cct (encoder=resnet)", "cct (encoder=mit)"]


def test_runs_of_other_classes_keep_their_recorded_scores(fix, labels, staged, tmp_path):
    result = report(fix, labels, staged, out=tmp_path, quiet=True)
    page = read(result.page)
    assert_offline(page, tmp_path)
    rows = result.values["rows"]
    assert "shown" in rows[0]
    assert "shown" not in rows[1]
    assert "best" in rows[1]
    assert "Not every model could be judged" in page.chapter("table")
    assert "second → first" in page.chapter("runs")


def test_the_tables_hold_what_the_page_says(seeds, fix, tmp_path):
    report(seeds, fix, out=tmp_path, quiet=True)
    markdown, latex = (tmp_path / "table.md").read_text(), (tmp_path / "table.tex").read_text()
    assert markdown.splitlines()[2].startswith("| supervised | 2 | ")
    assert latex.count(r"\\") == 3
    assert latex.count("&") == 3 * 5
    assert r"$\pm$" in latex


def test_members_of_a_comparison_are_counted_once(seeds):
    assert len(members(seeds)) == 2
