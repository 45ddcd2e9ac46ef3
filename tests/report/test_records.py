"""What is read from a run folder, whole or damaged."""

import json
from pathlib import Path

import pytest

from halfmask.errors import CheckpointError
from halfmask.plugins import resolve
from halfmask.recipe.read import load
from halfmask.report.material import is_control
from halfmask.report.pseudo import alarms
from halfmask.report.records import Run, members, read_run


def edited(run: Run, **changes) -> Run:
    return Run(**{name: changes.get(name, getattr(run, name)) for name in Run.__dataclass_fields__})


def test_a_run_is_read_as_it_was_written(fix):
    run = read_run(fix)
    recipe = load(fix / "recipe.yaml")
    assert {entry.key for entry in run.settings} == recipe.origins.keys()
    assert {entry.key: entry.origin for entry in run.settings}["method.threshold"] == "argument"
    assert {entry.key: entry.value for entry in run.settings}["run.steps"] == "4"
    assert (run.method, run.metric, run.steps) == ("fixmatch", "miou", 4)
    assert run.predictors == ("teacher", "student")
    assert run.classes == ("background", "disc", "bar")
    assert [step for step, _ in run.curve("val/miou")] == [2, 4]
    assert run.family("pseudo/share").keys() == set(run.classes)
    assert (run.count("labeled"), run.count("val"), run.count("unlabeled")) == (12, 3, 5)
    assert run.seconds >= 0


def test_a_line_that_a_kill_cut_short_is_left_out(fix, tmp_path):
    for name in ("recipe.yaml", "metrics.jsonl"):
        (tmp_path / name).write_text((fix / name).read_text())
    whole = read_run(tmp_path).records
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/lo')
    assert read_run(tmp_path).records == whole
    assert read_run(tmp_path).meta is None


def test_pauses_between_a_stop_and_its_resumption_cost_nothing(fix, tmp_path):
    (tmp_path / "recipe.yaml").write_text((fix / "recipe.yaml").read_text())
    lines = [
        "2026-01-01T10:00:00  data     6 labeled", "method   fixmatch", "2026-01-01T10:10:00  step 5/10",
        "2026-01-02T09:00:00  data     6 labeled", "2026-01-02T09:05:00  warning: no pseudo-label has passed",
        "2026-01-02T09:06:00  step 10/10",
    ]  # fmt: skip
    (tmp_path / "log.txt").write_text("\n".join(lines))
    run = read_run(tmp_path)
    assert run.seconds == 16 * 60
    assert run.warnings == ("no pseudo-label has passed",)


def test_seeds_and_stages_are_found_in_order(seeds, staged, fix):
    assert [stages[-1].path.name for stages in members(seeds)] == ["seed-0", "seed-1"]
    ((first, second),) = members(staged)
    assert (first.path.name, second.path.name) == ("second", "first")  # as they ran
    ((alone,),) = members(fix)  # its twin is no stage
    assert alone.path == fix


def test_what_is_no_run_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="halfmask train --out"):
        members(tmp_path)
    with pytest.raises(CheckpointError, match="not a run folder"):
        members(tmp_path / "nowhere")
    (tmp_path / "recipe.yaml").write_text("- 3")
    with pytest.raises(CheckpointError, match="Restore"):
        read_run(tmp_path)


def test_a_collapse_raises_an_alarm_and_a_sound_run_none(fix):
    run = read_run(fix)

    def with_share(shares, **extra):
        records = [
            {"step": n, "pseudo/coverage": 0.5, "pseudo/share/disc": share, **extra} for n, share in enumerate(shares)
        ]
        return edited(run, records=tuple(records))

    assert alarms(with_share([0.3] * 12)) == []
    assert "Collapse to one class" in alarms(with_share([0.3] * 4 + [0.99] * 5))[0]
    assert alarms(with_share([0.99, 0.99, 0.99, 0.99, 0.3] * 3)) == []
    assert "Forgotten" in alarms(with_share([0.3] * 6 + [0.0] * 6))[0]
    assert (
        "no pseudo-label passed"
        in alarms(edited(run, records=tuple({"step": n, "pseudo/coverage": 0.0} for n in range(8))))[0]
    )
    falling = tuple({"step": n, "val/miou": value} for n, value in enumerate((0.3, 0.6, 0.4)))
    assert "fell from 60.0 %" in alarms(edited(run, records=falling))[0]


def test_damaged_json_is_one_clear_error(fix, tmp_path):
    (tmp_path / "recipe.yaml").write_text((fix / "recipe.yaml").read_text())
    (tmp_path / "split.json").write_text(json.dumps({"val": {"count": 1}})[:-3])
    with pytest.raises(CheckpointError, match=r"split\.json"):
        read_run(tmp_path)


def test_a_control_written_by_an_earlier_version_is_one() -> None:
    def run(**params):
        return Run(Path(), {"method": {"name": "cps", **params}}, (), (), {}, {}, None, (), 0.0)

    ours = run(loss={"name": "ohem", "threshold": 0.7, "min_kept": 51})
    then = {"loss": "ohem", "ohem_threshold": 0.7, "ohem_min_kept": 51}
    control = resolve("methods", "cps").control_params()
    assert is_control(ours, run(**then, **control))
    assert not is_control(ours, run(**{**then, "ohem_min_kept": 52}, **control))
    assert not is_control(ours, run(**then))  # the same run
