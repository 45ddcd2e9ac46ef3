"""Runs over several domains: files, resume, evaluation, bundles, two processes, real images, and bad input."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from halfmask.cli.app import app
from halfmask.errors import CheckpointError, DataError, HalfmaskError, RecipeError
from halfmask.infer.bundle import load_bundle
from halfmask.infer.domains import evaluate_domains
from halfmask.infer.evaluate import evaluate
from halfmask.infer.predict.predict import predict
from halfmask.infer.runs import published
from halfmask.methods.multi_domain import MultiDomain
from halfmask.recipe.read import Recipe, load
from halfmask.report.make import report
from halfmask.run import fit as engine
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.prepared import loader_maker
from halfmask.run.train import train as train_with_twin
from tests.run.tiny import recipe, write_dataset

OTHER_CLASSES = "0\tground\t0,0,0\n1\tdisc\t255,0,0\n2\tstripe\t0,0,255\n3\tnever\t9,9,9\n"


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("domains")
    one, two = write_dataset(folder / "one"), write_dataset(folder / "two", images=9, masks=7, size=(48, 64))
    (two / "classes.txt").write_text(OTHER_CLASSES)
    return {"one": one, "two": two}


def several(roots: dict[str, Path], *overrides: str, method: Any = "fixmatch") -> Recipe:
    plain = recipe(roots["one"]).model_dump(mode="json")
    plain["method"] = {"name": "multi_domain", "method": method}
    plain["data"]["root"] = None
    plain["data"]["domains"] = {name: {"root": str(root)} for name, root in roots.items()}
    return load(plain, ["data.domains.two.labeled=5", *overrides])


def last(out: Path) -> dict[str, Any]:
    return read_checkpoint(out / "checkpoints" / "last.ckpt")


def assert_same_weights_and_momentum(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first["halfmask"]["step"] == second["halfmask"]["step"]
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert all(torch.equal(tensor, second["state_dict"][name]) for name, tensor in first["state_dict"].items())
    for one, two in zip(first["optimizer_states"], second["optimizer_states"], strict=True):
        assert one["state"].keys() == two["state"].keys()
        for index, entry in one["state"].items():
            assert all(torch.equal(torch.as_tensor(entry[k]), torch.as_tensor(two["state"][index][k])) for k in entry)


@pytest.fixture(scope="module")
def finished(roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "both"
    fit(several(roots), out, quiet=True)
    return out


def test_each_domain_has_its_bundle_scores_and_lists(finished: Path) -> None:
    assert json.loads((finished / "domains.json").read_text()) == ["one", "two"]
    assert not (finished / "model.json").exists()
    for name, classes in (("one", ("background", "disc", "bar")), ("two", ("ground", "disc", "stripe", "never"))):
        bundle = load_bundle(finished / name)
        assert bundle.task.classes == classes
        assert bundle.meta["domain"] == name
        assert bundle.model(torch.rand(1, 3, 32, 32)).shape[1] == len(classes)
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if "val/miou" in record:
            assert record["val/miou"] == pytest.approx((record["val/one/miou"] + record["val/two/miou"]) / 2)
            assert record["student/val/miou"] == pytest.approx(
                (record["student/val/one/miou"] + record["student/val/two/miou"]) / 2
            )
    assert [record["step"] for record in records if "val/miou" in record] == [3, 6]
    assert {"train/one/loss_sup", "train/two/loss_sup"} <= set(records[0])
    # One encoder in both.
    one, two = (load_bundle(finished / name).model.encoder.state_dict() for name in ("one", "two"))
    state = last(finished)["state_dict"]
    shared = [key for key in state if key.startswith("method.domains.0.student.encoder.")]
    assert shared
    assert all(torch.equal(state[key], state[key.replace("domains.0", "domains.1")]) for key in shared)
    assert one.keys() == two.keys()


@pytest.mark.parametrize("stop", [3, 4])
def test_a_resumed_run_equals_an_unbroken_one(
    roots: dict[str, Path], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Killed after a step of either domain, between two checkpoints."""
    after_update = MultiDomain.after_update

    def killed(self: MultiDomain, progress: Any) -> None:
        after_update(self, progress)
        if progress.step + 1 == stop + 1:
            raise KeyboardInterrupt

    out = tmp_path / "broken"
    with monkeypatch.context() as patch:
        patch.setattr(MultiDomain, "after_update", killed)
        with pytest.raises((KeyboardInterrupt, SystemExit, HalfmaskError)):
            fit(several(roots, "run.eval_every=1" if stop == 4 else "run.eval_every=3"), out, quiet=True)
    assert last(out)["halfmask"]["step"] == stop
    fit(None, out, resume=True, quiet=True)
    assert_same_weights_and_momentum(last(finished), last(out))


