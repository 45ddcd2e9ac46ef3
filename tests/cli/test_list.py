"""`halfmask list`: what there is, with its parameters, papers and published scores."""

import inspect
import json
import re

import pytest

from halfmask.cli.listing import describe_entry
from halfmask.plugins import names, resolve
from tests.cli.test_cli import run


@pytest.mark.parametrize("kind", ["methods", "encoders", "decoders", "datasets"])
def test_list_names_every_plugin_with_a_summary(kind):
    rows = json.loads(run("list", kind, "--json").stdout)
    assert [row["name"] for row in rows] == names(kind)
    assert all(row["summary"] for row in rows)
    assert all(row["name"] in run("list", kind).stdout for row in rows)


@pytest.mark.parametrize("kind", ["methods", "encoders", "decoders", "datasets"])
def test_every_listed_thing_documents_each_of_its_parameters(kind):
    for name in names(kind):
        entry = json.loads(run("list", kind, name, "--json").stdout)
        signature = inspect.signature(resolve(kind, name)).parameters.values()
        expected = [parameter.name for parameter in signature if parameter.kind is parameter.KEYWORD_ONLY]
        shown = [parameter["name"] for parameter in entry["parameters"]]
        assert [one for one in shown if "." not in one] == expected  # `loss.threshold` is of a section
        undocumented = [parameter["name"] for parameter in entry["parameters"] if not parameter["meaning"]]
        assert undocumented == [], f"{name}: Args: section misses {undocumented}"


def test_a_parameter_is_shown_with_type_range_default_and_meaning():
    text = run("list", "methods", "fixmatch").stdout
    assert "threshold: float in [0, 1], default 0.95" in text
    assert "confidence a hard label needs" in text


def test_methods_are_listed_with_paper_and_year_and_shown_with_their_networks():
    papers = {row["name"]: row["paper"] for row in json.loads(run("list", "methods", "--json").stdout)}
    assert [name for name, paper in papers.items() if not re.search(r" (19|20)\d\d(, arXiv:\d+\.\d+)?$", paper)] == [
        "supervised"  # which is nobody's
    ]
    assert "[Yang et al., TPAMI 2025, arXiv:2410.10777]" in run("list", "methods").stdout
    shown = run("list", "methods", "unimatch_v2").stdout
    assert "paper: Yang et al., TPAMI 2025, arXiv:2410.10777" in shown
    assert "networks: 1 + 1 averaged; images through an encoder per step and image, with gradient + without: " in shown
    assert "status: implemented; tasks: change," in shown


def test_the_long_list_says_of_each_method_what_it_takes_and_what_its_papers_reach():
    shown = run("list", "methods", "--long", "--json")
    assert shown.exit_code == 0, shown.stderr
    by_name = {row["name"]: row for row in json.loads(shown.stdout)}
    assert [*by_name] == names("methods")
    rows = [by_name["cps"], by_name["supervised"]]
    assert (rows[0]["networks"], rows[0]["passes"], rows[0]["status"]) == ("2", "4 + 4", "implemented")
    assert rows[0]["needs"] == ["two batches of unlabeled images"]
    scores = {recipe["name"]: recipe["published"] for recipe in rows[0]["recipes"]}
    assert scores["cps/pascal"]["92"] == 0.6407
    text = run("list", "methods", "cps").stdout
    assert "needs: two batches of unlabeled images" in text
    assert "cps/pascal (resnet): Published mIoU: 64.07 (92), 67.42 (183)" in text
    refused = run("list", "encoders", "--long")
    assert refused.exit_code == 2
    assert "halfmask list methods --long" in refused.stderr


@pytest.mark.parametrize(
    ("name", "networks", "passes", "needs"),
    [
        ("supervised", "1", "1 + 0", ["no unlabeled images"]),
        ("fixmatch", "1 + 1 averaged", "2 + 1", []),  # x_l and the strong view; the weak one by the teacher
        ("unimatch", "1", "4 + 1", []),  # x_l, two strong views, the weak view with channels dropped
        ("cps", "2", "4 + 4", ["two batches of unlabeled images"]),  # both networks: x_l, the mixture; two draws
        ("st_plus_plus", "1", "2 + 0", ["3 trainings in a row"]),
    ],
)
def test_what_a_method_takes_is_counted(name, networks, passes, needs):
    entry = describe_entry("methods", name)
    assert (entry["networks"], entry["passes"]) == (networks, passes)
    assert set(needs) <= set(entry["needs"])


def test_a_method_that_needs_parameters_is_shown_without_networks_and_a_bug_in_one_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "own_methods.py").write_text(
        "from halfmask.methods.supervised import Supervised\n"
        "class Needy(Supervised):\n"
        "    def __init__(self, task, build, *, threshold: float):\n        super().__init__(task, build)\n"
        "class Broken(Supervised):\n"
        "    def __init__(self, task, build):\n        super().__init__(task, build, 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert describe_entry("methods", "own_methods:Needy")["networks"] == ""
    with pytest.raises(TypeError, match="positional"):
        describe_entry("methods", "own_methods:Broken")


def test_recipes_are_listed_with_their_published_scores():
    rows = {row["name"]: row for row in json.loads(run("list", "recipes", "--json").stdout)}
    v2 = rows["unimatch_v2/pascal"]
    assert (v2["method"], v2["dataset"], v2["encoder"]) == ("unimatch_v2", "pascal", "dinov2")
    assert v2["published"]["183"] == 0.855
    assert rows["fixmatch/folder"]["published"] == rows["fixmatch/folder"]["confidence"] == {}
    assert rows["cct/pascal"]["confidence"] == {"1464": "high", "1000": "medium"}
    assert v2["confidence"] == {}
    assert rows["multi_domain/cityscapes_camvid"]["dataset"] == "cityscapes, camvid"
    text = run("list", "recipes").stdout
    assert "Published mIoU: 79.03 (92), 85.5 (183)," in text
    assert "Published mIoU: 69.4 (1464), 64 (1000, unverified)." in text
    assert "Published accuracy: 95.55." in text


def test_list_shows_the_text_of_a_recipe():
    assert "name: fixmatch" in run("list", "recipes", "fixmatch/folder").stdout
    wrong = run("list", "recipes", "fixmatch/foldre")
    assert wrong.exit_code == 2
    assert "fixmatch/folder" in wrong.stderr


def test_list_suggests_near_names():
    result = run("list", "methods", "fixmach")
    assert result.exit_code == 2
    assert "Did you mean `fixmatch`" in result.stderr


def test_list_recipes_takes_a_part_of_names():
    listed = [line.split()[0] for line in run("list", "recipes", "cityscapes_base").stdout.splitlines()]
    assert {"unimatch_v2/cityscapes_base", "supervised/cityscapes_base"} <= set(listed)
    assert all("cityscapes_base" in name for name in listed)
    assert run("list", "recipes", "cct/pascal").stdout.startswith("#")  # one of that name: its text
    assert "there is no shipped recipe 'pasqual'" in run("list", "recipes", "pasqual").stderr
