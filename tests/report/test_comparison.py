"""Several runs in one table."""

import json
from pathlib import Path
from statistics import mean, stdev

import pytest

from halfmask.report.make import report
from halfmask.report.records import members, read_run
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
    from halfmask.engine.train import train
    from tests.engine import tiny
    from tests.report.conftest import QUICK

    train(tiny.recipe(shapes, *QUICK, threshold=0.9), tmp_path / "run", quiet=True)
    rows = report(fix, tmp_path / "run", out=tmp_path, quiet=True).values["rows"]
    assert [row["name"] for row in rows] == ["fixmatch (threshold=0.4)", "fixmatch (threshold=0.9)"]


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
