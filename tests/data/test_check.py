"""The facts and rules of `halfmask check`, one by one; whole folders: tests/cli/test_check.py."""

import numpy as np
import pytest
from PIL import Image

from halfmask.codes import CODES
from halfmask.data.check import judge, take_fingerprint
from halfmask.data.check.check import check
from halfmask.data.check.class_rules import count_classes
from halfmask.data.check.file_facts import count_colors, look_at_image, look_at_mask
from halfmask.data.check.near_duplicates import find_near_duplicates, hashes
from halfmask.data.check.part_rules import uncertainty
from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.masks import decode as masks
from halfmask.data.folder.masks.decode import count_values
from halfmask.recipe.read import load
from tests.data import trees
from tests.data.broken import NAMED, H, W, good, ids, picture, save


def fingerprint(root, **keys):
    return take_fingerprint(load(None, {"data.root": str(root), **keys}).data)


def codes(root, **keys):
    return {finding.code: finding for finding in judge(str(root), fingerprint(root, **keys)).findings}


# --- twins -------------------------------------------------------------------------------------------------------


def thumb(image):
    return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX))


def test_recompressed_resized_and_brightened_images_are_twins_and_others_are_not(tmp_path):
    originals = [picture(seed, (200, 240)) for seed in range(30)]
    copies = []
    for number, image in enumerate(originals):
        path = tmp_path / f"{number}.jpg"
        image.resize((150, 130)).save(path, quality=30)
        copies.append(Image.open(path).point(lambda value: min(255, value + 2)))
    thumbs = np.stack([thumb(image) for image in [*originals, *copies]])
    groups = np.repeat([0, 1], 30)
    found = find_near_duplicates(thumbs, groups, [(1, 0), (0, 0)])
    assert [(first - 30, second) for first, second in found[1, 0]] == [(n, n) for n in range(30)]
    assert found[0, 0] == []


def test_the_hash_is_the_sign_pattern_of_an_independent_cosine_transform():
    fft = pytest.importorskip("scipy.fft")
    thumbs = np.stack([thumb(picture(seed)) for seed in range(20)])
    for code, gray in zip(hashes(thumbs), thumbs, strict=True):
        low = fft.dctn(gray.astype(np.float64))[:8, :8].ravel()
        # Another scale of the transform's first row and column would move the median.
        low = low.reshape(8, 8) / 4
        bits = low.ravel() > np.median(low.ravel()[1:])
        theirs = np.packbits(bits).view(np.uint64)[0]
        assert np.bitwise_count(code ^ theirs) <= 2  # float32 at the median


def test_images_without_structure_are_nobodys_near_duplicates():
    flat = np.full((4, 32, 32), 7, dtype=np.uint8)
    assert find_near_duplicates(flat, np.array([0, 0, 1, 1]), [(1, 0), (0, 0)]) == {(1, 0): [], (0, 0): []}


def test_each_copy_within_a_part_counts_once():
    thumbs = np.stack([thumb(picture(seed)) for seed in (1, 2, 1, 1)])
    assert find_near_duplicates(thumbs, np.zeros(4, np.int64), [(0, 0)])[0, 0] == [(2, 0), (3, 0)]


def test_leakage_is_found_between_all_parts(tmp_path):
    good(tmp_path, yaml=NAMED)
    picture(9).save(tmp_path / "images/val/v_0.png")  # an unlabeled image of the training part
    save(tmp_path / "images/test/t.png", picture(3))
    save(tmp_path / "masks/test/t.png", ids())
    found = [f for f in judge("", fingerprint(tmp_path)).findings if f.code == "H130"]
    assert {finding.message.partition(":")[0] for finding in found} == {
        "1 val image nearly the same as an unlabeled one",
        "1 test image nearly the same as a labeled one",
    }


# --- what is told -------------------------------------------------------------------------------------------------


def test_all_files_of_a_finding_are_told(tmp_path):
    good(tmp_path, yaml=NAMED)
    broken = [f"images/train/x_{number:02}.png" for number in range(12)]
    for name in broken:
        (tmp_path / name).write_bytes(b"no image")
    report = judge("", fingerprint(tmp_path))
    (finding,) = [finding for finding in report.to_dict()["findings"] if finding["code"] == "H201"]
    assert finding["files"] == broken
    told = " ".join(str(report).split())
    assert f"{', '.join(broken[:10])} and 2 more (--json lists all) fix:" in told
    assert "1 error: mend it first" in told


