"""Image pairs and labeled images: how folders and lists name them, what labels mean, and what reaches a method."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfmask.data.datasets.change_folder import ChangeFolder
from halfmask.data.datasets.folder import Folder
from halfmask.data.datasets.levir import LEVIR
from halfmask.data.datasets.whu import WHU
from halfmask.data.loading.loader import Source, to_batch, train_loader
from halfmask.data.splits.split import Split, open_dataset, part_ids, resolve_split, verify
from halfmask.errors import DataError, RecipeError
from halfmask.testing.datasets import check_dataset
from tests.data import trees
from tests.data.trees import recipe


def write_list(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path


# --- pairs ------------------------------------------------------------------------------------------------------


def test_the_earlier_image_comes_first(tmp_path):
    data = ChangeFolder(trees.change(tmp_path))
    pair = data.read_image("B/p_2.png")
    for date, folder in enumerate("AB"):
        assert np.array_equal(pair[date], np.asarray(Image.open(tmp_path / folder / "p_2.png")))
    copy = pickle.loads(pickle.dumps(data))
    assert np.array_equal(copy.read_image("B/p_2.png"), pair)


def test_one_earlier_image_serves_all_frames_of_a_fixed_camera(tmp_path):
    data = ChangeFolder(trees.change_parts_inside(tmp_path))
    assert data.ids("train") == ["B/train/bridge_0025.jpg", "B/train/bridge_0030.jpg"]
    assert {data.image_files(id)[0].name for id in data.ids("train")} == {"bridge.jpg"}
    assert data.image_files(data.ids("test")[1])[0].name == "hall.jpg"


def test_a_shared_earlier_image_means_one_light_unless_said_otherwise(tmp_path):
    fixed = trees.change_parts_inside(tmp_path / "fixed")
    trees.image(fixed / "B/train/bridge_0099.jpg")
    assert ChangeFolder(fixed).task.same_light
    assert any("fixed camera" in note for note in ChangeFolder(fixed).notes)
    satellite = trees.change(tmp_path / "satellite")
    assert not ChangeFolder(satellite).task.same_light
    (satellite / "halfmask.yaml").write_text("same_light: true")
    assert ChangeFolder(satellite).task.same_light
    (fixed / "halfmask.yaml").write_text("same_light: false")
    assert not ChangeFolder(fixed).task.same_light
    assert not any("fixed camera" in note for note in ChangeFolder(fixed).notes)


def test_single_images_have_no_common_light(tmp_path):
    trees.image(tmp_path / "images/a.png")
    (tmp_path / "halfmask.yaml").write_text("same_light: false")
    with pytest.raises(DataError, match=r"halfmask.yaml; pairs are read with data.dataset=change_folder") as caught:
        Folder(tmp_path)
    assert caught.value.code == "H209"


def test_the_longest_name_that_a_frame_continues_is_its_earlier_image(tmp_path):
    for name in ("A/cam.png", "A/cam_2.png", "B/cam_2_7.png", "B/cam_21.png"):
        trees.image(tmp_path / name)
    data = ChangeFolder(tmp_path)
    assert data.image_files("B/cam_2_7.png")[0].name == "cam_2.png"
    assert data.image_files("B/cam_21.png")[0].name == "cam.png"


@pytest.mark.parametrize("folder", ["list", "splits", "."])
def test_lists_in_the_root_divide_a_flat_folder(folder, tmp_path):
    data = WHU(trees.change_lists(tmp_path, folder) if folder != "." else _lists_in_root(tmp_path))
    assert data.ids("train") == ["B/n_00000.png", "B/n_00001.png", "B/n_00003.png"]
    assert data.ids("val") == ["B/n_00002.png"]
    assert data.ids("test") == ["B/n_00004.png"]  # n_00005 is on no list: not used


def _lists_in_root(root: Path) -> Path:
    trees.change_lists(root)
    for path in (root / "list").iterdir():
        path.rename(root / path.name)
    (root / "list").rmdir()
    return root


def test_levir_tiles_without_lists_are_told_apart_by_their_names(tmp_path):
    data = LEVIR(trees.levir(tmp_path))
    assert [len(data.ids(part)) for part in ("train", "val", "test")] == [3, 1, 1]


def test_a_later_image_without_an_earlier_one_is_named(tmp_path):
    trees.image(trees.change(tmp_path) / "B/alone.png")
    with pytest.raises(DataError, match=r"1 later images have no earlier one(.|\n)*B/alone\.png"):
        ChangeFolder(tmp_path)


def test_a_listed_pair_that_is_not_there_is_named(tmp_path):
    write_list(trees.change(tmp_path) / "list/train.txt", "p_1.png", "p_9.png")
    with pytest.raises(DataError, match=r"1 listed pairs are not there(.|\n)*p_9\.png"):
        LEVIR(tmp_path)


def test_another_layout_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"expected A/, B/ and label/.*found images, masks.*data\.dataset=folder"):
        ChangeFolder(trees.folder(tmp_path))


def test_dates_of_different_size_are_refused_before_training(tmp_path):
    trees.image(trees.change(tmp_path) / "A/p_2.png", (5, 9))
    data = ChangeFolder(tmp_path)
    ids = data.ids("train")
    for split in (Split(tuple(ids), (), ()), Split((ids[0],), (), tuple(ids[1:]))):
        with pytest.raises(DataError, match=r"p_2\.png is 9x5 but .*p_2\.png is 8x6: both dates must show the same"):
            verify(data, split)


# --- what labels mean -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected", "noted"),
    [((0, 255), {0, 1}, True), ((0, 1), {0, 1}, False), ((0, 1, 255), {0, 1, 255}, False)],
)
def test_255_means_changed_only_where_nothing_else_does(values, expected, noted, tmp_path):
    data = ChangeFolder(trees.change(tmp_path, values=values))
    assert set(np.unique(data.read_target("B/p_1.png"))) == expected
    warnings = verify(data, Split(tuple(data.ids("train")), (), ()))
    assert any("255 is read as 'changed'" in text for text in warnings) == noted


def test_the_user_decides_what_255_means(tmp_path):
    unknown = ChangeFolder(trees.change(tmp_path), binary=False)
    assert set(np.unique(unknown.read_target("B/p_1.png"))) == {0, 255}
    assert unknown.notes == ()
    assert ChangeFolder(tmp_path, binary=True).notes == ()


def test_labels_of_unlabeled_pairs_do_not_decide_what_255_means(tmp_path):
    trees.change(tmp_path, values=(0, 255))
    trees.mask(tmp_path / "label/p_3.png", (0, 1, 255))
    data = ChangeFolder(tmp_path)
    data.sealed = frozenset({"B/p_3.png"})
    assert set(np.unique(data.read_target("B/p_1.png"))) == {0, 1}


@pytest.mark.parametrize("cls", [LEVIR, WHU])
def test_public_sets_know_that_255_is_changed(cls, tmp_path):
    data = cls(trees.change(tmp_path))
    assert set(np.unique(data.read_target("B/p_1.png"))) == {0, 1}
    assert data.task.kind == "change"
    assert data.task.classes == ("unchanged", "changed")


# --- lists ------------------------------------------------------------------------------------------------------

FORMS = {
    "bare names": "p_1.jpg",
    "bare stems": "p_1",
    "the later image": "B/p_1.png",
    "the earlier image": "A/p_1.png",
    "both dates": "A/p_1.png B/p_1.png",
    "name and label": "p_1.png label/p_1.png",
    "three columns": "A/p_1.png B/p_1.png label/p_1.png",
    "another machine's root": "/data/LEVIR/A/p_1.png /data/LEVIR/B/p_1.png /data/LEVIR/label/p_1.png",
}


@pytest.mark.parametrize("line", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_a_line_finds_the_pair(line, tmp_path):
    root = trees.change(tmp_path / "data")
    listed = write_list(tmp_path / "labeled.txt", line)
    keys = recipe(root, labeled=str(listed), val="none")
    data = open_dataset(keys)
    split = resolve_split(keys, data)
    assert split.labeled == ("B/p_1.png",)
    assert split.unlabeled == ("B/p_2.png", "B/p_3.png")
    assert data.image_files("B/p_1.png")[0] == root / "A/p_1.png"


def test_a_line_chooses_another_earlier_image_and_another_label(tmp_path):
    root = trees.change(tmp_path / "data")
    trees.image(root / "other/early.png", seed=77)
    trees.mask(root / "other/label.png", (255,))
    listed = write_list(tmp_path / "labeled.txt", "other/early.png B/p_1.png other/label.png")
    keys = recipe(root, labeled=str(listed), val="none")
    data = open_dataset(keys)
    resolve_split(keys, data)
    assert np.array_equal(data.read_image("B/p_1.png")[0], np.asarray(Image.open(root / "other/early.png")))
    assert set(np.unique(data.read_target("B/p_1.png"))) == {1}


def test_percent_and_pct_name_the_same_split_and_its_test_list_is_found(tmp_path):
    root = trees.change(tmp_path / "data", [f"n_{number}" for number in range(6)])
    lists = tmp_path / "splits/whu"
    write_list(lists / "20%/labeled.txt", "n_0.png")
    write_list(lists / "20%/unlabeled.txt", "n_1.png", "n_2.png")
    write_list(lists / "val.txt", "n_3.png")
    write_list(lists / "test.txt", "n_4.png", "n_5.png")
    keys = recipe(root, "whu", splits=str(tmp_path / "splits"), split="20pct")
    data = open_dataset(keys)
    split = resolve_split(keys, data)
    assert (split.labeled, split.val) == (("B/n_0.png",), ("B/n_3.png",))
    assert split.unlabeled == ("B/n_1.png", "B/n_2.png")
    assert part_ids(keys, data, "test") == ("B/n_4.png", "B/n_5.png")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [("levir", "5%", (356, 6764, 1024, 2048)), ("whu", "40pct", (2378, 3569, 743, 744))],
)
def test_published_lists_resolve_on_a_full_size_tree(name, split, counts, shared, tmp_path):
    lists = shared / "data/splits" / name
    names = {line for part in ("train", "val", "test") for line in (lists / f"{part}.txt").read_text().split()}
    for folder in ("A", "B", "label"):
        (tmp_path / folder).mkdir()
        for one in names:
            (tmp_path / folder / one).touch()
    keys = recipe(tmp_path, name, splits=str(shared / "data/splits"), split=split)
    data = open_dataset(keys)
    found = resolve_split(keys, data)
    sizes = (len(found.labeled), len(found.unlabeled), len(found.val), len(part_ids(keys, data, "test")))
    assert sizes == counts


def test_unlabeled_single_images_do_not_mix_with_pairs(tmp_path):
    trees.change(tmp_path / "pairs")
    trees.folder(tmp_path / "single")
    keys = recipe(tmp_path / "pairs", unlabeled={"root": str(tmp_path / "single")}, val="none")
    with pytest.raises(RecipeError, match=r"pairs of dates.*unlabeled\.dataset=change_folder"):
        resolve_split(keys, open_dataset(keys))


# --- to the method ----------------------------------------------------------------------------------------------


def test_geometry_is_shared_by_both_dates_and_the_label(tmp_path):
    """Both dates show their label's pattern, the earlier one in red, the later one in blue."""
    rng = np.random.default_rng(0)
    for number in range(4):
        target = np.kron(rng.integers(0, 2, (5, 6)), np.ones((8, 8))).astype(np.uint8)
        for folder, band in (("A", 0), ("B", 2)):
            pixels = np.zeros((*target.shape, 3), dtype=np.uint8)
            pixels[..., band] = 200 * target
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
        trees.mask(tmp_path / f"label/{number}.png", target.ravel() * 255, target.shape)
    data = ChangeFolder(tmp_path)
    ids = tuple(data.ids("train"))
    keys = recipe(tmp_path, crop=32, scale=(1, 1), pad="black", workers=0, batch={"labeled": 4, "unlabeled": 2})
    loader = train_loader(Source(keys, data, None, Split(ids[:2], ids[2:], ())))
    loader.steps.start, loader.steps.stop = 0, 5
    for host in loader:
        batch = to_batch(host, "cpu", data.task)
        assert batch.unlabeled.image.shape == (2, 2, 3, 32, 32)
        image, target = batch.labeled.image, batch.labeled.labels
        assert image.shape == (4, 2, 3, 32, 32)
        shown = torch.where(batch.labeled.valid, target, 0) * (200 / 255)
        torch.testing.assert_close(image[:, 0, 0], shown)
        torch.testing.assert_close(image[:, 1, 2], shown)
        assert image[:, 0, 1:].abs().max() == 0
    cached = train_loader(
        Source(keys.model_copy(update={"cache": "memmap"}), data, None, Split(ids[:2], ids[2:], ())),
        cache=tmp_path / "c",
    )
    again, plain = next(iter(cached)), next(iter(train_loader(Source(keys, data, None, Split(ids[:2], ids[2:], ())))))
    assert torch.equal(again.streams[0].image, plain.streams[0].image)


