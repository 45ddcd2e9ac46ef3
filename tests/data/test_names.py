"""Names of files and folders in every spelling: what belongs together is found, what is not read is listed."""

import json
import unicodedata
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from halfmask.data.check.check import check
from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.layouts import detect
from halfmask.data.folder.lists import Finder, ListEntry
from halfmask.data.folder.pairing import pair
from halfmask.errors import DataError
from halfmask.infer.predict.inputs import find_input
from tests.data.trees import image, mask

SIZE = (24, 24)


def tree(root: Path, images: str, masks: str, names: str = "{}", mask_names: str = "{}") -> Path:
    for number in range(4):
        image(root / images / f"{names.format(number)}.png", SIZE, seed=number)
        if number < 3:
            mask(root / masks / f"{mask_names.format(number)}.png", (0, 1, 2), SIZE)
    return root


@pytest.mark.parametrize("suffix", ["JPG", "jfif", "JPE", "jpeg", "TIFF", "BMP", "dib", "AVIF", "jp2", "tga", "WebP"])
def test_images_of_every_suffix_that_can_be_decoded_are_read(suffix: str, tmp_path: Path) -> None:
    tree(tmp_path, "images", "masks")
    with Image.open(tmp_path / "images/3.png") as opened:
        opened.save(tmp_path / f"images/4.{suffix}")
    (tmp_path / "images/5.heic").write_bytes(b"x")
    (tmp_path / "images/6.ico").write_bytes(b"x")
    report = check(tmp_path, workers=1)
    assert f"images/4.{suffix}" in report.seen.parts["unlabeled"]
    assert report.seen.images[f"images/4.{suffix}"].error is None
    (listed,) = (finding for finding in report.findings if finding.code == "H152")
    assert listed.files == ("images/5.heic", "images/6.ico")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_two_unicode_forms_are_one_name(form: str, tmp_path: Path) -> None:
    other = "NFD" if form == "NFC" else "NFC"
    tree(tmp_path, "images", "masks", *(unicodedata.normalize(one, "Straße é{}") for one in (form, other)))
    report = check(tmp_path, workers=1)
    assert len(report.seen.parts["labeled"]) == 3
    (note,) = (finding for finding in report.findings if finding.code == "H126")
    assert (note.level, note.count) == ("note", 3)
    data = Folder(tmp_path)
    written = ListEntry(unicodedata.normalize(other, "images/Straße é0.png"))
    assert Finder(data).take(written) == unicodedata.normalize(form, "images/Straße é0.png")
    with pytest.raises(DataError, match="the same stem up to the Unicode form"):
        pair([unicodedata.normalize(one, "é.png") for one in ("NFC", "NFD")], [])


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("Images", "Masks"),
        ("IMAGES", "labels"),
        ("image", "GT"),
        ("bilder", "masken"),
        ("photos", "drawn"),
        ("train/Images", "train/Masks"),
        ("Train/bilder", "Train/masken"),
        ("bilder/train", "masken/train"),
        ("Images/Train", "Masks/train"),
    ],
)
def test_folders_of_any_case_and_in_other_words_are_told(images: str, masks: str, tmp_path: Path) -> None:
    data = Folder(tree(tmp_path, images, masks))
    assert data.ids("train") == [f"{images}/{number}.png" for number in range(4)]
    assert data.ids("unlabeled") == []
    assert data.mask_path(f"{images}/1.png") == tmp_path / f"{masks}/1.png"
    assert data.mask_path(f"{images}/3.png") is None


def test_a_folder_of_previews_does_not_hide_the_masks(tmp_path: Path) -> None:
    tree(tmp_path / "a", "images", "segmented")
    tree(tmp_path / "b", "bilder", "masken")
    for root, name in (("a", "overlays"), ("b", "vorschau")):
        (tmp_path / root / name).mkdir()
        source = tmp_path / root / ("images" if root == "a" else "bilder")
        Image.open(source / "3.png").save(tmp_path / root / name / "3.png")  # not one for every mask
    assert Folder(tmp_path / "a").mask_path("images/1.png") == tmp_path / "a/segmented/1.png"
    assert Folder(tmp_path / "b").mask_path("bilder/1.png") == tmp_path / "b/masken/1.png"


