"""The tables of the documentation are those that docstrings and signatures give."""

import importlib
import json
import re

import pytest

from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        return importlib.import_module("tables")


def test_tables_are_up_to_date(tables):
    stale = [page.name for page in tables.PAGES if tables.fill(page) != page.read_text(encoding="utf-8")]
    assert stale == [], "run: python docs/tables.py"


def test_every_table_stands_on_a_page(tables):
    text = "".join(page.read_text(encoding="utf-8") for page in tables.PAGES)
    assert {*re.findall(r"<!-- table: ([\w-]+) -->", text)} == {*tables.TABLES}


@pytest.mark.parametrize("kind", ["method-sections", "encoders", "decoders", "datasets", "recipe"])
def test_every_parameter_has_a_meaning(tables, kind):
    rows = [line for line in tables.TABLES[kind]().splitlines() if line.startswith("| `")]
    assert rows
    assert [row for row in rows if row.rstrip(" |").count(" | ") < 3] == []


def test_the_first_paper_of_a_docstring_is_cited(tables):
    text = 'A method.\n\nLee and\nKim, "A paper: with\ncolon", CVPR 2020, arXiv:2001.00001; form of Roe, "B", 2021.'
    assert tables._citation(text) == "[Lee and Kim, CVPR 2020](https://arxiv.org/abs/2001.00001)"
    assert tables._citation("A method.\n\nNo paper.") == ""


def measured(name: str, value: float, target: str | None = None, reached: bool | None = None, **facts) -> dict:
    empty = dict.fromkeys(("low", "high", "reference", "fast", "limit"))
    return {"name": name, "value": value, "unit": "x", "base_unit": "s", **empty, **facts, "target": target,
            "reached": reached}  # fmt: skip


def test_benchmark_files_become_a_table_with_the_rows_that_lose(tables, tmp_path, monkeypatch):
    limit = {"share": 0.31, "name": "copy"}
    good = measured("time", 2.5, ">= 2", True, low=2.4, high=2.6, reference=0.05, fast=0.02, limit=limit)
    lost = measured("error", 0.25, "<= 0.15", False, unit="", reference=2.0**30, fast=2.0**29, base_unit="B")
    more = [measured("wall", 2.4), measured("saved", 3.0), measured("syncs", 0.0, "<= 0", True, unit="")]
    rows = [
        {"id": "ema", "size": "25 M", "problem": "", "measures": [good, *more]},
        {"id": "prediction", "size": "small", "problem": "", "measures": [lost]},
        {"id": "spark", "size": "K=3", "problem": "disagrees with its plain form", "measures": []},
    ]
    plain = {"device": "CPU", "threads": 1, "settings": {"rounds": 5}, "rows": rows}
    plain["environment"] = {"packages": {"torch": "2"}}
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "bench_cpu.json").write_text(json.dumps(plain))
    monkeypatch.setattr(tables.measured, "ROOT", tmp_path)
    assert tables.measured.results() == ""  # of trained methods there are none
    facts, _, table = tables.measured.speed().partition("\n\n")
    assert "2 of 3 targets reached" in facts
    assert table.splitlines()[2:] == [
        "| `ema` | 25 M | 50 ms | 20 ms | 2.5 x (>= 2) | 2.4-2.6 | 3 x |  | syncs 0 (<= 0) | 31% copy |",
        "| `prediction` | small | 1024 MiB | 512 MiB | error **0.25 (<= 0.15 missed)** |  |  |  |  |  |",
        "| `spark` | K=3 | disagrees with its plain form |  |  |  |  |  |  |  |",
    ]


def test_our_scores_stand_beside_the_published_ones_of_the_same_method_data_and_split(tables, tmp_path, monkeypatch):
    rows = [
        {"method": "cps", "labeled": "92", "mean": 0.5},
        {"method": "cps", "labeled": "91", "mean": 0.6},  # no split of a paper
        {"method": "cps-control", "labeled": "92", "mean": 0.4},
        {"method": "fpl", "labeled": "92", "mean": None},  # it failed
    ]
    board = [{"method": "fpl", "control_of": one, "mean": mean} for one, mean in ((None, 0.123456), ("fpl", 0.1))]
    model = {"encoder": {"name": "resnet"}}
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    settings = {"data": "pascal", "steps": 40}
    (folder / "some.json").write_text(json.dumps({"settings": settings, "rows": rows}))
    (folder / "other.json").write_text(json.dumps({"settings": {**settings, "data": "facades"}, "rows": rows}))
    more = {**settings, "labeled": 183, "model": model, "metric": "miou"}
    (folder / "leaderboard_a.json").write_text(json.dumps({"settings": more, "rows": board}))
    monkeypatch.setattr(tables.measured, "ROOT", tmp_path)
    cells = [line.strip("| ").split(" | ") for line in tables.published().splitlines()[2:]]
    ours = {line[1]: line[6] for line in cells if len(line) == 7}  # an empty cell is stripped away
    assert ours == {
        "`cps/pascal`": "[92: 50](../benchmarks/results/some.json) (40 steps)",
        "`fpl/pascal`": "[183: 12.35](../benchmarks/results/leaderboard_a.json) (resnet, 40 steps)",
    }
