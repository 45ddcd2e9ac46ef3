"""Image-level labels and pseudo-masks: files, both stages, resume, real images, hidden masks, and bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from halfmask.data.loading.loader import to_batch
from halfmask.data.loading.streams import ImageStream, PseudoStream
from halfmask.data.splits.weak import read_tags
from halfmask.errors import DataError, HalfmaskError, RecipeError
from halfmask.infer.bundle import load_bundle
from halfmask.methods.cct import CCT
from halfmask.recipe.read import Recipe, load
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.prepare import prepare
from halfmask.run.prepared import loader_maker
from halfmask.task import Task
from tests.run.tiny import failing_at, recipe, write_dataset

STAGE = (
    "data.weak.stage={optim.name: adamw, optim.lr: 0.001, optim.decoder_lr_scale: 1.0, run.steps: 3, "
    "run.epochs: null, method.scales: [1.0]}"
)
TASK = Task("segmentation", ("background", "disc", "fire hydrant"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_dataset(tmp_path_factory.mktemp("weak") / "shapes")
    with (root / "classes.txt").open() as file:
        assert "disc" in file.read()
    (root / "halfmask.yaml").write_text("foreground: [disc, bar]\nclasses: {0: background, 1: disc, 2: bar}\n")
    lines = [f"shape_{number:02d}.png,background disc{' bar' if number % 2 else ''}" for number in range(6, 10)]
    (root / "tags.csv").write_text("\n".join(["image,classes", *lines]) + "\n")
    return root


def tagged(root: Path, *overrides: str, method: str = "cct", **params: Any) -> Recipe:
    params = params or ({"heads": {"dropout": 1, "con_msk": 1}} if method == "cct" else {})
    return recipe(root, "data.weak={tags: tags.csv}", STAGE, "run.steps=4", *overrides, method=method, **params)


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tags"
    fit(tagged(root), out, quiet=True)
    return out


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_tags_become_masks_and_masks_reach_the_auxiliary_decoders(finished: Path, root: Path) -> None:
    masks = sorted((finished / "cam" / "pseudo_masks").rglob("*.png"))
    assert [path.stem for path in masks] == [f"shape_{number:02d}" for number in range(6, 10)]
    for path in masks:
        stored = Image.open(path)
        assert stored.mode == "P"
        assert stored.size == Image.open(root / "images" / path.name).size
        shown = {0, 1, 2, 255} if int(path.stem[-1]) % 2 else {0, 1, 255}
        assert set(np.unique(np.asarray(stored)).tolist()) <= shown
    assert any("train/loss_tags" in record for record in records(finished / "cam"))
    assert any("train/loss_weak" in record for record in records(finished / "cct"))
    assert load_bundle(finished).folder == finished / "cct"
    assert load(finished / "cct" / "recipe.yaml").data.weak.masks == str(finished / "cam" / "pseudo_masks")


def test_the_same_run_gives_the_same_masks_and_weights(finished: Path, root: Path, tmp_path: Path) -> None:
    fit(tagged(root), tmp_path / "again", quiet=True)
    for path in (finished / "cam" / "pseudo_masks").rglob("*.png"):
        other = tmp_path / "again" / path.relative_to(finished)
        assert path.read_bytes() == other.read_bytes()
    one, two = (read_checkpoint(run / "cct/checkpoints/last.ckpt") for run in (finished, tmp_path / "again"))
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())


def test_interrupted_in_the_second_stage_and_resumed_equals_unbroken(
    finished: Path, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "broken"
    with failing_at(CCT, 3, KeyboardInterrupt()), pytest.raises((KeyboardInterrupt, SystemExit, HalfmaskError)):
        fit(tagged(root), out, quiet=True)
    stamp = {path: path.stat().st_mtime_ns for path in (out / "cam" / "pseudo_masks").rglob("*.png")}
    fit(None, out, resume=True, quiet=True)
    assert stamp == {path: path.stat().st_mtime_ns for path in stamp}  # not labeled again
    one, two = (read_checkpoint(run / "cct/checkpoints/last.ckpt") for run in (finished, out))
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())


def test_overwriting_a_run_labels_anew(root: Path, tmp_path: Path) -> None:
    fit(tagged(root), tmp_path / "run", quiet=True)
    stray = tmp_path / "run" / "cam" / "pseudo_masks" / "stray.png"
    stray.write_bytes(b"")
    fit(tagged(root), tmp_path / "run", overwrite=True, quiet=True)
    assert not stray.exists()


def first_batch(made: Recipe, folder: Path) -> Any:
    prepared = prepare(made)
    loader = loader_maker(prepared, folder)(0, 1, 0, 1)
    return prepared, loader, to_batch(next(iter(loader)), "cpu", prepared.dataset.task)


def test_masks_of_any_source_are_cut_like_their_images(root: Path, tmp_path: Path) -> None:
    for number in range(6, 9):  # the last image has none
        with Image.open(root / "images" / f"shape_{number:02d}.png") as image:
            red = (np.asarray(image)[..., 0] > 100).astype(np.uint8)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(red).save(tmp_path / "masks" / f"shape_{number:02d}.png")
    made = tagged(root, f"data.weak={{masks: {tmp_path / 'masks'}}}", "data.scale=[1.0, 1.0]", "data.batch.unlabeled=4")
    prepared, _, batch = first_batch(made, tmp_path)
    assert any("1 of 4 unlabeled images have no pseudo-mask" in text for text in prepared.warnings)
    assert batch.unlabeled.tags is None
    for image, target, valid, index in zip(
        batch.unlabeled.image, batch.unlabeled.target, batch.unlabeled.valid, batch.unlabeled.index, strict=True
    ):
        if prepared.split.unlabeled[index].endswith("09.png"):
            assert (target == 255).all()
        else:
            assert torch.equal(target[valid], (image[0][valid] > 100 / 255).long())
            assert (target[~valid] == 255).all()
    fit(made, tmp_path / "run", quiet=True)
    assert any("train/loss_weak" in record for record in records(tmp_path / "run"))


def test_the_ordinary_unlabeled_stream_opens_no_mask(root: Path, tmp_path: Path) -> None:
    _, plain, batch = first_batch(recipe(root, method="fixmatch"), tmp_path)
    assert isinstance(plain.dataset.streams[1], ImageStream)
    assert batch.unlabeled.target is None
    assert batch.unlabeled.tags is None
    made = tagged(root, "method={name: cam}")
    _, loader, batch = first_batch(made, tmp_path)
    assert isinstance(loader.dataset.streams[1], ImageStream)
    assert batch.unlabeled.target is None
    assert batch.unlabeled.tags.tolist() == [
        [True, True, bool(6 + index) and (6 + int(index)) % 2 == 1] for index in batch.unlabeled.index
    ]
    assert not hasattr(PseudoStream, "dataset")


# --- tag files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image,classes\na.jpg,background disc\nb c.jpg,fire hydrant\n"),
        ("a.csv", 'a.jpg,"background,disc"\n"b c.jpg",fire hydrant\n'),
        ("a.csv", "a.jpg,background,disc\nb c.jpg,fire hydrant,\n"),
        ("a.csv", "a.jpg,0 1\nb c.jpg,2\n"),
        ("a.txt", "a.jpg\tbackground,disc\nb c.jpg\tFire Hydrant\n"),
        ("a.txt", "# comment\nimage\tclasses\n./a.jpg\tbackground; disc\r\n/b c.jpg\tfire hydrant"),
    ],
)
def test_tag_files_of_every_form(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_tags(tmp_path / name, TASK) == {"a.jpg": (0, 1), "b c.jpg": (2,)}


def test_all_problems_of_a_tag_file_come_together(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a.jpg,disk\nb.jpg,disc\nb.jpg,disc\nc.jpg,9\n")
    with pytest.raises(DataError) as caught:
        read_tags(tmp_path / "a.csv", TASK)
    text = str(caught.value)
    assert "'disk' (a.jpg) is no class. Did you mean `disc`?" in text
    assert "b.jpg is tagged twice" in text
    assert "'9' (c.jpg) is no class" in text
    assert "background, disc, fire hydrant" in text
    with pytest.raises(DataError, match="no such file"):
        read_tags(tmp_path / "none.csv", TASK)
    (tmp_path / "b.csv").write_text("image,classes\n")
    with pytest.raises(DataError, match="no image is tagged"):
        read_tags(tmp_path / "b.csv", TASK)


def refused(made: Recipe, out: Path) -> str:
    with pytest.raises(HalfmaskError) as caught:
        fit(made, out, quiet=True)
    return str(caught.value)


def test_images_that_a_tag_file_lacks_or_has_too_many(root: Path, tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("shape_06.png,disc\n")
    text = refused(tagged(root, f"data.weak.tags={tmp_path / 'few.csv'}"), tmp_path / "a")
    assert "3 of 4 unlabeled images have no tags" in text
    assert "data.weak.partial=true" in text
    partial = prepare(
        tagged(root, f"data.weak.tags={tmp_path / 'few.csv'}", "data.weak.partial=true", "method={name: cam}")
    )
    assert partial.weak.tags.sum(1).tolist() == [1, 0, 0, 0]
    assert any("3 of 4" in text for text in partial.warnings)
    (tmp_path / "many.csv").write_text((root / "tags.csv").read_text() + "gone.png,disc\n")
    text = refused(tagged(root, f"data.weak.tags={tmp_path / 'many.csv'}"), tmp_path / "b")
    assert "1 tagged images are not below" in text
    assert "gone.png" in text
    (tmp_path / "odd.csv").write_text("shape_06.png,disc\nshape_07.png,dics\n")
    text = refused(tagged(root, f"data.weak.tags={tmp_path / 'odd.csv'}"), tmp_path / "c")
    assert "'dics' (shape_07.png) is no class" in text
    # Nothing was written: the same command works once the file is mended.
    assert not any((tmp_path / name).exists() for name in "abc")


def test_two_tag_files_are_joined_unless_they_contradict(root: Path, tmp_path: Path) -> None:
    lines = (root / "tags.csv").read_text().splitlines()[1:]
    (tmp_path / "one.csv").write_text("\n".join(lines[:2]))
    (tmp_path / "two.csv").write_text("\n".join(lines[1:]))
    files = f"data.weak.tags=[{tmp_path / 'one.csv'}, {tmp_path / 'two.csv'}]"
    whole = prepare(tagged(root, "method={name: cam}")).weak.tags
    assert np.array_equal(prepare(tagged(root, files, "method={name: cam}")).weak.tags, whole)
    (tmp_path / "two.csv").write_text("\n".join([lines[1].replace("disc", "bar"), *lines[2:]]))
    assert "other tags in another file" in refused(tagged(root, files), tmp_path / "a")


def test_masks_that_cannot_be_used(root: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    weak = f"data.weak={{masks: {tmp_path / 'masks'}}}"
    assert "no unlabeled image has a pseudo-mask" in refused(tagged(root, weak), tmp_path / "a")
    for number in range(6, 10):
        Image.fromarray(np.full((48, 56), 7, np.uint8)).save(tmp_path / "masks" / f"shape_{number:02d}.png")
    text = refused(tagged(root, weak), tmp_path / "b")
    assert text.count("[H203]") == 4
    assert "7 (2688 px)" in text
    for number in range(6, 10):
        Image.fromarray(np.full((20, 20), 1, np.uint8)).save(tmp_path / "masks" / f"shape_{number:02d}.png")
    text = refused(tagged(root, weak), tmp_path / "c")
    assert text.count("[H202]") == 4
    assert "20x20" in text
    for number in range(6, 10):
        Image.fromarray(np.full((48, 56), 2, np.uint8)).save(tmp_path / "masks" / f"shape_{number:02d}.png")
    (tmp_path / "masks" / "shape_08.png").unlink()  # all of it is unknown
    for _ in range(2):  # looked at, then remembered
        assert prepare(tagged(root, weak)).weak.masks is not None
    (tmp_path / "masks" / "shape_09.png").write_bytes(b"cut")
    assert refused(tagged(root, weak), tmp_path / "d").count("[H201]") == 1
    # Nothing was written: the same command works once the masks are mended.
    assert not any((tmp_path / name).exists() for name in "abcd")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("method={name: fixmatch}",), "method fixmatch uses no weak labels"),
        (("method={name: cam}", "data.weak={masks: x}"), "uses only data.weak.tags"),
        (("data.weak={tags: null}",), "neither tags nor masks"),
        (("data.weak.stage={run.stps: 3}",), "run.stps is not a parameter"),
        (("data.weak.stage={method.hihg: 0.3}",), "Did you mean `high`"),
        (("data.weak.stage={method: fixmatch}",), "cannot change method"),
    ],
)
def test_weak_labels_need_a_method_that_uses_them(
    root: Path, tmp_path: Path, overrides: tuple[str, ...], text: str
) -> None:
    assert text in refused(tagged(root, *overrides), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"data\.weak\.tag is not a parameter"):
        tagged(root, "data.weak={tag: x}")


def test_clothes_are_learned_from_human_tags(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "clothing_weak"
    data = tmp_path / "clothes"
    for folder in ("images/train", "masks/train", "images/test", "masks/test", "images/weak"):
        (data / folder).mkdir(parents=True)
        for path in sorted((source / folder).iterdir())[:6]:
            shutil.copy(path, data / folder)
    shutil.copy(source / "classes.txt", data)
    kept = {f"images/weak/{path.name}" for path in (data / "images/weak").iterdir()}
    lines = (source / "tags_weak.csv").read_text().splitlines()
    (data / "tags_weak.csv").write_text("\n".join([lines[0], *(x for x in lines[1:] if x.split(",")[0] in kept)]))
    made = tagged(
        data, "data.weak.tags=tags_weak.csv", "data.val=none", "data.crop=64", "run.steps=2",
        "data.dataset={name: folder, foreground: [top, bag, hair]}",
    )  # fmt: skip
    fit(made, tmp_path / "run", quiet=True)
    masks = sorted((tmp_path / "run/cam/pseudo_masks/images/weak").iterdir())
    assert {f"images/weak/{path.stem}.jpg" for path in masks} == kept
    names = [line.split("\t")[1] for line in (data / "classes.txt").read_text().splitlines()]
    tags = dict(line.split(",") for line in lines[1:])
    for path in masks:
        shown = {names.index(name) for name in tags[f"images/weak/{path.stem}.jpg"].split()}
        assert set(np.unique(np.asarray(Image.open(path))).tolist()) <= {0, 255} | shown