# --- real pairs -------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_fixed_camera_pairs_have_their_published_counts_and_shares(shared):
    data = check_dataset(ChangeFolder, shared / "data/change_sbi", limit=3)
    assert [len(data.ids(part)) for part in ("train", "val", "test")] == [108, 18, 78]
    pixels = sum(np.bincount(data.read_target(id).ravel(), minlength=256) for id in data.ids("val"))
    assert 100 * pixels[1] / pixels[:2].sum() == pytest.approx(2.37, abs=0.006)
    assert pixels[255] > 0
    keys = recipe(data.root, split="1_8_seed2")
    split = resolve_split(keys, data)
    assert (len(split.labeled), len(split.unlabeled), len(split.val)) == (14, 94, 18)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "share"), [("levir", 15.4), ("dsifn", 27.1)])
def test_remote_sensing_samples_are_read(name, share, shared):
    root = shared / "data/change_samples" / name
    for cls in (LEVIR, ChangeFolder):
        data = check_dataset(cls, root)
        ids = [id for part in ("train", "test") for id in data.ids(part)]
        assert len(ids) == len(list((root / "label").iterdir()))
        pixels = sum(np.bincount(data.read_target(id).ravel(), minlength=256) for id in ids)
        assert pixels[2:].sum() == 0
        assert 100 * pixels[1] / pixels.sum() == pytest.approx(share, abs=0.06)


@pytest.mark.shared
def test_a_multi_band_pair_with_sparse_labels_is_read(shared, tmp_path):
    source = shared / "data/change_samples/taizhou"
    for target, name in (("A/tm.npy", "tm2000.npy"), ("B/tm.npy", "tm2003.npy"), ("label/tm.png", "label.png")):
        (tmp_path / target).parent.mkdir()
        (tmp_path / target).symlink_to(source / name)
    data = check_dataset(ChangeFolder, tmp_path, bands=6)
    pair = data.read_image("B/tm.npy")
    assert np.array_equal(pair[1], np.load(source / "tm2003.npy").transpose(1, 2, 0))
    pixels = np.bincount(data.read_target("B/tm.npy").ravel(), minlength=256)
    assert 100 * pixels[:2].sum() / pixels.sum() == pytest.approx(13.4, abs=0.06)
    assert 100 * pixels[1] / pixels[:2].sum() == pytest.approx(19.8, abs=0.06)