def test_evaluate_scores_every_domain_and_one(finished: Path, roots: dict[str, Path]) -> None:
    scores = evaluate_domains(finished, quiet=True, device="cpu")
    written = json.loads((finished / "metrics.json").read_text())["metrics"]
    assert written["val/miou"] == pytest.approx(sum(found.miou for found in scores.values()) / 2)
    alone = evaluate(finished / "two", quiet=True, device="cpu")
    assert alone.miou == scores["two"].miou
    best = last(finished)["halfmask"]["best"]
    assert written["val/miou"] == pytest.approx(best["teacher"], abs=1e-9)
    with pytest.raises(RecipeError, match=r"Name one: halfmask evaluate .*one"):
        evaluate_domains(finished, overrides=["data.crop=64"], quiet=True)
    with pytest.raises(DataError, match=r"domain one: .*the part 'test' has no image"):
        evaluate_domains(finished, part="test", quiet=True)


@pytest.mark.parametrize("parts", ["val", {"one": "val", "two": "test"}])
def test_published_numbers_stand_beside_the_score_of_each_domain_and_the_mean(
    roots: dict[str, Path], tmp_path: Path, parts: Any
) -> None:
    """A number of other images stands nowhere, nor does a mean over different parts."""
    expected = {"value": {"one": 0.35, "two": 0.537, "mean": 0.444}, "source": "Paper, Table 9", "part": parts}
    plain = several(roots, "run.steps=2", "run.eval_every=2").model_dump(mode="json")
    fit(load(plain | {"expected": expected}), tmp_path, quiet=True)
    shown = CliRunner().invoke(app, ["evaluate", str(tmp_path), "-q", "--device", "cpu"])
    assert shown.exit_code == 0, shown.output
    scores = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    wanted = [
        f"one: miou {100 * scores['val/one/miou']:.2f}   published: 35.00 (Paper, Table 9)",
        f"two: miou {100 * scores['val/two/miou']:.2f}   published: 53.70 (Paper, Table 9)",
        f"mean: miou {100 * scores['val/miou']:.2f}   published: 44.40 (Paper, Table 9)",
    ]
    wanted = wanted if parts == "val" else wanted[:1]
    assert [line for line in shown.stdout.splitlines() if "published:" in line] == wanted
    machine = CliRunner().invoke(app, ["evaluate", str(tmp_path), "-q", "--device", "cpu", "--json"])
    beside = json.loads(machine.stdout)["published"]
    assert list(beside) == [line.partition(":")[0] for line in wanted]
    assert beside["one"] == {"metric": "miou", "value": 0.35, "split": None, "source": "Paper, Table 9"}
    assert published(tmp_path / "two").part == ("val" if parts == "val" else "test")
    report(tmp_path, quiet=True)
    page = (tmp_path / "report.html").read_text()
    assert f"halfmask report {tmp_path / 'two'}" in page
    assert "no model yet" not in page
    assert ("44.4" in page) == (parts == "val")
    limited = CliRunner().invoke(app, ["evaluate", str(tmp_path), "-q", "--device", "cpu", "--limit", "1"])
    assert "published:" not in limited.stdout


def test_prediction_and_evaluation_of_one_model_name_the_domains(finished: Path, roots: dict[str, Path]) -> None:
    for use in (
        lambda: load_bundle(finished),
        lambda: evaluate(finished, quiet=True),
        lambda: predict(finished, roots["one"] / "images", finished / "predictions", quiet=True),
    ):
        with pytest.raises(CheckpointError, match=r"several domains.*one, two.*for example .*one"):
            use()


