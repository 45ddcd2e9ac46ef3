"""What the scripts of benchmarks/ share: a run is trained once, seeds are reduced, no folder is told."""

import argparse
import doctest
import importlib
import json
import resource
import sys
from pathlib import Path

import pytest

from halfmask.recipe.read import load
from halfmask.run.cost import max_resident_unit

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("[!_]*.py"))


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_runs")


def test_examples_of_the_shared_module_hold(runs):
    assert doctest.testmod(runs) == (0, 3)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_explains_itself(runs, name, monkeypatch, capsys):
    script = importlib.import_module(name)
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        script.main()
    assert f"benchmarks/{name}.py" in capsys.readouterr().out


def test_a_control_has_the_params_of_its_method_without_the_unlabeled_loss(runs):
    options = argparse.Namespace(methods=["supervised", "lite=cct"], controls=True, params=["lite.heads=lite"])
    assert runs.forms_of(options) == ["supervised", "lite=cct", "lite-control=cct"]
    own, control = (runs.overrides_of(options, label, "cct") for label in ("lite", "lite-control"))
    assert own == ["method.heads=lite"]
    recipe = load({"method": "cct"}, control)
    assert recipe.method.params["heads"] == "lite"
    assert recipe.method.params["unlabeled_weight"] == 0
    assert recipe.method.params["term_weights"] == {"weak": 0.0, "pairwise": 0.0}
    options.controls = False
    assert runs.forms_of(options) == options.methods


def test_a_run_is_begun_then_resumed_then_only_read(runs, tmp_path, monkeypatch):
    out, done = tmp_path / "run", []

    def start() -> None:
        done.append("begun")
        (out / "stage" / "checkpoints").mkdir(parents=True)
        (out / "recipe.yaml").touch()
        (out / "stage" / "checkpoints" / "last.ckpt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", lambda recipe, folder, **options: done.append((recipe, folder, options)))
    with pytest.raises(KeyboardInterrupt):
        runs.run_once(out, start, lambda minutes: {})
    first = runs.run_once(out, start, lambda minutes: {"test_miou": 0.5})
    again = runs.run_once(out, start, lambda minutes: {"test_miou": 0.9})

    assert first == again == {"test_miou": 0.5}
    assert done == ["begun", (None, out, {"resume": True, "quiet": True})]


def test_seeds_become_mean_and_sample_deviation(runs):
    scores = [{"form": "a", "seed": seed, "test_miou": 0.1 * seed, "minutes": 1.0} for seed in (1, 3)]
    rows = runs.table([*scores, {"form": "b", "seed": 1, "test_miou": 0.4, "minutes": 2.0}], "form")
    assert rows[0] == {
        "form": "a",
        "mean": pytest.approx(0.2),
        "sd": pytest.approx(0.02**0.5),  # sqrt((0.1^2 + 0.1^2) / (2 - 1))
        "values": pytest.approx([0.1, 0.3]),
        "minutes": 1.0,
    }
    assert rows[1] == {"form": "b", "mean": 0.4, "sd": None, "values": [0.4], "minutes": 2.0}


def test_the_peak_of_a_command_is_its_own(monkeypatch):
    """A process begins with the peak of the one that starts it: here far more than an interpreter takes."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    processes = importlib.import_module("_processes")
    taken = processes.run([sys.executable, "-S", "-c", "sum(range(10**6))"])
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * max_resident_unit()
    assert taken.peak < 60 * 2**20 < own
    assert 0 < taken.cpu < 10
    with pytest.raises(SystemExit, match="no such value"):
        processes.run([sys.executable, "-S", "-c", "raise ValueError('no such value')"])


def test_rows_of_another_machine_do_not_come_into_the_same_table(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    processes = importlib.import_module("_processes")
    out, rows = tmp_path / "results.json", [{"job": "a"}]
    content = processes.heading(1)
    processes.take_earlier(out, content, "jobs")
    assert content["jobs"] == []
    out.write_text(json.dumps({**content, "jobs": rows}))
    processes.take_earlier(out, content, "jobs")
    assert content["jobs"] == rows
    own = {name: content["environment"][name] for name in ("command", "git")}
    assert content["earlier_calls"] == [own]  # by what the rows came
    for other in ({"device": "other CPU"}, {"threads": 99}, {"environment": {"packages": {"torch": "0.1"}}}):
        out.write_text(json.dumps({**content, **other}))
        with pytest.raises(SystemExit, match="Name another file with --out"):
            processes.take_earlier(out, content, "jobs")
