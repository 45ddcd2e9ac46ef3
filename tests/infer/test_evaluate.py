"""Evaluation: every image once, whatever the batch or the number of processes; runs and bundles from the outside."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from halfmask.cli.app import app
from halfmask.errors import CheckpointError, DataError, RecipeError
from halfmask.infer.bundle import save_bundle
from halfmask.infer.devices import pick_device
from halfmask.infer.evaluate import count, count_each, evaluate, evaluate_model
from halfmask.infer.inference import class_map, read_ahead
from halfmask.infer.metrics import ConfusionMatrix
from halfmask.infer.runs import open_part, published
from halfmask.recipe.read import DataRecipe, EvalRecipe, load
from halfmask.task import Task
from tests.run.tiny import write_dataset
from tests.run.toy import THREE, random_window_model, small_model

SHAPES = Task("segmentation", ("background", "disc", "bar"))


class Images:
    """Random images of several sizes with random targets, void pixels among them."""

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        generator = torch.Generator().manual_seed(3)
        self.pairs = []
        for size in sizes:
            target = torch.randint(0, 4, size, generator=generator, dtype=torch.uint8)
            target[target == 3] = 255
            image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
            self.pairs.append((image, target))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pairs[index]


@pytest.fixture
def images() -> Images:
    return Images([(20, 30), (17, 13), (20, 30), (20, 30), (9, 13), (17, 13), (20, 30)])


def one_by_one(model: Any, images: Images, protocol: EvalRecipe) -> Tensor:
    matrix = ConfusionMatrix(3)
    for image, target in images.pairs:
        matrix.update(class_map(model, image[None].double() / 255, protocol)[0], target)
    return matrix.counts


def test_center_crop_scores_the_middle_window_only_and_small_images_whole(images) -> None:
    model, protocol = random_window_model(3).double(), EvalRecipe(mode="center_crop", window=16, batch=4)
    expected = ConfusionMatrix(3)
    for image, target in images.pairs:
        rows, columns = image.shape[-2:]
        top, left = max((rows - 16) // 2, 0), max((columns - 16) // 2, 0)
        inside = (slice(top, top + 16), slice(left, left + 16))
        found = class_map(model, image[None, :, *inside].double() / 255, EvalRecipe())[0]
        expected.update(found, target[inside])
    assert torch.equal(count(model, images, SHAPES, protocol, "cpu").counts, expected.counts)
    assert expected.counts.sum() < sum((target != 255).sum() for _, target in images.pairs)
    with pytest.raises(RecipeError, match=r"eval\.window=512"):
        count(model, images, SHAPES, EvalRecipe(mode="center_crop"), "cpu")


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_batches_and_threads_count_what_single_images_count(
    images: Images, batch: int, workers: int, mode: str
) -> None:
    model = random_window_model(size_multiple=4)
    protocol = EvalRecipe(mode=mode, window=16, batch=batch)
    found = count(model, images, THREE, protocol, "cpu", workers=workers)
    assert torch.equal(found.counts, one_by_one(model, images, protocol))
    seen = sum(int((target != 255).sum()) for _, target in images.pairs)
    assert found.counts.sum() == seen  # padding is in no metric, no image is left out or repeated


@pytest.mark.parametrize("batch", [1, 3])
def test_images_counted_on_their_own_are_in_order_and_sum_to_the_whole(images: Images, batch: int) -> None:
    model, protocol = random_window_model(), EvalRecipe(batch=batch)
    each = count_each(model, images, THREE, protocol, "cpu")
    for counts, pair in zip(each, images.pairs, strict=True):
        alone = ConfusionMatrix(3)
        alone.update(class_map(model, pair[0][None].double() / 255, protocol)[0], pair[1])
        assert torch.equal(counts, alone.counts)
    assert torch.equal(each.sum(0), count(model, images, THREE, protocol, "cpu").counts)


@pytest.mark.parametrize("world", [2, 3, 9])
def test_shares_of_all_processes_sum_to_one_process(images: Images, world: int) -> None:
    model = random_window_model()
    whole = count(model, images, THREE, EvalRecipe(), "cpu")
    parts = ConfusionMatrix(3)
    for rank in range(world):
        parts.merge(count(model, images, THREE, EvalRecipe(), "cpu", rank=rank, world=world))
    assert torch.equal(parts.counts, whole.counts)


def test_many_sizes_do_not_pile_up_in_memory() -> None:
    images = Images([(4 + n, 4) for n in range(40)] * 2)
    sizes: list[int] = []
    model = random_window_model()
    found = count(model, images, THREE, EvalRecipe(batch=2), "cpu", on_batch=sizes.append)
    assert sum(sizes) == 80
    assert torch.equal(found.counts, one_by_one(model, images, EvalRecipe()))


def test_training_mode_is_restored_and_statistics_stay(images: Images) -> None:
    model = small_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate_model(model, images, THREE, EvalRecipe(), "cpu")
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_training_crop_is_the_default_window(images: Images) -> None:
    model = small_model()  # crop 64 in its spec: larger than all images, one window each
    slide = evaluate_model(model, images, THREE, EvalRecipe(mode="slide"), "cpu")
    assert slide.to_dict() == evaluate_model(model, images, THREE, EvalRecipe(), "cpu").to_dict()


def test_nothing_to_evaluate_is_an_error() -> None:
    model = random_window_model()
    with pytest.raises(DataError, match="--part"):
        evaluate_model(model, Images([]), THREE, EvalRecipe(), "cpu")
    void = Images([(4, 4)])
    void.pairs[0][1].fill_(255)
    with pytest.raises(DataError, match="all pixels are ignored"):
        evaluate_model(model, void, THREE, EvalRecipe(), "cpu")


def test_reading_ahead_keeps_order_and_raises_in_turn() -> None:
    assert list(read_ahead(lambda x: x * x, range(20), 3)) == [x * x for x in range(20)]
    stream = read_ahead(lambda x: 1 // x, [1, 1, 0, 1], 2)
    assert [next(stream), next(stream)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_devices_that_do_not_exist_are_refused() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(RecipeError, match="Use auto, cpu"):
        pick_device("quantum")
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="--device cpu"):
            pick_device("cuda")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    recipe = load(
        {"method": "supervised", "data": {"root": str(data), "val": "auto", "crop": 32}, "eval": {"batch": 2}}
    )
    save_bundle(tmp_path / "run", small_model(SHAPES), SHAPES, extra={"step": 5})
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml(origins=True))
    return tmp_path / "run"


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())  # type: ignore[no-any-return]


def test_a_run_is_evaluated_on_its_own_validation_images(run: Path) -> None:
    scores = evaluate(run, quiet=True)
    written = record(run)
    assert written["metrics"]["val/miou"] == scores.miou
    assert written["images"] == 1  # a fifth of six masks
    assert written["protocol"]["mode"] == "whole"
    assert written["protocol"]["batch"] == 2
    assert written["checkpoint"]["sha256"] == json.loads((run / "model.json").read_text())["sha256"]
    assert written["checkpoint"]["step"] == 5


def test_recorded_validation_images_win_over_a_new_draw(run: Path) -> None:
    ids = [f"images/shape_{number:02d}.png" for number in (0, 2, 3)]
    (run / "split.json").write_text(json.dumps({"val": {"ids": ids}}))
    evaluate(run, quiet=True)
    assert record(run)["images"] == 3


def test_the_protocol_can_be_overridden_and_is_recorded(run: Path) -> None:
    evaluate(run, overrides=["eval.mode=slide", "eval.border=clip"], part="all", quiet=True)
    written = record(run)
    assert written["images"] == 6
    assert (written["protocol"]["mode"], written["protocol"]["border"]) == ("slide", "clip")
    assert written["protocol"]["window"] == 64
    assert "all/miou" in written["metrics"]


def test_a_bare_bundle_needs_data_and_a_part(run: Path, data: Path) -> None:
    (run / "recipe.yaml").unlink()
    with pytest.raises(RecipeError, match="--data DIR"):
        evaluate(run, quiet=True)
    with pytest.raises(DataError, match="--part"):
        evaluate(run, data=data, quiet=True)
    assert evaluate(run, data=data, part="all", quiet=True).support[0] > 0


def test_a_list_file_names_a_part(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("images/shape_01.png\nimages/shape_04.png\n")
    evaluate(run, part=str(tmp_path / "mine.txt"), quiet=True)
    assert record(run)["images"] == 2
    (tmp_path / "mine.txt").write_text("images/nowhere.png\n")
    with pytest.raises(DataError, match="nowhere"):
        evaluate(run, part=str(tmp_path / "mine.txt"), quiet=True)


def test_an_unknown_part_names_the_known_ones(run: Path) -> None:
    with pytest.raises(RecipeError, match="Did you mean `test`"):
        evaluate(run, part="tset", quiet=True)


def test_overrides_of_training_are_refused(run: Path) -> None:
    with pytest.raises(RecipeError, match="only eval"):
        evaluate(run, overrides=["optim.lr=1"], quiet=True)


def test_another_number_of_classes_is_one_clear_error(run: Path) -> None:
    task = Task("segmentation", ("background", "disc"))
    save_bundle(run, small_model(task), task)
    with pytest.raises(CheckpointError, match=r"predicts 2 classes .* have 3 .*--data"):
        evaluate(run, quiet=True)


def test_classes_in_another_order_are_refused(run: Path) -> None:
    task = Task("segmentation", ("disc", "background", "bar"))
    save_bundle(run, small_model(task), task)
    with pytest.raises(CheckpointError, match="another order"):
        evaluate(run, quiet=True)


def test_a_failed_evaluation_leaves_the_earlier_record(run: Path) -> None:
    evaluate(run, quiet=True)
    before = record(run)
    with pytest.raises(RecipeError):
        evaluate(run, overrides=["eval.mode=sliding"], quiet=True)
    assert record(run) == before


def test_a_data_recipe_without_root_is_refused(run: Path) -> None:
    (run / "recipe.yaml").write_text(
        load({"method": "supervised", "data": DataRecipe().model_dump(mode="json")}).to_yaml()
    )
    with pytest.raises(RecipeError, match="--data DIR"):
        evaluate(run, quiet=True)


def test_the_published_number_of_the_split_is_printed_beside_ours(run: Path) -> None:
    recipe = load(run / "recipe.yaml").model_dump(mode="json")
    assert published(run) is None
    recipe["expected"] = {"metric": "iou/disc", "value": {183: 0.875, "366": 0.9}, "source": "Paper, Table 1"}
    recipe["data"] |= {"split": 183, "splits": str(run / "lists"), "val": str(run / "lists" / "183" / "val.txt")}
    (run / "lists" / "183").mkdir(parents=True)
    (run / "lists" / "183" / "labeled.txt").write_text("shape_00\nshape_01\nshape_02\n")
    (run / "lists" / "183" / "val.txt").write_text("shape_03\nshape_04\n")
    (run / "recipe.yaml").write_text(load(recipe).to_yaml())
    found = published(run)
    assert found is not None
    assert (found.metric, found.value, found.split) == ("iou/disc", 0.875, "183")
    shown = CliRunner().invoke(app, ["evaluate", str(run), "-q"])
    assert shown.exit_code == 0, shown.output
    ours = 100 * record(run)["metrics"]["val/iou/disc"]
    last = shown.stdout.strip().splitlines()[-1]
    assert last == f"iou/disc {ours:.2f}   published with split 183: 87.50 (Paper, Table 1)"
    for changed in (["--part", "all"], ["--limit", "1"], ["data.split=null"]):
        assert "published with" not in CliRunner().invoke(app, ["evaluate", str(run), *changed, "-q"]).stdout
    recipe["data"]["split"] = "92"
    (run / "recipe.yaml").write_text(load(recipe).to_yaml())
    assert published(run) is None


def test_a_part_without_masks_names_the_others_also_the_held_out_one(tmp_path: Path) -> None:
    data = DataRecipe(root=str(write_dataset(tmp_path / "shapes")))
    for held_out, said in ((["images/shape_00.png"], r"--part val \(1\), "), (None, ""), (["images/gone.png"], "")):
        with pytest.raises(DataError, match=rf"What there is: {said}--part train \(6\), --part all \(6\); or name"):
            open_part(data, None, "test", held_out)
