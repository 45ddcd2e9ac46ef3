"""Classes of one's own folder: from masks, class files and halfmask.yaml; what cannot be meant is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.class_lines import read_class_file
from halfmask.data.folder.lists import read_list
from halfmask.data.folder.masks import decode as masks
from halfmask.errors import DataError
from tests.data import trees
from tests.data.trees import describe, mask


def test_classes_are_counted_in_the_masks_when_nobody_names_them(tmp_path: Path) -> None:
    data = Folder(trees.folder(tmp_path, values=(0, 1, 3, 255)))
    assert data.task.classes == ("class_0", "class_1", "class_2", "class_3")


def test_masks_of_0_and_255_are_refused_with_both_cures(tmp_path: Path) -> None:
    trees.folder(tmp_path, values=(0, 255))
    for text in ("", "classes: [background, crack]"):
        with pytest.raises(DataError, match=r"binary: true.*map: \{255: 255\}") as caught:
            _ = (data := Folder(describe(tmp_path, text))).task, data.read_target("images/im_0.png")
        assert caught.value.code == "H204"
    describe(tmp_path, "binary: true")
    assert Folder(tmp_path).read_target("images/im_0.png").ravel()[:2].tolist() == [0, 1]
    describe(tmp_path, "{classes: [background, crack], map: {255: 255}}")
    assert Folder(tmp_path).read_target("images/im_0.png").ravel()[:2].tolist() == [0, 255]
    assert Folder(tmp_path, binary=True, map={}).task.classes == ("background", "crack")


def test_0_and_255_in_some_masks_of_a_two_class_folder_mean_ignore(tmp_path: Path) -> None:
    trees.folder(tmp_path, values=(0, 255))
    mask(tmp_path / "masks/im_2_mask.png", (0, 1, 255))
    data = Folder(describe(tmp_path, "classes: [background, crack]"))
    assert data.read_target("images/im_0.png").ravel()[:2].tolist() == [0, 255]


def test_ids_from_one_are_refused_and_mended_by_map_or_numbered_names(tmp_path: Path) -> None:
    trees.folder(tmp_path, values=(1, 2))
    with pytest.raises(DataError, match=r"map: \{1: 0, 2: 1\}") as caught:
        _ = Folder(tmp_path).task
    assert caught.value.code == "H205"
    data = Folder(describe(tmp_path, "classes: [soil, weed]"))
    with pytest.raises(DataError, match="start at 1"):
        data.read_target("images/im_0.png")
    for text in ("{classes: [soil, weed], map: {1: 0, 2: 1}}", "classes: {1: soil, 2: weed}"):
        data = Folder(describe(tmp_path, text))
        assert data.task.classes == ("soil", "weed")
        assert data.read_target("images/im_0.png").ravel()[:2].tolist() == [0, 1]


def test_the_table_for_many_ids_from_one_is_complete_and_mends_them(tmp_path: Path) -> None:
    trees.folder(tmp_path, values=range(1, 8))
    with pytest.raises(DataError, match=r"map: \{.*7: 6\}") as caught:
        _ = Folder(tmp_path).task
    table = str(caught.value).partition("`")[2].partition("`")[0]
    assert "..." not in table
    data = Folder(describe(tmp_path, f"{{classes: [a, b, c, d, e, f, g], {table}}}"))
    assert data.read_target("images/im_0.png").ravel()[:7].tolist() == list(range(7))


def test_masks_of_ignored_pixels_only_are_said_to_label_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"every pixel of the masks is ignored: 255.*map: \{255: 1\}") as caught:
        _ = Folder(trees.folder(tmp_path, values=(255,))).task
    assert "single class" not in str(caught.value)
    data = Folder(describe(tmp_path, "{classes: {0: background, 1: crack}, map: {255: 1}}"))
    assert set(np.unique(data.read_target("images/im_0.png"))) == {1}


@pytest.mark.parametrize(("ignored", "classes"), [(0, "class_1 class_2"), (1, "class_0 class_2")])
def test_any_id_may_be_the_ignored_one(ignored: int, classes: str, tmp_path: Path) -> None:
    describe(trees.folder(tmp_path, values=(0, 1, 2)), f"ignore_index: {ignored}")
    data = Folder(tmp_path)
    assert data.task.classes == tuple(classes.split())
    expected = [255 if id == ignored else [i for i in (0, 1, 2) if i != ignored].index(id) for id in (0, 1, 2)]
    assert data.read_target("images/im_0.png").ravel()[:3].tolist() == expected


def test_values_that_are_no_numbering_are_refused(tmp_path: Path) -> None:
    trees.folder(tmp_path, values=(0, 85, 170))
    with pytest.raises(DataError, match=r"85 \(\d+ px\).*classes: \{ID: NAME"):
        _ = Folder(tmp_path).task
    data = Folder(describe(tmp_path, "classes: {0: a, 85: b, 170: c}"))
    assert data.read_target("images/im_0.png").ravel()[:3].tolist() == [0, 1, 2]


def test_a_single_value_is_no_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="single class"):
        _ = Folder(trees.folder(tmp_path, values=(0,))).task


def test_classes_txt_names_classes_and_colors(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    (tmp_path / "classes.txt").write_text("0\tsky\t1,2,3\n1\troad\t4,5,6\n2\ttree\t7,8,9\n255\tvoid\t0,0,0\n")
    task = Folder(tmp_path).task
    assert (task.classes, task.palette) == (("sky", "road", "tree"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    (tmp_path / "classes.txt").write_text("sky\nroad\ntree\n")
    assert Folder(tmp_path).task.classes == ("sky", "road", "tree")


@pytest.mark.parametrize(
    ("text", "names", "colors"),
    [
        ("0: bg\n1: road\n2: tree\n", {0: "bg", 1: "road", 2: "tree"}, {}),
        ("2: tree\n0: bg\n1: road\n", {0: "bg", 1: "road", 2: "tree"}, {}),
        ("1 = bg\n2 = road\n", {1: "bg", 2: "road"}, {}),
        ("1 bg\n2 paved road\n", {1: "bg", 2: "paved road"}, {}),
        ("2 doors\n4 doors\n", {0: "2 doors", 1: "4 doors"}, {}),
        ("bg: 0\nroad: 7\n", {0: "bg", 7: "road"}, {}),
        ("bg,1\nroad,0\n", {1: "bg", 0: "road"}, {}),
        ("0: bg: 1,2,3\n1: road\n", {0: "bg", 1: "road"}, {0: "1,2,3"}),
        ("# label:color_rgb\nbg:0,0,0::\nroad:250,5,3::\n", {0: "bg", 1: "road"}, {0: "0,0,0", 1: "250,5,3"}),
    ],
)
def test_class_files_are_read_in_every_form(
    text: str, names: dict[int, str], colors: dict[int, str], tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text(text)
    found = read_class_file(tmp_path)
    assert found is not None
    assert (found.names, found.colors) == (names, colors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: bg\n1: road\n0: tree\n", r"classes\.txt: the id 0 stands in line 1 and in line 3"),
        ("0: bg\nroad\n", r"classes\.txt: line 1 starts with an id, line 2 does not"),
        ("bg\nvehicle:car\n", r"classes\.txt: line 2: 'car' is no color"),
        ("bg:0,0,300\n", "line 1: '0,0,300' is no color"),
        ("bg\nroad\nbg\n", r"classes\.txt, halfmask.yaml .*0, 2 are all called bg"),
    ],
)
def test_class_files_that_contradict_themselves_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    trees.folder(tmp_path)
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=re.compile(message, re.DOTALL)) as caught:
        Folder(tmp_path)
    assert caught.value.code == "H209"


@pytest.mark.parametrize(("name", "code"), [("classes.txt", "H209"), ("halfmask.yaml", "H209"), ("list.txt", "H211")])
@pytest.mark.parametrize(("encoding", "cure"), [("latin1", "byte 0xdf in line 2.*-f latin1"), ("utf-16", "-f utf-16")])
def test_text_that_is_not_utf8_is_refused_with_the_command_that_mends_it(
    name: str, code: str, encoding: str, cure: str, tmp_path: Path
) -> None:
    trees.folder(tmp_path, values=(0, 1))
    text = {"halfmask.yaml": "classes:\n  [grün, Straße]\n", "list.txt": "images/im_0.png\nimages/Straße.png\n"}
    (tmp_path / name).write_text(text.get(name, "Gras\nStraße\n"), encoding=encoding)
    cure = cure.replace("0xdf", "0xfc") if name == "halfmask.yaml" else cure
    with pytest.raises(DataError, match=f"{name}: .*UTF-.*{cure}.*{name}") as caught:
        _ = read_list(tmp_path / name) if name == "list.txt" else Folder(tmp_path).task
    assert caught.value.code == code


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    trees.folder(tmp_path, values=(0, 1))
    (tmp_path / "classes.txt").write_text("Gras\r\nStraße\r\n", encoding="utf-8-sig")
    assert Folder(tmp_path).task.classes == ("Gras", "Straße")


def test_wrong_colors_in_a_distributed_table_are_found(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=0)
    path = tmp_path / "masks/im_0.png"
    path.parent.mkdir()
    colors = np.resize(np.array([[226, 169, 41], [60, 16, 152]], dtype=np.uint8), (trees.H, trees.W, 3))
    Image.fromarray(colors).save(path)
    describe(tmp_path, '{classes: [water, building], palette: {0: "#50E3C2", 1: "#3C1098", 255: "#9B9B9B"}}')
    with pytest.raises(DataError, match=r"50\.0% .*226,169,41 \(24 px\)"):
        Folder(tmp_path).read_target("images/im_0.png")
    data = Folder(tmp_path, palette={0: "#E2A929", 1: "#3C1098"})
    assert data.read_target("images/im_0.png").ravel()[:2].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clases: [a, b]", r"`clases` is not known\. Did you mean `classes`\?"),
        ("{classes: [a, b], ignore_index: 1}", "both a class and `ignore_index`"),
        ("{classes: [a, b, c], binary: true}", "exactly the classes 0 and 1"),
        ("{classes: [a, b], map: {3: 7}}", r"leads to \[7\]"),
        ("{classes: [a, b], foreground: [c]}", "names c, which are no classes"),
        ("{classes: [a, b], foreground: [false, true]}", r"ids of classes, not true or false.*perhaps \[1\]"),
        ("range: [5, 5]", "must increase"),
        ("range: [0, .inf]", "finite numbers"),
        ("range: [.nan, 1]", "finite numbers"),
        ("range: [0, 1.0e+300]", "finite numbers"),
        ("std: [0.2, 0, 0.2]", r"`std: \[0.2, 0, 0.2\]` must be finite numbers above 0"),
        ("std: [.inf, 1, 1]", "above 0"),
        ("std: [1.0e-300, 1, 1]", "above 0"),
        ("mean: [.nan, 0, 0]", "`mean"),
        ("mean: [123.7, 116.3, 103.5]", "divide by 255"),
        ("nodata: .inf", "`nodata`"),
        ("{classes: {0: a, 1: b, 1: c}}", "the key 1 is given twice"),
        ('{classes: {0: a, 1: b, "1": c}}', "gives the id 1 twice"),
        ("{classes: [a, b], map: {3: 1, 3: 0}}", "the key 3 is given twice"),
        ("{classes: {0: a, 1: b, 2: a}}", r"0, 2 are all called a; names must differ.*`map: \{2: 0\}`"),
        ("{classes: [a, 'a ']}", "names must differ"),
        ("{classes: [é, e\u0301]}", "names must differ"),
        ("{classes: [a, '']}", "1 has no name"),
        ("mean: [0.5]", "1 numbers, the images 3 bands"),
        ("classes: [a", "not valid YAML"),
        ("just text", "expected keys"),
    ],
)
def test_contradictions_in_the_description_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Folder(describe(trees.folder(tmp_path), text))
    assert caught.value.code == "H209"


def test_description_reaches_task_and_normalization(tmp_path: Path) -> None:
    describe(
        trees.folder(tmp_path, values=(0, 1, 9)),
        "{classes: [a, b], ignore_index: 9, foreground: [b], mean: [0.1, 0.2, 0.3], std: [1, 1, 1], "
        'palette: {0: "#000000", 1: [255, 0, 0]}}',
    )
    data = Folder(tmp_path)
    assert data.task.foreground == (False, True)
    assert data.task.palette == ((0, 0, 0), (255, 0, 0))
    assert data.mean == (0.1, 0.2, 0.3)
    assert data.read_target("images/im_0.png").ravel()[:3].tolist() == [0, 1, 255]


def test_pixels_without_data_are_black_and_ignored(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=1, unlabeled=0, values=(0, 1))
    pixels = np.full((trees.H, trees.W, 3), 9, dtype=np.uint8)
    pixels[0, 0] = 77
    Image.fromarray(pixels).save(tmp_path / "images/im_0.png")
    data = Folder(describe(tmp_path, "nodata: 77"))
    assert data.read_image("images/im_0.png")[0, :2, 0].tolist() == [0, 9]
    assert data.read_target("images/im_0.png")[0, :2].tolist() == [255, 1]


def test_sealed_masks_are_not_opened_to_find_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.folder(tmp_path, labeled=2, unlabeled=0)
    mask(tmp_path / "masks/im_1_mask.png", (0, 1, 2, 3, 4))
    opened: list[str] = []
    real = masks.read_stored

    def spy(path: Path) -> masks.Stored:
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr("halfmask.data.datasets.folder.read_stored", spy)
    data = Folder(tmp_path)
    data.sealed = frozenset({"images/im_1.png"})
    assert data.task.n_classes == 3
    assert opened == ["im_0_mask.png"]