def test_findings_speak_in_plain_words(tmp_path):
    good(tmp_path, yaml=f"{NAMED}range: [0, 4095]\n")
    save(tmp_path / "images/train/deep.png", np.arange(H * W, dtype=np.uint16).reshape(H, W))
    for number, mode in enumerate(("L", "P", "RGBA", "1")):
        save(tmp_path / f"images/train/{mode}.png", picture(40 + number).convert(mode))
    exif = Image.Exif()
    exif[0x0112] = 3
    save(tmp_path / "images/train/turned.png", picture(50), exif=exif)
    told = " ".join(str(judge("", fingerprint(tmp_path))).split())
    assert "and 2 more kinds" in told
    assert "16-bit gray (1 image)" in told
    assert "1 image carries an EXIF rotation" in told


# --- facts -------------------------------------------------------------------------------------------------------


def test_counts_of_values_and_colors():
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 256, (9, 7), dtype=np.uint8), rng.integers(0, 900, (9, 7)).astype(np.uint16)):
        expected = dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True))
        assert count_values(values) == expected
    colors = rng.integers(0, 2, (9, 7, 3), dtype=np.uint8)
    counted = count_colors(colors)
    assert sum(counted.values()) == 63
    assert counted[1, 0, 1] == ((colors == [1, 0, 1]).all(axis=2)).sum()
    assert list(counted.values()) == sorted(counted.values(), reverse=True)
    many = np.arange(200 * 100 * 3, dtype=np.uint32).reshape(200, 100, 3) % 251
    assert len(count_colors(many.astype(np.uint8))) <= 1 << 14


KINDS = {
    ".png": ("1", "L", "LA", "P", "RGB", "RGBA"),
    ".jpg": ("L", "RGB", "CMYK"),
    ".bmp": ("1", "L", "P", "RGB", "RGBA"),
    ".gif": ("1", "L", "P", "RGB"),
    ".webp": ("L", "RGB", "RGBA"),
    ".tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"),
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in KINDS.items() for mode in modes])
def test_every_common_kind_of_image_is_accepted_as_in_training(mode, suffix, tmp_path):
    save(tmp_path / f"images/a{suffix}", picture(1, (70, 90)).convert(mode))
    save(tmp_path / "masks/a.png", ids(size=(70, 90)))
    dataset = Folder(tmp_path)
    facts = look_at_image(dataset, f"images/a{suffix}")
    assert facts.error is None
    assert facts.header.upright == dataset.read_image(f"images/a{suffix}").shape[:2]
    assert facts.thumb.shape == (32, 32)
    assert abs(facts.thumb.mean() - np.asarray(picture(1).convert("L")).mean()) < 25 or mode == "1"


def test_thumbnails_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    half = np.zeros((60, 80, 3), np.uint8)
    half[:, 40:] = 250
    save(tmp_path / "images/a.jpg", half, exif=exif)
    facts = look_at_image(Folder(tmp_path), "images/a.jpg")
    assert facts.header.upright == (80, 60)
    assert facts.thumb[:12].max() < 60 < 200 < facts.thumb[20:].min()


def test_masks_of_images_that_lists_use_without_labels_stay_closed(tmp_path, monkeypatch):
    good(tmp_path, yaml=NAMED)
    (tmp_path / "some.txt").write_text("images/train/im_0.png\nimages/train/im_1.png\n")
    opened = []
    original = masks.read_stored

    def record(path):
        opened.append(path.name)
        return original(path)

    monkeypatch.setattr("halfmask.data.check.file_facts.read_stored", record)
    monkeypatch.setattr("halfmask.data.datasets.folder.read_stored", record)
    seen = fingerprint(tmp_path, **{"data.labeled": "some.txt"})
    assert len(seen.parts["unlabeled"]) == 10
    assert {name for name in opened if name.startswith("im")} == {"im_0.png", "im_1.png"}


def test_class_shares_are_those_of_the_pixels(tmp_path):
    good(tmp_path, (0, 1), labeled=3, yaml=NAMED)
    speck = ids((0, 1, 255, 255))
    speck[:3, :2] = 2
    save(tmp_path / "masks/train/im_2.png", speck)
    counts = count_classes(fingerprint(tmp_path))
    expected = np.zeros(3)
    for path in sorted((tmp_path / "masks/train").iterdir()):
        values = np.asarray(Image.open(path))
        expected += [(values == id).sum() for id in range(3)]
    assert [count.pixels for count in counts] == expected.tolist()
    assert [count.share for count in counts] == pytest.approx(expected / expected.sum())
    assert [count.masks for count in counts] == [3, 3, 1]
    assert counts[2].example == "images/train/im_2.png"


