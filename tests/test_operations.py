"""`benchmarks/operations.py`: rows agree with their plain forms, ratios and bytes are what they claim; never a time."""

import doctest
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.benchmark import Measurement, TaskSpec

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
pairs, operations = importlib.import_module("_pairs"), importlib.import_module("operations")
sys.path.remove(str(BENCHMARKS))

QUICK = pairs.Setting(torch.device("cpu"), quick=True, rounds=2, seconds=0.0, memory=False)
IN_PROCESS = [
    row
    for row in operations.ROWS
    if "cpu" in row.devices and not row.needs_data and row.id not in {"startup", "prediction", "ddp"}
]


def named(row) -> str:
    return f"{row.id} {row.size}"


def pair(plain: float = 0.0, fast: float = 0.0, **facts):
    return pairs.Pair(lambda: torch.tensor([plain]), lambda: torch.tensor([fast]), pairs.close(atol=0.5), **facts)


@pytest.fixture
def command(monkeypatch):
    """Run the script with some rows in place of its own."""

    def run(rows: list, *arguments: str) -> int:
        monkeypatch.setattr(operations, "ROWS", rows)
        monkeypatch.setattr("sys.argv", ["operations.py", "--no-memory", "--quick", *arguments])
        with pytest.raises(SystemExit) as ended:
            operations.main()
        return int(ended.value.code)

    return run


def test_examples_hold():
    assert doctest.testmod(pairs) == (0, 4)


@pytest.mark.parametrize("row", IN_PROCESS, ids=named)
def test_every_row_agrees_with_its_plain_form(row):
    work = row.work(QUICK)
    if isinstance(work, pairs.Pair):
        assert work.agree(work.plain(), work.fast())
    else:
        assert work


def test_the_rows_are_those_of_the_recorded_files():
    names = {named(row) for row in operations.ROWS}
    assert len(names) == len(operations.ROWS)
    for file in (BENCHMARKS / "results").glob("bench_*.json"):
        rows = json.loads(file.read_text())["rows"]
        assert {f"{row['id']} {row['size']}" for row in rows} <= names, file.name


def test_a_row_that_disagrees_is_reported_and_not_timed():
    calls = []
    wrong = pairs.Pair(lambda: torch.zeros(2), lambda: (calls.append(1), torch.ones(2))[1], pairs.close(atol=0.5))
    result, times = pairs.measure(pairs.Row("wrong", "", lambda _: wrong, ""), QUICK, BENCHMARKS)
    assert "largest difference 1.0e+00" in result["problem"]
    assert (len(calls), result["measures"], times) == (1, [], [])


def test_a_row_that_breaks_is_reported():
    result, _ = pairs.measure(pairs.Row("broken", "", lambda _: 1 / 0, ""), QUICK, BENCHMARKS)
    assert result["problem"].startswith("ZeroDivisionError")


def test_the_ratio_of_a_round_is_that_of_its_four_blocks(monkeypatch):
    seconds, order = {"plain": [3.0, 5.0, 1.0, 1.0], "fast": [1.0, 1.0, 1.0, 3.0]}, []

    class Timed:
        def __init__(self, description: str) -> None:
            self.form, self.left = description, list(seconds[description])

        def blocked_autorange(self, min_run_time: float) -> Measurement:
            order.append(self.form[0])
            return Measurement(1, [self.left.pop(0)], TaskSpec("", ""))

    monkeypatch.setattr(pairs, "timer", lambda compute, setting, **labels: Timed(labels["description"]))
    row = pairs.Row("x", "", lambda _: pair(), "", cpu={"time": 2.0})
    result, _ = pairs.measure(row, pairs.Setting(torch.device("cpu"), rounds=2, memory=False), BENCHMARKS)
    [time] = result["measures"]
    assert "".join(order) == "pffp" * 2
    assert (time["low"], time["high"], time["value"]) == (0.5, 4.0, 2.25)
    assert (time["target"], time["reached"]) == (">= 2", True)


def test_saved_bytes_are_counted_once_per_storage_and_forgotten_with_their_graph():
    x = torch.ones(1000, requires_grad=True)

    def one() -> None:
        y = x * 1.0
        (y * y + y.view(10, 100).flatten() * y).sum().backward()

    def twice() -> None:
        one()
        one()

    assert pairs.saved_bytes(one) == pairs.saved_bytes(twice)
    assert 4000 <= pairs.saved_bytes(one) <= 4000 + 16  # y; a scalar of 1.0 may be saved besides