def test_a_domains_lists_are_those_it_has_alone(finished: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    fit(recipe(roots["two"], "data.labeled=5", "run.steps=1"), tmp_path / "alone", quiet=True)
    alone = json.loads((tmp_path / "alone" / "split.json").read_text())
    assert json.loads((finished / "two" / "split.json").read_text()) == alone
    together = json.loads((finished / "split.json").read_text())
    assert {name.partition("/")[2]: entry for name, entry in together.items() if name.startswith("two/")} == alone


def test_overwrite_removes_the_domains_of_the_earlier_run_and_nothing_else(
    roots: dict[str, Path], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    shutil.copytree(finished, out)
    (out / "two" / "notes.txt").write_text("mine")
    fit(recipe(roots["one"], "run.steps=1", "run.eval_every=1"), out, overwrite=True, quiet=True)
    assert not (out / "one").exists()
    assert [path.name for path in (out / "two").iterdir()] == ["notes.txt"]
    assert not (out / "domains.json").exists()
    assert load_bundle(out).task.n_classes == 3


def test_workers_and_ranks_change_no_batch_and_domains_take_turns(roots: dict[str, Path], tmp_path: Path) -> None:
    prepared = engine.prepare(several(roots, "data.batch={labeled: 4, unlabeled: 4}"), look=False)
    read = [
        list(loader_maker(replace(prepared, recipe=several(roots, *more)), tmp_path)(1, 5, 0, 1))
        for more in (
            ("data.batch.labeled=4", "data.batch.unlabeled=4"),
            ("data.batch={labeled: 4, unlabeled: 4}", "data.workers=2"),
        )
    ]
    halves = [list(loader_maker(prepared, tmp_path)(1, 5, rank, 2)) for rank in range(2)]
    assert [host.domain for host in read[0]] == ["two", "one", "two", "one"]
    for one, two, first, second in zip(*read, *halves, strict=True):
        assert one.domain == two.domain == first.domain
        for whole, same, low, high in zip(one.streams, two.streams, first.streams, second.streams, strict=True):
            assert torch.equal(whole.image, same.image)
            assert torch.equal(whole.image, torch.cat((low.image, high.image)))
            assert torch.equal(whole.index, torch.cat((low.index, high.index)))


def test_batch_norm_of_its_own_and_cct_train_too(roots: dict[str, Path], tmp_path: Path) -> None:
    method = {"name": "cct", "heads": {"f_drop": 1, "dropout": 1}}
    made = several(roots, "method.batch_norm=own", "run.steps=2", "run.eval_every=2", method=method)
    result = fit(made, tmp_path / "cct", quiet=True)
    assert set(result.best) == {"student"}
    fit(
        several(roots, "run.steps=2", "data.balance=classes", "optim.class_weights=inverse"), tmp_path / "b", quiet=True
    )


def test_dry_run_predicts_memory_and_time(roots: dict[str, Path], tmp_path: Path) -> None:
    cost = fit(several(roots), tmp_path / "dry", dry_run=True, quiet=True).cost
    assert cost is not None
    assert cost.memory > 0


# --- bad input --------------------------------------------------------------------------------------------------


def refused(roots: dict[str, Path], *overrides: str, method: Any = "fixmatch") -> str:
    with pytest.raises(HalfmaskError) as caught:
        fit(several(roots, *overrides, method=method), roots["one"].parent / "never", quiet=True)
    assert not (roots["one"].parent / "never").exists()
    return str(caught.value)


def test_a_domain_without_labels_is_named(roots: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(roots["two"], bare)
    shutil.rmtree(bare / "masks")
    text = refused({"one": roots["one"], "two": bare}, "data.domains.two.labeled=null")
    assert re.search(r"domain two: .*no labeled image", text, re.DOTALL)
    assert "data.domains.two.labeled" in text
    wanted = refused({"one": roots["one"], "two": bare})
    assert "domain two: 5 labeled images are wanted, but no image has a mask" in wanted


def test_problems_of_several_domains_come_together(roots: dict[str, Path], tmp_path: Path) -> None:
    text = refused({"one": tmp_path / "nowhere", "two": tmp_path / "neither"})
    assert "domain one: " in text
    assert "domain two: " in text


@pytest.mark.parametrize(
    ("domains", "text"),
    [
        ("{a: {root: ROOT}, b: {root: ROOT}}", "domains a and b have the same root"),
        ("{a: {root: ROOT}, b: {root: ROOT/../one}}", "domains a and b have the same root"),
        ("{a: {root: ROOT}, A: {root: OTHER}}", "same name on some file systems"),
        ("{tb: {root: ROOT}, b: {root: OTHER}}", "named like a part of the run"),
        ("{mean: {root: ROOT}, b: {root: OTHER}}", "named like a part of the run"),
    ],
)
def test_domains_that_cannot_be_told_apart(roots: dict[str, Path], domains: str, text: str) -> None:
    plain = several(roots).model_dump(mode="json")
    given = domains.replace("ROOT", str(roots["one"])).replace("OTHER", str(roots["two"]))
    with pytest.raises(RecipeError, match=text):
        fit(load(plain, [f"data.domains={given}"]), roots["one"].parent / "never", quiet=True)


def test_a_name_given_twice_and_an_unknown_key_are_found_while_reading(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("data:\n  domains:\n    a: {root: x}\n    a: {root: y}\n")
    with pytest.raises(RecipeError, match="the key a is given twice"):
        load(path)
    domains = "data.domains={a: {root: x, labled: 3}, b: {root: y, dataset: camvit}, 'c d': {root: z}}"
    with pytest.raises(RecipeError) as caught:
        load(None, [domains])
    text = str(caught.value)
    assert "data.domains.a.labled is not a parameter. Did you mean `labeled`" in text
    assert "data.domains.b.dataset: there is no dataset 'camvit'. Did you mean `camvid`?" in text
    assert "c d" in text
    with pytest.raises(RecipeError, match="at least 2"):
        load(None, ["data.domains={a: {root: x}}"])


def test_label_spaces_that_contradict_the_class_file(roots: dict[str, Path]) -> None:
    text = refused(roots, "data.domains.two.dataset={name: folder, classes: [ground, disc, bar, never]}")
    assert "domain two" in text
    assert "label space contradicts" in text
    assert "bar against stripe" in text
    fewer = refused(roots, "data.domains.two.dataset={name: folder, classes: [ground, disc, stripe]}")
    assert "3 classes by data.domains" in fewer


def test_method_and_data_must_both_be_of_several_domains(roots: dict[str, Path], tmp_path: Path) -> None:
    plain = several(roots).model_dump(mode="json")
    with pytest.raises(RecipeError, match=r"method=\{name: multi_domain, method: fixmatch\}"):
        fit(load(plain | {"method": {"name": "fixmatch"}}), tmp_path / "a", quiet=True)
    twin = several(roots, "run.twin=true")
    with pytest.raises(RecipeError, match="has no control"):
        train_with_twin(twin, tmp_path / "d", quiet=True)
    with pytest.raises(RecipeError, match=r"data.domains names none.*method.name=fixmatch"):
        fit(load(plain, ["data.domains=null", f"data.root={roots['one']}"]), tmp_path / "b", quiet=True)
    with pytest.raises(RecipeError, match=r"data.root would be of a single dataset.*data.domains.one.root"):
        fit(load(plain, [f"data.root={roots['one']}"]), tmp_path / "c", quiet=True)


def test_a_wrapped_method_that_does_not_exist(roots: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match="Did you mean `fixmatch`"):
        several(roots, method="fixmach")


# --- more than one process, and real images -----------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(
    roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from .test_distributed import NETWORK, run

    monkeypatch.syspath_prepend(Path(__file__).parent)  # as the processes find the decoder
    made = several(
        roots, *NETWORK, "optim.name=sgd", "data.batch={labeled: 4, unlabeled: 4}", "data.scale=[1.0, 1.0]",
        "run.steps=4", "run.eval_every=4", "run.log_every=1", method="supervised",
    )  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(made.to_yaml())
    fit(made, tmp_path / "one", quiet=True)
    one, two = tmp_path / "one", run(tmp_path, "two", "run.devices=2")
    weights, others = last(one)["state_dict"], last(two)["state_dict"]
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-4, atol=1e-6)  # sums in another order
    momenta = [len(state["state"]) for state in (last(one)["optimizer_states"][0], last(two)["optimizer_states"][0])]
    assert momenta[0] == momenta[1]
    scores = [json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["val/miou"] for out in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_real_streets_and_facades_share_an_encoder(shared: Path, tmp_path: Path) -> None:
    roots = {"camvid": shared / "data" / "camvid", "facades": shared / "data" / "facades"}
    plain = recipe(tmp_path).model_dump(mode="json")
    plain["method"] = {"name": "multi_domain", "method": {"name": "cct", "heads": {"con_msk": 1, "f_noise": 1}}}
    plain["data"]["root"] = None
    plain["data"]["domains"] = {
        "camvid": {"root": str(roots["camvid"]), "dataset": "camvid", "labeled": 4},
        "facades": {"root": str(roots["facades"]), "labeled": 4, "val": "none",
                    "dataset": {"name": "folder", "foreground": ["Door", "Shop", "Balcony", "Window"]}},
    }  # fmt: skip
    made = load(plain, ["data.crop=64", "run.steps=4", "run.eval_every=4", "data.domains.camvid.val=none"])
    looked = engine.prepare(made, look=False)
    assert [source.dataset.task.n_classes for source in looked.sources.by_name.values()] == [11, 7]
    assert len(looked.sources.by_name["camvid"].split.unlabeled) == 363
    fit(made, tmp_path / "run", quiet=True)
    scores = evaluate_domains(tmp_path / "run", part="test", limit=2, quiet=True)
    assert scores["camvid"].classes != scores["facades"].classes
    assert (tmp_path / "run" / "camvid" / "metrics.json").exists()