def test_color_masks_are_counted_by_their_table(tmp_path):
    good(tmp_path, yaml="palette: {0: '#3c1098', 1: '#8429f6', 2: '#50e3c2', 255: '#000000'}\n" + NAMED)
    table = np.array([(60, 16, 152), (132, 41, 246), (80, 227, 194), (0, 0, 0)], np.uint8)
    for path in tmp_path.glob("masks/*/*.png"):
        save(path, table[ids((0, 1, 2, 3))])
    seen = fingerprint(tmp_path)
    assert [count.pixels for count in count_classes(seen)] == [6 * H * W / 4] * 3
    assert codes(tmp_path).keys() == set()


def test_uncertainty_halves_with_four_times_the_images():
    assert uncertainty(40) == pytest.approx(uncertainty(10) / 2)
    assert uncertainty(9) == pytest.approx(1.96 * 15 / 3)


def test_validation_is_held_out_as_training_does_it(tmp_path):
    for number in range(10):
        save(tmp_path / f"images/{number}.png", picture(number))
        save(tmp_path / f"masks/{number}.png", ids())
    (tmp_path / "halfmask.yaml").write_text(NAMED)
    assert "2 of 10 labeled images will be held out" in codes(tmp_path)["H140"].message
    assert "+-21 points" in codes(tmp_path)["H140"].message
    assert "train with --folds 5, which scores all 10 labeled images" in codes(tmp_path)["H140"].cure


# --- other datasets, the Python twin ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "name"),
    [(trees.pascal, "voc"), (trees.cityscapes, "cityscapes"), (trees.ade20k, "ade20k")],
)
def test_public_layouts_are_recognized_and_their_values_known(build, name, tmp_path):
    build(tmp_path)
    report = check(tmp_path)
    assert report.to_dict()["layout"]["name"] == name
    assert [finding.code for finding in report.findings if finding.level == "error"] == []


@pytest.mark.parametrize("png", [True, False])
def test_coco_json_and_png_are_checked(png, tmp_path):
    trees.coco(tmp_path, png=png)
    report = check(tmp_path, overrides=["data.dataset=coco"] if png else [])
    assert report.usable
    assert report.to_dict()["images"]["labeled"] == 1


def test_a_limit_takes_images_evenly_from_each_part(tmp_path):
    good(tmp_path, yaml=NAMED)
    report = check(tmp_path, limit=3)
    assert {part: len(ids) for part, ids in report.seen.parts.items()} == {
        "labeled": 3, "unlabeled": 3, "val": 3, "test": 0,
    }  # fmt: skip


def test_the_result_does_not_depend_on_the_number_of_threads(tmp_path):
    good(tmp_path)
    picture(2).save(tmp_path / "images/val/v_4.png")
    one, many = (check(tmp_path, workers=workers).to_dict() for workers in (1, 7))
    for report in (one, many):
        del report["seconds"], report["images_per_second"]
    assert one == many


@pytest.mark.parametrize("name", ["aerial_dubai", "facades", "clothing_weak", "camvid"])
def test_real_folders_are_usable(name, shared):
    report = check(shared / "data" / name, limit=20)
    assert report.usable
    assert all(finding.code in CODES for finding in report.findings)


def test_shares_of_a_real_folder_are_the_published_ones(shared):
    shares = [count.share for count in count_classes(check(shared / "data/aerial_dubai").seen)]
    assert shares == pytest.approx([0.1179, 0.4787, 0.0999, 0.0489, 0.2546], abs=5e-5)


def test_every_code_of_a_finding_is_described_once():
    assert all(entry.meaning and entry.cure for entry in CODES.values())
    assert len({entry.meaning for entry in CODES.values()}) == len(CODES)


def test_a_mask_that_is_absent_is_no_fact(tmp_path):
    good(tmp_path)
    assert look_at_mask(Folder(tmp_path), "images/train/im_9.png") is None


def test_classes_are_found_in_the_masks_without_reading_them_again(tmp_path, monkeypatch):
    good(tmp_path)
    expected = Folder(tmp_path).task.classes
    monkeypatch.setattr("halfmask.data.datasets.folder.read_stored", lambda path: pytest.fail(f"{path}: read again"))
    assert fingerprint(tmp_path).task.classes == expected