def test_a_mask_of_two_images_that_differ_in_their_ending_is_refused() -> None:
    with pytest.raises(DataError, match=r"x_rgb\.png and x_img\.png are images that x\.png could belong to"):
        pair(["x_rgb.png", "x_img.png"], ["x.png"])
    assert pair(["x.png", "x_img.png"], ["x.png"]) == {"x.png": "x.png"}


def test_folders_of_images_alone_stay_unlabeled(tmp_path: Path) -> None:
    tree(tmp_path, "summer", "winter")
    for path in (tmp_path / "winter").iterdir():  # gray photographs: many values
        pixels = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    assert len(Folder(tmp_path).ids("unlabeled")) == 7


def test_names_pair_by_number_where_that_is_plain(tmp_path: Path) -> None:
    assert Folder(tree(tmp_path / "a", "images", "masks", "img_{:03}", "mask_{}")).mask_path("images/img_002.png") == (
        tmp_path / "a/masks/mask_2.png"
    )
    flat = Folder(tree(tmp_path / "b", ".", ".", "img_{:03}", "mask_{:03}"))
    assert (flat.ids("train")[1], flat.mask_path("img_001.png")) == ("img_001.png", tmp_path / "b/mask_001.png")
    assert pair(["1_a.png", "1_b.png"], ["m_1.png"]) == {}  # which of the two?
    assert pair(["img_0.png", "img_1.png"], ["mask_1.png", "mask_2.png"]) == {}  # counted from another number
    assert pair(["img_1.png", "photo_2.png"], ["mask_1.png"]) == {}  # two kinds of names


STYLES = [
    ("x{}_rgb.png", "x{}_segm.png"),
    ("x{}.jpg", "x{}_labels.png"),
    ("x{}.jpg", "x{}-gt.tif"),
    ("x{}.jpg", "gt_x{}.png"),
    ("x{}.jpg", "x{}.png"),
    ("x{}.jpg", "x{}.bmp"),
    ("x{}.JPG", "x{}.Maske.PNG"),
    ("x{}_sat.jpg", "x{}_mask.png"),
    ("{}.png", "{}_truth.png"),
    ("IMG-{}.png", "ANN-{}.png"),
    ("photo {}.png", "photo {} (classes).png"),
    ("x{}.png", "x{}_ids.npy"),
    ("case{}/photo.png", "case{}/drawn.png"),
    ("case{}_json/img.png", "case{}_json/label.png"),
    ("a/b/rgb/{}.png", "a/b/cls/{}.png"),
    ("train/x{}_rgb.png", "train/x{}_segm.png"),
]


def beside(root: Path, names: str, mask_names: str, colors: bool = False, masks: int = 3) -> Path:
    for number in range(4):
        image(root / names.format(number), SIZE, seed=number)
        path = root / mask_names.format(number)
        ids = np.resize(np.array([0, 1, 2], np.uint8), SIZE)
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < masks and path.suffix == ".npy":
            np.save(path, ids)
        elif number < masks:
            Image.fromarray(np.eye(3, dtype=np.uint8)[ids] * 200 if colors else ids).save(path)
    return root


@pytest.mark.parametrize(("names", "mask_names"), STYLES)
@pytest.mark.parametrize("colors", [False, True])
def test_masks_among_images_are_told_by_what_they_hold(
    names: str, mask_names: str, colors: bool, tmp_path: Path
) -> None:
    data = Folder(beside(tmp_path, names, mask_names, colors))
    assert data.ids("train") == sorted(names.format(number) for number in range(4))
    assert [data.find_mask(names.format(number)) for number in range(4)] == [
        *(tmp_path / mask_names.format(number) for number in range(3)),
        None,
    ]


def test_few_masks_among_many_images_are_found(tmp_path: Path) -> None:
    for number in range(60):
        image(tmp_path / f"x{number}_rgb.png", SIZE, seed=number)
    for number in (7, 43):
        mask(tmp_path / f"x{number}_segm.png", (0, 1, 2), SIZE)
    data = Folder(tmp_path)
    assert [id for id in data.ids("train") if data.mask_path(id)] == ["x43_rgb.png", "x7_rgb.png"]
    assert len(data.ids("train")) == 60


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["x{}_inst.png"], "x0_inst.png and x0_segm.png look like masks of x0_rgb.png"),
        (["x{}_mask.png", "x{}.png"], "look like masks of"),
    ],
)
def test_masks_among_images_that_fit_in_two_ways_are_refused(more: list[str], message: str, tmp_path: Path) -> None:
    beside(tmp_path, "x{}_rgb.png", "x{}_segm.png")
    for number in range(3):
        for name in more:
            if name == "x{}.png":
                image(tmp_path / name.format(number), SIZE, seed=100 + number)
            else:
                mask(tmp_path / name.format(number), (0, 1), SIZE)
    with pytest.raises(DataError, match=message) as caught:
        Folder(tmp_path)
    assert caught.value.code == "H208"
    assert "Move the masks into masks/" in str(caught.value)