@pytest.mark.slow
def test_memory_is_measured_in_another_process():
    [row] = [row for row in operations.find(["pseudo-label"]) if row.size.startswith("K=21")]
    setting, script = pairs.Setting(torch.device("cpu")), BENCHMARKS / "operations.py"
    plain, fast = (pairs._in_own_process(row, form, setting, script)["peak"] for form in ("plain", "fast"))
    softmax = 2 * 21 * 518 * 518 * 4
    assert plain > 0.9 * softmax
    assert fast < 0.5 * softmax


@pytest.mark.parametrize(
    ("name", "target", "value", "allowance", "holds"),
    [
        ("time", 2.0, 2.0, 0.0, True),
        ("time", 2.0, 1.9, 0.0, False),
        ("time", 2.0, 1.71, 0.15, True),
        ("time", 2.0, 1.69, 0.15, False),
        ("error", 0.15, 0.16, 0.0, False),
        ("error", 0.15, 0.16, 0.15, True),
    ],
)
def test_targets(name, target, value, allowance, holds):
    assert pairs.holds(name, value, target, allowance) is holds


def test_the_file_is_written_after_each_row_and_continued(command, tmp_path):
    out, written = tmp_path / "deep" / "result.json", {}

    def row(id: str, fails: bool = False):
        def work(_):
            written[id] = [one["id"] for one in json.loads(out.read_text())["rows"]] if out.exists() else []
            return pair(fast=float(fails))

        return pairs.Row(id, "small", work, "")

    assert command([row("a"), row("b", fails=True)], "--out", str(out)) == 1
    assert "disagrees" in json.loads(out.read_text())["rows"][1]["problem"]
    assert written == {"a": [], "b": ["a"]}
    assert command([row("a"), row("b"), row("c")], "--out", str(out)) == 0
    content = json.loads(out.read_text())
    assert written == {"a": [], "b": ["a", "b"], "c": ["a", "b"]}  # b anew, as it had failed; a is kept
    assert [one["id"] for one in content["rows"]] == ["a", "b", "c"]
    assert {"device", "environment", "threads", "settings", "load_average"} <= content.keys()
    assert not any("/" in word for word in content["environment"]["command"])


def test_a_file_of_other_settings_is_not_continued(command, tmp_path, monkeypatch):
    out, row = tmp_path / "result.json", pairs.Row("a", "small", lambda _: pair(), "")
    command([row], "--out", str(out))
    monkeypatch.setattr(operations, "ROWS", [row])
    monkeypatch.setattr("sys.argv", ["operations.py", "--no-memory", "--out", str(out)])
    with pytest.raises(SystemExit, match="take another --out"):
        operations.main()


def test_check_judges_ratios_and_no_absolute_times(command, monkeypatch):
    slow = [pairs.Measure("time", 1.0), pairs.Measure("speed", 9.0, unit="images/s")]
    both = pairs.Row("slow", "", lambda _: slow, "", cpu={"time": 2.0, "speed": 200.0})
    absolute = pairs.Row("slow", "", lambda _: slow, "", cpu={"speed": 200.0})

    def failed(row, check: bool) -> bool:
        setting = pairs.Setting(torch.device("cpu"), memory=False)
        results = operations.Results(setting, None)
        results.add(pairs.measure(row, setting, BENCHMARKS)[0])
        return results.failed([row], check)

    assert [failed(both, True), failed(both, False), failed(absolute, True)] == [True, False, False]


def test_an_unknown_row_names_the_nearest():
    with pytest.raises(SystemExit, match="Did you mean `ohem`"):
        operations.find(["ohm"])


def test_the_list_has_targets(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["operations.py", "ohem", "--list"])
    operations.main()
    assert "targets: time 6" in capsys.readouterr().out


def test_comparisons_find_what_is_wrong():
    with pytest.raises(pairs.Disagreement, match="shapes"):
        pairs.close(atol=1.0)(torch.zeros(2), torch.zeros(3))
    with pytest.raises(pairs.Disagreement, match="allowed"):
        pairs.close(atol=0.1)(torch.zeros(2), torch.full((2,), float("nan")))
    with pytest.raises(pairs.Disagreement, match="pixels differ"):
        pairs.equal_but(0.1)(torch.zeros(4), torch.tensor([0, 0, 1, 1]))
