"""What to label next: the criteria by hand, the choice on images made for it, the files, and going on from a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfmask.data.annotations import label_studio, labelme
from halfmask.data.folder.lists import read_list
from halfmask.errors import CheckpointError, DataError, RecipeError
from halfmask.infer.bundle import load_bundle
from halfmask.run.checkpoint import begin_from, open_predictors, read_checkpoint, weights_of
from halfmask.run.prepare import prepare
from halfmask.run.train import train
from halfmask.suggest.scores import Weights, combine, disagreement, k_center, ranks, rare_classes, uncertainty
from halfmask.suggest.suggest import suggest
from tests.run.tiny import recipe, write_dataset

IMAGES = [f"images/shape_{number:02d}.png" for number in range(10)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    out = data.parent / "run"
    train(recipe(data, method="mean_teacher"), out, quiet=True)
    return out


def test_uncertainty_of_known_predictions() -> None:
    shares = torch.tensor([[0.5, 1.0], [0.25, 0.0], [0.25, 0.0]])[:, None]  # (3, 1, 2)
    entropy = (0.5 * np.log(2) + 0.5 * np.log(4)) / np.log(3) / 2  # the second pixel is certain
    assert uncertainty(shares, "entropy") == pytest.approx(entropy)
    assert uncertainty(shares, "margin") == pytest.approx((0.75 + 0) / 2)


def test_disagreement_is_the_part_of_other_classes_averaged_over_pairs() -> None:
    first = torch.eye(2)[:, [0, 0, 1, 1]][:, None]  # (K, 1, 4): classes 0 0 1 1
    second = torch.eye(2)[:, [0, 1, 1, 1]][:, None]
    assert disagreement([first]) is None
    assert disagreement([first, second]) == pytest.approx(0.25)
    assert disagreement([first, second, second]) == pytest.approx((0.25 + 0.25 + 0) / 3)


def test_k_center_takes_the_farthest_from_all_that_is_known() -> None:
    angle = np.deg2rad([0, 2, 90, 45, 88])
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.array(
        [[3.0], [1], [2], [1], [7]]
    )  # length is nothing
    order, distance = k_center(features, np.array([[1.0, 0.0]]))
    assert order[:2] == [2, 3]
    assert set(order) == {0, 1, 2, 3, 4}
    assert distance[2] == pytest.approx(np.sqrt(2))
    assert distance[0] == pytest.approx(0)
    # without anything known the most typical image comes first, then the one farthest from it
    order, _ = k_center(features, np.zeros((0, 2)))
    assert order[0] == 3
    assert order[1] in {0, 2}


@pytest.mark.parametrize("known", [0, 300])
def test_k_center_is_that_of_measured_distances(known: int) -> None:
    rng = np.random.default_rng(1)
    points, centers = rng.normal(size=(60, 5)), rng.normal(size=(known, 5))
    order, distance = k_center(points, centers)
    points, centers = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (points, centers))
    done = list(centers)
    for number, pick in enumerate(order):
        if done:
            away = np.linalg.norm(points[:, None] - np.array(done), axis=2).min(axis=1)
            assert pick == max(order[number:], key=lambda one: away[one])
            assert distance[pick] == pytest.approx(away[pick])
        done.append(points[pick])


def test_near_duplicates_come_late() -> None:
    rng = np.random.default_rng(0)
    scenes = rng.normal(size=(5, 8))
    features = np.concatenate([scenes, scenes + 1e-3 * rng.normal(size=(5, 8))])
    order, _ = k_center(features, np.zeros((0, 8)))
    assert {position % 5 for position in order[:5]} == set(range(5))


def test_scores_are_weighted_means_of_ranks() -> None:
    assert ranks([5.0]).tolist() == [1.0]
    assert ranks([1.0, 1.0, 1.0]).tolist() == [0.5] * 3
    ranked = {"uncertainty": np.array([0.0, 1.0]), "rare": np.array([1.0, 0.0])}
    assert combine(ranked, Weights(uncertainty=3, rare=1)).tolist() == [0.25, 0.75]
    assert combine(ranked, Weights(uncertainty=0)).tolist() == [1.0, 0.0]


def test_rare_classes_have_less_than_half_of_an_even_share() -> None:
    assert rare_classes(np.array([600.0, 290, 100, 10])) == [2, 3]
    assert rare_classes(np.array([30.0, 30, 40])) == [0]


def test_all_networks_of_a_run_are_opened_with_the_weights_of_its_bundle(run: Path) -> None:
    bundle = load_bundle(run)
    predictors = open_predictors(bundle, torch.device("cpu"))
    assert list(predictors) == ["teacher", "student"]
    image = torch.rand(1, 3, 48, 56)
    with torch.no_grad():
        assert torch.equal(predictors["teacher"](image), bundle.model(image))
        assert not torch.equal(predictors["student"](image), bundle.model(image))


def test_a_suggestion_ranks_the_unlabeled_images_and_writes_everything(run: Path, data: Path, tmp_path: Path) -> None:
    found = suggest(run, 3, out=tmp_path / "next", formats=("png", "labelme", "coco", "label_studio"), quiet=True)
    assert found.criteria == ("uncertainty", "disagreement", "diversity", "rare")
    assert found.candidates == 4
    assert set(found.ids) < set(IMAGES[6:])
    assert list(found.scores) == sorted(found.scores, reverse=True)
    content = json.loads((tmp_path / "next" / "suggest.json").read_text())
    assert content["chosen"] == list(found.ids)
    assert len(content["images"]) == 4
    for image in content["images"]:
        parts = [image[name]["rank"] for name in found.criteria]
        assert image["score"] == pytest.approx(np.mean(parts), abs=1e-5)
    split = json.loads((run / "split.json").read_text())
    listed = [entry.image for entry in read_list(tmp_path / "next" / "labeled.txt")]
    assert listed == [*split["labeled"]["ids"], *found.ids]
    page = (tmp_path / "next" / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6
    assert all(id in page for id in found.ids)
    name = Path(found.ids[0]).stem
    mask = np.asarray(Image.open(tmp_path / "next" / "png" / f"{name}.png"))
    file = tmp_path / "next" / "labelme" / "images" / f"{name}.json"
    drawn = json.loads(file.read_text())
    assert (file.parent / drawn["imagePath"]).resolve() == (data / found.ids[0]).resolve()
    ids = {label: number for number, label in enumerate(("background", "disc", "bar"))}
    assert np.array_equal(labelme.decode(drawn, ids, *mask.shape).target, mask)
    coco = json.loads((tmp_path / "next" / "coco" / "annotations.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [Path(id).name for id in found.ids]  # as CVAT has them
    tasks = json.loads((tmp_path / "next" / "label_studio" / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"/data/local-files/?d={id}" for id in found.ids]
    (prediction,) = tasks[0]["predictions"]  # a draft, no annotation: nothing trains on it uncorrected
    assert "annotations" not in tasks[0]
    assert np.array_equal(label_studio.decode(prediction["result"], ids, *mask.shape).target, mask)
    again = suggest(run, 3, out=tmp_path / "again", quiet=True)
    assert again.ids == found.ids
    assert json.loads((tmp_path / "again" / "suggest.json").read_text()) == content
    with pytest.raises(DataError, match="--overwrite"):
        suggest(run, 3, out=tmp_path / "next", quiet=True)


def test_a_suggestion_that_replaces_another_leaves_none_of_its_drafts(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "next"
    suggest(run, 4, out=out, formats=("labelme", "coco", "label_studio", "geojson"), quiet=True)
    export = out / "label_studio" / "export.json"
    export.write_text("[]")
    before = sorted(out.rglob("*"))
    with pytest.raises(DataError, match=r"(?s)did not write.*move them away.*export\.json") as caught:
        suggest(run, 1, out=out, overwrite=True, quiet=True)
    assert caught.value.code == "H408"
    assert sorted(out.rglob("*")) == before
    export.unlink()
    draft = next((out / "png").rglob("*.png"))
    drawn = draft.read_bytes()
    draft.write_bytes(drawn + b"corrected")
    with pytest.raises(DataError, match=r"(?s)changed since.*" + draft.name):
        suggest(run, 1, out=out, overwrite=True, quiet=True)
    draft.write_bytes(drawn)
    (image,) = suggest(run, 1, out=out, formats=("geojson",), overwrite=True, quiet=True).ids
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    lists = {"suggest.json", "suggested.txt", "labeled.txt", "index.html", "written.sha256", "png/halfmask.yaml"}
    outlines = {f"geojson/{name}" for name in (f"images/{Path(image).stem}.geojson", "halfmask.yaml", "written.sha256")}
    assert files == {*lists, *outlines, f"png/{Path(image).stem}.png"}


def test_a_folder_that_somebody_uses_is_no_place_for_a_suggestion(run: Path, data: Path) -> None:
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    for overwrite in (False, True):
        with pytest.raises(DataError, match="did not write") as caught:
            suggest(run, 1, out=data / "masks", overwrite=overwrite, quiet=True)
        assert caught.value.code == "H408"
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_a_bundle_has_one_network_and_says_so(run: Path, data: Path, tmp_path: Path) -> None:
    for name in ("model.json", "model.safetensors"):
        (tmp_path / "bundle").mkdir(exist_ok=True)
        (tmp_path / "bundle" / name).write_bytes((run / name).read_bytes())
    with pytest.raises(RecipeError, match="--data DIR"):
        suggest(tmp_path / "bundle", 2, quiet=True)
    found = suggest(tmp_path / "bundle", 2, data=data, quiet=True)
    assert found.criteria == ("uncertainty", "diversity", "rare")
    assert "only one network" in found.remarks[0]
    assert set(found.ids) < set(IMAGES[6:])
    with pytest.raises(RecipeError, match="two predictors"):
        suggest(tmp_path / "bundle", 2, data=data, weights=Weights(0, 1, 0, 0), out=tmp_path / "x", quiet=True)


def test_wishes_that_make_no_sense_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not all 0"):
        suggest(run, weights=Weights(0, 0, 0, 0), quiet=True)
    with pytest.raises(RecipeError, match="Did you mean `coco`"):
        suggest(run, formats=("cocos",), quiet=True)
    with pytest.raises(RecipeError, match="entropy"):
        suggest(run, measure="variance", quiet=True)


def test_images_that_came_later_are_candidates_and_those_labeled_since_are_none(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "shapes")
    train(recipe(data, "run.steps=2", method="mean_teacher"), tmp_path / "run", quiet=True)
    (data / "images" / "new.png").write_bytes((data / IMAGES[0]).read_bytes())
    mask = Image.fromarray(np.zeros((48, 56), dtype=np.uint8))
    mask.save(data / "masks" / "shape_07.png")
    found = suggest(tmp_path / "run", 9, quiet=True)
    assert set(found.ids) == {IMAGES[6], IMAGES[8], IMAGES[9], "images/new.png"}


def test_one_criterion_alone_orders_by_its_values(run: Path, tmp_path: Path) -> None:
    """The order by one criterion alone is that of its values."""
    found = suggest(run, 4, out=tmp_path / "one", weights=Weights(1, 0, 0, 0), measure="margin", quiet=True)
    images = json.loads((tmp_path / "one" / "suggest.json").read_text())["images"]
    values = [image["uncertainty"]["value"] for image in images]
    assert values == sorted(values, reverse=True)
    assert [image["id"] for image in images] == list(found.ids)


def test_the_best_checkpoint_is_taken_else_the_last(run: Path, tmp_path: Path) -> None:
    assert weights_of(run) == run / "checkpoints" / "best-teacher.ckpt"
    assert weights_of(tmp_path) is None
    assert read_checkpoint(run / "checkpoints" / "best-teacher.ckpt")["halfmask"]["step"] <= 6


def draw(data: Path, *names: str) -> None:
    """Put masks beside the data, as after their correction."""
    for name in names:
        target = np.zeros((48, 56), dtype=np.uint8)
        target[10:20, 10:20], target[:, 30:36] = 1, 2
        Image.fromarray(target).save(data / "masks" / f"{name}.png")


def test_a_new_run_begins_with_all_weights_and_the_new_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "shapes")
    first, second = tmp_path / "first", tmp_path / "second"
    train(recipe(data, method="mean_teacher"), first, quiet=True)
    before = json.loads((first / "split.json").read_text())
    draw(data, "shape_06", "shape_09")
    capsys.readouterr()
    train(None, second, resume_from=first, overrides=["optim.lr=1e-12", "optim.weight_decay=0"], limit=1)
    step = read_checkpoint(weights_of(first))["halfmask"]["step"]
    said = f"from     {first} at step {step}, the weights of all its networks; labeled images: 5 then, 7 now (2 new)"
    assert said in capsys.readouterr().err
    assert said in (second / "log.txt").read_text()
    after = json.loads((second / "split.json").read_text())
    assert after["val"]["ids"] == before["val"]["ids"]
    assert set(after["labeled"]["ids"]) == {*before["labeled"]["ids"], "images/shape_06.png", "images/shape_09.png"}
    old = read_checkpoint(weights_of(first))["state_dict"]
    new = read_checkpoint(second / "checkpoints" / "last.ckpt")["state_dict"]
    # The teacher follows the student at once: its averaging begins anew, as the method says.
    weights = [name for name in old if name.startswith("method.student") and name.endswith("weight")]
    assert len(weights) > 5
    assert all(torch.allclose(old[name], new[name], rtol=0, atol=1e-6) for name in weights)
    begun = begin_from(first)
    prepared = prepare(begun.recipe)
    begun.load_into(prepared)
    assert all(torch.equal(value, old[f"method.{name}"]) for name, value in prepared.method.state_dict().items())
    # the new run is a run like any other: its own recipe, and it can be resumed
    assert (second / "recipe.yaml").exists()
    assert json.loads((first / "split.json").read_text()) == before


def test_a_run_of_a_drawn_number_of_masks_asks_for_the_list(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "shapes")
    run = tmp_path / "run"
    train(recipe(data, "data.labeled=3", "data.val=none", "run.steps=2", method="mean_teacher"), run, quiet=True)
    with pytest.raises(RecipeError, match=r"only some masks \(data.labeled=3\).*--labeled LIST"):
        train(None, tmp_path / "next", resume_from=run, quiet=True)
    found = suggest(run, 2, quiet=True)
    assert found.candidates == 7  # those whose masks the run did not use, too
    with pytest.raises(RecipeError, match=r"labeled\.txt"):
        train(None, tmp_path / "next", resume_from=run, quiet=True)
    draw(data, *(Path(id).stem for id in found.ids))
    listed = f"data.labeled={run / 'suggest' / 'labeled.txt'}"
    train(None, tmp_path / "next", resume_from=run, overrides=[listed], limit=1, quiet=True)
    assert json.loads((tmp_path / "next" / "split.json").read_text())["labeled"]["count"] == 5


def test_weights_of_other_networks_or_classes_do_not_fit(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        train(None, tmp_path / "a", resume_from=run, overrides=["model.decoder.embedding=8"], quiet=True)
    with pytest.raises(CheckpointError, match="unexpected: teacher"):
        train(None, tmp_path / "a", resume_from=run, overrides=["method=supervised"], quiet=True)
    with pytest.raises(RecipeError, match="--twin"):
        train(None, tmp_path / "a", resume_from=run, overrides=["run.twin=true"], quiet=True)
    with pytest.raises(CheckpointError, match="not a run folder"):
        train(None, tmp_path / "a", resume_from=tmp_path, quiet=True)
    assert not (tmp_path / "a").exists()