def test_images_of_few_colors_alone_are_images(tmp_path: Path) -> None:
    for number in range(3):  # drawings in two styles
        mask(tmp_path / f"x{number}_day.png", (0, 255), SIZE)
        mask(tmp_path / f"x{number}_night.png", (0, 200), SIZE)
    assert len(Folder(tmp_path).ids("unlabeled")) == 6


PHOTOS = {
    "dates": ([f"site{n}_pre.png" for n in range(4)], ["site2_post.png"], 0),
    "dates, several black": ([f"site{n}_pre.png" for n in range(4)], ["site1_post.png", "site2_post.png"], 0),
    "dates, one of two values": ([f"site{n}_pre.png" for n in range(4)], ["site1_post.png", "site2_post.png"], 1),
    "suffix": ([f"x{n}.jpg" for n in range(4)], ["x2.png"], 0),
    "folder": ([f"before/{n}.png" for n in range(4)], ["after/2.png"], 0),
    "folder deep": ([f"a/b/before/{n}.png" for n in range(4)], ["a/b/after/2.png"], 0),
    "tiles": ([f"tile_r{r}_c{c}.png" for r in range(3) for c in range(5)], ["tile_r1_c5.png"], 1),
    "tiles of one rim": (
        [f"tile_r{r}_c{c}.png" for r in range(5) for c in range(5)], ["tile_r1_c5.png", "tile_r3_c5.png"], 2,
    ),
    "frames": ([f"clip_f{n:03}.png" for n in range(1, 6)], ["clip_f000.png"], 0),
    "frames of clips": (
        [f"clip{c}_f{n:03}.png" for c in "abc" for n in range(1, 4)], [f"clip{c}_f000.png" for c in "abc"], 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PHOTOS)
def test_a_few_black_photographs_are_no_masks(kind: str, tmp_path: Path) -> None:
    photos, black, drawn = PHOTOS[kind]  # `drawn` of the black ones hold a second value
    for number, name in enumerate(photos):
        image(tmp_path / name, SIZE, seed=number)
    for number, name in enumerate(black):
        mask(tmp_path / name, (0, 1) if number < drawn else (0,), SIZE)
    assert detect(tmp_path).name == "plain"
    assert Folder(tmp_path).ids("unlabeled") == sorted(photos + black)
    found = find_input(tmp_path, tmp_path / "out")
    assert len(found.images) == len(photos + black)
    assert found.left_out == {}
    if drawn == 1:
        told = [finding for finding in check(tmp_path).findings if finding.code == "H118"]
        assert [finding.files for finding in told] == [(black[0],)]


@pytest.mark.parametrize(
    ("names", "masks"),
    [
        ("x{}_segments.png", {0: (0, 1), 1: (0,), 2: (1, 2)}),
        ("x{}_segments.png", {number: (0, 1) if number in (13, 17) else (0,) for number in range(20)}),
        ("x{}_mask.png", {2: (0,)}),
        ("gt_x{}_rgb.png", {2: (0,)}),
        ("x{}_label.png", {2: (0, 1)}),
    ],
)
def test_blank_masks_are_masks_by_their_word_or_by_others_of_their_ending(
    names: str, masks: dict[int, tuple[int, ...]], tmp_path: Path
) -> None:
    images = [f"x{number}_rgb.png" for number in range(max(4, len(masks)))]
    for number, name in enumerate(images):
        image(tmp_path / name, SIZE, seed=number)
    Image.new("RGB", SIZE).save(tmp_path / "x1_rgb.png")  # a black photograph beside a blank mask
    for number, ids in masks.items():
        mask(tmp_path / names.format(number), ids, SIZE)
    expected = {f"x{number}_rgb.png": names.format(number) for number in masks}
    assert detect(tmp_path).masks == expected
    found = find_input(tmp_path, tmp_path / "out")
    assert {path.name for _, path, _ in found.images} == set(images)
    assert {path.name for path in found.left_out["masks"]} == set(expected.values())


@pytest.mark.parametrize(("folder", "drawn"), [("drawn", {17}), ("masks", set())])
def test_a_folder_of_blank_masks_is_told_by_its_name_or_by_one_that_is_not(
    folder: str, drawn: set[int], tmp_path: Path
) -> None:
    for number in range(20):
        image(tmp_path / f"photos/{number}.png", SIZE, seed=number)
        mask(tmp_path / f"{folder}/{number}.png", (0, 1) if number in drawn else (0,), SIZE)
    assert len(detect(tmp_path).masks) == 20


def test_masks_beside_their_images_belong_to_the_part_of_their_folder(tmp_path: Path) -> None:
    for part, names in (("train", "{}.jpg"), ("val", "{}.jpg")):
        beside(tmp_path / part, names, "{}_mask.png")
    data = Folder(tmp_path)
    assert data.ids("train") == [f"train/{n}.jpg" for n in range(4)]
    assert data.ids("val") == [f"val/{n}.jpg" for n in range(4)]


def export_of(tool: str, names: list[str], label: str, root: Path) -> None:
    """Write annotations of a whole tool, or labelme files: the left half of each image has a label."""
    height, width = SIZE
    half = [[0, 0], [width // 2, 0], [width // 2, height], [0, height]]
    numbered = list(enumerate(names))
    if tool == "coco":
        content: object = {
            "images": [{"id": n, "file_name": f"é/{x}", "height": height, "width": width} for n, x in numbered],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1, "iscrowd": 0, "segmentation": [np.ravel(half).tolist()]}
                for n, _ in numbered
            ],
            "categories": [{"id": 1, "name": label}],
        }  # fmt: skip
        (root / "instances.json").write_text(json.dumps(content))
        return
    if tool == "label studio":
        value = {"points": [[100 * x / width, 100 * y / height] for x, y in half], "polygonlabels": [label]}
        region = {
            "type": "polygonlabels", "value": value, "original_width": width, "original_height": height,
            "from_name": "a", "to_name": "b", "id": "r",
        }  # fmt: skip
        tasks = [
            {"id": n, "data": {"image": f"/data/upload/1/{quote(name)}"}, "annotations": [{"result": [region]}]}
            for n, name in numbered
        ]
        (root / "export.json").write_text(json.dumps(tasks))
        return
    for name in names:
        shape = {"label": label, "points": half, "shape_type": "polygon"}
        content = {"shapes": [shape], "imagePath": name, "imageHeight": height, "imageWidth": width}
        (root / "é" / name).with_suffix(".json").write_text(json.dumps(content))


@pytest.mark.parametrize("tool", ["coco", "label studio", "labelme"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_annotation_files_pair_in_two_unicode_forms(tool: str, form: str, tmp_path: Path) -> None:
    other = "NFD" if form == "NFC" else "NFC"
    (tmp_path / "halfmask.yaml").write_text(
        unicodedata.normalize(form, "classes: [background, Wände]\n"), encoding="utf-8"
    )
    for number in range(3):
        image(tmp_path / unicodedata.normalize(form, f"é/ä{number}.png"), SIZE, seed=number)
    if tool == "labelme":  # in one folder, however its name is written
        (tmp_path / "é").mkdir(exist_ok=True)
    names = [unicodedata.normalize(other, f"ä{number}.png") for number in range(4)]
    export_of(tool, names, unicodedata.normalize(other, "Wände"), tmp_path)
    report = check(tmp_path, workers=1)
    assert report.seen.task is not None
    assert report.seen.task.classes == ("background", unicodedata.normalize("NFC", "Wände"))
    assert len(report.seen.parts["labeled"]) == 3
    area = SIZE[0] * SIZE[1] // 2
    assert [facts.values for facts in report.seen.masks.values()] == [{0: area, 1: area}] * 3
    (lost,) = (finding for finding in report.findings if finding.code in {"H166", "H110"})
    assert (lost.level, lost.count) == ("warning", 1)
    assert unicodedata.normalize("NFC", "ä3") in unicodedata.normalize("NFC", lost.files[0])
