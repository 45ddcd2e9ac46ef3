"""The benchmark: rows agree with their references, ratios and bytes are what they claim; never a time."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from halfmask.bench import report
from halfmask.bench.cases import all_rows, find
from halfmask.bench.ceilings import count_flops
from halfmask.bench.memory import in_own_process, saved_bytes
from halfmask.bench.row import Disagreement, Measure, Pair, Row, Setting, Target, at_least, close, equal_but
from halfmask.bench.run import Outcome, run_row, run_rows
from halfmask.bench.timing import Duration, Timing, interleave
from halfmask.cli.app import app
from halfmask.errors import RecipeError

QUICK = Setting(torch.device("cpu"), quick=True, rounds=2, seconds=0.0, memory=False)
IN_PROCESS = [
    row
    for row in all_rows()
    if "cpu" in row.devices and not row.needs_data and row.id not in {"startup", "prediction", "ddp"}
]


def named(row: Row) -> str:
    return f"{row.id} {row.size}"


@pytest.mark.parametrize("row", IN_PROCESS, ids=named)
def test_every_row_agrees_with_its_reference(row):
    outcome = run_row(row, QUICK)
    assert outcome.measures
    assert all(measure.target is None for measure in outcome.measures)  # tiny sizes are not judged


def test_the_rows_are_those_of_the_specification():
    assert {row.id for row in all_rows()} >= {
        *("spark", "memory-enqueue", "segformer-head", "unimatch-step", "pseudo-label", "cutmix", "ohem", "ema"),
        *("up-ce", "cct-aux", "vat", "data", "eval-metrics", "eval-class-map", "eval-windows", "startup"),
    }


def test_rows_have_names_of_their_own():
    names = [named(row) for row in all_rows()]
    assert len(names) == len({*names})


def test_an_unknown_row_names_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean `ohem`"):
        find(["ohm"])


def test_a_row_that_disagrees_is_reported_and_not_timed():
    calls = []

    def work(setting: Setting) -> Pair:
        return Pair(lambda: torch.zeros(2), lambda: (calls.append(1), torch.ones(2))[1], close(atol=0.5))

    wrong = Row("wrong", "", work, "")
    right = Row("right", "", lambda _: Pair(lambda: torch.zeros(2), lambda: torch.zeros(2), close(atol=0.0)), "")
    first, second = run_rows([wrong, right], QUICK)
    assert "largest difference 1.0e+00" in first.problem
    assert len(calls) == 1
    assert not second.problem


def test_both_forms_run_in_turns():
    order = []
    interleave(lambda: order.append("A"), lambda: order.append("B"), QUICK)
    assert "".join(order) == "AB" + "ABBA" * QUICK.rounds  # the first two decide how often to repeat


def test_the_ratio_of_a_round_is_that_of_its_four_blocks():
    timing = Timing(
        [Duration(value, 1.0) for value in (3.0, 5.0, 1.0, 1.0)],
        [Duration(value, 1.0) for value in (1.0, 1.0, 1.0, 3.0)],
    )
    assert timing.ratios(lambda duration: duration.own) == [4.0, 0.5]
    assert timing.ratios(lambda duration: duration.wall) == [1.0, 1.0]


def test_saved_bytes_are_counted_once_per_storage_and_forgotten_with_their_graph():
    x = torch.ones(1000, requires_grad=True)

    def one() -> None:
        y = x * 1.0
        (y * y + y.view(10, 100).flatten() * y).sum().backward()

    def twice() -> None:
        one()
        one()

    assert saved_bytes(one) == saved_bytes(twice)
    assert 4000 <= saved_bytes(one) <= 4000 + 16  # y; a scalar of 1.0 may be saved besides


def test_memory_is_measured_in_another_process():
    setting = Setting(torch.device("cpu"), quick=False)
    (row,) = [row for row in find(["pseudo-label"]) if row.size.startswith("K=21")]
    reference, fast = (in_own_process(row, form, setting)["peak"] for form in ("reference", "fast"))
    softmax = 2 * 21 * 518 * 518 * 4
    assert reference > 0.9 * softmax
    assert fast < 0.5 * softmax


def test_operations_are_two_per_multiply_add():
    a, b = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7)
    assert count_flops(lambda: (a @ b).sum().backward()) == 2 * 3 * 5 * 7 * 2  # forward, and the gradient of a


@pytest.mark.parametrize(
    ("target", "value", "allowance", "holds"),
    [
        (Target(least=2.0), 2.0, 0.0, True),
        (Target(least=2.0), 1.9, 0.0, False),
        (Target(least=2.0), 1.71, 0.15, True),
        (Target(least=2.0), 1.69, 0.15, False),
        (Target(most=0.15), 0.16, 0.0, False),
        (Target(most=0.15), 0.16, 0.15, True),
    ],
)
def test_targets(target, value, allowance, holds):
    assert target.holds(value, allowance) is holds


def test_absolute_times_and_speeds_are_shown_but_not_checked():
    slow = [
        Measure("seconds", 9.0, unit="s", target=Target(most=0.1)),
        Measure("speed", 9.0, unit="images/s", target=Target(least=200.0)),
    ]
    low = Measure("time", 1.0, target=Target(least=3.0))
    assert Outcome(IN_PROCESS[0], [*slow, low]).missed(0.15) == [low]


def test_losing_rows_are_in_the_table_and_the_json(capsys):
    row = Row("slow", "K=3", lambda _: [], "", {"cpu": at_least(time=2.0)})
    losing = Measure("time", 0.5, 0.4, 0.6, reference=0.001, fast=0.002, target=Target(least=2.0))
    outcomes = [Outcome(row, [losing]), Outcome(row, problem="disagrees with its reference: [by much]")]
    report.print_table(outcomes, QUICK)
    printed = capsys.readouterr().out
    assert "0.5 x" in printed
    assert "MISSED" in printed
    assert "disagrees" in printed
    plain = json.loads(json.dumps(report.to_dict(outcomes, QUICK)))
    assert plain["rows"][0]["measures"][0]["reached"] is False
    assert {"device", "environment", "threads", "settings", "load_average"} <= plain.keys()


def test_comparisons_find_what_is_wrong():
    with pytest.raises(Disagreement, match="shapes"):
        close(atol=1.0)(torch.zeros(2), torch.zeros(3))
    with pytest.raises(Disagreement, match="allowed"):
        close(atol=0.1)(torch.zeros(2), torch.full((2,), float("nan")))
    with pytest.raises(Disagreement, match="pixels differ"):
        equal_but(0.1)(torch.zeros(4), torch.tensor([0, 0, 1, 1]))


def test_the_command_lists_runs_and_writes(tmp_path: Path):
    listed = CliRunner().invoke(app, ["bench", "ohem", "--list"])
    assert listed.exit_code == 0
    assert "targets: time >= 6" in listed.stdout
    out = tmp_path / "deep" / "result.json"
    done = CliRunner().invoke(app, ["bench", "cutmix", "--quick", "--no-memory", "--json", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text()) == json.loads(done.stdout)
    assert json.loads(done.stdout)["rows"][0]["agreement"] == "largest difference 0e+00"


def test_check_fails_where_a_target_is_missed(monkeypatch):
    row = Row("slow", "", lambda _: [Measure("time", 1.0)], "", {"cpu": at_least(time=2.0)})
    monkeypatch.setattr("halfmask.bench.cases.find", lambda ids: [row])
    assert CliRunner().invoke(app, ["bench", "--check"]).exit_code == 1
    assert CliRunner().invoke(app, ["bench"]).exit_code == 0
