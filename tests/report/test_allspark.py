"""AllSpark's figures show what is in the checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch

import halfmask.report
from halfmask.report.evidence import Wishes, load_method, open_images
from halfmask.report.make import report
from halfmask.report.material import chapter_of
from halfmask.report.of_method.allspark import allspark_figures
from halfmask.report.records import read_run
from halfmask.run.fit import fit
from tests.report.conftest import QUICK
from tests.report.pages import assert_offline, read
from tests.run import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def figures(allspark):
    run = read_run(allspark)
    return allspark_figures(run, open_images(run, Wishes(workers=0)))


@torch.no_grad()
def test_channels_are_those_of_the_networks_own_forward(figures, allspark):
    method, _ = load_method(read_run(allspark), CPU)
    one = figures.channels[0]
    image = torch.from_numpy(one.image).permute(2, 0, 1)[None].float() / 255
    last = method.student.encode(image)[-1]
    assert np.array_equal(one.before, last[0, list(one.numbers)].numpy())
    after = method.student.bottleneck(last, method.memory.slots)[0]
    assert np.allclose(one.after, after[list(one.numbers)].numpy(), atol=1e-6)
    assert figures.uses_memory
    varying = last[0].flatten(1).std(1)
    assert varying[list(one.numbers)].mean() > varying.mean()
    assert all(0 <= value <= 1 for value in one.likeness)


def test_every_channel_goes_to_one_class(figures):
    grouping = figures.grouping
    assert grouping.chosen.sum() == pytest.approx(grouping.channels)
    assert grouping.share.sum() == pytest.approx(1)
    assert [chosen.sum() for _, _, chosen, _ in grouping.examples] == [grouping.channels] * len(grouping.examples)


def test_slots_stand_beside_the_image_they_came_from(figures, allspark):
    run = read_run(allspark)
    method, _ = load_method(run, CPU)
    listed = run.split["unlabeled"]["ids"]
    filled = run.family("memory/filled")
    shown = 0
    for slots in figures.slots:
        k = run.classes.index(slots.name)
        assert slots.filled == pytest.approx(filled[slots.name][-1][1], abs=1e-6)
        for values, (id, picture) in zip(slots.maps, slots.sources, strict=True):
            where = (method.memory.slots[k] == torch.from_numpy(values.reshape(-1))).all(1)
            assert listed[int(method.memory.origin[k][where][0])] == id
            assert picture.shape[2] == 3
            shown += 1
    assert shown > 0


def test_the_page_has_a_chapter_of_its_own(allspark):
    page = read(report(allspark, quiet=True).page)
    assert_offline(page, allspark)
    text = page.chapter("allspark")
    for title in ("Channels before and after", "Channels chosen per class", "Fill of the memory", "Slots beside"):
        assert title in text
    assert "Slots that hold a channel" in text  # three classes: lines


def test_without_memory_or_checkpoint_a_sentence_stands_instead(shapes, tmp_path):
    recipe = tiny.recipe(shapes, *QUICK, "data.crop=64", method="allspark", keys="batch")
    fit(recipe, tmp_path / "run", quiet=True)
    text = read(report(tmp_path / "run", quiet=True).page).chapter("allspark")
    assert "Channels chosen per class" in text
    assert "recorded no fill" in text
    assert "Slots beside" not in text
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    page = read(report(tmp_path / "run", quiet=True).page)
    assert_offline(page, tmp_path / "run")
    assert "need the last checkpoint" in page.chapter("allspark")


def test_other_methods_have_no_such_chapter(fix):
    assert 'id="allspark"' not in report(fix, quiet=True).page.read_text()


def test_a_chapter_is_found_by_the_name_of_its_method():
    assert chapter_of("allspark").TITLE.startswith("AllSpark")
    assert chapter_of("fixmatch") is None
    assert chapter_of("my.module:AllSpark") is None


def test_no_other_part_of_a_report_names_the_method():
    folder = Path(halfmask.report.__file__).parent
    files = [path for path in folder.rglob("*.*") if path.suffix in {".py", ".html"}]
    assert len(files) > 20
    naming = {path for path in files if "allspark" in path.read_text().lower()}
    assert naming == {folder / "of_method" / "allspark.py"}
